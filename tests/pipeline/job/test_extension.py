"""Stores that grow: `--extend` adds what a store does not hold of a corpus, and refuses whatever else changed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.progress import JobStarted, SegmentDone, Stage
from headatlas.store.errors import ConfigError
from headatlas.store.store import open_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.verification import verify_store


def with_settings(job, **sections):
    """Return the job with some settings changed."""
    return {**job, **{name: {**job.get(name, {}), **settings} for name, settings in sections.items()}}


def segment_bytes(path) -> dict[str, bytes]:
    folder = Path(path) / "segments"
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def extend(job, events=None):
    """Run a job with --extend."""
    return run_job(parse_config(job), (events if events is not None else []).append, extend=True)


def stages(events) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Stage))


@pytest.fixture
def lines(tiny_job):
    return Path(tiny_job["corpus"]["path"]).read_text(encoding="utf-8").splitlines()


@pytest.fixture
def corpus(tiny_job):
    return Path(tiny_job["corpus"]["path"])


def test_two_steps_at_a_segment_boundary_give_the_bytes_of_one(tiny_job, tmp_path, corpus, lines):
    corpus.write_text("\n".join(lines[:16]) + "\n", encoding="utf-8")
    assert extend(tiny_job).n_examples == 16  # also creates a store
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    events = []
    report = extend(tiny_job, events)
    assert (report.n_examples, report.n_segments, report.n_segments_written) == (40, 5, 3)
    assert "extending the store by 24 examples; 16 of this corpus are stored" in stages(events)
    (start,) = (event for event in events if isinstance(event, JobStarted))
    assert (start.n_examples, start.n_done, start.n_segments, start.n_segments_done) == (40, 16, 5, 2)
    whole = with_settings(tiny_job, store={"path": str(tmp_path / "whole")})
    run_job(parse_config(whole))
    assert segment_bytes(tiny_job["store"]["path"]) == segment_bytes(tmp_path / "whole")
    store = open_store(tiny_job["store"]["path"])
    assert store.is_complete
    assert store.example_ids() == open_store(tmp_path / "whole").example_ids()
    (part,) = store.manifest.extensions
    assert (part.first_segment, part.n_segments, part.first_example, part.n_examples) == (2, 3, 16, 24)
    assert part.corpus["sha256"] != store.manifest.provenance["corpus"]["sha256"]
    assert verify_store(store.path, full=True).is_sound
    assert extend(tiny_job).n_segments_written == 0  # nothing is new
    assert open_store(store.path).manifest.number == store.manifest.number
    with pytest.raises(ConfigError, match=r"was extended .*--extend"):
        run_job(parse_config(tiny_job))
