"""Tests of the Triton kernel in Triton's interpreter on the CPU, against torch operations."""

import importlib.util

import numpy as np
import pytest
import torch

from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
from headatlas.pipeline.capture.collector import TraceCollector
from headatlas.pipeline.capture.eager import forwarding
from headatlas.pipeline.capture.kernel_agreement import check_agreement
from headatlas.pipeline.capture.sites import discover_sites
from headatlas.pipeline.reduce.reduction import choose_reduction
from headatlas.pipeline.reduce.torch_reduction import TorchReduction
from headatlas.pipeline.reduce.triton_reduction import TritonReduction
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, TraceSpec
from tests.pipeline.device.pretend_cuda import PretendTensor

interpreted = pytest.mark.usefixtures("triton_gpu")
LENGTHS = {"source": [6, 4, 1], "target": [3, 5, 2]}


def agreement(name, model_of, inputs_of, keep=None, lengths=LENGTHS):
    model, keep = model_of(name), keep or Keep()
    inputs = inputs_of(name, *lengths.values())
    probe = {key: values[:1, : 2 if key.startswith("decoder") else 3] for key, values in inputs.items()}
    sites = discover_sites(model, probe)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=STATISTIC_NAMES if keep.statistics else ())
    site_lengths = lengths if "decoder_input_ids" in inputs else {"source": lengths["source"]}
    special = {key: torch.arange(max(n))[None].expand(len(n), -1) % 3 == 0 for key, n in site_lengths.items()}
    reduction = TritonReduction(keep, spec.statistics)
    batch = on_device(ModelInputs(inputs, special))
    return check_agreement(model.to("cuda"), sites, spec, batch, site_lengths, reduction), reduction


def on_device(inputs):
    """Return inputs on the pretend GPU."""
    arguments = {key: PretendTensor(value) for key, value in inputs.arguments.items()}
    return ModelInputs(arguments, {key: PretendTensor(value.contiguous()) for key, value in inputs.special.items()})


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes padding too
@pytest.mark.parametrize(
    "name",
    [
        "gpt-oss",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("bert", "modernbert", "mistral", "gemma2", "t5", "bart")),
    ],
)
def test_agrees_with_torch_operations(name, model_of, inputs_of):
    """Cover causal and full attention, grouped keys, window, soft cap, sinks, a learned bias and two sequences."""
    result, reduction = agreement(name, model_of, inputs_of)
    assert result.difference is None
    assert (reduction.problem, reduction.n_torch) == (None, 0)


@interpreted
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "keep",
    [
        Keep(attention="linear8", query_key="bfloat16", edges=3),
        Keep(attention=None, query_key=None, edges=None),
        Keep(attention="sqrt7", query_key=None, edges=16, statistics=False),
    ],
    ids=str,
)
def test_keeps_what_is_asked_for(keep, model_of, inputs_of):
    result, reduction = agreement("llama", model_of, inputs_of, keep)
    assert result.difference is None
    assert reduction.n_fused > 0


@interpreted
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_longer_than_a_block_of_keys(model_of, inputs_of):
    result, _ = agreement("llama", model_of, inputs_of, lengths={"source": [67, 2], "target": [3, 3]})
    assert result.difference is None


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_kernel_that_differs_is_noticed(triton_kernel, model_of, inputs_of, monkeypatch):
    original = triton_kernel.reduce_on_device

    def rescaled(call, request):
        return original(type(call)(**{**vars(call), "scaling": call.scaling * 1.5}), request)

    monkeypatch.setattr(triton_kernel, "reduce_on_device", rescaled)
    result, _ = agreement("llama", model_of, inputs_of)
    assert result.difference is not None


def start_capture(reduction, model_of, inputs_of, name="llama"):
    """Return a collector for one batch, the context that runs its model, its buffers, its inputs and the model."""
    model, inputs = model_of(name), inputs_of(name, *LENGTHS.values())
    sites = discover_sites(model, {key: values[:1, :3] for key, values in inputs.items()})
    spec = TraceSpec(sites=sites.sites, keep=Keep(), statistics=STATISTIC_NAMES)
    buffers = SegmentBuffers(spec, {"source": np.array(LENGTHS["source"])})
    collector = TraceCollector(spec, sites, reduction)
    special = {"source": torch.zeros((3, 6), dtype=torch.bool)}
    batch = ModelInputs(inputs, special)
    if reduction is not None:
        model, batch = model.to("cuda"), on_device(batch)
    return collector, lambda: forwarding(model, sites, collector), buffers, batch, model


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_traces_gather_on_the_device(model_of, inputs_of):
    """Check that the kernel writes to the places of the segment, and that nothing is on the host before the copy."""
    collector, block, buffers, inputs, _ = start_capture(TritonReduction(Keep(), STATISTIC_NAMES), model_of, inputs_of)
    on_host = buffers.sites["decoder"]
    on_host.attention[:] = 77
    with torch.no_grad(), block() as forward:
        batch = collector.begin(buffers, range(3), inputs.special)
        forward(inputs)
        batch.settle()
    assert (on_host.attention == 77).all()
    expected_of, torch_block, expected, inputs, _ = start_capture(None, model_of, inputs_of)
    with torch.no_grad(), torch_block() as forward:
        expected_of.begin(expected, range(3), inputs.special)
        forward(inputs)
    arrays = buffers.arrays
    assert np.abs(arrays["decoder/attention"].astype(int) - expected.arrays["decoder/attention"]).max() <= 1
    for name in ("decoder/query", "decoder/key", "decoder/edge_key"):
        np.testing.assert_array_equal(arrays[name], expected.arrays[name])


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_failed_pass_leaves_nothing_behind(model_of, inputs_of):
    reduction = TritonReduction(Keep(), STATISTIC_NAMES)
    collector, block, buffers, inputs, model = start_capture(reduction, model_of, inputs_of)
    hook = model.layers[-1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError))
    with torch.no_grad(), block() as forward:
        failed_batch = collector.begin(buffers, range(3), inputs.special)
        with pytest.raises(MemoryError):
            forward(inputs)
        hook.remove()
        with torch.no_grad():
            model.layers[0].self_attn.q_proj.weight.fill_(float("nan"))
        batch = collector.begin(buffers, range(3), inputs.special)
        forward(inputs)
        batch.settle()
    assert set(batch.failures) == {0, 1, 2}
    assert failed_batch.failures == {}


def test_a_gpu_is_served_by_triton_where_it_is_installed(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert isinstance(choose_reduction(Keep(), STATISTIC_NAMES, device), TritonReduction)
    assert isinstance(choose_reduction(Keep(attention="float16"), STATISTIC_NAMES, device), TorchReduction)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert isinstance(choose_reduction(Keep(), STATISTIC_NAMES, device), TorchReduction)
