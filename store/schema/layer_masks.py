"""Masks of the layers of a site: the keys that each row (query position) sees.

Most masks follow a rule of positions. Their rows see one consecutive range of keys. A mask that follows no rule is
stored pair by pair in the segment, in the array `visible_keys`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64


@dataclass(frozen=True)
class LayerMask:
    """Mask of a layer.

    A causal row sees no later key. With a sliding window of w a row sees the keys less than w positions away. With
    chunks of c a row sees the keys of its own chunk: positions 0 to c − 1, c to 2 c − 1, and so on.
    """

    causal: bool
    window: int | None = None
    chunk: int | None = None
    stored: int | None = None
    """Index of the layer in `visible_keys` if the mask follows no rule. The rule then shows every key of the pair axis."""

    def __str__(self) -> str:
        """Return the rule in words."""
        if self.stored is not None:
            return "a mask of its own"
        words = ["causal" if self.causal else "full"] if self.window is None and self.chunk is None else []
        words += [f"a window of {self.window}"] if self.window is not None else []
        return " and ".join([*words, *([f"chunks of {self.chunk}"] if self.chunk is not None else [])])

    @property
    def is_open(self) -> bool:
        """True if a row sees every key on the shared pair axis, whatever its length."""
        return self.window is None and self.chunk is None and self.stored is None

    def hides_nothing(self, n_keys: int) -> bool:
        """Return True if a row sees every key on the shared pair axis in examples of this length."""
        return self.stored is None and all(width is None or width >= n_keys for width in (self.window, self.chunk))

    def span(
        self, query_pos: Int[np.ndarray, "row"], n_keys: int | Int[np.ndarray, "row"]
    ) -> tuple[Int64[np.ndarray, "row"], Int64[np.ndarray, "row"]]:
        """Return the first key that the rule shows to each row and the key after the last; equal if it shows none."""
        query = query_pos.astype(np.int64)
        first, stop = np.zeros_like(query), np.minimum(query + 1, n_keys) if self.causal else n_keys + 0 * query
        if self.window is not None:
            first, stop = np.maximum(first, query - self.window + 1), np.minimum(stop, query + self.window)
        if self.chunk is not None:
            start = query // self.chunk * self.chunk
            first, stop = np.maximum(first, start), np.minimum(stop, start + self.chunk)
        return np.minimum(first, stop), stop

    def shows(
        self, query_pos: Int[np.ndarray, "*#shape"], key_pos: Int[np.ndarray, "*#shape"]
    ) -> Bool[np.ndarray, "..."]:
        """Return True for each pair that the rule shows. The positions broadcast against each other."""
        distance = query_pos.astype(np.int64) - key_pos
        mask = distance >= 0 if self.causal else np.ones(distance.shape, bool)
        if self.window is not None:
            mask &= np.abs(distance) < self.window
        return mask if self.chunk is None else mask & (query_pos // self.chunk == key_pos // self.chunk)


def fit_mask(
    visible: Bool[np.ndarray, "query key"],
    query_pos: Int[np.ndarray, "query"],
    key_pos: Int[np.ndarray, "key"],
    *,
    causal: bool,
) -> LayerMask | None:
    """Return the rule that shows exactly these keys, or None if no rule does.

    `query_pos` and `key_pos` are the positions of the rows and columns, both ascending from 0.
    """
    hides_first = np.flatnonzero(~visible[:, 0]) if visible.size else np.empty(0, np.int64)
    width = int(query_pos[hides_first[0]]) if len(hides_first) else 0
    masks = [LayerMask(causal, width), LayerMask(causal, chunk=width)] if width else [LayerMask(causal)]
    return next((mask for mask in masks if (mask.shows(query_pos[:, None], key_pos) == visible).all()), None)
