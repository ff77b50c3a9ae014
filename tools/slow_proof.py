"""P-values, false discoveries and intervals as slow loops; a part of `slow_definitions.py`."""

from __future__ import annotations

import math

import numpy as np


def p_above(differences: np.ndarray) -> float:
    """One-sided p-value of Student's t that the mean is above 0, its density added up in small steps."""
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
    """For each p the smallest share of false discoveries at which it is one."""
    rank = [sum(other <= own for other in p) for own in p]
    scaled = [own * len(p) / r for own, r in zip(p, rank, strict=True)]
    return np.array([min(1.0, *(s for s, other in zip(scaled, p, strict=True) if other >= own)) for own in p])


def resampled(mass: np.ndarray, rows: np.ndarray, n: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """The 2.5 and 97.5 % quantiles of mass a row when examples are drawn again; `mass` is [head, example]."""
    rng = np.random.default_rng(12_345)
    drawn = []
    for _ in range(n):
        of = rng.choice(len(rows), len(rows))
        drawn.append(mass[:, of].sum(axis=1) / rows[of].sum())
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    return low, high
