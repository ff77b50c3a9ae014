"""Random attention for tests of the views, and a wait for pages."""

from __future__ import annotations

import time

import numpy as np

SENTENCE = "The nurse who had rescheduled with the surgeon told the patient that she would call the doctor again."


def random_attention(shape, causal=False, seed=0):
    """Softmax of random scores, float32 of `shape`."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=shape) * 3
    if causal:
        scores = np.where(np.tri(*shape[-2:], dtype=bool), scores, -np.inf)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


PATIENCE_S = 120
"""Limit of a wait in seconds. It ends a test that hangs, and leaves enough time for slow machines."""


def wait_for(page, condition, what=lambda: "the condition"):
    """Let the page run until a condition holds. The browser and Python learn of a change at different times.

    `what` returns the description of the condition for the error message.
    """
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what()} did not happen in {PATIENCE_S} s")
        page.wait_for_timeout(20)
