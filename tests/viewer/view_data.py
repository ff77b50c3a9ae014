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


def wait_for(page, condition, timeout=15.0):
    """Let the page run until a condition holds: what a browser shows, Python may hear of later, and the other way round."""
    for _ in range(int(timeout / 0.02)):
        if condition():
            return
        page.wait_for_timeout(20)
    raise AssertionError("did not happen in time")
