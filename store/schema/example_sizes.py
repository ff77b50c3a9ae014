"""Raw bytes of each example in the trace arrays of a segment, derived from the segment's layout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from ..codecs.array_layout import ArrayLayout
from ..codecs.attention_layout import band_array, entry_counts, pair_offset
from .traces import Counts, Site, TraceSpec, segment_layout


def example_bytes(spec: TraceSpec, n_tokens: Mapping[str, Counts]) -> Int64[np.ndarray, "example"]:
    """Raw bytes of the trace arrays of each example; for a sparse codec an upper bound.

    The sum over the examples is the size of the segment's arrays, except for biases and sinks: a segment has one of
    each.
    """
    total = np.zeros(len(next(iter(n_tokens.values()))), dtype=np.int64)
    for layout in segment_layout(spec, n_tokens).values():
        site = spec.site(layout.path.split("/", 1)[0])
        queries, keys = (n_tokens[name].astype(np.int64) for name in (site.query_sequence, site.key_sequence))
        counts = _axis_counts(spec, site, layout, queries, keys)
        for axis, per_example in counts.items():
            if axis in layout.axes:
                others = (n for name, n in zip(layout.axes, layout.shape, strict=True) if name != axis)
                total += per_example * int(np.prod([*others], dtype=np.int64)) * layout.dtype.itemsize
    return total


def _axis_counts(
    spec: TraceSpec, site: Site, layout: ArrayLayout, queries: Counts, keys: Counts
) -> dict[str, Int64[np.ndarray, "example"]]:
    """The items of each example on the axes along which examples follow each other; an array has one of these axes."""
    counts = {"query_token": queries, "key_token": keys, "example": np.ones_like(queries)}
    codec, name = spec.attention_codec, layout.path.split("/", 1)[1]
    if codec is not None and codec.selection is not None:
        counts["entry"] = entry_counts(queries, keys, codec.selection.n_kept, causal=site.causal)
    bands = {band_array(band): band for band in site.bands} | {"visible_keys": None}
    if name in bands and "pair" in layout.axes:
        counts["pair"] = np.diff(pair_offset(site, queries, keys, bands[name]))
    return counts
