"""P-values, false discovery rates and intervals as slow loops; a part of `slow_definitions.py`."""

from __future__ import annotations

import math

import numpy as np


def p_above(differences: np.ndarray) -> float:
    """Compute the one-sided p-value of Student's t that the mean is above 0, by summing its density in small steps."""
    n = len(differences)
    error = math.sqrt(sum((d - sum(differences) / n) ** 2 for d in differences) / (n - 1) / n)
    mean = sum(differences) / n
    if error == 0:
        return 0.0 if mean > 0 else 1.0
    t, degrees = mean / error, n - 1
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    steps = 20_000
    x = np.linspace(0, min(abs(t), 50.0), steps + 1)
    density = scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2)
    area = float((density[:-1] + density[1:]).sum() * (x[1] - x[0]) / 2)
    return 0.5 - area if t > 0 else 0.5 + area


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Compute for each p the smallest false discovery rate at which it is a discovery."""
    rank = [sum(other <= own for other in p) for own in p]
    scaled = [own * len(p) / r for own, r in zip(p, rank, strict=True)]
    return np.array([min(1.0, *(s for s, other in zip(scaled, p, strict=True) if other >= own)) for own in p])


def resampled(mass: np.ndarray, rows: np.ndarray, n: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """Compute the 95 % studentised bootstrap interval of the mass a row, over examples; `mass` is [head, example]."""
    rng = np.random.default_rng(12_345)
    ratio, error = ratio_and_error(mass, rows)
    scores = []
    for _ in range(n):
        sample = rng.choice(len(rows), len(rows))
        drawn, drawn_error = ratio_and_error(mass[:, sample], rows[sample])
        scores.append((drawn - ratio) / np.maximum(drawn_error, 1e-30))
    smallest, largest = np.quantile(np.array(scores), [0.025, 0.975], axis=0)
    return np.clip(ratio - largest * error, 0, 1), np.clip(ratio - smallest * error, 0, 1)


def ratio_and_error(mass: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute sums of mass / sums of rows, and the standard error by the delta method."""
    ratio = mass.sum(axis=1) / rows.sum()
    residuals = (mass - ratio[:, None] * rows) ** 2
    return ratio, np.sqrt(residuals.sum(axis=1) * len(rows) / (len(rows) - 1)) / rows.sum()
