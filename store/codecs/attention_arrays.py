"""Attention of a site as the arrays of a segment: every pair, the bands of its windows, or some weights of each row.

The one place where numpy does this: conversion uses it, and the capture is tested against it.
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
from .sparse_rows import KeptRows, keep_rows, sparse_arrays


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
    """The arrays of attention of one site, by path.

    Parameters
    ----------
    layouts
        Those of a segment of such examples (`segment_layout`).
    weights_of
        Attention of a layer over the pairs of all examples, on the axis that all layers share (`pair_offset`).
    error
        How far any of these weights may be from what the model computed.
    """
    own = {name: layouts[path] for name in _names(site, codec) if (path := f"{site.name}/{name}") in layouts}
    offset = pair_offset(site, n_queries, n_keys)
    shapes = [(int(q), int(k)) for q, k in zip(n_queries, n_keys, strict=True)]
    arrays = {n: np.empty(layout.shape, layout.dtype) for n, layout in own.items() if codec.selection is None}
    maps: list[list[KeptRows]] = []
    for layer in range(site.n_layers):
        weights, band = weights_of(layer), site.band(layer)
        examples = [weights[:, start:stop] for start, stop in itertools.pairwise(offset.tolist())]
        if codec.selection is not None:
            rows = [
                [keep_rows(head, codec, error=error) for head in unpack_pairs(pairs, *shape, causal=site.causal)]
                for pairs, shape in zip(examples, shapes, strict=True)
            ]
            maps.append([_joined([of_heads[head] for of_heads in rows], codec) for head in range(site.n_heads)])
            continue
        if band is not None:
            cut = [
                pack_pairs(unpack_pairs(pairs, *shape, causal=site.causal), causal=site.causal, window=band)
                for pairs, shape in zip(examples, shapes, strict=True)
            ]
            weights = np.concatenate([weights[:, :0], *cut], axis=1)
        arrays[band_array(band)][site.bands[band].index(layer)] = encode_attention(weights, codec.name)
    if codec.selection is not None:
        return sparse_arrays(list(own.values()), maps)
    return {own[name].path: array for name, array in arrays.items()}


def _names(site: AttentionMaps, codec: AttentionCodec) -> list[str]:
    if codec.selection is None:
        return [band_array(band) for band in site.bands]
    return ["attention", "attention_key", "attention_count", "attention_dropped"]


def _joined(rows: list[KeptRows], codec: AttentionCodec) -> KeptRows:
    """The rows of one head of all examples."""

    def join(name: str, dtype: str) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *(getattr(row, name) for row in rows)]).astype(dtype)

    return KeptRows(join("key", "i8"), join("stored", codec.dtype), join("count", "i8"), join("dropped", "f2"))
