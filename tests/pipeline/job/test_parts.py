"""Parts of a job for several machines: together they are exactly the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.job.multi_model import run_jobs
from headatlas.pipeline.progress import JobDone
from headatlas.pipeline.tokens.batch_plan import SegmentSpec, Share
from headatlas.store.errors import ConfigError
from headatlas.store.store import open_store
from headatlas.store.writing.merge import merge_stores

from .test_extension import segment_bytes, with_settings


@pytest.mark.parametrize("n_segments", [0, 1, 5, 12])
@pytest.mark.parametrize("n_shares", [1, 3, 5, 7])
def test_shares_are_consecutive_and_make_up_the_whole(n_segments, n_shares):
    segments = [SegmentSpec(i, 10 * i, 10, shift=0 if i < 4 else 3) for i in range(n_segments)]
    shares = [Share(i, n_shares).of(segments) for i in range(1, n_shares + 1)]
    assert sorted((row for share in shares for row in share), key=lambda row: row.index) == segments
    for share in shares:
        for shift in (0, 3):
            indices = [row.index for row in share if row.shift == shift]
            assert indices == list(range(indices[0], indices[0] + len(indices))) if indices else True


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5"])
def test_other_parts_are_refused(text):
    with pytest.raises(ConfigError, match=r"expected i/n with i from 1 to n"):
        Share.parse(text)


def test_parts_in_one_store_and_in_merged_stores_are_the_whole(tiny_job, tmp_path):
    run_job(parse_config(with_settings(tiny_job, store={"path": str(tmp_path / "whole")})))
    for number in (3, 1, 2):
        events = []
        share = Share.parse(f"{number}/3")
        for path in (tmp_path / "shared", tmp_path / f"part{number}"):
            job = parse_config(with_settings(tiny_job, store={"path": str(path)}))
            run_jobs([job], events.append, share=share)
        (in_shared, alone) = (event.n_missing for event in events if isinstance(event, JobDone))
        assert alone == 5 - len(open_store(tmp_path / f"part{number}").segments)
        assert in_shared == 5 - len(open_store(tmp_path / "shared").segments)
    for append in (False, True):
        parts = [tmp_path / f"part{number}" for number in (1, 2, 3)]
        merge_stores(parts, tmp_path / f"merged-{append}", append=append)
    expected = segment_bytes(tmp_path / "whole")
    for name in ("shared", "merged-False", "merged-True"):
        assert segment_bytes(tmp_path / name) == expected
        assert open_store(tmp_path / name).is_complete


def test_skip_and_max_examples_cut_the_corpus(tiny_job):
    lines = Path(tiny_job["corpus"]["path"]).read_text(encoding="utf-8").splitlines()
    run_job(parse_config(with_settings(tiny_job, corpus={"skip": 5, "max_examples": 6})))
    store = open_store(tiny_job["store"]["path"])
    assert store.example_texts() == lines[5:11]
    assert store.example_ids()[0] == "corpus-000006"
    with pytest.raises(ConfigError, match=r"skip"):
        run_job(parse_config(with_settings(tiny_job, corpus={"skip": 40})))
