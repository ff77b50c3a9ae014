"""Sparse rows of attention: selection of the stored weights, and their layout in a segment's arrays.

Each row stores its strongest weights (`Selection`) in ascending order of key position. The rows of one head follow each
other on the `entry` axis. `attention_count` is the number of weights of each row, so the offset of a row is the sum of
the counts before it. Heads store different numbers of weights. The axis is as long as the longest head, and zeros fill
the others. The mass that a row lost is stored too, rounded up, so it bounds the error of anything computed from the
row.
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
class SparseHeadRows:
    """Stored weights of some rows of one head: one entry per weight, row by row."""

    key: Integer[np.ndarray, "entry"]
    stored: Num[np.ndarray, "entry"]
    """Weights in the codec of the values."""
    count: Integer[np.ndarray, "row"]
    dropped: Float16[np.ndarray, "row"]


def selection_mask(
    weights: Float[np.ndarray, "*lead key_pos"], selection: Selection
) -> Bool[np.ndarray, "*lead key_pos"]:
    """Return a mask of the weights to store: the strongest of each row, ties to the lower key, no weight of 0."""
    order = np.argsort(-weights, axis=-1, kind="stable")[..., : selection.n_kept]
    candidates = np.take_along_axis(weights, order, axis=-1)
    is_stored = (candidates >= np.float32(selection.threshold)) & (candidates > 0)
    is_stored[..., :1] = candidates[..., :1] > 0
    mask = np.zeros(weights.shape, dtype=bool)
    np.put_along_axis(mask, order, is_stored, axis=-1)
    return mask


def sparse_rows(
    weights: Float[np.ndarray, "query_pos key_pos"], codec: AttentionCodec, *, error: float = 0.0
) -> SparseHeadRows:
    """Encode the rows of one head of one example in a sparse codec.

    `error` is the largest distance of any of the weights from the model's own. `dropped` then bounds the loss of the
    model's weights.
    """
    assert codec.selection is not None
    mask = selection_mask(weights, codec.selection)
    count = mask.sum(axis=-1)
    stored_mass = np.where(mask, weights, 0).sum(axis=-1, dtype=np.float64)
    missing = weights.sum(axis=-1, dtype=np.float64) - stored_mass + error * (weights.shape[-1] - count)
    if error:  # the model's row adds up to at most 1
        missing = np.minimum(missing, np.maximum(1 - stored_mass, 0) + error * count)
    return SparseHeadRows(
        np.nonzero(mask)[1], encode_attention(weights[mask], codec.values), count, dropped_mass(np.clip(missing, 0, 1))
    )


def dropped_mass(mass: Float[np.ndarray, "*shape"]) -> Float16[np.ndarray, "*shape"]:
    """Round a mass up to float16, the type in which it is stored."""
    rounded = mass.astype(np.float16)
    return np.where(rounded < mass, np.nextafter(rounded, np.float16(np.inf)), rounded)


def sparse_arrays(layouts: Sequence[ArrayLayout], maps: Sequence[Sequence[SparseHeadRows]]) -> dict[str, np.ndarray]:
    """Return the four arrays of a site, by path, from the rows of each head ``maps[layer][head]``.

    `layouts` describe these arrays (`segment_layout`). The `entry` axis is cut to the longest head.
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
    """Return the entries of some rows. The axis is cut to the longest head."""
    longest = int(count[:, :, keep].sum(axis=2, dtype=np.int64).max(initial=0))
    result = np.zeros((*entries.shape[:2], longest), entries.dtype)
    for layer, head in np.ndindex(entries.shape[:2]):
        n = count[layer, head].astype(np.int64)
        selected = entries[layer, head, : n.sum()][np.repeat(keep, n)]
        result[layer, head, : len(selected)] = selected
    return result
