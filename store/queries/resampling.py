"""How sure a score is: bootstrap intervals over examples, one-sided tests, false-discovery rates. Numpy alone.

The example is the unit throughout: tokens of one sentence are not independent, sentences are taken to be. Everything
is computed from sums per example, so the cost does not depend on how many tokens they have.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int64, Num

from ..errors import ShapeError

N_RESAMPLES = 1_000
MAX_UNITS = 4_096
"""More examples than this are first put together at random into so many units: the spread of a ratio of sums stays."""
_NORMAL_ABOVE = 10_000  # degrees of freedom from which Student's t is taken as normal (differs by < 3e-5)
_BLOCK = 1 << 22  # random numbers at once


def bootstrap_interval(
    sums: Num[np.ndarray, "*head example"],
    rows: Num[np.ndarray, "example_of_rows"],
    *,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*head"], Float[np.ndarray, "*head"]]:
    """Percentile interval of ``sums.sum() / rows.sum()`` when examples are drawn with replacement.

    The same draws serve every head; the same seed gives the same interval. NaN with fewer than two examples.

    Raises
    ------
    ShapeError
        `sums` and `rows` are not of the same examples.
    """
    if sums.shape[-1] != len(rows):
        raise ShapeError(f"sums are of {sums.shape[-1]} examples, rows of {len(rows)}; expected the same examples")
    lead, n = sums.shape[:-1], len(rows)
    if n < 2 or not np.any(rows > 0):
        return np.full(lead, np.nan), np.full(lead, np.nan)
    rng = np.random.default_rng(seed)
    flat = sums.reshape(-1, n).astype(np.float64)
    weights = rows.astype(np.float64)
    if n > MAX_UNITS:
        order = rng.permutation(n)
        start = np.linspace(0, n, MAX_UNITS, endpoint=False).astype(np.int64)
        flat, weights = (np.add.reduceat(values[..., order], start, axis=-1) for values in (flat, weights))
        n = MAX_UNITS
    both = np.concatenate([flat, weights[None]]).T  # [unit, head + 1]
    step = max(1, _BLOCK // n)
    parts = [_draws(rng, min(step, n_resamples - at), n) @ both for at in range(0, n_resamples, step)]
    drawn = np.concatenate(parts)  # [resample, head + 1]
    drawn = drawn[drawn[:, -1] > 0]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn[:, :-1] / drawn[:, -1:], [tail, 1 - tail], axis=0)
    return low.reshape(lead), high.reshape(lead)


def _draws(rng: np.random.Generator, n_resamples: int, n: int) -> Float[np.ndarray, "resample unit"]:
    """How often each of `n` units was drawn in each resample of `n` draws."""
    drawn = rng.integers(0, n, (n_resamples, n)) + np.arange(n_resamples)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=n_resamples * n).reshape(n_resamples, n).astype(np.float64)


def random_half(n_examples: int, seed: int = 0) -> Bool[np.ndarray, "example"]:
    """Which examples are in the first half; as many as in the second, or one fewer."""
    half = np.zeros(n_examples, dtype=bool)
    half[np.random.default_rng(seed).permutation(n_examples)[: n_examples // 2]] = True
    return half


def p_above_zero(differences: Float[np.ndarray, "*head example"]) -> Float[np.ndarray, "*head"]:
    """One-sided p-value of Student's t test that the mean over examples is above zero; NaN below two examples."""
    n = differences.shape[-1]
    if n < 2:
        return np.full(differences.shape[:-1], np.nan)
    mean, deviation = differences.mean(axis=-1), differences.std(axis=-1, ddof=1)
    error = deviation / math.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / error
    # All differences equal: certain if they are above zero, no evidence at all if they are not.
    t = np.where(error > 0, t, np.where(mean > 0, np.inf, -np.inf))
    return student_t_tail(t, n - 1)


def student_t_tail(t: Float[np.ndarray, "*n"], degrees: int) -> Float[np.ndarray, "*n"]:
    """Probability that Student's t with so many degrees of freedom is above `t`."""
    t = np.asarray(t, dtype=np.float64)
    if degrees > _NORMAL_ABOVE:
        tail = np.array([0.5 * math.erfc(value / math.sqrt(2)) for value in np.abs(t).ravel().tolist()])
    else:
        with np.errstate(over="ignore"):
            square = np.where(np.isfinite(t), t * t, np.inf)
        x = np.where(np.isfinite(square), degrees / (degrees + square), 0.0)
        tail = 0.5 * _incomplete_beta(x.ravel(), degrees / 2, 0.5)
    tail = tail.reshape(t.shape)
    return np.where(t >= 0, tail, 1 - tail)


def _incomplete_beta(x: Float[np.ndarray, "n"], a: float, b: float) -> Float[np.ndarray, "n"]:
    """Regularised incomplete beta function, from its continued fraction on the side where that converges fast."""
    result = np.where(x >= 1, 1.0, 0.0)
    inside = (x > 0) & (x < 1)
    near = inside & (x < (a + 1) / (a + b + 2))
    far = inside & ~near
    result[near] = _beta_fraction(x[near], a, b)
    result[far] = 1 - _beta_fraction(1 - x[far], b, a)
    return result


def _beta_fraction(x: Float[np.ndarray, "n"], a: float, b: float) -> Float[np.ndarray, "n"]:
    """x^a (1-x)^b / (a B(a, b)) times the continued fraction, by Lentz's method."""
    if not len(x):
        return x
    tiny = 1e-300
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = np.exp(a * np.log(x) + b * np.log1p(-x) - log_beta) / a
    c, d = np.ones_like(x), 1 / np.maximum(1 - (a + b) * x / (a + 1), tiny)
    value = d.copy()
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 + term * d, 1 + term / c
            d = 1 / np.where(np.abs(d) < tiny, tiny, d)
            c = np.where(np.abs(c) < tiny, tiny, c)
            value = value * c * d
        if np.all(np.abs(c * d - 1) < 1e-14):
            break
    return front * value


def false_discovery_rate(p_values: Float[np.ndarray, "*head"]) -> Float[np.ndarray, "*head"]:
    """Benjamini and Hochberg's adjusted p-values over all heads; NaN stays NaN and does not count."""
    flat = p_values.ravel()
    q = np.full(len(flat), np.nan)
    known: Int64[np.ndarray, "n"] = np.flatnonzero(np.isfinite(flat))
    if len(known):
        order = known[np.argsort(flat[known], kind="stable")]
        scaled = flat[order] * len(known) / np.arange(1, len(known) + 1)
        q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q.reshape(p_values.shape)
