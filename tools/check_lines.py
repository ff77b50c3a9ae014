"""What a check against slow loops is made of: totals of the loops, lines of the table."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headatlas.store.reading.word_attention import Merge

ROUNDING = 1e-5
FLIPS = 0.001


@dataclass
class Line:
    """One thing that was compared."""

    name: str
    n: int
    exact: float
    """Largest difference from the float32 store."""
    coded: float = 0.0
    """Largest difference from the store with the default codec."""
    bound: float = np.inf
    """What the codec allows there."""
    share: float = 0.0
    """Largest difference over its own bound: at most 1."""
    allowed: float = ROUNDING

    @property
    def holds(self) -> bool:
        """Whether both differences are allowed."""
        return self.exact <= self.allowed and self.share <= 1


@dataclass
class Sums:
    """Totals of the slow loops over a corpus, [head of the model] a number."""

    values: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By statistic: each example's mean."""
    bounds: dict[str, list[np.ndarray]] = field(default_factory=dict)
    columns: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    """By definition and column: Σ numerator, Σ denominator, Σ error of either."""
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    examples: dict[str, list[tuple[float, np.ndarray, float, np.ndarray]]] = field(default_factory=dict)
    """By pattern, of each example that matches: rows, mass of each head, uniform mass, rows right at each offset."""
    strongest_words: list[np.ndarray] = field(default_factory=list)
    """The word that each word looks at most, [head, word] of each example."""
    word_scores: dict[tuple[str, Merge], list[np.ndarray]] = field(default_factory=dict)
    """By pattern and merging of words, [head]: rows, mass, error of the mass, hits, uniform mass."""
    right: list[np.ndarray] = field(default_factory=list)
    """Whether each dependent's head was found, [head, direction, dependent] of each example."""


def report(lines: list[Line]) -> bool:
    """Print the table; whether every line holds."""
    print(f"{'':56} {'numbers':>9} {'from float32':>13} {'sqrt8':>9} {'allowed':>9} {'of it':>6}")
    for line in lines:
        bound = f"{line.bound:9.2g}" if np.isfinite(line.bound) else f"{'':9}"
        mark = "" if line.holds else "  <-- too far"
        print(f"{line.name[:56]:56} {line.n:9,} {line.exact:13.1e} {line.coded:9.1e} {bound} {line.share:6.2f}{mark}")
    return all(line.holds for line in lines)
