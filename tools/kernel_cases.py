"""Cases of calls of the Triton kernel, on any device, and their comparison with torch operations on the same tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headatlas.pipeline.reduce.device_call import DeviceCall, DeviceRequest, DeviceResult
from headatlas.pipeline.reduce.tile_reduction import LOWEST, Tile, TileRequest, reduce_tile
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES

SCALING = 0.25


@dataclass(frozen=True)
class Case:
    """Options of one call. Cross-attention has `key_lengths`; `window` is as in `DeviceCall.before` and `after`."""

    lengths: tuple[int, ...]
    key_lengths: tuple[int, ...] | None = None
    heads: int = 2
    kv_heads: int = 1
    d_head: int = 16
    dtype: torch.dtype = torch.float32
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    has_bias: bool = False
    has_sinks: bool = False
    n_edges: int = 8
    scale: float = 1.0
    exact_ties: bool = True
    """True if the strongest keys must be equal. On a GPU, scores that differ by rounding change their order."""

    @property
    def n_keys(self) -> tuple[int, ...]:
        """Number of keys of each example."""
        return self.key_lengths or self.lengths


@dataclass(frozen=True)
class Outcome:
    """Result of a call, and the first pair of each example."""

    result: DeviceResult
    pair_start: list[int]


def make_call(case: Case, device: str = "cpu") -> tuple[DeviceCall, list[int]]:
    """Return a call of random tensors, padded on the right by five positions, and the first pair of each example.

    The numbers do not depend on the device.
    """
    generator = torch.Generator().manual_seed(len(case.lengths) + case.d_head)
    n, longest = len(case.lengths), (max(case.lengths) + 5, max(case.n_keys) + 5)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * case.scale).to(device)

    pair_of_row, pair_start, n_pairs = [], [], 0
    for n_queries, n_keys in zip(case.lengths, case.n_keys, strict=True):
        pair_start.append(n_pairs)
        for row in range(n_queries):
            pair_of_row.append(n_pairs)
            n_pairs += min(row + 1, n_keys) if case.causal else n_keys
    reach = sum(longest) if case.window is None else case.window
    call = DeviceCall(
        query=random(n, longest[0], case.heads, case.d_head).to(case.dtype).transpose(1, 2),
        key=random(n, longest[1], case.kv_heads, case.d_head).to(case.dtype).transpose(1, 2),
        n_queries=torch.tensor(case.lengths, device=device),
        n_keys=torch.tensor(case.n_keys, device=device),
        pair_of_row=torch.tensor(pair_of_row, device=device),
        row_start=torch.tensor([0, *np.cumsum(case.lengths)[:-1]], device=device),
        n_pairs=n_pairs,
        n_rows=sum(case.lengths),
        scaling=SCALING,
        causal=case.causal,
        same_tokens=case.key_lengths is None,
        before=reach,
        after=0 if case.causal else reach,
        band=sum(longest),
        softcap=case.softcap,
        biases=(random(1, case.heads, *longest),) if case.has_bias else (),
        sinks=random(case.heads) if case.has_sinks else None,
        special=(torch.rand((n, longest[1]), generator=generator) < 0.1).to(torch.int8).to(device),
    )
    return call, [*pair_start, n_pairs]


def run(kernel: Any, case: Case, call: DeviceCall | None = None) -> Outcome:
    """Run the kernel (the module `triton_kernel`) with everything that a job can keep."""
    default_call, pair_start = make_call(case)
    request = DeviceRequest(n_steps=255, root=True, n_edges=case.n_edges, logsumexp=True, statistics=True)
    return Outcome(kernel.reduce_on_device(call or default_call, request), pair_start)


def check(outcome: Outcome, case: Case, call: DeviceCall) -> None:
    """Compare every result with torch operations: codes within 1, equal keys but for ties, the rest to about 1e-4.

    Raises
    ------
    AssertionError
        A result differs.
    """
    result = outcome.result
    assert result.logsumexp is not None
    assert result.codes is not None
    assert result.edge_key is not None
    assert result.edge_weight is not None
    assert result.sums is not None
    assert call.special is not None
    device = call.query.device
    for example, (n_queries, n_keys) in enumerate(zip(case.lengths, case.n_keys, strict=True)):
        distance = torch.arange(n_queries, device=device)[:, None] - torch.arange(n_keys, device=device)
        is_hidden = (distance > call.before) | (distance < -call.after)
        mask = torch.zeros(distance.shape, device=device).masked_fill_(is_hidden, LOWEST)
        bias = call.biases[0][:, :, :n_queries, :n_keys] if call.biases else 0
        tile = Tile(
            query=call.query[example : example + 1, :, :n_queries].float(),
            key=call.key[example : example + 1, :, :n_keys].float(),
            scaling=SCALING,
            softcap=case.softcap,
            bias=(mask[None, None] + bias).clamp(min=LOWEST),
            sinks=call.sinks,
            causal=case.causal,
            special=call.special[example : example + 1, :n_keys].bool(),
        )
        expected = reduce_tile(tile, TileRequest("sqrt8", True, case.n_edges, frozenset(STATISTIC_NAMES)))
        assert expected.logsumexp is not None
        assert expected.attention is not None
        assert expected.edge_weight is not None
        assert expected.edge_key is not None
        assert result.valid[example].all(), "the kernel finds numbers that are not finite"
        rows = slice(sum(case.lengths[:example]), sum(case.lengths[: example + 1]))
        torch.testing.assert_close(result.logsumexp[:, rows], expected.logsumexp[0], rtol=1e-4, atol=1e-4)
        codes = result.codes[:, outcome.pair_start[example] : outcome.pair_start[example + 1]].int()
        is_stored = distance >= 0 if case.causal else torch.ones_like(distance, dtype=torch.bool)
        difference = (codes - expected.attention[0][:, is_stored]).abs()
        assert difference.max() <= 1, f"a code differs by {int(difference.max())}"
        assert difference.float().mean() < 0.01, f"{float(difference.float().mean()):.2%} of the codes differ"
        weights = expected.edge_weight[0]
        torch.testing.assert_close(result.edge_weight[:, rows].float(), weights, rtol=5e-3, atol=1e-4)
        is_edge = weights > 0  # torch operations also list hidden keys, without weight
        key, expected_key = result.edge_key[:, rows][is_edge], expected.edge_key[0][is_edge]
        if case.exact_ties:
            np.testing.assert_array_equal(key.cpu(), expected_key.cpu())
        else:
            share = float((key != expected_key).float().mean())
            assert share < 0.01, f"{share:.2%} of the strongest keys differ; ties explain fewer"
        names = [name for name in STATISTIC_NAMES if call.same_tokens or name not in ("self", "previous", "next")]
        for name in names:
            actual, n = result.sums[STATISTIC_NAMES.index(name), example], expected.sums[name][0]
            torch.testing.assert_close(actual, n, rtol=1e-4, atol=1e-3, msg=name)
