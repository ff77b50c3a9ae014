"""Test that errors that only long rows show are noticed before a segment is filled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headatlas.pipeline.capture.sites import discover_sites
from headatlas.pipeline.checks import selfcheck
from headatlas.pipeline.checks.long_rows import check_long_rows
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job import reduction_check
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.progress import Stage
from headatlas.pipeline.reduce.reduction import choose_reduction
from headatlas.pipeline.reduce.torch_reduction import TorchReduction
from headatlas.pipeline.reduce.triton_reduction import TritonReduction
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, TraceSpec
from headatlas.store.store import open_store

N_SHORT = 40
"""Number of rows that the faulty reduction computes correctly."""


class FaultyReduction(TorchReduction):
    """Reduction whose rows from `N_SHORT` on are wrong in one array, as after an offset that overflowed."""

    def __init__(self, keep, statistics, array="attention"):
        super().__init__(keep, statistics)
        self._array = array

    @property
    def name(self):
        return "faulty kernel"

    n_fused, n_torch = 1, 0

    def reduce(self, call, site, layer, batch, arrays):
        super().reduce(call, site, layer, batch, arrays)
        for start, pairs, n in zip(
            batch.placements[site.name].query_start,
            batch.placements[site.name].pair_start[arrays.band(site, layer)],
            batch.placements[site.name].n_queries,
            strict=True,
        ):
            if n > N_SHORT and self._array == "attention":
                arrays.attention_of(site, layer)[:, pairs + n * N_SHORT : pairs + n * n] = 3
            elif n > N_SHORT:
                getattr(arrays, self._array)[layer, :, start + N_SHORT : start + n] = 1


def difference(name, model_of, inputs_of, n_tokens, keep=None, reduction_of=choose_reduction):
    model, keep = model_of(name), keep or Keep()
    inputs = inputs_of(name, [n_tokens], [n_tokens - 9])
    probe = {key: values[:1, : 2 if key.startswith("decoder") else 3] for key, values in inputs.items()}
    sites = discover_sites(model, probe)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=STATISTIC_NAMES if keep.statistics else ())
    lengths = {"source": n_tokens} | ({"target": n_tokens - 9} if "decoder_input_ids" in inputs else {})
    special = {key: torch.zeros((1, n), dtype=torch.bool) for key, n in lengths.items()}
    reduction = reduction_of(keep, spec.statistics)
    return check_long_rows(model, sites, spec, ModelInputs(inputs, special), lengths, reduction)


@pytest.mark.parametrize("name", ["bert", "gpt2", "modernbert", "mistral", "gemma2", "gpt-oss", "t5", "bart", "llama4"])
def test_correct_rows_pass(name, model_of, inputs_of):
    """Cover causal and full attention, windows, chunks, grouped keys, a soft cap, sinks, a bias and two sequences."""
    for reduction_of in (choose_reduction, TorchReduction):  # the CPU kernel where there is one
        assert difference(name, model_of, inputs_of, 60, reduction_of=reduction_of) is None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["llama", "gpt-oss"])
def test_correct_rows_of_the_triton_kernel_pass(triton_kernel, name, model_of, inputs_of):
    assert difference(name, model_of, inputs_of, 60, reduction_of=TritonReduction) is None


@pytest.mark.parametrize(
    "keep",
    [Keep(attention="float32", edges=64), Keep(attention="top_k:5"), Keep(attention=None, query_key=None)],
    ids=str,
)
def test_every_choice_of_arrays(keep, model_of, inputs_of):
    assert difference("llama", model_of, inputs_of, 60, keep, TorchReduction) is None


@pytest.mark.parametrize("array", ["attention", "logsumexp", "edge_key", "edge_weight"])
def test_a_wrong_long_row_is_noticed(array, model_of, inputs_of):
    def faulty(keep, statistics):
        return FaultyReduction(keep, statistics, array)

    assert difference("bert", model_of, inputs_of, N_SHORT, reduction_of=faulty) is None
    result = difference("bert", model_of, inputs_of, 60, reduction_of=faulty)
    assert result is not None
    assert result.startswith("encoder layer 0, 60 tokens: ")


@pytest.fixture
def long_job(tiny_job, tmp_path, monkeypatch):
    """Job with one text of 60 tokens among short ones, whose self-check has memory for 30 tokens."""
    words = tmp_path.joinpath("corpus.txt").read_text(encoding="utf-8").split()
    tmp_path.joinpath("corpus.txt").write_text("the nurse\n" + " ".join(words[:58]) + "\n", encoding="utf-8")
    monkeypatch.setattr(reduction_check, "most_checked_tokens", lambda sites: 30)
    monkeypatch.setattr(selfcheck, "CHECK_BYTES", 30 * 30 * 8 * 100)
    return tiny_job


def test_torch_operations_replace_a_kernel_that_fails_on_long_rows(long_job, tmp_path, monkeypatch):
    """On earlier releases, the wrong rows were stored."""
    run_job(parse_config(long_job))
    expected = open_store(long_job["store"]["path"])
    monkeypatch.setattr(
        reduction_check,
        "choose_reduction",
        lambda keep, statistics, *_: FaultyKernel(FaultyReduction(keep, statistics)),
    )
    events = []
    job = {**long_job, "store": {**long_job["store"], "path": str(tmp_path / "again")}}
    run_job(parse_config(job), events.append)
    again = open_store(tmp_path / "again")
    (served_by,) = again.manifest.provenance["reduction"]
    assert served_by.startswith(
        "torch operations, because the faulty kernel differs from a direct computation (encoder"
    )
    assert any(isinstance(event, Stage) and served_by in event.text for event in events)
    for segment, expected_segment in zip(again.segments, expected.segments, strict=True):
        codes, expected_codes = (s.read("encoder/attention").astype(int) for s in (segment, expected_segment))
        assert np.abs(codes - expected_codes).max() <= 1


def test_wrong_torch_operations_stop_the_job(long_job, monkeypatch):
    monkeypatch.setattr(reduction_check, "TorchReduction", FaultyReduction)
    monkeypatch.setattr(
        reduction_check, "choose_reduction", lambda keep, statistics, *_: FaultyReduction(keep, statistics)
    )
    with pytest.raises(UnsupportedModelError, match=r"differs from a direct computation .*set tokens.max_tokens"):
        run_job(parse_config(long_job))


class FaultyKernel:
    """The faulty reduction as a kernel, which is no `TorchReduction`."""

    def __init__(self, reduction):
        self._reduction = reduction

    def __getattr__(self, name):
        return getattr(self._reduction, name)
