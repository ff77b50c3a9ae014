"""Selection of edges, windows of long examples, and the parts of a score, as the views compute them.

Pure functions on arrays. The components compute the same in the browser, because a slider must not wait for the server.
Tests require equal results of both. Sums therefore run in the order written here, in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

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
