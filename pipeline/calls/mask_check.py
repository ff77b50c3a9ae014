"""Comparison of the keys that attention calls show with the mask of their layer, in one operation for a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from headatlas.store.schema.layer_masks import LayerMask

from .attention_hook import AttentionCall
from .lazy_mask import row_blocks
from .mask_rules import shown_keys, visible_keys


@dataclass(frozen=True)
class TokenPositions:
    """Positions of the query or key tokens of a batch, on the model's device.

    Example `i` starts at row `start[i]` of the segment. A token has a row of the batch, a position in it, and a row of
    the segment.
    """

    start: Int64[Tensor, "example"]
    row: Int64[Tensor, "token"]
    position: Int64[Tensor, "token"]
    target: Int64[Tensor, "token"]


@dataclass(frozen=True)
class BatchShape:
    """Numbers of queries and keys of the examples of a batch at a site, and their positions, on the model's device.

    `full` is the number of queries and keys that all examples have, or None if they differ. `example` is the index
    within the segment.
    """

    n_queries: Int64[Tensor, "example"]
    n_keys: Int64[Tensor, "example"]
    full: tuple[int, int] | None
    example: Int64[Tensor, "example"]
    queries: TokenPositions
    keys: TokenPositions

    def inside(self, rows: slice, n_queries: int, n_keys: int) -> Bool[Tensor, "example query key"] | None:
        """Return True for the pairs of some queries that are no padding, or None if the batch has no padding."""
        if self.full == (n_queries, n_keys):
            return None
        queries = torch.arange(rows.start, rows.stop, device=self.n_queries.device)
        keys = torch.arange(n_keys, device=self.n_queries.device)
        is_query = queries[:, None] < self.n_queries[:, None, None]
        return is_query & (keys < self.n_keys[:, None, None])


def first_differences(
    call: AttentionCall, mask: LayerMask, shape: BatchShape, *, is_boolean: bool
) -> Int64[Tensor, "kind example"]:
    """Find the first pair of each example at which a call differs from the mask of its layer.

    Returns
    -------
    For each example 2 · (query_pos · keys of the batch + key_pos), plus 1 if the call shows the key; −1 if there is no
    difference. In the second row, with `is_boolean`, the first visible pair to whose score the mask adds.
    """
    n_queries, n_keys = call.query.shape[2], call.key.shape[2]
    device = call.query.device
    keys = torch.arange(n_keys, device=device)
    first = torch.full((2, len(shape.n_queries)), -1, dtype=torch.int64, device=device)
    n_shared = 1 if call.mask is None else call.mask.shape[0] * call.mask.shape[1]
    for rows in row_blocks(n_queries, n_keys * n_shared, device):
        queries = torch.arange(rows.start, rows.stop, device=device)
        if call.mask is None:
            crop = ((keys <= queries[:, None]) | (not call.causal))[None, None]
        else:
            crop = call.mask[:, :, rows, :]
        visible, expected = visible_keys(crop), shown_keys(mask, queries[:, None], keys)
        if mask.stored is not None:
            expected = visible & expected  # a later key of a causal site has no place in the store
        inside = shape.inside(rows, n_queries, n_keys)
        _note_first(first[0], visible != expected, visible, inside, rows.start * n_keys)
        if is_boolean and crop.dtype != torch.bool:
            _note_first(first[1], visible & (crop != 0), visible, inside, rows.start * n_keys)
    return first


def first_hidden_weights(
    weights: Shaped[Tensor, "example head query key"], mask: LayerMask, shape: BatchShape
) -> Int64[Tensor, "kind example"]:
    """Find the first pair of each example with a weight that the mask of its layer hides. See `first_differences`."""
    n_keys, device = weights.shape[3], weights.device
    keys = torch.arange(n_keys, device=device)
    first = torch.full((1, len(weights)), -1, dtype=torch.int64, device=device)
    for rows in row_blocks(weights.shape[2], n_keys * weights.shape[0] * weights.shape[1], device):
        queries = torch.arange(rows.start, rows.stop, device=device)
        has_weight = (weights[:, :, rows] != 0).any(dim=1, keepdim=True)
        inside = shape.inside(rows, weights.shape[2], n_keys)
        _note_first(
            first[0], has_weight & ~shown_keys(mask, queries[:, None], keys), has_weight, inside, rows.start * n_keys
        )
    return first


def _note_first(
    first: Int64[Tensor, "example"],
    cells: Bool[Tensor, "#example #head query key"],
    visible: Bool[Tensor, "#example #head query key"],
    inside: Bool[Tensor, "example query key"] | None,
    offset: int,
) -> None:
    """Write the code of the first True cell of each example that has none yet. `offset` is the index of the first cell."""
    if cells.device.type == "cpu" and not bool(cells.any()):
        return
    by_example = cells.any(dim=1)
    by_example = by_example if inside is None else by_example & inside
    flat = by_example.flatten(1)
    index = flat.to(torch.uint8).argmax(dim=1, keepdim=True)
    is_visible = visible.any(dim=1).flatten(1).expand(len(flat), -1).gather(1, index)
    code = torch.where(flat.gather(1, index), 2 * (offset + index) + is_visible, -1)[:, 0]
    torch.where(first < 0, code, first, out=first)


def describe(
    first: Float64[np.ndarray, "kind example"] | Int64[np.ndarray, "kind example"], mask: LayerMask, n_keys: int
) -> dict[int, tuple[int, int, bool, str]]:
    """Return query, key, visibility and a description of the first difference of each example that has one."""
    differences: dict[int, tuple[int, int, bool, str]] = {}
    for kind, row in np.argwhere(first >= 0):
        cell, shown = divmod(int(first[kind, row]), 2)
        query, key = divmod(cell, n_keys)
        if kind == 0:
            verb = "sees" if shown else "does not see"
            text = f"query {query} {verb} key {key}, unlike in the mask of this layer ({mask})"
        else:
            text = f"the mask adds to the score of query {query} and key {key}, which the store does not hold"
        differences.setdefault(int(row), (query, key, bool(shown), text))
    return differences
