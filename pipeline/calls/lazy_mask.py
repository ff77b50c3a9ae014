"""Attention masks that are computed tile by tile, so that tokens² boolean values are never in memory.

If a window or padding hides keys, transformers computes one boolean value for every pair of positions: a gigabyte for
one text of 32,768 tokens. It computes them from a function of the positions. A `TiledMask` holds that function
instead. A slice of a `TiledMask` is a small tensor. Any other operation on it receives the full mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers.masking_utils import and_masks, padding_mask_function, prepare_padding_mask, sdpa_mask

DENSE_PAIRS = 1 << 22
"""Largest number of pairs of a mask that is built in full on a CPU. Larger masks are `TiledMask`s."""
_BYTES_A_PAIR = 128
"""A mask that is built in full on a GPU, and what is computed from it, takes at most an eighth of the memory."""
LOWEST = torch.finfo(torch.float32).min
"""Score of a hidden key."""

_AS_FUNCTIONS: ContextVar[bool] = ContextVar("_AS_FUNCTIONS", default=False)
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def dense_pairs(device: torch.device) -> int:
    """Return the largest number of pairs of a mask that is built in full on a device.

    On a GPU the limit is so high that attention is computed in one call wherever the mask fits into its memory.
    """
    return max(DENSE_PAIRS, _device_memory(device) // _BYTES_A_PAIR)


def _device_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


class TiledMask(torch.Tensor):
    """A boolean mask ``[batch, 1, query, key]`` (True: may attend) that holds a function instead of values."""

    function: MaskFunction
    offsets: tuple[int, int]
    rule: MaskFunction
    """The function without the padding of the batch."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(
        cls: type[TiledMask],
        function: MaskFunction,
        shape: tuple[int, int, int],
        offsets: tuple[int, int],
        device: torch.device,
        rule: MaskFunction | None = None,
    ) -> TiledMask:
        """Create a mask from `function` of batch row, head, query and key position. `shape` has no heads axis."""
        batch, n_queries, n_keys = shape
        make: Any = torch.Tensor._make_wrapper_subclass  # pyright: ignore[reportAttributeAccessIssue]
        mask = make(cls, (batch, 1, n_queries, n_keys), dtype=torch.bool, device=device)
        mask.function, mask.offsets, mask.rule = function, offsets, rule or function
        return mask

    def __repr__(self, *, tensor_contents: object = None) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the class and shape, without values."""
        return f"TiledMask{tuple(self.shape)}"

    def __getitem__(self, index: Any) -> Tensor:
        """Compute the part that slices of step 1 select. Any other index is applied to the full mask."""
        parts = index if isinstance(index, tuple) else (index,)
        if len(parts) > 4 or not all(isinstance(part, slice) and part.step in (None, 1) for part in parts):
            return self.dense()[index]
        slices = [*parts, *[slice(None)] * (4 - len(parts))]
        ranges = tuple(range(*part.indices(n)) for part, n in zip(slices, self.shape, strict=True))
        return self if ranges == tuple(map(range, self.shape)) else self._cells(*ranges)

    def rule_at(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return True for each pair ``[query, key]`` of these positions that the rule shows in the first row."""
        zero = torch.zeros(1, dtype=torch.int64, device=self.device)[:, None]
        query_pos, key_pos = queries.to(self.device)[:, None], keys.to(self.device)[None]
        return self.rule(zero, zero, query_pos, key_pos).expand(len(queries), len(keys))

    def _cells(self, rows: range, heads: range, queries: range, keys: range) -> Tensor:
        first_query, first_key = self.offsets
        mask = self.function(
            torch.arange(rows.start, rows.stop, device=self.device)[:, None, None, None],
            torch.arange(heads.start, heads.stop, device=self.device)[None, :, None, None],
            torch.arange(queries.start, queries.stop, device=self.device)[None, None, :, None] + first_query,
            torch.arange(keys.start, keys.stop, device=self.device)[None, None, None, :] + first_key,
        )
        return mask.expand(len(rows), len(heads), len(queries), len(keys))

    def dense(self) -> Tensor:
        """Compute the full mask."""
        return self._cells(*map(range, self.shape))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation that does not know this class on the full mask."""
        plain = tree_map_only(TiledMask, TiledMask.dense, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


def tiled_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, **options: Any
) -> Tensor | None:
    """Return the mask of transformers' `sdpa_mask`, or a `TiledMask` if there are more than `dense_pairs` pairs.

    Inside a block of `masks_as_functions` every mask is a `TiledMask`.
    """
    device = torch.device(options.get("device", "cpu"))
    is_small = batch_size * q_length * kv_length <= dense_pairs(device) and not _AS_FUNCTIONS.get()
    if options.get("use_vmap") or is_small or not isinstance(q_offset, int):
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            **options,
        )
    padding = prepare_padding_mask(options.get("attention_mask"), kv_length, kv_offset)
    if not _AS_FUNCTIONS.get() and _hides_nothing(padding, q_length, kv_length, q_offset, kv_offset, options):
        return None
    rule: Any = options.get("mask_function")
    function = rule
    if padding is not None:
        function = and_masks(function, padding_mask_function(padding))
    return TiledMask(function, (batch_size, q_length, kv_length), (q_offset, kv_offset), device, rule)


def causal_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, **options: Any
) -> Tensor | None:
    """Return `tiled_mask`, but never None in place of a causal mask."""
    options["allow_is_causal_skip"] = False
    return tiled_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **options)


@contextmanager
def masks_as_functions() -> Iterator[None]:
    """Make every mask inside the block a `TiledMask`, also if it hides nothing, so that its function can be read."""
    token = _AS_FUNCTIONS.set(True)
    try:
        yield
    finally:
        _AS_FUNCTIONS.reset(token)


def _hides_nothing(
    padding: Tensor | None, q_length: int, kv_length: int, q_offset: int, kv_offset: int, options: dict[str, Any]
) -> bool:
    """Return True if `sdpa_mask` would return None: `is_causal` describes the mask, or no key is hidden."""
    from transformers import masking_utils

    local = options.get("local_size")
    if options.get("allow_is_causal_skip", True) and masking_utils._ignore_causal_mask_sdpa(
        padding, q_length, kv_length, q_offset, kv_offset, local
    ):
        return True
    return bool(
        options.get("allow_is_bidirectional_skip", False)
        and masking_utils._ignore_bidirectional_mask_sdpa(padding, kv_length, local)
    )


def row_blocks(n_queries: int, n_keys: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of mask rows with at most `dense_pairs` pairs each, but at least one row."""
    n_rows = max(1, dense_pairs(device) // max(1, n_keys))
    for start in range(0, n_queries, n_rows):
        yield slice(start, min(start + n_rows, n_queries))


class AdditiveRows:
    """A boolean mask as an additive mask, computed tile by tile for slices `[rows, heads, queries, keys]`."""

    def __init__(self, mask: Tensor, shape: tuple[int, ...], first: int, lowest: float) -> None:
        self._mask, self._first, self._lowest = mask, first, lowest
        self.shape = shape

    def __getitem__(self, index: tuple[slice, slice, slice, slice]) -> Tensor:
        bounds = (slice(*part.indices(n)[:2]) for part, n in zip(index, self.shape, strict=True))
        rows, heads, queries, keys = bounds
        visible = self._mask[self._first + rows.start : self._first + rows.stop, heads, queries, keys]
        return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, self._lowest)
