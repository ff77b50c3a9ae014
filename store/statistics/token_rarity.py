"""Which of the tokens that a row sees is the rarest of the store."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from .blocks import Block


def rarest_pairs(block: Block) -> Int64[np.ndarray, "match"]:
    """The pairs whose key has the smallest count among the keys of its row that are not special, all equal ones."""
    plan = block.plan
    if not plan.n_pairs:
        return np.empty(0, np.int64)
    never = np.iinfo(np.int64).max
    count = np.where(block.key.special, never, block.corpus.count_of(block.key.id))[plan.key]
    smallest = np.minimum.reduceat(count, plan.begin)
    return np.flatnonzero((count == smallest[plan.row]) & (count < never))
