"""Rows of which only some weights are kept: which, and how they lie in a segment's arrays.

Of each row the strongest weights are kept (`Selection`), with their key positions ascending. The rows of one head follow
each other on the `entry` axis; `attention_count` says how many weights each row has, so a row begins where the counts
before it add up to. Heads keep differently many: the axis is as long as the longest needs, and zeros fill it up. What a
row lost is kept beside it, rounded up, so that it bounds whatever is computed from the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float16, Integer, Num, Shaped, UInt

from .array_layout import ArrayLayout
from .attention_codecs import AttentionCodec, Selection
from .companding import encode_attention


@dataclass(frozen=True)
class KeptRows:
    """What is kept of some rows of one head: one entry a weight, row by row."""

    key: Integer[np.ndarray, "entry"]
    stored: Num[np.ndarray, "entry"]
    """In the codec of the values."""
    count: Integer[np.ndarray, "row"]
    dropped: Float16[np.ndarray, "row"]


def kept_of(weights: Float[np.ndarray, "*lead key_pos"], selection: Selection) -> Bool[np.ndarray, "*lead key_pos"]:
    """Which weights of each row are kept: the strongest, ties to the lower key; never a weight of 0."""
    order = np.argsort(-weights, axis=-1, kind="stable")[..., : selection.n_kept]
    chosen = np.take_along_axis(weights, order, axis=-1)
    strong = (chosen >= np.float32(selection.threshold)) & (chosen > 0)
    strong[..., :1] = chosen[..., :1] > 0
    kept = np.zeros(weights.shape, dtype=bool)
    np.put_along_axis(kept, order, strong, axis=-1)
    return kept


def keep_rows(
    weights: Float[np.ndarray, "query_pos key_pos"], codec: AttentionCodec, *, error: float = 0.0
) -> KeptRows:
    """Rows of one head of one example, in a sparse codec.

    `error` is how far any of the weights may be from what the model computed; `dropped` then bounds what that lost.
    """
    assert codec.selection is not None
    kept = kept_of(weights, codec.selection)
    count = kept.sum(axis=-1)
    inside = np.where(kept, weights, 0).sum(axis=-1, dtype=np.float64)
    left = weights.sum(axis=-1, dtype=np.float64) - inside + error * (weights.shape[-1] - count)
    if error:  # a row adds up to at most 1, whatever was stored of it
        left = np.minimum(left, np.maximum(1 - inside, 0) + error * count)
    return KeptRows(
        np.nonzero(kept)[1], encode_attention(weights[kept], codec.values), count, dropped_mass(np.clip(left, 0, 1))
    )


def dropped_mass(mass: Float[np.ndarray, "*shape"]) -> Float16[np.ndarray, "*shape"]:
    """As it is stored: float16, never less than it is."""
    rounded = mass.astype(np.float16)
    return np.where(rounded < mass, np.nextafter(rounded, np.float16(np.inf)), rounded)


def sparse_arrays(layouts: Sequence[ArrayLayout], maps: Sequence[Sequence[KeptRows]]) -> dict[str, np.ndarray]:
    """The four arrays of a site, by path, of the rows of each head ``maps[layer][head]``.

    `layouts` are theirs (`segment_layout`); their `entry` axis is cut to the longest head.
    """
    longest = max((len(head.key) for heads in maps for head in heads), default=0)
    arrays = {}
    for layout in layouts:
        shape = (*layout.shape[:2], longest) if layout.axes[2] == "entry" else layout.shape
        arrays[layout.path] = np.zeros(shape, layout.dtype)
    by_name = {path.rpartition("/")[2]: array for path, array in arrays.items()}
    for layer, heads in enumerate(maps):
        for head, rows in enumerate(heads):
            by_name["attention"][layer, head, : len(rows.key)] = rows.stored
            by_name["attention_key"][layer, head, : len(rows.key)] = rows.key
            by_name["attention_count"][layer, head] = rows.count
            by_name["attention_dropped"][layer, head] = rows.dropped
    return arrays


def entries_of_rows(
    entries: Shaped[np.ndarray, "layer head entry"],
    count: UInt[np.ndarray, "layer head row"],
    keep: Bool[np.ndarray, "row"],
) -> Shaped[np.ndarray, "layer head kept_entry"]:
    """The entries of some rows, the axis cut to the longest head."""
    longest = int(count[:, :, keep].sum(axis=2, dtype=np.int64).max(initial=0))
    found = np.zeros((*entries.shape[:2], longest), entries.dtype)
    for layer, head in np.ndindex(entries.shape[:2]):
        n = count[layer, head].astype(np.int64)
        chosen = entries[layer, head, : n.sum()][np.repeat(keep, n)]
        found[layer, head, : len(chosen)] = chosen
    return found
