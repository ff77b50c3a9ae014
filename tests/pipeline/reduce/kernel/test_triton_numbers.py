"""Tests of single calls of the Triton kernel, in Triton's interpreter, against torch operations on the same tensors."""

import mmap
from dataclasses import replace

import numpy as np
import pytest
import torch

from tools.gpu_check import run_step
from tools.kernel_cases import SCALING, Case, check, make_call, run

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes padding too
NO_RESERVE = 0x4000  # Linux: pages of a mapping take memory when they are written


CASES = {
    "two blocks": Case((130,), heads=1),
    "window": Case((70, 33), window=20, dtype=torch.bfloat16),
    "window, both sides": Case((70,), window=9, causal=False, d_head=24),
    "cap, bias and sinks": Case((20, 5), (70, 34), causal=False, softcap=5.0, has_bias=True, has_sinks=True),
    "window and bias": Case((66,), window=30, has_bias=True, dtype=torch.float16, scale=3.0),
    "sinks and few edges": Case((66, 1), has_sinks=True, n_edges=3, kv_heads=2, dtype=torch.float16),
    "more edges than keys": Case((5,), n_edges=16),
    "2,100 keys": Case((2,), (2100,), heads=1, causal=False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_results_are_those_of_torch_operations(triton_kernel, case):
    call, _ = make_call(case)
    check(run(triton_kernel, case), case, call)


def test_a_kernel_that_differs_fails_in_the_gpu_check(triton_kernel, monkeypatch, capsys):
    original = triton_kernel.reduce_on_device
    monkeypatch.setattr(
        triton_kernel, "reduce_on_device", lambda call, request: original(replace(call, scaling=1.5), request)
    )
    run_step("kernel", small=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("FAILED ") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case((3,), (8300,), heads=1, causal=False, dtype=torch.bfloat16, d_head=64),
        Case((3,), (8300,), heads=1, causal=False, softcap=20.0, has_bias=True, has_sinks=True, scale=4.0),
        Case((600,), heads=1, window=100, dtype=torch.float16, d_head=64),
    ],
    ids=str,
)
def test_long_rows_are_those_of_torch_operations(triton_kernel, case):
    call, _ = make_call(case)
    check(run(triton_kernel, case), case, call)


def test_a_window_reads_the_keys_of_its_band(triton_kernel):
    """Check that keys that no row of a block sees change nothing, even if they are not finite."""
    case = Case((200,), window=10, heads=1)
    call, _ = make_call(case)
    key = call.key.clone()
    key[:, :, :100] = float("nan")
    expected, actual = run(triton_kernel, case), run(triton_kernel, case, replace(call, key=key))
    last_block = slice(128, 200)  # its rows see keys from 118
    assert torch.equal(expected.result.logsumexp[:, last_block], actual.result.logsumexp[:, last_block])
    assert torch.equal(expected.result.edge_key[:, last_block], actual.result.edge_key[:, last_block])


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_padding_is_not_read(triton_kernel, number):
    """Check that padding that overflowed float16 changes no number and rejects no example."""
    case = Case((37, 3), dtype=torch.float16)
    call, _ = make_call(case)
    query, key = call.query.clone(), call.key.clone()
    for example, n in enumerate(case.lengths):
        query[example, :, n:], key[example, :, n:] = number, -number
    expected, actual = run(triton_kernel, case), run(triton_kernel, case, replace(call, query=query, key=key))
    for name, array in vars(expected.result).items():
        assert torch.equal(array, getattr(actual.result, name)), name
    assert actual.result.valid.all()


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("name", ["query", "key"])
def test_an_example_that_is_not_finite_is_not_valid(triton_kernel, name, number):
    """Check a single number among many that are finite, in one of two examples."""
    case = Case((40, 6))
    call, _ = make_call(case)
    vectors = getattr(call, name).clone()
    vectors[0, 0, 20] = number
    actual = run(triton_kernel, case, replace(call, **{name: vectors})).result
    assert actual.valid[:, 0].tolist() == [False, True]
    assert torch.equal(actual.sums[:, 1], run(triton_kernel, case).result.sums[:, 1])


@pytest.mark.parametrize("order", ["equal", "ascending", "descending"])
def test_edges_across_blocks_are_the_strongest_and_lowest(triton_kernel, order):
    """Check ties, weights that beat the edges in every block, and weights that never do."""
    n_keys, case = 100, Case((1,), (100,), heads=1, causal=False)
    score = {"equal": torch.zeros(n_keys), "ascending": torch.arange(n_keys) / 9.0}.get(
        order, -torch.arange(n_keys) / 9.0
    )
    call, _ = make_call(case)
    query, key = torch.zeros_like(call.query), torch.zeros_like(call.key)
    query[..., 0], key[0, 0, :n_keys, 0] = 1 / SCALING, score
    actual = run(triton_kernel, case, replace(call, query=query, key=key)).result
    expected = range(99, 91, -1) if order == "ascending" else range(8)
    assert actual.edge_key[0, 0].tolist() == list(expected)
    np.testing.assert_allclose(actual.edge_weight[0, 0], torch.softmax(score, 0)[list(expected)], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["query", "key", "bias"])
def test_positions_beyond_2_31_numbers(triton_kernel, name):
    """Check strides whose products exceed 32 bits, as the bias of 32 heads beyond 8,192 tokens has.

    The tensors lie in the middle of a mapping in which only their own pages take memory, so products that wrap around
    would read zeros.
    """
    case = Case((6,), heads=3, kv_heads=3, has_bias=True, dtype=torch.float16)
    call, _ = make_call(case)
    tensors = {"query": call.query, "key": call.key, "bias": call.biases[0].to(torch.int8)}
    tensor, head_stride = tensors[name], 1_100_000_000
    item = tensor.element_size()
    size = (2**32 + 2**29) * item
    try:
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    except OSError as error:
        pytest.skip(f"{size:,} bytes of address space are not available: {error}")
    memory = torch.frombuffer(mapping, dtype=tensor.dtype)
    distant = memory.as_strided(tensor.shape, (0, head_stride, tensor.shape[3], 1), 2**31 + 2**10)
    distant.copy_(tensor)
    near, far = (
        replace(call, biases=(values,)) if name == "bias" else replace(call, **{name: values})
        for values in (tensor.contiguous(), distant)
    )
    expected, actual = run(triton_kernel, case, near), run(triton_kernel, case, far)
    for result, array in vars(expected.result).items():
        assert torch.equal(array, getattr(actual.result, result)), result
