"""Jobs on several devices: the store of one, also after a process died."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.job.multi_model import run_jobs
from headatlas.pipeline.progress import BatchDone, CheckPassed, JobDone, JobStarted, SegmentDone, Stage
from headatlas.store.errors import ConfigError, HeadAtlasError
from headatlas.store.store import open_store

from .test_extension import segment_bytes, with_settings


def test_two_processes_write_the_store_of_one(tiny_job, tmp_path):
    run_job(parse_config(with_settings(tiny_job, store={"path": str(tmp_path / "whole")})))
    config = parse_config(with_settings(tiny_job, run={"devices": ["cpu", "cpu"]}))
    assert config.identity() == parse_config(tiny_job).identity()
    events = []
    (report,) = run_jobs([config], events.append)
    assert segment_bytes(tiny_job["store"]["path"]) == segment_bytes(tmp_path / "whole")
    assert (report.n_examples, report.n_segments, report.n_segments_written) == (40, 5, 5)
    assert sorted(event.index for event in events if isinstance(event, SegmentDone)) == [0, 1, 2, 3, 4]
    assert [type(event) for event in events if isinstance(event, JobStarted | JobDone)] == [JobStarted, JobDone]


@pytest.mark.slow
def test_a_process_that_dies_leaves_the_rest_and_the_same_command_goes_on(tiny_job, tmp_path):
    whole = with_settings(tiny_job, store={"path": str(tmp_path / "whole")})
    run_job(parse_config(whole))
    config = parse_config(with_settings(tiny_job, run={"devices": ["cpu", "cpu"]}))
    events = []

    def kill_second(event):
        events.append(event)
        if isinstance(event, CheckPassed):
            second = max(multiprocessing.active_children(), key=lambda process: process.pid)
            os.kill(second.pid, signal.SIGKILL)

    with pytest.raises(
        HeadAtlasError, match=r"1 of 2 processes did not finish: process 2 \(cpu\) was ended by signal 9"
    ):
        run_jobs([config], kill_second)
    store = open_store(tiny_job["store"]["path"])
    assert {0, 1} <= {segment.index for segment in store.segments} < {0, 1, 2, 3, 4}
    (started,) = (event for event in events if isinstance(event, JobStarted))
    assert (started.n_examples, started.n_done, started.n_segments) == (40, 0, 5)

    events.clear()
    n_stored = len(store.segments)
    (report,) = run_jobs([config], events.append)
    assert segment_bytes(store.path) == segment_bytes(tmp_path / "whole")
    assert (report.n_examples, report.n_segments, report.n_segments_written) == (40, 5, 5 - n_stored)
    assert open_store(store.path).manifest.provenance["device"] == "cpu, cpu"
    assert len([event for event in events if isinstance(event, SegmentDone)]) == 5 - n_stored
    assert sum(event.n_examples for event in events if isinstance(event, BatchDone)) == 8 * (5 - n_stored)
    assert len([event for event in events if isinstance(event, JobDone)]) == 1
    assert len([event for event in events if isinstance(event, Stage) and event.text.startswith("reading model")]) == 1
    assert any(isinstance(event, CheckPassed) for event in events)


@pytest.mark.slow
def test_a_device_that_fails_is_named(tiny_job):
    job = with_settings(tiny_job, run={"devices": ["cpu", "cuda:99"]}, corpus={"max_examples": 16})
    with pytest.raises(
        HeadAtlasError, match=r"process 2 \(cuda:99\) failed: model.device 'cuda:99' cannot be used.* same command"
    ):
        run_jobs([parse_config(job)])
    assert [segment.index for segment in open_store(tiny_job["store"]["path"]).segments] == [0]


def test_one_device_needs_no_process(tiny_job):
    job = with_settings(tiny_job, model={"device": "cuda:99"}, run={"devices": ["cpu"]}, corpus={"max_examples": 8})
    assert run_job(parse_config(job)).n_examples == 8
    with pytest.raises(ConfigError, match="run_job uses one device"):
        run_job(parse_config(with_settings(tiny_job, run={"devices": ["cpu", "cpu"]})))
