"""Jobs on a local cluster: the store of one process, also after workers died, hung, or were refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask.config
import pytest
from distributed import Client, LocalCluster

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.cluster.cluster_job import execute_on_cluster
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.job.multi_model import run_jobs
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.progress import BatchDone, CheckPassed, JobDone, JobStarted, SegmentDone, Stage, WorkerLost
from headatlas.pipeline.tokens.batch_plan import WHOLE
from headatlas.store.commands.cluster import ClusterOptions, open_cluster
from headatlas.store.errors import ConfigError, HeadAtlasError
from headatlas.store.store import open_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.verification import verify_store

from ..test_extension import segment_bytes, with_settings
from .worker_deaths import STEPS, KillAt, RandomDeaths, worker_processes

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of killed processes


@pytest.fixture(scope="module")
def processes():
    """The client of two worker processes."""
    with open_cluster(ClusterOptions("local", 2, threads_per_worker=2)) as client:
        yield client


@pytest.fixture
def threads():
    """The client of two workers that are threads of this process. They start at once, and cannot be killed."""
    options = {"n_workers": 2, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "3s"}),
        LocalCluster(**options) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def whole(tiny_job, tmp_path):
    """The bytes of the segments of one process."""
    run_job(parse_config(with_settings(tiny_job, store={"path": str(tmp_path / "whole")})))
    return segment_bytes(tmp_path / "whole")


def run_on(client, job, on_event=lambda event: None, *, repair=False, extend=False):
    """Run a job on the workers of a client that stays open."""
    config = parse_config(with_settings(job, cluster={"kind": "local"}))
    prepared = prepare_job(config, on_event, repair=repair, extend=extend)
    return execute_on_cluster(
        prepared, lambda n, folder: client, on_event, repair=repair, check_space=True, share=WHOLE
    )


def assert_same(path, whole):
    """Check that a store is complete, is sound and has the bytes of one process."""
    assert segment_bytes(path) == whole
    assert open_store(path).is_complete
    assert not verify_store(Path(path), full=True).findings


def test_two_workers_write_the_store_of_one_process(processes, tiny_job, tmp_path, whole):
    events = []
    report = run_on(processes, with_settings(tiny_job, store={"segment_examples": 8}), events.append)
    assert_same(report.store, whole)
    assert (report.n_examples, report.n_segments, report.n_segments_written) == (40, 5, 5)
    assert sorted(event.index for event in events if isinstance(event, SegmentDone)) == [0, 1, 2, 3, 4]
    assert sum(event.n_examples for event in events if isinstance(event, BatchDone)) == 40
    kinds = [type(event) for event in events if isinstance(event, JobStarted | CheckPassed | JobDone)]
    assert kinds == [JobStarted, CheckPassed, JobDone]
    text = "\n".join(event.text for event in events if isinstance(event, Stage))
    assert "dashboard of the workers is http://127.0.0.1:" in text
    manifest, of_one = (open_store(path).manifest for path in (report.store, tmp_path / "whole"))
    assert manifest.segments == of_one.segments
    assert manifest.provenance["reduction"] == of_one.provenance["reduction"]
    (machine,) = manifest.provenance["workers"]
    assert "threads 1" in machine
    assert "torch" in machine
    assert list((Path(report.store) / "tmp").iterdir()) == []
    assert run_on(None, tiny_job).n_segments_written == 0  # nothing is missing, so no worker is needed


def test_workers_that_die_lose_and_double_nothing(processes, tiny_job, tmp_path, whole, count_fault):
    _check_deaths(processes, tiny_job, tmp_path, whole, ("computing", "renamed"), count_fault)


@pytest.mark.slow
@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_workers_that_die_at_each_step(processes, tiny_job, tmp_path, container, count_fault):
    job = with_settings(tiny_job, store={"container": container})
    run_job(parse_config(with_settings(job, store={"path": str(tmp_path / "whole")})))
    _check_deaths(processes, job, tmp_path, segment_bytes(tmp_path / "whole"), STEPS, count_fault)


def _check_deaths(client, job, tmp_path, whole, steps, count_fault):
    name, events = "-".join(steps), []
    (tmp_path / name).mkdir()
    job = with_settings(job, store={"path": str(tmp_path / f"store-{name}")}, cluster={"retries": 100})
    client.register_plugin(KillAt(tmp_path / name, steps))
    try:
        run_on(client, job, events.append)
    finally:
        client.unregister_worker_plugin(KillAt.name)
    assert_same(job["store"]["path"], whole)
    n_deaths = len(list((tmp_path / name).iterdir()))
    assert n_deaths == len(steps)
    lost = [event.reason for event in events if isinstance(event, WorkerLost)]
    assert len(lost) >= n_deaths  # on a busy machine the next process may end before it has connected
    assert set(lost) == {"ended"}
    assert sorted(event.index for event in events if isinstance(event, SegmentDone)) == [0, 1, 2, 3, 4]
    count_fault(f"worker killed at {name}", n_deaths, 0)


@pytest.mark.slow
def test_a_hundred_random_deaths(processes, tiny_job, tmp_path, whole, count_fault):
    """Each run starts with the store of the run before, of which it first loses a segment."""
    n_deaths, seed = 0, 0
    while n_deaths < 100:
        seed += 1
        job = with_settings(tiny_job, store={"path": str(tmp_path / f"store-{seed}")}, cluster={"retries": 1000})
        with RandomDeaths(processes, 10, seed, longest_s=4) as deaths:
            run_on(processes, job)
        assert_same(job["store"]["path"], whole)
        shutil.rmtree(job["store"]["path"])
        n_deaths += deaths.n_killed
    count_fault("worker killed at random", n_deaths, 0)


def test_a_worker_that_does_not_answer_is_replaced(processes, tiny_job, whole):
    stopped = []

    def stop_one(event):
        if isinstance(event, BatchDone) and not stopped:
            stopped.append(worker_processes(processes)[0])
            os.kill(stopped[0], signal.SIGSTOP)

    events = []

    def listen(event):
        stop_one(event)
        events.append(event)

    job = with_settings(tiny_job, run={"batch_size": 1}, cluster={"timeout": 8, "retries": 100})
    report = run_on(processes, job, listen)
    assert open_store(report.store).is_complete
    assert not verify_store(Path(report.store), full=True).findings
    lost = [event for event in events if isinstance(event, WorkerLost) and event.segments]
    assert "did not answer for 8 s" in {event.reason for event in lost}
    assert sorted(event.index for event in events if isinstance(event, SegmentDone)) == [0, 1, 2, 3, 4]
    deadline = time.monotonic() + 60
    while stopped[0] in worker_processes(processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{stopped[0]}").exists()


def test_an_interrupted_job_goes_on_in_one_process(threads, tiny_job, whole):
    def interrupt(event):
        if isinstance(event, SegmentDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on(threads, tiny_job, interrupt)
    path = Path(tiny_job["store"]["path"])
    assert 1 <= len(open_store(path).segments) < 5
    assert not [entry for entry in (path / "tmp").iterdir() if list(entry.glob("*.pickle"))]
    run_job(parse_config(tiny_job))
    assert_same(path, whole)


def test_repairs_extensions_and_parts(threads, tiny_job, whole):
    corpus, path = Path(tiny_job["corpus"]["path"]), Path(tiny_job["store"]["path"])
    lines = corpus.read_text(encoding="utf-8").splitlines()
    corpus.write_text("\n".join(lines[:16]) + "\n", encoding="utf-8")
    run_on(threads, tiny_job, extend=True)
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run_on(threads, tiny_job, extend=True)
    assert_same(path, whole)
    (path / "segments" / "000001" / "segment.zip").write_bytes(b"")
    drop_from_store(path, segments=[3])
    run_on(threads, tiny_job, extend=True, repair=True)
    store = open_store(path)
    assert store.example_texts() == lines
    assert not verify_store(path, full=True).findings
    replaced = {entry.index: entry for entry in store.manifest.segments if entry.is_replacement}
    assert set(replaced) == {1, 3}
    for index, entry in replaced.items():
        files = {name: data for name, data in segment_bytes(path).items() if name.startswith(Path(entry.path).name)}
        expected = {name: data for name, data in whole.items() if name.startswith(f"{index:06d}")}
        assert list(files.values()) == list(expected.values())


def test_other_machines_are_recorded_or_refused(threads, tiny_job, whole):
    """Workers with another number of threads stand for another machine: their sums may differ."""

    def interrupt(event):
        if isinstance(event, SegmentDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on(threads, tiny_job, interrupt)
    other = with_settings(tiny_job, run={"threads": 2}, cluster={"same_bytes": True})
    with pytest.raises(ConfigError, match=r"same_bytes refuses all workers: .*threads 2.*written by: .*threads 1"):
        run_on(threads, other)
    run_on(threads, with_settings(other, cluster={"same_bytes": False}))
    assert ["threads 1" in machine for machine in open_store(tiny_job["store"]["path"]).manifest.provenance["workers"]] == [True, False]  # fmt: skip


def test_a_segment_that_ends_its_workers_is_named(threads, tiny_job):
    def close_workers(event):
        if isinstance(event, BatchDone):
            for worker in list(threads.cluster.workers.values()):
                threads.sync(worker.close)

    job = with_settings(tiny_job, run={"batch_size": 1}, cluster={"retries": 0})
    with pytest.raises(HeadAtlasError, match=r"1 workers ended .* during segment \d.*run the same command again"):
        run_on(threads, job, close_workers)
    assert open_store(job["store"]["path"]).manifest.segments == ()


def test_no_worker_and_no_scheduler_are_errors(threads, tiny_job, monkeypatch):
    monkeypatch.setattr("headatlas.pipeline.job.cluster.segment_dispatch._START_S", 0.5)
    threads.cluster.scale(0)
    threads.sync(threads.cluster._correct_state)
    with pytest.raises(HeadAtlasError, match=r"there was no worker for 0.5 s.*run the same command again"):
        run_on(threads, with_settings(tiny_job, cluster={"timeout": 0.5}))
    monkeypatch.setattr("headatlas.pipeline.job.cluster.segment_dispatch._REPLY_S", 3)
    threads.sync(threads.cluster.scheduler.close)
    with pytest.raises(HeadAtlasError, match=r"scheduler (ended|was lost|.*reached).*same command again"):
        run_on(threads, tiny_job)


def test_an_error_of_a_worker_is_that_of_the_command(threads, tiny_job, tmp_path, monkeypatch):
    def place_elsewhere(writer, *arguments, **options):
        entry = original(writer, *arguments, **options)
        shutil.rmtree(writer.path / entry.path)  # as if the worker's folder were on another disk
        return entry

    from headatlas.pipeline.job.cluster import segment_worker

    original = segment_worker.place_segment
    monkeypatch.setattr(segment_worker, "place_segment", place_elsewhere)
    with pytest.raises(ConfigError, match=r"segment \d: another process wrote segments/.* not in this folder"):
        run_on(threads, tiny_job)
    monkeypatch.undo()
    model = tmp_path / "model"
    shutil.copytree(tiny_job["model"]["source"], model)
    job = with_settings(tiny_job, model={"source": str(model)}, store={"path": str(tmp_path / "other")})
    prepared = prepare_job(parse_config(job))
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    with pytest.raises(ConfigError, match=r"worker on .*has other files than on the machine of the command"):
        execute_on_cluster(prepared, lambda n, folder: threads, print, repair=False, check_space=True, share=WHOLE)


def test_devices_are_processes_of_a_local_cluster(tiny_job, tmp_path):
    for run, cluster, options in (
        ({"devices": ["cpu", "cpu"]}, {"kind": "slurm"}, None),
        ({"devices": ["cpu", "cpu"]}, {"workers": 3}, None),
        ({"devices": ["cpu"]}, {}, ClusterOptions("tls://127.0.0.1:8786")),
    ):
        job = parse_config(with_settings(tiny_job, run=run, cluster=cluster))
        with pytest.raises(ConfigError, match=r"run\.devices names . devices of this machine"):
            run_jobs([job], cluster=options)
    job = with_settings(tiny_job, run={"devices": ["cpu"]}, corpus={"max_examples": 8})
    assert run_jobs([parse_config(job)])[0].n_examples == 8  # in this process
    for changes in ({"run": {"devices": ["cpu", "cpu"]}}, {"cluster": {"kind": "local"}}):
        with pytest.raises(ConfigError, match="run_job uses one device and one process"):
            run_job(parse_config(with_settings(tiny_job, **changes)))


@pytest.mark.slow
def test_two_devices_write_the_store_of_one(tiny_job, whole):
    job = parse_config(with_settings(tiny_job, run={"devices": ["cpu", "cpu"]}))
    events = []
    (report,) = run_jobs([job], events.append)
    assert_same(report.store, whole)
    assert report.n_segments_written == 5
    assert open_store(report.store).manifest.provenance["device"] == "cpu, cpu"


def wait_for_group(group):
    """Wait for the end of all processes of a group: workers end soon after their command."""
    for _ in range(600):
        os.killpg(group, 0)
        time.sleep(0.1)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_all_processes_and_other_workers_go_on(tiny_job, tmp_path):
    """SIGINT goes to the whole process group, as from a terminal. Most of the 100 segments are then still to come."""
    corpus = Path(tiny_job["corpus"]["path"])
    corpus.write_text(corpus.read_text(encoding="utf-8") * 20, encoding="utf-8")
    run_job(parse_config(with_settings(tiny_job, run={"batch_size": 1}, store={"path": str(tmp_path / "whole")})))
    path = Path(tiny_job["store"]["path"])
    file = tmp_path / "job.toml"
    sections = with_settings(tiny_job, run={"batch_size": 1})
    file.write_text(
        "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
            for name, section in sections.items()
        )
    )
    command = [sys.executable, "-m", "headatlas.store.commands.main", "run", str(file), "--cluster", "local"]
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "committed" in line:
            os.killpg(process.pid, signal.SIGINT)
            break
    lines += process.stderr.read().splitlines(keepends=True)
    assert process.wait() == 130, "".join(lines)
    assert "Traceback" not in "".join(lines)
    assert "interrupted. Every committed segment is in" in lines[-1]
    with pytest.raises(ProcessLookupError):
        wait_for_group(process.pid)
    assert 1 <= len(open_store(path).segments) < 100
    subprocess.run([*command, "--workers", "1"], check=True, capture_output=True)
    assert segment_bytes(path) == segment_bytes(tmp_path / "whole")
