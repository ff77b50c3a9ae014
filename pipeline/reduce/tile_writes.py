"""Writes of a tile's results into a segment's arrays: pairs, bands, sparse rows, token rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from headatlas.store.codecs.pairs import pair_rows
from headatlas.store.codecs.sparse_rows import dropped_mass
from headatlas.store.schema.traces import Site

from ..calls.segment_buffers import Run, SiteArrays, SitePlacement, SparseRows, TraceArray, as_stored
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
    by_row = [
        (as_stored(values, out), out[layer])
        for values, out in (
            (result.logsumexp, arrays.logsumexp),
            (result.edge_key, arrays.edge_key),  # -1 becomes the type's maximum
            (None if result.edge_weight is None else result.edge_weight.half(), arrays.edge_weight),
        )
        if values is not None and out is not None
    ]
    for i, row in enumerate(range(rows.start, rows.stop)):
        token_rows = slice(placement.query_start[row] + queries.start, placement.query_start[row] + queries.stop)
        for values, out in by_row:
            out[heads, token_rows] = values[i]


def _store_attention(
    weights: Tensor,
    site: Site,
    band: int | None,
    out: TraceArray,
    placement: SitePlacement,
    span: TileSpan,
) -> None:
    """Write a tile's encoded weights to their pairs. `out` is ``[head, pair]`` of the layer and the tile's heads."""
    rows, queries, n_keys = span.rows, span.queries, weights.shape[3]
    pair_index = _stored_pairs(queries.start, queries.stop, n_keys, site.causal, band, weights.device)
    pairs = weights.flatten(2)  # [example, head, pair]
    pairs = as_stored(pairs if pair_index is None else pairs.index_select(2, pair_index), out)
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
    rows = torch.arange(first_row, last_row, device=device)
    first = torch.zeros_like(rows) if band is None else (rows - band + 1).clamp(min=0)
    stop = rows + 1 if causal else torch.full_like(rows, n_keys)
    counts = (stop if band is None else torch.minimum(stop, rows + band)) - first
    n_pairs = pair_rows(first_row, last_row, n_keys, causal=causal, window=band)
    total = n_pairs.stop - n_pairs.start  # known without a wait for the device
    row = torch.repeat_interleave(rows - first_row, counts, output_size=total)
    key = torch.arange(total, device=device) - (counts.cumsum(0) - counts)[row] + first[row]
    return row * n_keys + key


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
    key, stored = as_stored(weights.key, out.key), as_stored(weights.stored, out.stored)
    count, dropped = as_stored(weights.count, out.count), as_stored(weights.dropped, out.dropped)
    if isinstance(dropped, Tensor):  # as `dropped_mass` does
        bits = dropped.view(torch.int16)
        dropped = torch.where(dropped < weights.dropped, bits + 1, bits).view(torch.float16)
    else:
        dropped = dropped_mass(weights.dropped.numpy())
    for i, row in enumerate(range(rows.start, rows.stop)):
        token_rows = slice(placement.query_start[row] + queries.start, placement.query_start[row] + queries.stop)
        out.key[layer, heads, token_rows, : key.shape[3]] = key[i]
        out.stored[layer, heads, token_rows, : key.shape[3]] = stored[i]
        out.count[layer, heads, token_rows] = count[i]
        out.dropped[layer, heads, token_rows] = dropped[i]
