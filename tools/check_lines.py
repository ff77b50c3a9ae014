"""Totals of the slow loops, and the lines of the table that compares them with a store."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headatlas.store.reading.word_attention import Merge

ROUNDING = 1e-5
FLIPS = 0.001


@dataclass
class Line:
    """Result of one comparison."""

    name: str
    n: int
    exact: float
    """Largest difference from the float32 store."""
    coded: float = 0.0
    """Largest difference from the store with the default codec."""
    bound: float = np.inf
    """Largest difference that the codec allows there."""
    share: float = 0.0
    """Largest quotient of a difference and its own bound: at most 1."""
    allowed: float = ROUNDING

    @property
    def holds(self) -> bool:
        """True if both differences are allowed."""
        return self.exact <= self.allowed and self.share <= 1


@dataclass
class Sums:
    """Totals of the slow loops over a corpus, one number for each head of the model."""

    values: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Mean of each example, by statistic."""
    bounds: dict[str, list[np.ndarray]] = field(default_factory=dict)
    columns: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    """Σ numerator, Σ denominator and Σ error of either, by definition and column."""
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    examples: dict[str, list[tuple[float, np.ndarray, float, float, np.ndarray]]] = field(default_factory=dict)
    """For each example that matches, by pattern: rows, mass of each head, uniform mass, rows that each offset matches."""
    strongest_words: list[np.ndarray] = field(default_factory=list)
    """Strongest word of each word, [head, word] of each example."""
    word_scores: dict[tuple[str, Merge], list[np.ndarray]] = field(default_factory=dict)
    """Rows, mass, error of the mass, hits and uniform mass, each [head], by pattern and merging of words."""
    right: list[np.ndarray] = field(default_factory=list)
    """True if the governor of a dependent is the strongest word, [head, direction, dependent] of each example."""


def report(lines: list[Line]) -> bool:
    """Print the table. Return True if every line holds."""
    print(f"{'':56} {'numbers':>9} {'from float32':>13} {'sqrt8':>9} {'allowed':>9} {'of it':>6}")
    for line in lines:
        bound = f"{line.bound:9.2g}" if np.isfinite(line.bound) else f"{'':9}"
        mark = "" if line.holds else "  <-- too far"
        print(f"{line.name[:56]:56} {line.n:9,} {line.exact:13.1e} {line.coded:9.1e} {bound} {line.share:6.2f}{mark}")
    return all(line.holds for line in lines)
