"""Triton kernel that computes statistics, strongest keys, packed codes and logsumexp of attention on a GPU.

A program processes a block of query rows of one head of one example. It reads the keys twice: first for the largest
score and the sum, then for all other results. The second pass reads the keys from the cache. The kernel writes codes
directly to the batch's pairs (lower triangle for causal sites, no padding), so the host receives the bytes to store.
SDPA computes the attention output. With `TRITON_INTERPRET=1` the same code runs on the CPU; the tests use that.
"""

# Triton may not be installed, and the annotations of its reductions include tuples as results.
# pyright: reportMissingImports=false, reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headatlas.store.schema.capture_statistics import STATISTIC_NAMES

BLOCK_QUERIES, BLOCK_KEYS = 16, 64

# Rows of the sums, as constants that the kernel can read.
N_STATISTICS = tl.constexpr(len(STATISTIC_NAMES))
ENTROPY = tl.constexpr(STATISTIC_NAMES.index("entropy"))
DISTANCE = tl.constexpr(STATISTIC_NAMES.index("distance"))
MAXIMUM = tl.constexpr(STATISTIC_NAMES.index("maximum"))
SELF = tl.constexpr(STATISTIC_NAMES.index("self"))
PREVIOUS = tl.constexpr(STATISTIC_NAMES.index("previous"))
NEXT = tl.constexpr(STATISTIC_NAMES.index("next"))
FIRST = tl.constexpr(STATISTIC_NAMES.index("first"))
SPECIAL = tl.constexpr(STATISTIC_NAMES.index("special"))


@dataclass(frozen=True)
class DeviceCall:
    """One call of a right padded batch on the device; the names are those of `kernel.AttentionInputs`.

    `row_start` [example] is an index within the batch. `pair_of_row` [row of the batch] is the index of the row's pair
    with key 0, even if that pair is not stored. Pairs `band` or more positions apart are not stored. `special` is int8
    [example, key_pos].
    """

    query: Tensor
    key: Tensor
    n_queries: Tensor
    n_keys: Tensor
    pair_of_row: Tensor
    row_start: Tensor
    n_pairs: int
    n_rows: int
    scaling: float
    causal: bool
    same_tokens: bool
    before: int
    after: int
    band: int
    softcap: float | None = None
    biases: tuple[Tensor, ...] = ()
    sinks: Tensor | None = None
    special: Tensor | None = None


@dataclass(frozen=True)
class DeviceRequest:
    """Results to compute. `n_steps` is the number of code steps (0: no codes); `root` is True for the square root."""

    n_steps: int
    root: bool
    n_edges: int
    logsumexp: bool
    statistics: bool


@dataclass(frozen=True)
class DeviceResult:
    """Results on the device. `sums` over rows are [statistic, example, head], in the order of `STATISTIC_NAMES`."""

    codes: Tensor | None
    logsumexp: Tensor | None
    edge_key: Tensor | None
    edge_weight: Tensor | None
    sums: Tensor | None
    valid: Tensor


@triton.jit
def _scores(
    query, key_ptr, key_stride, bias_0, bias_0_stride, bias_1, bias_1_stride, rows, keys, n_rows, n_keys, d_head,
    scaling, softcap, before, after,
    BLOCK_D: tl.constexpr, BIASES: tl.constexpr, SOFTCAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute scores of a block of rows and keys. Hidden keys get the lowest float32."""
    depth = tl.arange(0, BLOCK_D)
    key = tl.load(
        key_ptr + keys[:, None] * key_stride + depth[None, :],
        mask=(keys < n_keys)[:, None] & (depth < d_head)[None, :],
        other=0.0,
    )
    if UPCAST:
        key = key.to(tl.float32)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
    if SOFTCAP:
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))
    inside = (rows < n_rows)[:, None] & (keys < n_keys)[None, :]
    if BIASES >= 1:
        bias = tl.load(bias_0 + rows[:, None] * bias_0_stride + keys[None, :], mask=inside, other=0.0)
        scores = tl.where(bias < -1e37, -3.4028234e38, scores + bias)
    if BIASES >= 2:
        bias = tl.load(bias_1 + rows[:, None] * bias_1_stride + keys[None, :], mask=inside, other=0.0)
        scores = tl.where(bias < -1e37, -3.4028234e38, scores + bias)
    distance = rows[:, None] - keys[None, :]
    visible = inside & (distance <= before) & (distance >= -after)
    return tl.where(visible, scores, -3.4028234e38)


@triton.jit
def _reduce(
    query_ptr, key_ptr, n_queries_ptr, n_keys_ptr, pair_ptr, row_ptr, bias_0, bias_1, sinks_ptr, special_ptr,
    codes_ptr, logsumexp_ptr, edge_key_ptr, edge_weight_ptr, sums_ptr, valid_ptr,
    query_0, query_1, query_2, key_0, key_1, key_2,
    bias_00, bias_01, bias_02, bias_10, bias_11, bias_12,
    n_pairs, n_rows_all, n_examples, n_heads, n_groups, longest_key, d_head, scaling, softcap, before, after, band,
    n_steps,
    CAUSAL: tl.constexpr, SAME: tl.constexpr, BIASES: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    CODES: tl.constexpr, ROOT: tl.constexpr, LOGSUMEXP: tl.constexpr, N_EDGES: tl.constexpr, EDGES: tl.constexpr,
    STATISTICS: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    block, head, example = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n_rows, n_keys = tl.load(n_queries_ptr + example), tl.load(n_keys_ptr + example)
    rows = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_query = rows < n_rows
    depth = tl.arange(0, BLOCK_D)
    query = tl.load(
        query_ptr + example * query_0 + head * query_1 + rows[:, None] * query_2 + depth[None, :],
        mask=is_query[:, None] & (depth < d_head)[None, :],
        other=0.0,
    )
    if UPCAST:
        query = query.to(tl.float32)
    key_ptr += example * key_0 + (head // n_groups) * key_1
    bias_0 += example * bias_00 + head * bias_01
    bias_1 += example * bias_10 + head * bias_11
    stop = n_keys
    if CAUSAL:
        stop = tl.minimum(n_keys, (block + 1) * BLOCK_Q)

    top = tl.full((BLOCK_Q,), -3.4028234e38, tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    for first in range(0, stop, BLOCK_K):
        scores = _scores(
            query, key_ptr, key_2, bias_0, bias_02, bias_1, bias_12, rows, first + tl.arange(0, BLOCK_K), n_rows,
            n_keys, d_head, scaling, softcap, before, after, BLOCK_D, BIASES, SOFTCAP, UPCAST,
        )  # fmt: skip
        larger = tl.maximum(top, tl.max(scores, 1))
        total = total * tl.exp(top - larger) + tl.sum(
            tl.where(scores > -1e37, tl.exp(scores - larger[:, None]), 0.0), 1
        )
        top = larger
    largest = top
    if SINKS:
        sink = tl.load(sinks_ptr + head)
        top = tl.maximum(top, sink)
        total = total * tl.exp(largest - top) + tl.exp(sink - top)
    total = tl.where(is_query, total, 1.0)
    log_total = tl.log(total)
    is_valid = (total > 0) & (total < float("inf")) & (largest > -1e37) & (largest < float("inf"))
    row_index = tl.load(row_ptr + example) + rows
    pairs_ptr = tl.zeros((BLOCK_Q,), tl.int64) + head.to(tl.int64) * n_pairs
    if CODES:
        pairs_ptr += tl.load(pair_ptr + row_index, mask=is_query, other=0)
    if LOGSUMEXP:
        tl.store(logsumexp_ptr + head * n_rows_all + row_index, top + log_total, mask=is_query)
    tl.store(
        valid_ptr + (block * n_examples + example) * n_heads + head,
        tl.min(tl.where(is_query, is_valid, True).to(tl.int32), 0),
    )

    best = -1 - tl.zeros((BLOCK_Q, EDGES), tl.int64) - tl.arange(0, EDGES)[None, :]
    entropy_sum, distance_sum = tl.zeros((BLOCK_Q,), tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    self_sum, previous_sum = tl.zeros((BLOCK_Q,), tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    next_sum, first_sum = tl.zeros((BLOCK_Q,), tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    special_sum = tl.zeros((BLOCK_Q,), tl.float32)
    for first in range(0, stop, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        scores = _scores(
            query, key_ptr, key_2, bias_0, bias_02, bias_1, bias_12, rows, keys, n_rows, n_keys,
            d_head, scaling, softcap, before, after, BLOCK_D, BIASES, SOFTCAP, UPCAST,
        )  # fmt: skip
        visible = scores > -1e37
        log_weight = scores - (top + log_total)[:, None]
        weight = tl.where(visible, tl.exp(log_weight), 0.0)
        offset = rows[:, None] - keys[None, :]
        if CODES:
            value = tl.sqrt(weight) if ROOT else weight
            code = tl.floor(value * n_steps + 0.5).to(tl.uint8)
            is_stored = is_query[:, None] & (keys < n_keys)[None, :] & (offset < band) & (offset > -band)
            if CAUSAL:
                is_stored = is_stored & (offset >= 0)
            tl.store(codes_ptr + pairs_ptr[:, None] + keys[None, :], code, mask=is_stored)
        if N_EDGES > 0:
            # sort keys in the order of weights; the lower key wins a tie, so no two are equal
            bits = weight.to(tl.int32, bitcast=True).to(tl.int64) * 4294967296
            ranked = tl.where(visible, bits + (4294967295 - keys[None, :].to(tl.int64)), -1000)
            for _ in range(N_EDGES):
                strongest = tl.max(ranked, 1)
                least = tl.min(best, 1)
                best = tl.where((best == least[:, None]) & (strongest > least)[:, None], strongest[:, None], best)
                ranked = tl.where(ranked == strongest[:, None], -1000, ranked)
        if STATISTICS:
            entropy_sum -= tl.sum(tl.where(visible, weight * log_weight, 0.0), 1)
            distance_sum += tl.sum(weight * tl.abs(offset).to(tl.float32), 1)
            first_sum += tl.sum(tl.where(keys[None, :] == 0, weight, 0.0), 1)
            if SAME:
                self_sum += tl.sum(tl.where(offset == 0, weight, 0.0), 1)
                previous_sum += tl.sum(tl.where(offset == 1, weight, 0.0), 1)
                next_sum += tl.sum(tl.where(offset == -1, weight, 0.0), 1)
            is_special = tl.load(special_ptr + example * longest_key + keys, mask=keys < n_keys, other=0)
            special_sum += tl.sum(tl.where(is_special[None, :] != 0, weight, 0.0), 1)

    if N_EDGES > 0:
        for edge in range(N_EDGES):
            strongest = tl.max(best, 1)
            best = tl.where(best == strongest[:, None], -2000, best)
            is_edge = strongest >= 0
            key = tl.where(is_edge, 4294967295 - strongest % 4294967296, -1).to(tl.int32)
            weight = (strongest // 4294967296).to(tl.int32).to(tl.float32, bitcast=True)
            edge_index = (head * n_rows_all + row_index) * N_EDGES + edge
            tl.store(edge_key_ptr + edge_index, key, mask=is_query)
            tl.store(edge_weight_ptr + edge_index, tl.where(is_edge, weight, 0.0).to(tl.float16), mask=is_query)
    if STATISTICS:
        step = n_examples * n_heads
        target = sums_ptr + (block * N_STATISTICS * n_examples + example) * n_heads + head
        tl.store(target + ENTROPY * step, tl.sum(tl.where(is_query, entropy_sum, 0.0), 0))
        tl.store(target + DISTANCE * step, tl.sum(tl.where(is_query, distance_sum, 0.0), 0))
        tl.store(target + MAXIMUM * step, tl.sum(tl.where(is_query, tl.exp(largest - top - log_total), 0.0), 0))
        tl.store(target + SELF * step, tl.sum(tl.where(is_query, self_sum, 0.0), 0))
        tl.store(target + PREVIOUS * step, tl.sum(tl.where(is_query, previous_sum, 0.0), 0))
        tl.store(target + NEXT * step, tl.sum(tl.where(is_query, next_sum, 0.0), 0))
        tl.store(target + FIRST * step, tl.sum(tl.where(is_query, first_sum, 0.0), 0))
        tl.store(target + SPECIAL * step, tl.sum(tl.where(is_query, special_sum, 0.0), 0))


def reduce_on_device(call: DeviceCall, request: DeviceRequest) -> DeviceResult:
    """Launch the kernel on the current stream. The results are ready when the stream has run it.

    Statistics are summed in a fixed order, so equal inputs give equal bytes.
    """
    query = call.query if call.query.stride(3) == 1 else call.query.contiguous()
    key = call.key if call.key.stride(3) == 1 else call.key.contiguous()
    n_examples, n_heads, longest_query, d_head = query.shape
    device, n_blocks = query.device, triton.cdiv(longest_query, BLOCK_QUERIES)

    def empty(on: bool, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape if on else (1,), dtype=dtype, device=device)

    codes = empty(request.n_steps > 0, (n_heads, call.n_pairs), torch.uint8)
    logsumexp = empty(request.logsumexp, (n_heads, call.n_rows), torch.float32)
    edge_shape = (n_heads, call.n_rows, request.n_edges)
    edge_key, edge_weight = (empty(request.n_edges > 0, edge_shape, t) for t in (torch.int32, torch.float16))
    sums = empty(request.statistics, (n_blocks, len(STATISTIC_NAMES), n_examples, n_heads), torch.float32)
    valid = torch.empty((n_blocks, n_examples, n_heads), dtype=torch.int32, device=device)
    biases = [bias if bias.stride(3) == 1 else bias.contiguous() for bias in call.biases]
    strides = [[0 if n == 1 else s for n, s in zip(b.shape[:3], b.stride()[:3], strict=True)] for b in biases]
    biases += [logsumexp] * (2 - len(biases))
    strides += [[0, 0, 0]] * (2 - len(strides))
    special = (
        torch.zeros((n_examples, key.shape[2]), dtype=torch.int8, device=device)
        if call.special is None
        else call.special
    )
    launch: Any = _reduce  # the decorated function
    launch[(n_blocks, n_heads, n_examples)](
        query, key, call.n_queries, call.n_keys, call.pair_of_row, call.row_start, *biases,
        logsumexp if call.sinks is None else call.sinks, special,
        codes, logsumexp, edge_key, edge_weight, sums, valid,
        *query.stride()[:3], *key.stride()[:3], *strides[0], *strides[1],
        call.n_pairs, call.n_rows, n_examples, n_heads, n_heads // key.shape[1], key.shape[2], d_head,
        call.scaling, call.softcap or 1.0, call.before, call.after, call.band, float(request.n_steps),
        CAUSAL=call.causal, SAME=call.same_tokens, BIASES=len(call.biases), SOFTCAP=call.softcap is not None,
        SINKS=call.sinks is not None, CODES=request.n_steps > 0, ROOT=request.root, LOGSUMEXP=request.logsumexp,
        N_EDGES=request.n_edges, EDGES=triton.next_power_of_2(max(1, request.n_edges)), STATISTICS=request.statistics,
        UPCAST=query.dtype == torch.float32 or device.type == "cpu",
        BLOCK_Q=BLOCK_QUERIES, BLOCK_K=BLOCK_KEYS, BLOCK_D=max(16, triton.next_power_of_2(d_head)),
    )  # fmt: skip
    return DeviceResult(
        codes if request.n_steps else None,
        logsumexp if request.logsumexp else None,
        edge_key if request.n_edges else None,
        edge_weight if request.n_edges else None,
        sums.sum(0) if request.statistics else None,
        valid.amin(0) > 0,
    )
