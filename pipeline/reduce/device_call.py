"""Calls of the Triton kernel: inputs, results, and the block sizes that fit a device. This module needs no Triton."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LANES = 8
"""Columns of a block that sums hold apart. In the layouts of tensor cores a thread holds all columns of a lane."""
_KEYS = 32
_THREADS = 256
_SCRATCH_BYTES = 8 * 1024
"""Shared memory for conversions between layouts, twice of what compilers allocate."""


@dataclass(frozen=True)
class DeviceTargets:
    """Arrays of a layer of the segment that a call writes to, None for those that are not stored. All are contiguous.

    Codes are [head, pair], logsumexp is [head, row], edges are [head, row, edge]. Stored pairs outside the window are
    left as they are.
    """

    codes: Tensor | None = None
    logsumexp: Tensor | None = None
    edge_key: Tensor | None = None
    edge_weight: Tensor | None = None


@dataclass(frozen=True)
class DeviceCall:
    """One call of a right padded batch on the device; the names are those of `kernel.AttentionInputs`.

    `row_start` [example] is an index among the `n_rows` rows of the results. `pair_of_row` [row] is the index of the
    row's pair with key 0, even if that pair is not stored. Pairs `band` or more positions apart are not stored. `special` is int8
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
    targets: DeviceTargets = DeviceTargets()
    """Destinations of the results that have one already. The others are allocated."""


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


@dataclass(frozen=True)
class DeviceLimits:
    """Properties of a device that decide the block sizes."""

    shared_bytes: int
    """Largest shared memory of a block of threads."""
    has_tensor_cores: bool
    """True if Triton multiplies half precision on matrix units: SM 8.0 and later, and CDNA."""
    warp_size: int = 32


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of one program: query rows, keys of a step, and numbers of each vector that are multiplied at once."""

    queries: int
    keys: int
    depth: int
    n_warps: int
    n_stages: int


def choose_block_sizes(
    element_bytes: int, d_head: int, n_edges: int, n_biases: int, longest_query: int, limits: DeviceLimits
) -> BlockSizes:
    """Choose the largest block that fits the shared memory of a device and whose registers do not spill.

    Without matrix units both operands pass through registers, so vectors are multiplied in short pieces.
    """
    n_warps = _THREADS // limits.warp_size
    if element_bytes > 2 or not limits.has_tensor_cores:
        return BlockSizes(64, _KEYS, 16, n_warps, n_stages=3)
    depth, is_large = padded_depth(d_head), longest_query > 64 and n_edges <= 16 and n_biases == 0
    for queries, n_stages in ((128, 3), (128, 2), (64, 3), (64, 2), (64, 1)):
        n_bytes = element_bytes * depth * (queries + n_stages * _KEYS) + _SCRATCH_BYTES
        if n_bytes <= limits.shared_bytes and (queries == 64 or is_large):
            return BlockSizes(queries, _KEYS, depth, n_warps, n_stages)
    return BlockSizes(64, _KEYS, 64, n_warps, n_stages=2)


def padded_depth(d_head: int) -> int:
    """Return the power of two, at least 16, to which vectors of `d_head` numbers are padded."""
    return max(16, 1 << (d_head - 1).bit_length())
