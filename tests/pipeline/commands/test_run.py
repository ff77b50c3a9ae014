"""The commands run and plan, and their output."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from headatlas.pipeline import progress
from headatlas.pipeline.commands.run import app
from headatlas.pipeline.progress import (
    BatchDone,
    ExampleSkipped,
    JobDone,
    JobStarted,
    LogLines,
    SegmentDone,
    SegmentRestarted,
)
from headatlas.store.errors import ConfigError
from headatlas.store.schema.omissions import Omission


@pytest.fixture
def job_file(tiny_job, tmp_path):
    lines = []
    for section, settings in tiny_job.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    path = tmp_path / "job.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_run(job_file, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["run", str(job_file), "--out", str(out), "--max-examples", "10", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["n_examples"] == 10
    assert report["n_segments"] == 2
    assert report["store"] == str(out)
    assert (out / "segments" / "000001").is_dir()
    assert "self-check passed" in result.stderr
    assert "done: 10 examples" in result.stderr


def test_plan_writes_nothing(job_file, tmp_path):
    result = CliRunner().invoke(app, ["plan", str(job_file), "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["n_examples"] == 40
    assert plan["n_segments"] == 5
    assert {array["path"] for array in plan["arrays"]} >= {
        "encoder/attention",
        "encoder/query",
        "encoder/edge_key",
        "encoder/statistics",
    }
    assert plan["time_s"] > 0
    assert plan["peak_bytes"] == sum(plan["memory"].values())
    assert not (tmp_path / "store").exists()
    text = CliRunner().invoke(app, ["plan", str(job_file), "--untimed"])
    assert "encoder/attention" in text.stdout
    assert "peak memory" in text.stdout


def test_plan_predicts_the_raw_bytes_that_run_writes(job_file, tmp_path):
    from headatlas.store.store import open_store

    plan = json.loads(CliRunner().invoke(app, ["plan", str(job_file), "--json", "--untimed"]).stdout)
    CliRunner().invoke(app, ["run", str(job_file), "--quiet"])
    store = open_store(tmp_path / "store")
    for array in plan["arrays"]:
        written = sum(segment.read(array["path"]).nbytes for segment in store.segments)
        assert written == array["raw_bytes"], array["path"]
    assert plan["n_files"] == sum(file.is_file() for file in (tmp_path / "store").rglob("*"))


def test_mistakes_are_errors_of_ours(job_file):
    result = CliRunner().invoke(app, ["run", str(job_file), "--set", "run.bach_size=1"])
    assert isinstance(result.exception, ConfigError)
    assert "did you mean run.batch_size?" in str(result.exception)


def test_importing_the_commands_is_cheap():
    program = "import sys, headatlas.pipeline.commands.run; print(sorted({'torch', 'transformers', 'zarr', 'pyarrow'} & set(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


def test_log_lines():
    stream = io.StringIO()
    log = LogLines(stream)
    log(JobStarted("out", "tiny", 100, 20, 5, 1))
    log(BatchDone(1, 20, 300))
    log(SegmentDone(1, 20, 12_345_678))
    log(ExampleSkipped(3, "x", "too long"))
    log(SegmentRestarted(2, 1))
    records = Omission(what="records", n=2, reason="empty text", names=("line 3", "line 4"))
    log(JobDone("out", 100, 12_345_678, 75.2, (records,)))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "tiny → out: 100 examples in 5 segments, 20 of them already stored"
    assert lines[1].startswith("segment 1 committed: 40 of 100 examples, ")
    assert lines[1].endswith("12.3 MB written")
    assert lines[2] == "skipped example 3 (x): too long"
    assert lines[3] == "segment 2 is computed again without 1 example"
    assert lines[4:] == [
        "done: 100 examples, 12.3 MB in out after 1 min 15 s",
        "2 records left out: empty text (line 3, line 4)",
    ]


# A resumed job: segment 1 has two examples that are skipped, and is computed again; segment 2 starts before it is stored.
EVENTS = [
    (JobStarted("out", "tiny", 40, 20, 4, 2), 20),
    (BatchDone(1, 6, 100), 26),
    (BatchDone(1, 2, 50), 28),
    (SegmentRestarted(1, 2), 20),
    (BatchDone(1, 6, 100), 26),
    (BatchDone(1, 2, 50), 28),
    (BatchDone(2, 4, 60), 32),
    (SegmentDone(1, 10, 99), 34),
    (BatchDone(2, 6, 60), 40),
    (SegmentDone(2, 10, 99), 40),
]


def test_counts_are_of_stored_examples():
    stream = io.StringIO()
    log, bar = LogLines(stream), progress.ProgressBar()
    for event, n_reached in EVENTS:
        log(event)
        bar(event)
        (task,) = bar._progress.tasks
        assert (task.completed, task.total) == (n_reached, 40)
    bar(JobDone("out", 40, 9, 1.0))
    bar.close()
    lines = [line.partition(",")[0] for line in stream.getvalue().splitlines() if "committed" in line]
    assert lines == ["segment 1 committed: 30 of 40 examples", "segment 2 committed: 40 of 40 examples"]


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (75, "1 min 15 s"), (7300, "2 h 01 min")])
def test_durations(seconds, text):
    assert progress.format_seconds(seconds) == text
