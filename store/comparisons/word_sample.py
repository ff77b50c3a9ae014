"""A random sample of the query words of each example, in two halves, and means with their error from such a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

TASK_CELLS = 1 << 24
"""Largest number of weights of all heads that one task has in memory."""


@dataclass(frozen=True)
class WordTask:
    """Query words of one aligned example that are read and compared together."""

    sample: int
    """Index of the example in the sample."""
    words: Int64[np.ndarray, "row"]
    half: Bool[np.ndarray, "row"]
    """Half of the sample of words that each word belongs to."""


def sample_words(
    counted: list[Int64[np.ndarray, "_"]], n_words: int | None, n_heads: int, rng: np.random.Generator
) -> list[WordTask]:
    """Sample words of each example, in two halves, and cut them into tasks of bounded memory."""
    total = sum(map(len, counted))
    share = 1.0 if n_words is None else min(1.0, n_words / max(total, 1))
    tasks = []
    for index, words in enumerate(counted):
        n_sampled = len(words) if share == 1.0 else min(len(words), max(2, round(share * len(words))))
        order = rng.permutation(len(words))[:n_sampled]
        half = np.zeros(len(words), bool)
        if n_sampled < len(words):
            half[order[: n_sampled // 2]] = True
        chosen = np.sort(order)
        n_cells = int(words[-1]) + 2 if len(words) else 1
        step = max(1, TASK_CELLS // (n_heads * n_cells))
        for start in range(0, n_sampled, step):
            rows = chosen[start : start + step]
            tasks.append(WordTask(index, words[rows], half[rows]))
    return tasks


@dataclass(frozen=True)
class Estimate:
    """Means over all rows, estimated from a sample."""

    mean: Float64[np.ndarray, "head other_head"]
    error: Float64[np.ndarray, "head other_head"]
    """1.96 standard errors; 0 if every row was sampled, NaN if no example has two sampled rows."""
    example_sums: Float32[np.ndarray, "head other_head example"]


def estimate_means(
    half_sums: Float32[np.ndarray, "half head other_head example"],
    half_rows: Int64[np.ndarray, "half example"],
    rows: Int64[np.ndarray, "example"],
) -> Estimate:
    """Estimate means over all rows, and their error, from the sums of two halves of a sample of each example's rows.

    The sum of an example is the mean of its sampled rows times its rows. Its variance is
    rows² · (1 − sampled / rows) · s² / sampled, where the difference of the means of the halves gives s².
    """
    sampled, total = half_rows.sum(axis=0), rows.sum()
    example_sums = (half_sums.sum(axis=0) * (rows / np.maximum(sampled, 1))).astype(np.float32)
    if not total:
        nothing = np.full(example_sums.shape[:2], np.nan)
        return Estimate(nothing, nothing, example_sums)
    mean = example_sums.sum(axis=2, dtype=np.float64) / total
    is_sampled = sampled < rows
    if not is_sampled.any():
        return Estimate(mean, np.zeros(mean.shape), example_sums)
    has_halves = is_sampled & (half_rows > 0).all(axis=0)
    if not has_halves.any():
        return Estimate(mean, np.full(mean.shape, np.nan), example_sums)
    n, all_rows = half_rows[:, has_halves].astype(np.float64), rows[has_halves]
    difference = half_sums[0][..., has_halves] / n[0] - half_sums[1][..., has_halves] / n[1]
    factor = all_rows**2 * (1 - n.sum(axis=0) / all_rows) / n.sum(axis=0) / (1 / n[0] + 1 / n[1])
    variance = (difference.astype(np.float64) ** 2) @ factor
    return Estimate(mean, 1.96 * np.sqrt(variance) / total, example_sums)
