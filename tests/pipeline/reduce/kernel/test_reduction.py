"""Tests of the kernel in a capture: the calls that it supports, and agreement with torch operations."""

import dataclasses

import numpy as np
import pytest
import torch

from headatlas.pipeline.capture.kernel_agreement import check_agreement
from headatlas.pipeline.capture.sites import discover_sites
from headatlas.pipeline.reduce import fused_reduction as fused_module
from headatlas.pipeline.reduce import kernel
from headatlas.pipeline.reduce.fused_reduction import FusedReduction, KernelVectors
from headatlas.pipeline.reduce.reduction import choose_reduction
from headatlas.pipeline.reduce.torch_reduction import TorchReduction
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.store.codecs.attention_codecs import SCALES, Scale, attention_codec
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, TraceSpec

LENGTHS = {"source": [9, 6, 6, 1], "target": [5, 7, 2, 2]}
EVERYWHERE = [
    "bert", "roberta", "electra", "distilbert", "albert", "esm", "gpt2", "gpt2 scaled by layer", "gpt-neox", "opt", "llama",
    "mistral", "mixtral", "qwen2", "qwen3", "phi", "olmo2", "gemma2", "gemma3", "deepseek-v3", "clip text", "modernbert", "bart",
    "gpt-oss", "t5",
]  # fmt: skip


def agreement(library, model, inputs, keep=None, dtype=torch.float32):
    model, keep = model.to(dtype), keep or Keep()
    probe = {name: values[:1, : 2 if name.startswith("decoder") else 3] for name, values in inputs.items()}
    sites = discover_sites(model, probe)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=STATISTIC_NAMES if keep.statistics else ())
    lengths = LENGTHS if "decoder_input_ids" in inputs else {"source": LENGTHS["source"]}
    special = {name: torch.arange(max(n))[None].expand(len(n), -1) % 3 == 0 for name, n in lengths.items()}
    reduction = FusedReduction(keep, spec.statistics, library)
    return check_agreement(model, sites, spec, ModelInputs(inputs, special), lengths, reduction), reduction


def batch(name, inputs_of):
    return inputs_of(name, LENGTHS["source"], LENGTHS["target"])


@pytest.mark.parametrize("name", EVERYWHERE)
def test_serves_every_layer_and_agrees(name, library, model_of, inputs_of):
    """Include windows that are narrower than the text, with bands."""
    result, reduction = agreement(library, model_of(name), batch(name, inputs_of))
    assert result.difference is None
    assert reduction.n_fused > 0
    assert reduction.n_torch == 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_codecs_that_no_kernel_computes_are_left_to_torch(device, monkeypatch):
    monkeypatch.setitem(SCALES, "cube", Scale(3, (0.9, 1.0, 1.1)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    try:
        assert attention_codec("cube8").bound.absolute == 3 / 510
        assert isinstance(choose_reduction(Keep(attention="cube8"), (), torch.device(device)), TorchReduction)
    finally:
        attention_codec.cache_clear()


@pytest.mark.parametrize("name", ["bert", "llama", "gpt-oss", "t5"])
def test_every_query_and_key_goes_through_the_kernel(name, library, model_of, inputs_of, monkeypatch):
    """Include calls whose attention is computed by torch operations."""
    calls = count_calls(monkeypatch, kernel.PreparedVectors, "run")
    result, reduction = agreement(library, model_of(name), batch(name, inputs_of))
    assert result.difference is None
    assert len(calls) == 2 * (reduction.n_fused + reduction.n_torch)


@pytest.mark.parametrize(
    ("name", "shares"),
    [("bert", True), ("llama", True), ("gpt2 scaled by layer", False), ("gpt-oss", False), ("t5", False)],
)
def test_a_call_is_checked_once_for_layers_that_are_alike(name, shares, library, model_of, inputs_of, monkeypatch):
    """Check that other scalings, sinks and biases are checked each time, and that a call with old addresses fails."""
    checked = count_calls(monkeypatch, kernel, "prepare_attention"), count_calls(monkeypatch, kernel, "prepare_vectors")
    result, reduction = agreement(library, model_of(name), batch(name, inputs_of))
    assert result.difference is None
    assert len(checked[0]) == (1 if shares else reduction.n_fused) < 1 + reduction.n_fused
    if shares:
        assert len(checked[1]) == (1 if name == "bert" else 2)  # llama has fewer key heads than query heads
        monkeypatch.setattr(fused_module.LayerCalls, "move", lambda self, call, layer: None)
        assert agreement(library, model_of(name), batch(name, inputs_of))[0].difference is not None


def count_calls(monkeypatch, owner, name):
    """Return a list that grows with each call."""
    calls, original = [], getattr(owner, name)

    def call(*args, **options):
        calls.append(name)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize("layout", ["by token", "by head", "gaps"])
@pytest.mark.parametrize("codec", ["float32", "float16", "bfloat16"])
def test_vectors_are_those_of_torch_operations(codec, layout, library):
    vectors = torch.randn((3, 4, 9, 8), generator=torch.Generator().manual_seed(2))
    if layout == "by token":
        vectors = vectors.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "gaps":  # falls back to torch operations
        vectors = vectors.repeat_interleave(2, dim=3)[..., ::2]
    assert kernel.is_supported(vectors) == (layout != "gaps")
    keep = Keep(query_key=codec)
    results = []
    for reduction in (TorchReduction(keep, ()), KernelVectors(keep, (), library)):
        out = np.zeros((4, 20, 8), {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[codec])
        results.append((out, reduction.write_vectors(vectors, out, (9, 1, 18), (9, 6, 2), codec)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    largest_token = max(float(vectors[row, :, :n].abs().max()) for row, n in enumerate((9, 6, 2)))
    largest_value = float(vectors.abs().max())  # torch operations include padding
    assert [largest for _, largest in results] == [largest_value, largest_value if layout == "gaps" else largest_token]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e5])
def test_vectors_that_cannot_be_kept_are_told(value, library):
    vectors = torch.ones((2, 3, 5, 8))
    vectors[1, 2, 3, 4] = value
    for reduction in (TorchReduction(Keep(), ()), KernelVectors(Keep(), (), library)):
        with np.errstate(over="ignore"):
            largest = reduction.write_vectors(vectors, np.zeros((3, 10, 8), np.float16), (0, 5), (5, 5), "float16")
        assert not largest <= 65504


@pytest.mark.parametrize("name", ["llama", "gpt-oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_widened_and_the_output_left_alone(name, dtype, library, model_of, inputs_of):
    result, reduction = agreement(library, model_of(name), batch(name, inputs_of), dtype=dtype)
    assert result.difference is None
    assert (reduction.n_fused > 0, reduction.n_torch) == (True, 0)


@pytest.mark.parametrize(
    "keep",
    [
        Keep(attention=None, query_key="bfloat16", edges=16, statistics=True),
        Keep(attention="sqrt8", query_key=None, edges=None, statistics=False),
        Keep(attention=None, query_key=None, edges=None, statistics=True),
        *(Keep(attention=codec) for codec in ("sqrt7", "sqrt6", "linear8", "linear7", "linear6", "float16", "float32")),
    ],
    ids=str,
)
def test_keeps_what_is_asked_for(keep, library, model_of, inputs_of):
    result, reduction = agreement(library, model_of("llama"), batch("llama", inputs_of), keep)
    assert result.difference is None
    assert reduction.n_fused > 0


@pytest.mark.parametrize("name", ["bert", "llama", "gpt-oss"])
def test_a_mask_of_its_own_is_added(name, library, model_of, inputs_of):
    """Hide one key in the middle: no length, triangle or window describes that mask."""
    inputs = batch(name, inputs_of)
    inputs["attention_mask"] = inputs["attention_mask"].clone()
    inputs["attention_mask"][0, 4] = 0
    keep = Keep(query_key=None)
    result, reduction = agreement(library, model_of(name), inputs, keep)
    assert result.difference is None
    assert (reduction.n_fused > 0, reduction.n_torch) == (True, 0)


@pytest.mark.parametrize(
    "spoil",
    [{"scaling": 0.3}, {"window": 2}, {"softcap": 1.0}, {"sinks": torch.zeros(4)}],
    ids=lambda spoil: next(iter(spoil)),
)
def test_a_kernel_that_differs_is_noticed(spoil, library, model_of, inputs_of, monkeypatch):
    original = kernel.prepare_attention
    monkeypatch.setattr(
        fused_module.kernel,
        "prepare_attention",
        lambda inputs, *arguments, **options: original(dataclasses.replace(inputs, **spoil), *arguments, **options),
    )
    result, _ = agreement(library, model_of("llama"), batch("llama", inputs_of))
    assert result.difference is not None


def test_a_wrong_output_is_noticed(library, model_of, inputs_of, monkeypatch):
    original = kernel.PreparedAttention.run

    def scaled(self):
        output = original(self)
        return None if output is None else output * 1.1

    monkeypatch.setattr(kernel.PreparedAttention, "run", scaled)
    result, _ = agreement(library, model_of("llama"), batch("llama", inputs_of))
    assert result.difference is not None


def test_scores_that_are_not_finite_are_reported(library, model_of, inputs_of):
    model = model_of("llama")
    with torch.no_grad():
        model.layers[1].self_attn.k_proj.weight[0] = torch.inf
    result, reduction = agreement(library, model, batch("llama", inputs_of))
    assert reduction.n_fused > 0
    assert result.difference is None or "cannot be stored" not in result.difference  # both refuse the same examples


def test_torch_serves_without_a_kernel_and_for_many_edges(monkeypatch):
    monkeypatch.setattr(fused_module.kernel, "available", lambda: "avx2")
    assert isinstance(choose_reduction(Keep(), STATISTIC_NAMES), FusedReduction)
    assert isinstance(choose_reduction(Keep(attention="float16"), STATISTIC_NAMES), FusedReduction)
    assert isinstance(choose_reduction(Keep(edges=17), STATISTIC_NAMES), TorchReduction)
    monkeypatch.setattr(fused_module.kernel, "available", lambda: None)
    assert isinstance(choose_reduction(Keep(), STATISTIC_NAMES), TorchReduction)


def test_two_batches_do_not_share_a_plan(library, model_of, inputs_of):
    """Run one reduction over batches of other lengths. Their masks may have the same id."""
    model, keep = model_of("bert"), Keep()
    sites = discover_sites(model, {name: values[:1, :3] for name, values in inputs_of("bert").items()})
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=STATISTIC_NAMES)
    reduction = FusedReduction(keep, STATISTIC_NAMES, library)
    for lengths in ([9, 6], [7, 7, 7], [2], [9, 8]):
        inputs = ModelInputs(inputs_of("bert", lengths), {})
        assert check_agreement(model, sites, spec, inputs, {"source": lengths}, reduction).difference is None
    assert reduction.n_fused == 4 * len(sites.calls)
