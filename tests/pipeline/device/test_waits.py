"""Waits, copies and attention calls of a capture on the pretend GPU: none by layer but one call of SDPA."""

import pytest
import torch

from headatlas.pipeline.reduce.device_call import DeviceResult
from headatlas.pipeline.reduce.torch_reduction import TorchReduction
from headatlas.pipeline.reduce.triton_reduction import TritonReduction

from .device_counts import MODELS, count
from .pretend_cuda import PretendTensor

MIXED = sorted(20 + i * 8 % 21 for i in range(32))
REDUCTIONS = [TritonReduction, TorchReduction]


@pytest.fixture
def kernel(triton_kernel, monkeypatch):
    """Replace the kernel, which the interpreter runs too slowly, by its results of no numbers."""

    def results(call, request):
        n_examples, n_heads = call.query.shape[:2]
        for value in (*vars(call).values(), *vars(call.targets).values(), *call.biases):
            assert not isinstance(value, torch.Tensor) or isinstance(value, PretendTensor), "an argument on the host"
        sums = PretendTensor(torch.zeros(8, n_examples, n_heads))
        return DeviceResult(None, None, None, None, sums, PretendTensor(torch.ones(n_examples, n_heads) > 0))

    monkeypatch.setattr(triton_kernel, "reduce_on_device", results)


def check(gpu, name, lengths, reduction, **changes):
    few, many = (count(gpu, name, lengths, reduction, n_layers, **changes) for n_layers in (2, 4))
    n_layers = many.n_calls - few.n_calls
    row = {
        "waits/layer": (many.n_waits - few.n_waits) / n_layers,
        "waits/batch": few.n_waits - few.n_bare_waits,
        "copies/layer": (many.n_copies - few.n_copies) / n_layers,
        "SDPA/layer": many.n_sdpa / many.n_calls,
    }
    print(f"{reduction.__name__:16} {name:12} {row}, copies of a batch: {few.n_copies}")
    assert row == {"waits/layer": 0, "waits/batch": 0, "copies/layer": 0, "SDPA/layer": 1}
    assert not few.mixed
    assert not few.unpinned


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_no_wait_and_one_attention_call_a_layer(gpu, name, reduction):
    check(gpu, name, MIXED[::4], reduction)


@pytest.mark.usefixtures("kernel")
def test_masks_of_long_batches_are_built_in_full(gpu):
    check(gpu, "GPT-2", [512] * 16 + [500] * 16, TritonReduction)


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
def test_a_window_in_a_text_of_8192_tokens(gpu):
    check(gpu, "Mistral", [8192], TritonReduction, sliding_window=1024)


@pytest.mark.usefixtures("kernel")
def test_a_window_in_a_long_text(gpu):
    check(gpu, "Mistral", [2304], TritonReduction, sliding_window=256)


def test_waits_are_counted(gpu):
    """The pretend GPU sees each way in which the host waits, and copies from memory that is not pinned."""
    values = torch.arange(4.0, device="cuda")
    gpu.reset()
    for wait in (
        lambda: values.sum().item(),
        lambda: values.tolist(),
        lambda: values.cpu(),
        lambda: values.nonzero(),
        lambda: values[values > 1],
        lambda: bool((values > 1).any()),
        lambda: torch.equal(values, values),
        lambda: torch.tensor([1], device="cuda"),
        lambda: torch.arange(4).to(values.device),
    ):
        n_waits = gpu.n_waits
        wait()
        assert gpu.n_waits > n_waits
    n_waits = gpu.n_waits
    torch.empty(4, pin_memory=True).copy_(values, non_blocking=True)
    assert (gpu.n_waits, gpu.unpinned) == (n_waits, [])
    torch.empty(4).copy_(values, non_blocking=True)
    assert len(gpu.unpinned) == 1
    assert not gpu.mixed
    torch.add(values, torch.ones(4))
    assert len(gpu.mixed) == 1
