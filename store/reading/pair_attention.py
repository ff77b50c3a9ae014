"""Stored attention on the pair axis that all layers share, for every codec.

A segment stores every pair of a layer, the band of its window, or some weights of each row with their keys. This module
reads all of them and returns the stored numbers of complete rows in the layout of the site (full or causal). A pair
that is not stored is 0, which is a weight of 0 in every codec. Readers and searches therefore need only one layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, Num

from ..codecs.attention_layout import band_array, pair_offset
from ..codecs.pairs import first_key, n_row_pairs, row_start
from ..errors import FormatError
from ..schema.traces import Site
from .segment import Segment


@dataclass(frozen=True)
class PairRows:
    """Rows (query tokens) of a segment that overlap a range of the pair axis."""

    tokens: slice
    """Span of the rows on the flat token axis of the queries."""
    example: Int64[np.ndarray, "row"]
    """Index of each row's example within the segment."""
    position: Int64[np.ndarray, "row"]
    n_keys: Int64[np.ndarray, "row"]
    """Number of keys of each row's example."""
    start: Int64[np.ndarray, "row"]
    """Offset of each row on the pair axis."""
    length: Int64[np.ndarray, "row"]


def pair_rows_of(segment: Segment, site: Site, pairs: slice) -> PairRows:
    """Return the rows that contain a range of the flat pair axis of a site."""
    offset = segment.pair_offset(site.name)
    first = max(0, int(np.searchsorted(offset, pairs.start, side="right")) - 1)
    last = int(np.searchsorted(offset, pairs.stop, side="left"))
    query_offset, key_offset = (segment.token_offset(name) for name in (site.query_sequence, site.key_sequence))
    n_rows = np.diff(query_offset[first : last + 1])
    example = np.repeat(np.arange(first, first + len(n_rows)), n_rows)
    position = np.arange(len(example)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    n_keys = np.diff(key_offset)[example]
    start = offset[example] + row_start(position, n_keys, causal=site.causal)
    length = n_row_pairs(position, n_keys, causal=site.causal)
    low = int(np.searchsorted(start + length, pairs.start, side="right"))
    high = max(low, int(np.searchsorted(start, pairs.stop, side="left")))
    row_span = slice(low, high)
    begin = int(query_offset[first])
    tokens = slice(begin + low, begin + high)
    return PairRows(tokens, example[row_span], position[row_span], n_keys[row_span], start[row_span], length[row_span])


def read_pairs(segment: Segment, site: Site, layer: int, heads: slice, pairs: slice) -> Num[np.ndarray, "head pair"]:
    """Read the stored numbers of some heads of a layer over a range of the flat pair axis.

    Raises
    ------
    NotFoundError
        Attention was not kept.
    FormatError
        A stored weight has a key that its row does not have.
    """
    codec, band = segment.spec.attention_codec, site.band(layer)
    if codec is not None and codec.selection is not None:
        return _read_sparse(segment, site, layer, heads, pairs)
    if codec is None or band is None:
        layer_index = site.bands[None].index(layer) if codec is not None else layer
        return segment.read(f"{site.name}/attention", (layer_index, heads, pairs))
    return _read_band(segment, site, layer, band, heads, pairs)


def _read_band(
    segment: Segment, site: Site, layer: int, band: int, heads: slice, pairs: slice
) -> Num[np.ndarray, "head pair"]:
    path, layer_index = f"{site.name}/{band_array(band)}", site.bands[band].index(layer)
    rows = pair_rows_of(segment, site, pairs)
    queries, keys = (np.diff(segment.token_offset(name)) for name in (site.query_sequence, site.key_sequence))
    offset = pair_offset(site, queries, keys, band)
    start = offset[rows.example] + row_start(rows.position, rows.n_keys, causal=site.causal, window=band)
    length = n_row_pairs(rows.position, rows.n_keys, causal=site.causal, window=band)
    span = slice(int(start[0]), int(start[-1] + length[-1])) if len(start) else slice(0, 0)
    stored = segment.read(path, (layer_index, heads, span))
    row_target = rows.start - pairs.start + first_key(rows.position, window=band) - (start - span.start)
    target = np.arange(span.stop - span.start) + np.repeat(row_target, length)
    is_inside = (target >= 0) & (target < pairs.stop - pairs.start)
    dense = np.zeros((len(stored), pairs.stop - pairs.start), stored.dtype)
    dense[:, target[is_inside]] = stored[:, is_inside]
    return dense


def _read_sparse(segment: Segment, site: Site, layer: int, heads: slice, pairs: slice) -> Num[np.ndarray, "head pair"]:
    path = f"{site.name}/attention"
    weights, rows = segment.array(path), pair_rows_of(segment, site, pairs)
    counts = segment.read(f"{path}_count", (layer, heads, slice(0, rows.tokens.stop))).astype(np.int64)
    dense = np.zeros((len(counts), pairs.stop - pairs.start), weights.dtype)
    for head_pairs, count, head in zip(dense, counts, range(*heads.indices(site.n_heads)), strict=True):
        first = int(count[: rows.tokens.start].sum())
        count = count[rows.tokens]
        span = slice(first, first + int(count.sum()))
        key = segment.read(f"{path}_key", (layer, head, span)).astype(np.int64)
        stored = segment.read(path, (layer, head, span))
        if len(key) < span.stop - span.start or (key >= np.repeat(rows.length, count)).any():
            raise FormatError(
                f"{segment.where}, layer {site.layers[layer]}, head {head}: {path}_key and {path}_count do not fit "
                "the rows. "
                "Verify the store."
            )
        target = key + np.repeat(rows.start - pairs.start, count)
        is_inside = (target >= 0) & (target < len(head_pairs))
        head_pairs[target[is_inside]] = stored[is_inside]
    return dense


def read_dropped(
    segment: Segment, site: Site, layer: int, heads: slice, tokens: slice
) -> Float32[np.ndarray, "head row"]:
    """Read an upper bound of the mass that a sparse codec left out of each row; 0 if all weights are stored."""
    codec = segment.spec.attention_codec
    if codec is None or codec.selection is None:
        return np.zeros((len(range(*heads.indices(site.n_heads))), tokens.stop - tokens.start), np.float32)
    return segment.read(f"{site.name}/attention_dropped", (layer, heads, tokens)).astype(np.float32)


def mean_dropped(segments: Iterable[Segment], site: Site) -> float:
    """Return the mean mass that a sparse codec left out of a row, over all heads. It reads one layer at a time."""
    total, n_rows = 0.0, 0
    for segment in segments:
        rows = slice(0, int(segment.token_offset(site.query_sequence)[-1]))
        for layer in range(site.n_layers):
            dropped = read_dropped(segment, site, layer, slice(None), rows)
            total, n_rows = total + float(dropped.sum(dtype=np.float64)), n_rows + dropped.size
    return total / n_rows if n_rows else 0.0
