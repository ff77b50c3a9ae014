"""Encoding of a site's attention into the arrays of a segment: all pairs, the bands of windows, or sparse rows.

This is the only numpy implementation. Conversion uses it, and tests compare the capture with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

from .array_layout import ArrayLayout
from .attention_codecs import AttentionCodec
from .attention_layout import AttentionMaps, band_array, pair_offset
from .companding import encode_attention
from .pairs import pack_pairs, unpack_pairs
from .sparse_rows import SparseHeadRows, sparse_arrays, sparse_rows


def attention_arrays(
    site: AttentionMaps,
    codec: AttentionCodec,
    layouts: Mapping[str, ArrayLayout],
    n_queries: Int[np.ndarray, "example"],
    n_keys: Int[np.ndarray, "example"],
    weights_of: Callable[[int], Float[np.ndarray, "head pair"]],
    *,
    error: float = 0.0,
) -> dict[str, np.ndarray]:
    """Return the attention arrays of one site, by path.

    Parameters
    ----------
    layouts
        Layouts of a segment with these examples, from `segment_layout`.
    weights_of
        Function from a layer to its attention over the pairs of all examples, on the shared pair axis (`pair_offset`).
    error
        Largest distance of any of these weights from the model's own.
    """
    site_layouts = {name: layouts[path] for name in _names(site, codec) if (path := f"{site.name}/{name}") in layouts}
    offset = pair_offset(site, n_queries, n_keys)
    shapes = [(int(q), int(k)) for q, k in zip(n_queries, n_keys, strict=True)]
    arrays = {n: np.empty(layout.shape, layout.dtype) for n, layout in site_layouts.items() if codec.selection is None}
    maps: list[list[SparseHeadRows]] = []
    for layer in range(site.n_layers):
        weights, band = weights_of(layer), site.band(layer)
        examples = [weights[:, start:stop] for start, stop in itertools.pairwise(offset.tolist())]
        if codec.selection is not None:
            rows = [
                [sparse_rows(head, codec, error=error) for head in unpack_pairs(pairs, *shape, causal=site.causal)]
                for pairs, shape in zip(examples, shapes, strict=True)
            ]
            maps.append([_join_rows([of_heads[head] for of_heads in rows], codec) for head in range(site.n_heads)])
            continue
        if band is not None:
            band_pairs = [
                pack_pairs(unpack_pairs(pairs, *shape, causal=site.causal), causal=site.causal, window=band)
                for pairs, shape in zip(examples, shapes, strict=True)
            ]
            weights = np.concatenate([weights[:, :0], *band_pairs], axis=1)
        arrays[band_array(band)][site.bands[band].index(layer)] = encode_attention(weights, codec.name)
    if codec.selection is not None:
        return sparse_arrays(list(site_layouts.values()), maps)
    return {site_layouts[name].path: array for name, array in arrays.items()}


def _names(site: AttentionMaps, codec: AttentionCodec) -> list[str]:
    if codec.selection is None:
        return [band_array(band) for band in site.bands]
    return ["attention", "attention_key", "attention_count", "attention_dropped"]


def _join_rows(rows: list[SparseHeadRows], codec: AttentionCodec) -> SparseHeadRows:
    """Join the rows of one head over all examples."""

    def join(name: str, dtype: str) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *(getattr(row, name) for row in rows)]).astype(dtype)

    return SparseHeadRows(join("key", "i8"), join("stored", codec.dtype), join("count", "i8"), join("dropped", "f2"))
