"""Selection of edges, windows of long examples, and the parts of a score, as the views compute them.

Pure functions on arrays. The components compute the same in the browser, because a slider must not wait for the server.
Tests require equal results of both. Sums therefore run in the order written here, in double precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

MAX_WINDOW = 512
"""Number of tokens that a head view shows at once."""
MIN_WEIGHT = 0.01
"""Smallest weight of an edge that is drawn."""


@dataclass(frozen=True)
class DrawnEdges:
    """Edges of one head by query row, strongest first, with the totals that they are a part of.

    `n_pairs` counts the pairs that could be drawn. `mass` is the weight that the shown rows give to the shown keys;
    `row_mass` is the weight that they give to all keys.
    """

    query_pos: Int64[np.ndarray, "edge"]
    key_pos: Int64[np.ndarray, "edge"]
    weight: Float64[np.ndarray, "edge"]
    n_pairs: int
    mass: float
    row_mass: float

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def share(self) -> float:
        """Drawn share of all attention of the shown rows, 0 to 1."""
        return float(self.weight.sum() / self.row_mass) if self.row_mass else 0.0


def strongest_edges(
    attention: Float[np.ndarray, "query_pos key_pos"],
    *,
    share: float = 0.75,
    keys: int = 8,
    causal: bool = False,
    query_shown: Bool[np.ndarray, "query_pos"] | None = None,
    key_shown: Bool[np.ndarray, "key_pos"] | None = None,
) -> DrawnEdges:
    """Choose the strongest keys of each row until they hold `share` of the weight that the row gives to shown keys.

    Only shown rows and keys take part. A row draws at most `keys` edges, none below `MIN_WEIGHT`; among equal weights
    the lower key comes first. Row q of a causal head can draw keys 0 to q.
    Cost O(query_pos · key_pos · log key_pos).
    """
    n_queries, n_keys = attention.shape
    rows = np.ones(n_queries, bool) if query_shown is None else query_shown
    columns = np.ones(n_keys, bool) if key_shown is None else key_shown
    shown = rows[:, None] & columns[None, :]
    if causal:
        shown &= np.tri(n_queries, n_keys, dtype=bool)
    weight = attention.astype(np.float64)
    visible = np.where(shown, weight, 0.0)
    total = np.cumsum(visible, axis=1)[:, -1] if n_keys else np.zeros(n_queries)
    order = np.argsort(-np.where(shown, weight, -1.0), axis=1, kind="stable")[:, :keys]  # [query_pos, rank]
    ranked = np.take_along_axis(visible, order, axis=1)
    before = np.cumsum(ranked, axis=1)
    before = np.concatenate([np.zeros((n_queries, min(1, before.shape[1]))), before[:, :-1]], axis=1)
    drawn = (before < share * total[:, None]) & (ranked >= MIN_WEIGHT) & np.take_along_axis(shown, order, axis=1)
    row, rank = np.nonzero(drawn)
    return DrawnEdges(
        query_pos=row,
        key_pos=order[row, rank],
        weight=ranked[row, rank],
        n_pairs=int(shown.sum()),
        mass=float(visible.sum()),
        row_mass=float(weight[rows].sum()),
    )


def window(n_tokens: int, center: int | None = None, size: int = MAX_WINDOW) -> slice:
    """Return the positions of an example to show: all, or `size` of them around `center` (by default at the start).

    >>> window(100), window(2000, 1000, size=100), window(2000, 1990, size=100)
    (slice(0, 100, None), slice(950, 1050, None), slice(1900, 2000, None))
    """
    start = 0 if center is None else min(max(0, center - size // 2), max(0, n_tokens - size))
    return slice(start, min(n_tokens, start + size))


def renormalised(
    maps: Float32[np.ndarray, "*maps query key"], hidden: Bool[np.ndarray, "key"]
) -> Float32[np.ndarray, "*maps query key"]:
    """Set the weights of hidden keys to 0 and scale the others so that each row adds up to 1. Rows of 0 stay 0."""
    shown = maps * ~hidden
    total = shown.sum(axis=-1, keepdims=True)
    return np.divide(shown, total, out=np.zeros_like(shown), where=total > 0)


def rebuilt_row(
    scores: Float[np.ndarray, "key_pos"], logsumexp: float, mask: Bool[np.ndarray, "key_pos"]
) -> Float64[np.ndarray, "key_pos"]:
    """Rebuild one attention row from its scores and the stored logsumexp. Keys outside the mask weigh 0."""
    return np.where(mask, np.exp(np.minimum(scores - logsumexp, 0.0)), 0.0)


def dimension_parts(
    query: Float[np.ndarray, "d_head"],
    keys: Float[np.ndarray, "key_pos d_head"],
    *,
    scaling: float,
    focus: int,
    mask: Bool[np.ndarray, "key_pos"],
) -> Float64[np.ndarray, "d_head"]:
    """Return each dimension's part in the score of key `focus`, relative to the mean of the other keys in `mask`.

    The parts sum to the difference of the scaled scores (before a soft cap). Without other keys the mean is 0.
    """
    others = mask.copy()
    others[focus] = False
    mean = keys[others].astype(np.float64).mean(axis=0) if others.any() else np.zeros(keys.shape[1])
    return query.astype(np.float64) * (keys[focus] - mean) * scaling


def dimension_order(
    order: str, parts: Float64[np.ndarray, "d_head"], pairs: Sequence[Sequence[int]]
) -> Int64[np.ndarray, "d_head"]:
    """Order the dimensions: as they are, by the size of their part, or by rotary pairs (orderOf in vectors.js)."""
    dimensions = np.arange(len(parts))
    if order == "part":
        return np.argsort(-np.abs(parts), kind="stable")
    if order == "pairs" and len(pairs):
        paired = np.asarray(pairs, np.int64).ravel()
        return np.concatenate([paired, np.setdiff1d(dimensions, paired)])
    return dimensions


@dataclass(frozen=True)
class ScaledRow:
    """Scores and attention of one row. `attention` is empty if it cannot be rebuilt."""

    scores: Float64[np.ndarray, "key_pos"]
    attention: Float64[np.ndarray, "key_pos"]
    is_changed: bool


def rescaled_row(frame: Mapping[str, Any], factors: Mapping[int, float]) -> ScaledRow:
    """Compute a row of the neuron view with scaled dimensions, as `rescaleRow` in vectors.js does.

    Parameters
    ----------
    frame
        `view_frames.NeuronFrame` of the row.
    factors
        Factor of some dimensions; the others keep theirs.
    """
    rebuilt = np.asarray(frame["rebuilt"], np.float64)
    scale = np.array([factors.get(d, 1.0) for d in range(len(frame["query"]))], np.float64)
    before = np.asarray(frame["scores"], np.float64)
    if (scale == 1).all() or not len(rebuilt):
        return ScaledRow(before, rebuilt, False)
    scores = (frame["keys"].astype(np.float64) * (frame["query"].astype(np.float64) * scale)).sum(-1) * frame["scaling"]
    if frame["softcap"]:
        scores = frame["softcap"] * np.tanh(scores / frame["softcap"])
    if len(frame["bias"]):
        scores = scores + frame["bias"]
    mask = np.asarray(frame["seen"], bool)
    top = max(float(frame["logsumexp"]), float(scores[mask].max(initial=-np.inf)))
    old, new = (float(np.exp(values[mask] - top).sum()) for values in (before, scores))
    sink = max(0.0, float(np.exp(frame["logsumexp"] - top)) - old)  # attention that goes to no key
    total = new + (sink if sink > 1e-3 * old else 0.0)
    return ScaledRow(scores, np.where(mask, np.exp(scores - top) / (total or 1.0), 0.0), True)


MIN_CLEAR = 0.05
"""Smallest weight between two tokens that a row is opened for."""


def clearest_query(
    attention: Float[np.ndarray, "query_pos key_pos"] | None,
    query_special: Sequence[int] | np.ndarray,
    key_special: Sequence[int] | np.ndarray,
    *,
    is_same_text: bool = True,
    has_sink: bool = False,
) -> int:
    """Return the query whose row says most about its head: the one with the largest weight on an ordinary other token.

    Special tokens do not count, nor does the first token with `has_sink`, nor a token itself. If no weight reaches
    `MIN_CLEAR`, or without `attention`, it is the first ordinary token, or 0.
    """
    ordinary = np.flatnonzero(~np.asarray(query_special, bool))
    first = int(ordinary[0]) if len(ordinary) else 0
    if attention is None:
        return first
    weights = np.array(attention, np.float64)
    weights[np.asarray(query_special, bool)] = 0
    weights[:, np.asarray(key_special, bool)] = 0
    if has_sink and weights.shape[1]:
        weights[:, 0] = 0
    if is_same_text:
        np.fill_diagonal(weights, 0)
    strongest = weights.max(axis=1, initial=0.0)
    return int(strongest.argmax()) if len(strongest) and strongest.max() >= MIN_CLEAR else first
