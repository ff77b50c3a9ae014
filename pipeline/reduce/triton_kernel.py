"""Triton kernel that computes statistics, strongest keys, packed codes and logsumexp of attention on a GPU.

A program processes a block of query rows of one head of one example. It reads the keys twice: first for the largest
score and the sum, then for all other results. The second pass reads the keys from the cache. The kernel writes codes
directly to the batch's pairs (lower triangle for causal sites, no padding), so the host receives the bytes to store.
SDPA computes the attention output. With `TRITON_INTERPRET=1` the same code runs on the CPU; the tests use that.
"""

# Triton may not be installed, and the annotations of its reductions include tuples as results.
# pyright: reportMissingImports=false, reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportInvalidTypeForm=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headatlas.store.schema.capture_statistics import STATISTIC_NAMES

from .device_call import LANES, DeviceCall, DeviceLimits, DeviceRequest, DeviceResult, choose_block_sizes, padded_depth

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


@triton.jit
def _is_inner(first_row, first_key, n_rows, n_keys, before, after, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return True if every pair of a block has a distance within the limits and lies outside the padding."""
    is_inside = (first_row + BLOCK_Q <= n_rows) & (first_key + BLOCK_K <= n_keys)
    return is_inside & (first_row + BLOCK_Q - 1 - first_key <= before) & (first_key + BLOCK_K - 1 - first_row <= after)


@triton.jit
def _is_near(row, key_index, first_row, first_key, n_rows, n_keys, before, after):
    """Return the pairs of a block whose distance is within the limits, without padding."""
    distance = first_row - first_key + row
    last = tl.where(row < n_rows - first_row, tl.minimum(distance + after, n_keys - first_key - 1), -1)
    return (key_index[None, :] >= (distance - before)[:, None]) & (key_index[None, :] <= last[:, None])


@triton.jit
def _vectors(
    pointer, stride, index, is_inside, first, D_HEAD: tl.constexpr, DEPTH: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """Load numbers `first` to `first + DEPTH` of some vectors, and zeros outside of them."""
    depth = first + tl.arange(0, DEPTH)
    vectors = tl.load(
        pointer + index[:, None] * stride + depth[None, :],
        mask=is_inside[:, None] & (depth < D_HEAD)[None, :],
        other=0.0,
    )
    return vectors.to(tl.float32) if UPCAST else vectors


@triton.jit
def _bias(pointer, stride, first_row, first_key, row, key_index, is_row, is_key):
    """Load a block of a bias, and zeros outside of it."""
    pointer += tl.cast(first_row, tl.int64) * stride + first_key
    offset = row[:, None] * stride.to(tl.int32) + key_index[None, :]
    return tl.load(pointer + offset, mask=is_row[:, None] & is_key[None, :], other=0.0)


@triton.jit
def _scores(
    query, query_ptr, query_stride, key_ptr, key_stride, bias_0, bias_0_stride, bias_1, bias_1_stride,
    first_row, first_key, n_rows, n_keys, scale, cap, before, after,
    D_HEAD: tl.constexpr, BIASES: tl.constexpr, SOFTCAP: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute scores of a block of rows and keys, in units of log 2. Hidden keys get the lowest float32.

    Tile origins are 64-bit, so products of strides do not overflow; positions within a tile are 32-bit.
    """
    row, key_index = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K)
    is_row, is_key = row < n_rows - first_row, key_index < n_keys - first_key
    key_ptr += tl.cast(first_key, tl.int64) * key_stride
    if DEPTH == BLOCK_D:
        key = _vectors(key_ptr, key_stride, key_index, is_key, 0, D_HEAD, DEPTH, UPCAST)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    else:
        scores = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
        for first in range(0, BLOCK_D, DEPTH):
            piece = _vectors(query_ptr, query_stride, row, is_row, first, D_HEAD, DEPTH, UPCAST)
            key = _vectors(key_ptr, key_stride, key_index, is_key, first, D_HEAD, DEPTH, UPCAST)
            scores = tl.dot(piece, tl.trans(key), scores, input_precision="ieee")
    scores *= scale
    if SOFTCAP:
        scores = cap * (1.0 - 2.0 / (tl.exp2(scores) + 1.0))
    if BIASES >= 1:
        bias = _bias(bias_0, bias_0_stride, first_row, first_key, row, key_index, is_row, is_key)
        scores = tl.where(bias < -1e37, -3.4028234e38, scores + bias * 1.4426950408889634)
    if BIASES >= 2:
        bias = _bias(bias_1, bias_1_stride, first_row, first_key, row, key_index, is_row, is_key)
        scores = tl.where(bias < -1e37, -3.4028234e38, scores + bias * 1.4426950408889634)
    if not _is_inner(first_row, first_key, n_rows, n_keys, before, after, BLOCK_Q, BLOCK_K):
        is_visible = _is_near(row, key_index, first_row, first_key, n_rows, n_keys, before, after)
        scores = tl.where(is_visible, scores, -3.4028234e38)
    return scores


@triton.jit
def _insert_edges(weight, visible, keys, best, least):
    """Insert the keys of a block that are stronger than the weakest edge of their row.

    An edge is an integer that orders by weight; the lower key wins a tie, so no two are equal. Blocks arrive by
    ascending key, so a key that only equals the weakest edge does not replace it.
    """
    candidate = tl.where(visible, weight, -1.0)
    strongest = tl.max(candidate, 1)
    while tl.max((strongest > least).to(tl.int32), 0) > 0:
        key = tl.min(tl.where(candidate == strongest[:, None], keys[None, :], 2147483647), 1)
        edge = strongest.to(tl.int32, bitcast=True).to(tl.int64) * 4294967296 + (4294967295 - key.to(tl.int64))
        is_weakest = best == tl.min(best, 1)[:, None]
        best = tl.where(is_weakest & (strongest > least)[:, None], edge[:, None], best)
        least = _edge_weight(tl.min(best, 1))
        candidate = tl.where(keys[None, :] == key[:, None], -1.0, candidate)
        strongest = tl.max(candidate, 1)
    return best, least


@triton.jit
def _edge_weight(edge):
    """Return the weight of an edge, and a negative number for a slot without an edge."""
    return tl.where(edge < 0, -0.5, (edge // 4294967296).to(tl.int32).to(tl.float32, bitcast=True))


@triton.jit(
    do_not_specialize=[
        "bias_00", "bias_01", "bias_10", "bias_11", "n_pairs", "n_rows_all", "n_examples", "longest_key", "before",
        "after", "band",
    ]
)  # fmt: skip
def _reduce(
    query_ptr, key_ptr, n_queries_ptr, n_keys_ptr, pair_ptr, row_ptr, bias_0, bias_1, sinks_ptr, special_ptr,
    codes_ptr, logsumexp_ptr, edge_key_ptr, edge_weight_ptr, sums_ptr, valid_ptr,
    query_0: tl.int64, query_1: tl.int64, query_2: tl.int64, key_0: tl.int64, key_1: tl.int64, key_2: tl.int64,
    bias_00: tl.int64, bias_01: tl.int64, bias_02: tl.int64, bias_10: tl.int64, bias_11: tl.int64, bias_12: tl.int64,
    n_pairs: tl.int64, n_rows_all: tl.int64, n_examples: tl.int64, n_heads, n_groups, longest_key: tl.int64,
    scale, cap, before, after, band, n_steps,
    CAUSAL: tl.constexpr, SAME: tl.constexpr, BIASES: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    CODES: tl.constexpr, ROOT: tl.constexpr, LOGSUMEXP: tl.constexpr, N_EDGES: tl.constexpr, EDGES: tl.constexpr,
    STATISTICS: tl.constexpr, UPCAST: tl.constexpr, D_HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    # The last rows of causal sites have the most keys, so their programs start first.
    block, head, example = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2)
    block_64, head_64, example_64 = block.to(tl.int64), head.to(tl.int64), example.to(tl.int64)
    n_rows, n_keys = tl.load(n_queries_ptr + example).to(tl.int32), tl.load(n_keys_ptr + example).to(tl.int32)
    first_row = block * BLOCK_Q
    stop_row = tl.minimum(first_row + BLOCK_Q, n_rows)
    row = tl.arange(0, BLOCK_Q)
    is_query = row < n_rows - first_row
    query_ptr += example_64 * query_0 + head_64 * query_1 + tl.cast(first_row, tl.int64) * query_2
    query = 0.0
    if DEPTH == BLOCK_D:
        query = _vectors(query_ptr, query_2, row, is_query, 0, D_HEAD, DEPTH, UPCAST)
    key_ptr += example_64 * key_0 + (head // n_groups).to(tl.int64) * key_1
    bias_0 += example_64 * bias_00 + head_64 * bias_01
    bias_1 += example_64 * bias_10 + head_64 * bias_11
    # The keys that some row of the block sees. A block of padding has none.
    start = tl.maximum(0, first_row - before)
    stop = tl.where(first_row < n_rows, tl.minimum(n_keys, stop_row + after), 0)

    GROUPS: tl.constexpr = BLOCK_K // LANES
    lane, key_index = tl.arange(0, LANES), tl.arange(0, BLOCK_K)
    # Maximum and sum of each lane, whose columns lie in one thread, so that the loop needs no communication.
    lane_top = tl.full((BLOCK_Q, LANES), -3.4028234e38, tl.float32)
    lane_total = tl.zeros((BLOCK_Q, LANES), tl.float32)
    for first_key in range(start, stop, BLOCK_K):
        scores = _scores(
            query, query_ptr, query_2, key_ptr, key_2, bias_0, bias_02, bias_1, bias_12, first_row, first_key, n_rows,
            n_keys, scale, cap, before, after, D_HEAD, BIASES, SOFTCAP, UPCAST, BLOCK_Q, BLOCK_K, BLOCK_D, DEPTH,
        )  # fmt: skip
        scores = tl.reshape(scores, (BLOCK_Q, GROUPS, LANES))
        larger = tl.maximum(lane_top, tl.max(scores, 1))
        shift = tl.where(larger > -1e37, larger, 0.0)
        lane_total = lane_total * tl.exp2(lane_top - shift) + tl.sum(tl.exp2(scores - shift[:, None, :]), 1)
        lane_top = larger
    largest = tl.max(lane_top, 1)
    top = tl.where(largest > -1e37, largest, 0.0)
    if SINKS:
        sink = tl.load(sinks_ptr + head) * 1.4426950408889634
        top = tl.maximum(top, sink)
    total = tl.sum(lane_total * tl.exp2(lane_top - top[:, None]), 1)
    if SINKS:
        total += tl.exp2(sink - top)
    is_valid = (total > 0) & (total < float("inf")) & (largest > -1e37) & (largest < float("inf"))
    log_total = tl.where(is_valid, top + tl.log2(total), 0.0)
    row_index = tl.load(row_ptr + example) + first_row + row
    if LOGSUMEXP:
        tl.store(logsumexp_ptr + head_64 * n_rows_all + row_index, log_total * 0.6931471805599453, mask=is_query)
    tl.store(
        valid_ptr + (block_64 * n_examples + example) * n_heads + head,
        tl.min(tl.where(is_query, is_valid, True).to(tl.int32), 0),
    )
    step = n_examples * n_heads
    target = sums_ptr + (block_64 * N_STATISTICS * n_examples + example) * n_heads + head
    if STATISTICS:
        maximum = tl.where(is_query & is_valid, tl.exp2(largest - log_total), 0.0)
        tl.store(target + MAXIMUM * step, tl.sum(maximum, 0))
    half_log_total = log_total * 0.5
    if CODES:
        first_pair = tl.load(pair_ptr + tl.load(row_ptr + example) + first_row, mask=first_row < n_rows, other=0)
        pair_offset = (tl.load(pair_ptr + row_index, mask=is_query, other=0) - first_pair).to(tl.uint32)
        codes_ptr += head_64 * n_pairs + first_pair

    edge = tl.arange(0, EDGES)[None, :]
    empty = tl.where(edge < N_EDGES, -1 - edge.to(tl.int64), 4611686018427387904)  # other slots are never the weakest
    best = tl.where(is_query[:, None], empty, 4611686018427387904)
    least = _edge_weight(tl.min(best, 1))
    entropy, distance = tl.zeros((BLOCK_Q, LANES), tl.float32), tl.zeros((BLOCK_Q, LANES), tl.float32)
    special = tl.zeros((BLOCK_Q, LANES), tl.float32)
    self_sum, previous_sum = tl.zeros((BLOCK_Q,), tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    next_sum, first_sum = tl.zeros((BLOCK_Q,), tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    for first_key in range(start, stop, BLOCK_K):
        scores = _scores(
            query, query_ptr, query_2, key_ptr, key_2, bias_0, bias_02, bias_1, bias_12, first_row, first_key, n_rows,
            n_keys, scale, cap, before, after, D_HEAD, BIASES, SOFTCAP, UPCAST, BLOCK_Q, BLOCK_K, BLOCK_D, DEPTH,
        )  # fmt: skip
        half_log = scores * 0.5 - half_log_total[:, None]
        root = tl.exp2(half_log)
        weight = root * root
        if CODES:
            value = root if ROOT else weight
            # Adding 2**23 rounds to a whole number, which the low bits then hold.
            code = (value * n_steps + 8388608.0).to(tl.int32, bitcast=True).to(tl.uint8)
            pairs = codes_ptr + first_key + (pair_offset[:, None] + key_index.to(tl.uint32)[None, :])
            reach = band - 1
            after_row = 0 if CAUSAL else reach
            if _is_inner(first_row, first_key, n_rows, n_keys, reach, after_row, BLOCK_Q, BLOCK_K):
                tl.store(pairs, code)
            else:
                is_stored = _is_near(row, key_index, first_row, first_key, n_rows, n_keys, reach, after_row)
                # With the mask in the code, the store needs no second copy of it in its own layout.
                marked = tl.where(is_stored, code.to(tl.int16), -1)
                tl.store(pairs, marked.to(tl.uint8), mask=marked >= 0)
        by_lane = tl.reshape(weight, (BLOCK_Q, GROUPS, LANES))
        if STATISTICS:
            entropy += tl.sum(by_lane * tl.reshape(half_log, (BLOCK_Q, GROUPS, LANES)), 1)
            from_lane = (first_row - first_key + row[:, None] - lane[None, :]).to(tl.float32)
            offset = from_lane[:, None, :] - (tl.arange(0, GROUPS) * LANES).to(tl.float32)[None, :, None]
            distance += tl.sum(by_lane * (offset if CAUSAL else tl.abs(offset)), 1)
            if first_key == 0:
                first_sum = tl.sum(tl.where(key_index[None, :] == 0, weight, 0.0), 1)
            if SAME and (first_key <= first_row + BLOCK_Q) & (first_key + BLOCK_K >= first_row):
                to_key = first_row - first_key + row[:, None] - key_index[None, :]
                self_sum += tl.sum(tl.where(to_key == 0, weight, 0.0), 1)
                previous_sum += tl.sum(tl.where(to_key == 1, weight, 0.0), 1)
                next_sum += tl.sum(tl.where(to_key == -1, weight, 0.0), 1)
            is_special = tl.load(
                special_ptr + example_64 * longest_key + first_key + key_index,
                mask=key_index < n_keys - first_key,
                other=0,
            ).to(tl.int32)
            if tl.max(is_special, 0) > 0:
                special += tl.sum(tl.where(tl.reshape(is_special, (1, GROUPS, LANES)) != 0, by_lane, 0.0), 1)
        if N_EDGES > 0 and tl.max((tl.max(by_lane, 1) > least[:, None]).to(tl.int32)) > 0:
            best, least = _insert_edges(weight, half_log > -1e37, first_key + key_index, best, least)

    if N_EDGES > 0:
        best = tl.where(edge < N_EDGES, best, -2000)
        for index in range(N_EDGES):
            strongest = tl.max(best, 1)
            best = tl.where(best == strongest[:, None], -2000, best)
            is_edge = strongest >= 0
            key = tl.where(is_edge, 4294967295 - strongest % 4294967296, -1).to(tl.int32)
            edge_index = (head_64 * n_rows_all + row_index) * N_EDGES + index
            tl.store(edge_key_ptr + edge_index, key, mask=is_query)
            weight = tl.where(is_edge, _edge_weight(strongest), 0.0)
            tl.store(edge_weight_ptr + edge_index, weight.to(tl.float16), mask=is_query)
    if STATISTICS:
        tl.store(target + ENTROPY * step, tl.sum(entropy) * -1.3862943611198906)
        tl.store(target + DISTANCE * step, tl.sum(distance))
        tl.store(target + SELF * step, tl.sum(self_sum, 0))
        tl.store(target + PREVIOUS * step, tl.sum(previous_sum, 0))
        tl.store(target + NEXT * step, tl.sum(next_sum, 0))
        tl.store(target + FIRST * step, tl.sum(first_sum, 0))
        tl.store(target + SPECIAL * step, tl.sum(special))


_KERNEL: Any = _reduce  # the decorated function
IS_INTERPRETED = not isinstance(_KERNEL, triton.runtime.JITFunction)


@dataclass(frozen=True)
class KernelLaunch:
    """One launch of the kernel. `arguments` and `keywords` are all that decides which machine code is compiled.

    `sums` [block, statistic, example, head] and `valid` [block, example, head] are those of blocks of queries.
    """

    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    codes: Tensor
    logsumexp: Tensor
    edge_key: Tensor
    edge_weight: Tensor
    sums: Tensor
    valid: Tensor


def prepare_launch(call: DeviceCall, request: DeviceRequest, limits: DeviceLimits) -> KernelLaunch:
    """Allocate the results of a call and choose the launch of the kernel. This function starts nothing."""
    query = call.query if call.query.stride(3) == 1 else call.query.contiguous()
    key = call.key if call.key.stride(3) == 1 else call.key.contiguous()
    n_examples, n_heads, longest_query, d_head = query.shape
    blocks = choose_block_sizes(query.element_size(), d_head, request.n_edges, len(call.biases), longest_query, limits)
    device, n_blocks = query.device, triton.cdiv(longest_query, blocks.queries)

    def empty(on: bool, shape: tuple[int, ...], dtype: torch.dtype, target: Tensor | None = None) -> Tensor:
        return torch.empty(shape if on else (1,), dtype=dtype, device=device) if target is None else target

    targets = call.targets
    codes = empty(request.n_steps > 0, (n_heads, call.n_pairs), torch.uint8, targets.codes)
    reach = call.before if call.causal else min(call.before, call.after)
    if request.n_steps and targets.codes is None and reach + 1 < min(call.band, max(longest_query, key.shape[2])):
        codes.zero_()  # the kernel skips stored pairs outside the window
    logsumexp = empty(request.logsumexp, (n_heads, call.n_rows), torch.float32, targets.logsumexp)
    edge_shape = (n_heads, call.n_rows, request.n_edges)
    edge_key = empty(request.n_edges > 0, edge_shape, torch.int32, targets.edge_key)
    edge_weight = empty(request.n_edges > 0, edge_shape, torch.float16, targets.edge_weight)
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
    softcap, to_log_2 = call.softcap, math.log2(math.e)
    arguments = (
        query, key, call.n_queries, call.n_keys, call.pair_of_row, call.row_start, *biases,
        logsumexp if call.sinks is None else call.sinks, special,
        codes, logsumexp, edge_key, edge_weight, sums, valid,
        *query.stride()[:3], *key.stride()[:3], *strides[0], *strides[1],
        call.n_pairs, call.n_rows, n_examples, n_heads, n_heads // key.shape[1], key.shape[2],
        call.scaling * to_log_2 * (2 / softcap if softcap else 1), (softcap or 1.0) * to_log_2,
        call.before, call.after, call.band, float(request.n_steps),
    )  # fmt: skip
    keywords = {
        "CAUSAL": call.causal, "SAME": call.same_tokens, "BIASES": len(call.biases), "SOFTCAP": softcap is not None,
        "SINKS": call.sinks is not None, "CODES": request.n_steps > 0, "ROOT": request.root,
        "LOGSUMEXP": request.logsumexp, "N_EDGES": request.n_edges,
        "EDGES": triton.next_power_of_2(max(1, request.n_edges)), "STATISTICS": request.statistics,
        "UPCAST": IS_INTERPRETED or not limits.has_tensor_cores, "D_HEAD": d_head,
        "BLOCK_Q": blocks.queries, "BLOCK_K": blocks.keys, "BLOCK_D": padded_depth(d_head), "DEPTH": blocks.depth,
        "LANES": LANES, "num_warps": blocks.n_warps, "num_stages": blocks.n_stages, "enable_fp_fusion": True,
    }  # fmt: skip
    grid = (n_blocks, n_heads, n_examples)
    return KernelLaunch(grid, arguments, keywords, codes, logsumexp, edge_key, edge_weight, sums, valid)


def device_limits(device: torch.device) -> DeviceLimits:
    """Return the limits of a GPU, or those of a small one for Triton's interpreter."""
    if IS_INTERPRETED:
        return DeviceLimits(shared_bytes=48 * 1024, has_tensor_cores=True)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return DeviceLimits(properties.shared_memory_per_block, True, properties.warp_size)
    return DeviceLimits(properties.shared_memory_per_block_optin, has_tensor_cores=properties.major >= 8)


def reduce_on_device(call: DeviceCall, request: DeviceRequest) -> DeviceResult:
    """Launch the kernel on the current stream. The results are ready when the stream has run it.

    Statistics are summed in a fixed order, so equal inputs give equal bytes.
    """
    launch, kernel = prepare_launch(call, request, device_limits(call.query.device)), _KERNEL
    kernel[launch.grid](*launch.arguments, **launch.keywords)
    return DeviceResult(
        launch.codes if request.n_steps else None,
        launch.logsumexp if request.logsumexp else None,
        launch.edge_key if request.n_edges else None,
        launch.edge_weight if request.n_edges else None,
        launch.sums.sum(0) if request.statistics else None,
        launch.valid.amin(0) > 0,
    )
