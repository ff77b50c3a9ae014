"""Write the results of a tile into a segment's arrays: pairs, bands, sparse rows, rows of tokens."""

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
    """The part of a run that one tile covers: batch rows, query heads and query positions."""

    run: Run
    rows: slice
    heads: slice
    queries: slice


def store_tile(
    result: TileResult, site: Site, layer: int, place: SitePlacement, arrays: SiteArrays, span: TileSpan
) -> None:
    """Write the results of one tile to the rows and pairs of its examples."""
    rows, heads, queries = span.rows, span.heads, span.queries
    if result.attention is not None and (out := arrays.attention_of(site, layer)) is not None:
        _store_attention(result.attention, site, site.band(layer), out[heads], place, span)
    if result.kept is not None and arrays.sparse is not None:
        _store_kept(result.kept, arrays.sparse, layer, heads, place, rows, queries)
    logsumexp = None if result.logsumexp is None else result.logsumexp.cpu().numpy()
    edge_key = None if result.edge_key is None else result.edge_key.cpu().numpy()
    edge_weight = None if result.edge_weight is None else result.edge_weight.to(torch.float16).cpu().numpy()
    if edge_key is not None and arrays.edge_key is not None:
        edge_key = edge_key.astype(arrays.edge_key.dtype)  # -1 becomes the type's maximum
    for i, row in enumerate(range(rows.start, rows.stop)):
        at = slice(place.query_start[row] + queries.start, place.query_start[row] + queries.stop)
        if logsumexp is not None and arrays.logsumexp is not None:
            arrays.logsumexp[layer, heads, at] = logsumexp[i]
        if edge_key is not None and arrays.edge_key is not None:
            arrays.edge_key[layer, heads, at] = edge_key[i]
        if edge_weight is not None and arrays.edge_weight is not None:
            arrays.edge_weight[layer, heads, at] = edge_weight[i]


def _store_attention(
    weights: Tensor,
    site: Site,
    band: int | None,
    out: np.ndarray,
    place: SitePlacement,
    span: TileSpan,
) -> None:
    """Write a tile's weights (any codec) to their pairs; `out` is ``[head, pair]`` of the layer and the tile's heads."""
    rows, queries, n_keys = span.rows, span.queries, weights.shape[3]
    kept = _kept_pairs(queries.start, queries.stop, n_keys, site.causal, band, weights.device)
    pairs = weights.flatten(2)  # [example, head, pair]
    pairs = (pairs if kept is None else pairs.index_select(2, kept)).cpu().numpy()
    first = pair_rows(queries.start, queries.stop, span.run.n_keys, causal=site.causal, window=band).start
    for i, row in enumerate(range(rows.start, rows.stop)):
        start = place.pair_start[band][row] + first
        out[:, start : start + pairs.shape[2]] = pairs[i]


def _kept_pairs(
    first_row: int, last_row: int, n_keys: int, causal: bool, band: int | None, device: torch.device
) -> Tensor | None:
    """Flat indices of the pairs of some rows that are stored; None: all are."""
    if not causal and (band is None or band >= n_keys):
        return None
    if last_row > 128:  # not worth the memory
        return _find_pairs(first_row, last_row, n_keys, causal, band, device)
    return _remembered_pairs(first_row, last_row, n_keys, causal, band, device)


def _find_pairs(
    first_row: int, last_row: int, n_keys: int, causal: bool, band: int | None, device: torch.device
) -> Tensor:
    distance = torch.arange(first_row, last_row, device=device)[:, None] - torch.arange(n_keys, device=device)
    kept = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if band is not None:
        kept &= distance.abs() < band
    return kept.flatten().nonzero().squeeze(1)


_remembered_pairs = lru_cache(maxsize=512)(_find_pairs)


def _store_kept(
    kept: KeptWeights, out: SparseRows, layer: int, heads: slice, place: SitePlacement, rows: slice, queries: slice
) -> None:
    """Write what a sparse codec keeps of a tile to the slots of its rows."""
    key, stored = kept.key.cpu().numpy().astype(out.key.dtype), kept.stored.cpu().numpy()
    count, dropped = kept.count.cpu().numpy(), dropped_mass(kept.dropped.cpu().numpy())
    for i, row in enumerate(range(rows.start, rows.stop)):
        at = slice(place.query_start[row] + queries.start, place.query_start[row] + queries.stop)
        out.key[layer, heads, at, : key.shape[3]] = key[i]
        out.stored[layer, heads, at, : key.shape[3]] = stored[i]
        out.count[layer, heads, at] = count[i]
        out.dropped[layer, heads, at] = dropped[i]
