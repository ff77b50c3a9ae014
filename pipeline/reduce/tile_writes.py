"""Writes of a tile's results into a segment's arrays: pairs, bands, sparse rows, token rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from headatlas.store.codecs.pairs import pair_rows
from headatlas.store.codecs.sparse_rows import dropped_mass
from headatlas.store.schema.traces import Site

from ..calls.segment_buffers import Run, SiteArrays, SitePlacement, SparseRows
from .tile_reduction import KeptWeights, TileResult


@dataclass(frozen=True)
class TileSpan:
    """Part of a run that one tile covers: batch rows, query heads and query positions."""

    run: Run
    rows: slice
    heads: slice
    queries: slice


def store_tile(
    result: TileResult, site: Site, layer: int, placement: SitePlacement, arrays: SiteArrays, span: TileSpan
) -> None:
    """Write the results of one tile to the rows and pairs of its examples."""
    rows, heads, queries = span.rows, span.heads, span.queries
    if result.attention is not None and (out := arrays.attention_of(site, layer)) is not None:
        _store_attention(result.attention, site, site.band(layer), out[heads], placement, span)
    if result.sparse_weights is not None and arrays.sparse is not None:
        _store_sparse(result.sparse_weights, arrays.sparse, layer, heads, placement, rows, queries)
    logsumexp = None if result.logsumexp is None else result.logsumexp.cpu().numpy()
    edge_key = None if result.edge_key is None else result.edge_key.cpu().numpy()
    edge_weight = None if result.edge_weight is None else result.edge_weight.to(torch.float16).cpu().numpy()
    if edge_key is not None and arrays.edge_key is not None:
        edge_key = edge_key.astype(arrays.edge_key.dtype)  # -1 becomes the type's maximum
    for i, row in enumerate(range(rows.start, rows.stop)):
        token_rows = slice(placement.query_start[row] + queries.start, placement.query_start[row] + queries.stop)
        if logsumexp is not None and arrays.logsumexp is not None:
            arrays.logsumexp[layer, heads, token_rows] = logsumexp[i]
        if edge_key is not None and arrays.edge_key is not None:
            arrays.edge_key[layer, heads, token_rows] = edge_key[i]
        if edge_weight is not None and arrays.edge_weight is not None:
            arrays.edge_weight[layer, heads, token_rows] = edge_weight[i]


def _store_attention(
    weights: Tensor,
    site: Site,
    band: int | None,
    out: np.ndarray,
    placement: SitePlacement,
    span: TileSpan,
) -> None:
    """Write a tile's encoded weights to their pairs. `out` is ``[head, pair]`` of the layer and the tile's heads."""
    rows, queries, n_keys = span.rows, span.queries, weights.shape[3]
    pair_index = _stored_pairs(queries.start, queries.stop, n_keys, site.causal, band, weights.device)
    pairs = weights.flatten(2)  # [example, head, pair]
    pairs = (pairs if pair_index is None else pairs.index_select(2, pair_index)).cpu().numpy()
    first = pair_rows(queries.start, queries.stop, span.run.n_keys, causal=site.causal, window=band).start
    for i, row in enumerate(range(rows.start, rows.stop)):
        start = placement.pair_start[band][row] + first
        out[:, start : start + pairs.shape[2]] = pairs[i]


def _stored_pairs(
    first_row: int, last_row: int, n_keys: int, causal: bool, band: int | None, device: torch.device
) -> Tensor | None:
    """Return flat indices of the stored pairs of some rows, or None if all pairs are stored."""
    if not causal and (band is None or band >= n_keys):
        return None
    if device.type != "cpu" or last_row * n_keys > 1 << 14:  # too large for the cache
        return _find_pairs(first_row, last_row, n_keys, causal, band, device)
    return _cached_pairs(first_row, last_row, n_keys, causal, band, device)


def _find_pairs(
    first_row: int, last_row: int, n_keys: int, causal: bool, band: int | None, device: torch.device
) -> Tensor:
    distance = torch.arange(first_row, last_row, device=device)[:, None] - torch.arange(n_keys, device=device)
    is_stored = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if band is not None:
        is_stored &= distance.abs() < band
    return is_stored.flatten().nonzero().squeeze(1)


_cached_pairs = lru_cache(maxsize=512)(_find_pairs)


def _store_sparse(
    weights: KeptWeights,
    out: SparseRows,
    layer: int,
    heads: slice,
    placement: SitePlacement,
    rows: slice,
    queries: slice,
) -> None:
    """Write the weights that a sparse codec keeps of a tile to the slots of its rows."""
    key, stored = weights.key.cpu().numpy().astype(out.key.dtype), weights.stored.cpu().numpy()
    count, dropped = weights.count.cpu().numpy(), dropped_mass(weights.dropped.cpu().numpy())
    for i, row in enumerate(range(rows.start, rows.stop)):
        token_rows = slice(placement.query_start[row] + queries.start, placement.query_start[row] + queries.stop)
        out.key[layer, heads, token_rows, : key.shape[3]] = key[i]
        out.stored[layer, heads, token_rows, : key.shape[3]] = stored[i]
        out.count[layer, heads, token_rows] = count[i]
        out.dropped[layer, heads, token_rows] = dropped[i]
