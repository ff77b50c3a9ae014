"""Attention to draw in tests: made up for unit tests, MiniLM's own where the package is there."""

from __future__ import annotations

import numpy as np

SENTENCE = "The nurse who had rescheduled with the surgeon told the patient that she would call the doctor again."


def random_attention(shape, causal=False, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=shape) * 3
    if causal:
        scores = np.where(np.tri(*shape[-2:], dtype=bool), scores, -np.inf)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)
