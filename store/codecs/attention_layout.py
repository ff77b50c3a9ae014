"""Layout of the arrays that hold a site's attention: names, shapes, types, and the offsets of examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Int, Int64

from .attention_codecs import AttentionCodec
from .pairs import row_start

Counts = Int[np.ndarray, "example"]


class AttentionMaps(Protocol):
    """Properties of a site that its attention arrays depend on. `headatlas.store.schema.traces.Site` has them."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def n_layers(self) -> int: ...  # noqa: D102
    @property
    def n_heads(self) -> int: ...  # noqa: D102
    @property
    def causal(self) -> bool: ...  # noqa: D102
    @property
    def bands(self) -> dict[int | None, tuple[int, ...]]: ...  # noqa: D102
    def band(self, layer: int) -> int | None: ...  # noqa: D102


def pair_offset(
    site: AttentionMaps, n_queries: Counts, n_keys: Counts, band: int | None = None
) -> Int[np.ndarray, "boundary"]:
    """Return the offset of each example's first pair, int64, on the shared `pair` axis or on the axis of a band."""
    queries, keys = n_queries.astype(np.int64), n_keys.astype(np.int64)
    pairs = row_start(queries, keys, causal=site.causal, window=band)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(pairs)])


def band_array(band: int | None) -> str:
    """Return the name of the dense array that holds the attention of the layers of a band."""
    return "attention" if band is None else f"attention_window_{band}"


def entry_counts(
    n_queries: Int[np.ndarray, "example"], n_keys: Int[np.ndarray, "example"], n_kept: int, *, causal: bool
) -> Int64[np.ndarray, "example"]:
    """Most weights of one head of each example that a sparse codec of at most `n_kept` weights a row can keep."""
    queries, keys = n_queries.astype(np.int64), n_keys.astype(np.int64)
    if causal:
        return row_start(queries, keys, causal=True, window=n_kept)
    return queries * np.minimum(keys, n_kept)


def most_entries(site: AttentionMaps, n_kept: int, n_queries: Counts, n_keys: Counts) -> int:
    """Upper bound of the weights that are stored of one head of some examples with `n_kept` a row."""
    return int(entry_counts(n_queries, n_keys, n_kept, causal=site.causal).sum())


def smallest_unsigned(largest: int) -> np.dtype:
    """Return the smallest unsigned type that holds a number."""
    return np.dtype("u1" if largest < 1 << 8 else "u2" if largest < 1 << 16 else "u4")


def attention_layout(
    site: AttentionMaps, codec: AttentionCodec, n_queries: Counts, n_keys: Counts, n_entries: Mapping[str, int] | None
) -> Iterator[tuple[str, tuple[int, ...], str | np.dtype, str]]:
    """Yield name, shape, type and axes of each array that holds the attention of a site.

    `n_entries` is the length of a sparse codec's `entry` axis by site name, or None for the largest possible length.
    """
    if codec.selection is None:
        for band, layers in site.bands.items():
            pairs = int(pair_offset(site, n_queries, n_keys, band)[-1])
            yield band_array(band), (len(layers), site.n_heads, pairs), codec.dtype, "layer head pair"
        return
    maps, n_kept = (site.n_layers, site.n_heads), codec.selection.n_kept
    entries = most_entries(site, n_kept, n_queries, n_keys) if n_entries is None else n_entries[site.name]
    longest, n_rows = int(n_keys.max(initial=0)), int(n_queries.sum())
    yield "attention", (*maps, entries), codec.dtype, "layer head entry"
    yield "attention_key", (*maps, entries), smallest_unsigned(max(0, longest - 1)), "layer head entry"
    yield "attention_count", (*maps, n_rows), smallest_unsigned(min(n_kept, longest)), "layer head query_token"
    yield "attention_dropped", (*maps, n_rows), "f2", "layer head query_token"
