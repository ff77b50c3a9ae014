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
    segments = [SegmentSpec(i, 10 * i, 10) for i in range(n_segments)]
    shares = [Share(i, n_shares).of(segments) for i in range(1, n_shares + 1)]
    assert [segment for share in shares for segment in share] == segments
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


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


def test_parts_of_an_extension_stay_the_same_when_an_earlier_part_is_complete(tiny_job, tmp_path):
    """The second machine starts when the first has written its share of two runs over the corpus."""
    corpus = Path(tiny_job["corpus"]["path"])
    lines = corpus.read_text(encoding="utf-8").splitlines()
    corpus.write_text("\n".join(lines[:16]) + "\n", encoding="utf-8")
    run_jobs([parse_config(tiny_job)], share=Share(1, 2))
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run_jobs([parse_config(tiny_job)], extend=True, share=Share(1, 2))
    store = open_store(tiny_job["store"]["path"])
    assert [segment.index for segment in store.segments] == [0, 2]
    run_jobs([parse_config(tiny_job)], extend=True, share=Share(2, 2))
    store = open_store(store.path)
    assert (store.is_complete, store.example_texts()) == (True, lines)


def test_skip_and_max_examples_cut_the_corpus(tiny_job):
    lines = Path(tiny_job["corpus"]["path"]).read_text(encoding="utf-8").splitlines()
    run_job(parse_config(with_settings(tiny_job, corpus={"skip": 5, "max_examples": 6})))
    store = open_store(tiny_job["store"]["path"])
    assert store.example_texts() == lines[5:11]
    assert store.example_ids()[0] == "corpus-000006"
    with pytest.raises(ConfigError, match=r"skip"):
        run_job(parse_config(with_settings(tiny_job, corpus={"skip": 40})))
