"""Jobs, conversions and merges compare their size with the free space of a real, small disk before they begin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.job.resources.job_projection import expected_bytes
from headatlas.store.store import open_store
from headatlas.store.writing.verification import verify_store


@pytest.fixture
def on_small_disk(tmp_path: Path):
    """Function that runs ``headatlas`` with a disk of some kilobytes mounted on the folder that it receives."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs user namespaces")
    disk = tmp_path / "disk"
    disk.mkdir()

    def run(size_kb: int, *arguments: str, then: str = "true") -> tuple[int, str]:
        script = f'mount -t tmpfs -o size={size_kb}k none "$0" && {{ "$@"; code=$?; {then}; exit $code; }}'
        command = [
            "unshare",
            "-rm",
            "sh",
            "-c",
            script,
            str(disk),
            sys.executable,
            "-m",
            "headatlas.store.commands.main",
        ]
        result = subprocess.run(
            [*command, *(text.replace("DISK", str(disk)) for text in arguments)],
            capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return result.returncode, result.stdout + result.stderr

    return run


@pytest.fixture
def stored(tiny_job) -> Path:
    run_job(parse_config(tiny_job))
    return Path(tiny_job["store"]["path"])


@pytest.mark.parametrize("command", ["convert", "convert recoded", "merge"])
def test_a_copy_needs_room(command: str, stored: Path, tiny_job, tmp_path: Path, on_small_disk) -> None:
    arguments = ["convert", str(stored), "DISK/out"]
    if command == "convert recoded":
        arguments += ["--codec", "linear:16"]
    if command == "merge":
        other = tmp_path / "other.txt"
        other.write_text("the cat\nthe dog\n")
        run_job(
            parse_config(
                tiny_job | {"corpus": {"kind": "text", "path": str(other)}, "store": {"path": str(tmp_path / "b")}}
            )
        )
        arguments = ["merge", str(stored), str(tmp_path / "b"), "--append", "--out", "DISK/out"]
    size_kb = open_store(stored).bytes_on_disk >> 10
    code, output = on_small_disk(size_kb // 8, *arguments)
    assert (code, "needs about" in output, "--ignore-space" in output) == (2, True, True), output
    code, output = on_small_disk(size_kb // 8, *arguments, "--ignore-space")
    assert code != 0
    assert "No space left" in output
    assert on_small_disk(64 * size_kb, *arguments)[0] == 0


def test_a_job_needs_room(tiny_job, tiny_folder: Path, tmp_path: Path, on_small_disk) -> None:
    (tmp_path / "job.toml").write_text(
        f'[model]\nsource = "{tiny_folder}"\n[corpus]\nkind = "text"\npath = "{tiny_job["corpus"]["path"]}"\n'
    )
    arguments = ["run", str(tmp_path / "job.toml"), "--out", "DISK/out", "--quiet"]
    code, output = on_small_disk(60, *arguments)
    assert (code, "needs about" in output, "--ignore-space" in output) == (2, True, True), output
    code, output = on_small_disk(60, *arguments, "--ignore-space")
    assert (code, "No space left" in output) == (2, True), output
    assert on_small_disk(20_000, *arguments)[0] == 0


def test_the_expected_size_is_near_the_real_one(tiny_job) -> None:
    job = prepare_job(parse_config(tiny_job))
    run_job(parse_config(tiny_job))
    store = open_store(tiny_job["store"]["path"])
    stored = sum(
        segment.reader.stored_bytes(path) for segment in store.segments for path in segment.layouts if path.startswith("encoder/")
    )  # fmt: skip
    assert 0.4 < expected_bytes(job.spec, job.n_tokens, job.segments) / stored < 2.5
    assert verify_store(store.path, full=True).is_sound


def test_without_a_thread_nothing_is_computed(tiny_job) -> None:
    script = """
import json, sys
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import execute_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.progress import BatchDone
from headatlas.store.errors import BudgetError
import os, resource
job = prepare_job(parse_config(json.loads(sys.argv[1])))
os.setuid(54321)  # limits of processes do not hold for root
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
events = []
try:
    execute_job(job, events.append)
except BudgetError as error:
    print(error, sum(isinstance(event, BatchDone) for event in events))
"""
    if os.getuid() != 0:
        pytest.skip("taking threads away needs another user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        job = tiny_job | {"store": {"path": f"{folder}/store"}}
        result = subprocess.run(
            [sys.executable, "-c", script, json.dumps(job)], capture_output=True, text=True, check=False
        )
    assert "no thread can be started to write segments" in result.stdout, result.stderr[-500:]
    assert result.stdout.split()[-1] == "0"
