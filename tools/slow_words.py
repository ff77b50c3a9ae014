"""Attention between words as slow loops; a part of `slow_definitions.py`."""

from __future__ import annotations

import numpy as np

from .slow_definitions import Tokens, Weights


def pieces(t: Tokens) -> list[list[int]]:
    """Return the tokens of each word."""
    return [[i for i, word in enumerate(t.word) if word == w] for w in range(t.n_words)]


def word_maps(x: Weights, merge: str = "mean") -> np.ndarray:
    """Sum the columns of each word and average its rows (or take the row of its first token); [head, word, word]."""
    n = x.tokens.n_words
    maps = np.zeros((len(x.maps), n, n))
    for i, rows in enumerate(pieces(x.tokens)):
        rows = rows[:1] if merge == "first" else rows
        for j, columns in enumerate(pieces(x.tokens)):
            if rows and columns:
                maps[:, i, j] = sum(x.at(q, k) for q in rows for k in columns) / len(rows)
    return maps


def uniform_word_map(x: Weights, merge: str) -> np.ndarray:
    """Compute the word map of a head with uniform attention, [word, word]."""
    maps = np.zeros((1, x.n, x.n))
    for q in range(x.n):
        for k in x.keys(q):
            maps[0, q, k] = 1 / len(x.keys(q))
    return word_maps(Weights(maps, x.tokens, x.causal, x.counts), merge)[0]


def ids_of(t: Tokens, word: int) -> list[int]:
    """Return the ids of a word's tokens."""
    return [t.ids[i] for i, owner in enumerate(t.word) if owner == word]
