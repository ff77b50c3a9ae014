"""The pairs of each row with the rarest token of the store among its visible keys."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from .blocks import Block


def rarest_pairs(block: Block) -> Int64[np.ndarray, "match"]:
    """Return the pairs whose key has the smallest count in its row, special tokens left out. Ties are all included."""
    plan = block.plan
    if not plan.n_pairs:
        return np.empty(0, np.int64)
    never = np.iinfo(np.int64).max
    count = np.where(block.key.special, never, block.corpus.count_of(block.key.id))[plan.key]
    count = count if plan.visible is None else np.where(plan.visible, count, never)
    smallest = np.minimum.reduceat(count, plan.begin)
    return np.flatnonzero((count == smallest[plan.row]) & (count < never))
