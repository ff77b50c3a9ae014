"""Whole jobs on a tiny model: interruptions do not change the bytes of the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.pipeline.capture.collector import TraceCollector
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job import job_runner as run_module
from headatlas.pipeline.job import reduction_check
from headatlas.pipeline.job.job_runner import execute_job, run_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.progress import (
    BatchDone,
    BatchHalved,
    CheckPassed,
    ExampleSkipped,
    JobDone,
    JobStarted,
    SegmentDone,
    Stage,
)
from headatlas.pipeline.reduce.torch_reduction import TorchReduction
from headatlas.store.errors import ConfigError
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.flat_rows import Rows
from headatlas.store.statistics.measurement import measured_statistics
from headatlas.store.store import open_store
from headatlas.store.writing.annotate import remove_annotation
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.verification import verify_store

from .job_process import run_until_killed


def segment_bytes(store) -> dict[str, bytes]:
    folder = Path(store) / "segments"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def with_settings(job, **sections):
    """Return the job with some settings changed."""
    return {**job, **{name: {**job.get(name, {}), **settings} for name, settings in sections.items()}}


def test_events_and_report_add_up(tiny_job):
    events = []
    report = run_job(parse_config(tiny_job), events.append)
    assert report.n_examples == 40
    assert report.n_segments == report.n_segments_written == 5
    assert sum(event.n_examples for event in events if isinstance(event, BatchDone)) == 40
    assert [event.index for event in events if isinstance(event, SegmentDone)] == [0, 1, 2, 3, 4]
    assert sum(event.n_bytes for event in events if isinstance(event, SegmentDone)) == report.n_bytes
    assert [type(event) for event in events if isinstance(event, JobStarted | CheckPassed | JobDone)] == [
        JobStarted,
        CheckPassed,
        JobDone,
    ]
    store = open_store(tiny_job["store"]["path"])
    assert store.is_complete
    assert store.n_examples == 40


def test_it_says_if_torch_operations_capture_although_there_is_a_kernel(tiny_job, monkeypatch):
    monkeypatch.setattr(reduction_check.kernel, "available", lambda: "avx2")
    events = []
    run_job(parse_config(with_settings(tiny_job, keep={"attention": "top_k:4"})), events.append)
    (text,) = (event.text for event in events if isinstance(event, Stage) and event.text.startswith("capturing"))
    assert text == "capturing with torch operations: no kernel on cpu computes what this job keeps"


def test_store_holds_what_the_model_attends_to(tiny_job, tiny_folder):
    from transformers import AutoModel, AutoTokenizer

    run_job(parse_config(tiny_job))
    model = AutoModel.from_pretrained(tiny_folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    texts = Path(tiny_job["corpus"]["path"]).read_text(encoding="utf-8").splitlines()
    store = open_store(tiny_job["store"]["path"])
    assert store.spec.statistics == tuple(STATISTICS)
    for i in (0, 7, 8, 21, 39):
        example = store.examples[i]
        assert example.text == texts[i]
        inputs = tokenizer(texts[i], return_tensors="pt")
        with torch.no_grad():
            expected = torch.stack(model(**inputs, output_attentions=True).attentions)[:, 0].numpy()
        np.testing.assert_allclose(example.attention().values, expected, atol=0.004)
        for name, statistic in STATISTICS.items():
            special = example.tokens().special
            for layer in range(expected.shape[0]):
                rows = Rows.of_map(expected[layer].astype(np.float64), special, one_text=True)
                counted = statistic.counted(rows.plan, None)
                mean = statistic.example_sums(rows, None, counted)[:, 0] / counted.sum() if counted.any() else np.nan
                stored_mean = example.statistics()[name].values[layer]
                np.testing.assert_allclose(stored_mean, mean, rtol=1e-4, atol=1e-5)


def test_same_job_same_bytes(tiny_job, tmp_path):
    other = with_settings(tiny_job, store={"path": str(tmp_path / "other")})
    run_job(parse_config(tiny_job))
    run_job(parse_config(other))
    assert segment_bytes(tiny_job["store"]["path"]) == segment_bytes(tmp_path / "other")


def test_other_torch_threads_give_the_same_numbers_within_rounding(tiny_job, tmp_path):
    """The same bytes are promised for the same number of threads only. It is not part of the job's identity."""
    other = with_settings(tiny_job, store={"path": str(tmp_path / "other")}, run={"threads": 2})
    try:
        run_job(parse_config(other))
    finally:
        torch.set_num_threads(1)
    run_job(parse_config(tiny_job))
    first, second = open_store(tiny_job["store"]["path"]), open_store(tmp_path / "other")
    assert first.manifest.provenance["config"] == second.manifest.provenance["config"]
    codec = first.spec.attention_error
    for example, same_example in zip(first.examples, second.examples, strict=True):
        weights, others = example.attention().values, same_example.attention().values
        np.testing.assert_allclose(weights, others, rtol=0, atol=2 * codec + 1e-5)
    for name, values in first.statistics().items():
        np.testing.assert_allclose(values, second.statistics()[name], rtol=1e-4, atol=1e-5)


def test_repair_writes_again_what_is_damaged_or_dropped(tiny_job):
    """Repaired bytes are equal. A removed example remains removed if its segment is computed again."""
    path = Path(tiny_job["store"]["path"])
    run_job(parse_config(tiny_job))
    original_bytes, fresh = segment_bytes(path), open_store(path)
    drop_from_store(path, segments=[1])
    drop_from_store(path, examples=[3])
    for index in (0, 2):
        folder = path / open_store(path).segments[index and 1].entry.path
        victim = folder / "segment.zip"
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    assert {finding.segment for finding in verify_store(path, full=True).findings} == {0, 2}
    assert run_job(parse_config(tiny_job)).n_segments_written == 0  # only with repair=True

    report = run_job(parse_config(tiny_job), repair=True)
    assert report.n_segments_written == 3
    store = open_store(path)
    assert (store.is_complete, store.n_examples, store.manifest.dropped) == (True, 40, ())
    assert [(row.example, row.reason) for row in store.manifest.skipped] == [(3, "dropped")]
    assert verify_store(path, full=True).is_sound
    for segment in store.segments[1:]:
        for file in (file for file in sorted(segment.folder.rglob("*")) if file.is_file()):
            assert file.read_bytes() == original_bytes[f"{segment.index:06d}/{file.relative_to(segment.folder)}"]
    assert (store.examples[3].text, len(store.examples[3].tokens())) == ("", 0)
    assert store.example_ids() == fresh.example_ids()
    for i in (0, 7):
        np.testing.assert_allclose(store.examples[i].query().values, fresh.examples[i].query().values, atol=1e-2)
        assert store.examples[i].text == fresh.examples[i].text
    assert run_job(parse_config(tiny_job), repair=True).n_segments_written == 0

    store.annotate("mood", {0: 3})  # the job cannot compute added annotations again
    victim = min((path / "overlays").rglob("*.zip"))
    victim.write_bytes(victim.read_bytes()[::-1])
    events = []
    assert run_job(parse_config(tiny_job), events.append, repair=True).n_segments_written == 0
    reports = [str(event) for event in events if "not repaired" in str(event)]
    assert reports
    assert all("--name mood --replace" in report for report in reports)


@pytest.mark.parametrize("n_batches", [1, 7])
def test_killed_and_resumed_is_the_same_as_undisturbed(n_batches, tiny_job, tmp_path):
    disturbed = with_settings(tiny_job, store={"path": str(tmp_path / "disturbed")})
    run_until_killed(disturbed, n_batches)
    events = []
    run_job(parse_config(disturbed), events.append)
    n_done = next(event for event in events if isinstance(event, JobStarted)).n_segments_done
    assert n_done < 5
    run_job(parse_config(tiny_job))
    assert segment_bytes(tmp_path / "disturbed") == segment_bytes(tiny_job["store"]["path"])
    store = open_store(tmp_path / "disturbed")
    assert len(set(store.example_ids())) == 40


def test_interrupted_run_keeps_whole_segments_and_goes_on(tiny_job):
    def stop_in_third_segment(event):
        if isinstance(event, SegmentDone) and event.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(parse_config(tiny_job), stop_in_third_segment)
    store = open_store(tiny_job["store"]["path"])
    assert not store.is_complete
    n_before = len(store.segments)
    assert 2 <= n_before < 5
    events = []
    report = run_job(parse_config(tiny_job), events.append)
    assert report.n_segments_written == 5 - n_before
    assert next(event for event in events if isinstance(event, JobStarted)).n_done == 8 * n_before
    store = open_store(tiny_job["store"]["path"])
    assert store.is_complete
    assert not any((Path(tiny_job["store"]["path"]) / "tmp").iterdir())


def test_finished_job_does_nothing_again(tiny_job):
    run_job(parse_config(tiny_job))
    original_bytes = segment_bytes(tiny_job["store"]["path"])
    events = []
    report = run_job(parse_config(tiny_job), events.append)
    assert report.n_segments_written == 0
    assert not any(isinstance(event, BatchDone | CheckPassed) for event in events)
    assert segment_bytes(tiny_job["store"]["path"]) == original_bytes


def test_another_job_does_not_mix_in(tiny_job):
    run_job(parse_config(tiny_job))
    with pytest.raises(ConfigError, match="edges"):
        run_job(parse_config(with_settings(tiny_job, keep={"edges": 4})))


def spoil_memory(monkeypatch, fails):
    """Let the model run out of memory if `fails(batch size, tokens)`."""
    right = TraceCollector.begin

    def begin(self, buffers, examples, special):
        batch = right(self, buffers, examples, special)
        if fails(len(examples), max(int(buffers.n_tokens["source"][i]) for i in examples)):
            original = self.receive

            def receive(call):
                self.receive = original
                original(call)
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes.")

            self.receive = receive
        return batch

    monkeypatch.setattr(TraceCollector, "begin", begin)


def unchecked(job, *_):
    return TorchReduction(job.spec.keep, job.spec.statistics), "torch operations"


def test_out_of_memory_halves_the_batch(tiny_job, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "check_job", unchecked)
    run_job(parse_config(tiny_job))
    spoil_memory(monkeypatch, lambda n_examples, n_tokens: n_examples > 2)
    other = with_settings(tiny_job, store={"path": str(tmp_path / "halved")})
    events = []
    run_job(parse_config(other), events.append)
    assert any(isinstance(event, BatchHalved) for event in events)
    assert sum(event.n_examples for event in events if isinstance(event, BatchDone)) == 40
    full = open_store(tiny_job["store"]["path"])
    halved = open_store(tmp_path / "halved")
    for i in range(40):
        np.testing.assert_allclose(
            full.examples[i].attention().values, halved.examples[i].attention().values, atol=0.009
        )


def test_example_too_long_alone_is_listed_without_traces(tiny_job, monkeypatch):
    monkeypatch.setattr(run_module, "check_job", unchecked)
    spoil_memory(monkeypatch, lambda n_examples, n_tokens: n_tokens == 15)
    events = []
    report = run_job(parse_config(tiny_job), events.append)
    skipped = [event for event in events if isinstance(event, ExampleSkipped)]
    assert len(skipped) == report.n_skipped == 3
    assert all("15 tokens" in event.reason for event in skipped)
    store = open_store(tiny_job["store"]["path"])
    assert store.n_examples == 40
    assert [note.example for note in store.manifest.skipped] == [event.index for event in skipped]
    for event in skipped:
        assert len(store.examples[event.index].tokens()) == 0
        assert store.examples[event.index].text
        assert np.isnan(store.examples[event.index].statistics()["entropy"].values).all()


def test_example_with_scores_that_are_not_finite_is_not_stored(tiny_job, tiny_folder):
    config = parse_config(tiny_job)
    job = prepare_job(config)
    victim = int(job.examples[12].source.id[1])
    with torch.no_grad():
        job.loaded.model.embeddings.word_embeddings.weight[victim] = float("nan")
    hit = [i for i, example in enumerate(job.examples) if victim in example.source.id]
    assert 0 < len(hit) < 40
    from unittest import mock

    with mock.patch.object(run_module, "check_job", unchecked):
        execute_job(job)
    store = open_store(tiny_job["store"]["path"])
    assert [note.example for note in store.manifest.skipped] == hit
    assert all("not finite" in note.reason or "float16" in note.reason for note in store.manifest.skipped)
    for i in range(40):
        assert (len(store.examples[i].tokens()) == 0) == (i in hit)
        assert np.isfinite(store.examples[i].attention().values).all()


def test_pairs_get_segment_ids(tiny_job, tiny_folder, tmp_path):
    rows = [
        {"text": "the nurse left", "text_pair": "she said that"},
        {"text": "a dog", "text_pair": "near the old tree"},
    ]
    corpus = tmp_path / "pairs.jsonl"
    corpus.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    job = prepare_job(parse_config({**tiny_job, "corpus": {"kind": "jsonl", "path": str(corpus)}}))
    inputs = job.inputs.build(job.examples)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    expected = tokenizer(
        [row["text"] for row in rows],
        [row["text_pair"] for row in rows],
        padding=True,
        return_tensors="pt",
        return_token_type_ids=True,
    )
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert inputs.arguments[name].tolist() == expected[name].tolist(), name


def test_interrupt_on_the_command_line(tiny_job, tmp_path):
    program = """
import os, signal, sys
from headatlas.pipeline import progress
from headatlas.pipeline.commands.run import app
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with SIGINT ignored
right = progress.LogLines.__call__
def interrupt(self, event):
    right(self, event)
    if isinstance(event, progress.SegmentDone):
        os.kill(os.getpid(), signal.SIGINT)
progress.LogLines.__call__ = interrupt
app(["run", sys.argv[1]])
"""
    lines = []
    for section, settings in tiny_job.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    config = tmp_path / "job.toml"
    config.write_text("\n".join(lines), encoding="utf-8")
    child = subprocess.run(
        [sys.executable, "-c", program, str(config)], capture_output=True, check=False, text=True, env={**os.environ}
    )
    assert child.returncode == 130, child.stderr
    assert "Run the same command again to resume" in child.stderr
    assert "Traceback" not in child.stderr
    store = open_store(tiny_job["store"]["path"])
    assert 1 <= len(store.segments) < 5


def test_a_list_of_statistics_is_captured_or_computed_from_what_was_stored(tiny_job, tmp_path):
    full_path = run_job(parse_config(with_settings(tiny_job, store={"path": str(tmp_path / "whole")}))).store
    names = ["top5", "first", "entropy", "entropy_sink_free"]
    listed = with_settings(tiny_job, keep={"statistics": names, "attention": "float32"})
    run_job(parse_config(listed))
    store, data = open_store(tiny_job["store"]["path"]), open_store(full_path).statistics()
    assert store.spec.statistics == ("entropy", "first")
    assert store.statistic_names() == ("entropy", "first", "top5", "entropy_sink_free")
    for name in ("entropy", "first"):
        np.testing.assert_array_equal(store.statistics()[name], data[name])
    computed = measured_statistics(open_store(full_path), ["top5"], cache=False)["top5"]
    np.testing.assert_allclose(
        store.statistics()["top5"], computed.values, atol=0.01
    )  # computed from attention stored as sqrt8
    manifest_number = store.manifest.number
    run_job(parse_config(listed))  # nothing is missing
    assert store.refresh().manifest.number == manifest_number
    remove_annotation(store.path, "top5")  # as if the job had been interrupted before this step
    run_job(parse_config(listed))
    assert set(store.refresh().statistic_names()) == set(names)
    with pytest.raises(ConfigError, match="neither attention nor query_key"):
        run_job(parse_config(with_settings(listed, keep={"attention": "none", "query_key": "none"})))
