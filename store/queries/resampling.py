"""Bootstrap intervals over examples, one-sided tests, and false-discovery rates.

The unit is the example: tokens of one sentence are not independent, sentences are assumed to be. All results are
computed from sums for each example, so the cost does not depend on the number of tokens.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int64, Num

from ..errors import ShapeError

N_RESAMPLES = 1_000
MAX_UNITS = 4_096
"""Largest number of units. More examples are grouped at random, which keeps the spread of a ratio of sums."""
_BLOCK = 1 << 22  # largest number of random numbers in memory at once


def bootstrap_interval(
    sums: Num[np.ndarray, "*head example"],
    rows: Num[np.ndarray, "example_of_rows"],
    *,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*head"], Float[np.ndarray, "*head"]]:
    """Compute the percentile bootstrap interval of ``sums.sum() / rows.sum()`` over examples.

    All heads share the resamples, as one matrix product. The same seed gives the same interval. NaN with fewer than two
    examples.

    Raises
    ------
    ShapeError
        `sums` and `rows` have different numbers of examples.
    """
    if sums.shape[-1] != len(rows):
        raise ShapeError(f"sums have {sums.shape[-1]} examples, rows {len(rows)}; expected the same number")
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
    columns = np.concatenate([flat, weights[None]]).T  # [unit, head + 1]
    step = max(1, _BLOCK // n)
    blocks = [_draw_counts(rng, min(step, n_resamples - start), n) @ columns for start in range(0, n_resamples, step)]
    resamples = np.concatenate(blocks)  # [resample, head + 1]
    resamples = resamples[resamples[:, -1] > 0]
    tail = (1 - confidence) / 2
    low, high = np.quantile(resamples[:, :-1] / resamples[:, -1:], [tail, 1 - tail], axis=0)
    return low.reshape(lead), high.reshape(lead)


def _draw_counts(rng: np.random.Generator, n_resamples: int, n: int) -> Float[np.ndarray, "resample unit"]:
    """Draw `n` of `n` units with replacement for each resample, and count each unit."""
    units = rng.integers(0, n, (n_resamples, n)) + np.arange(n_resamples)[:, None] * n
    return np.bincount(units.ravel(), minlength=n_resamples * n).reshape(n_resamples, n).astype(np.float64)


def random_half(n_examples: int, seed: int = 0) -> Bool[np.ndarray, "example"]:
    """Return a random mask of half of the examples; of an odd number, the smaller half."""
    half = np.zeros(n_examples, dtype=bool)
    half[np.random.default_rng(seed).permutation(n_examples)[: n_examples // 2]] = True
    return half


def p_above_zero(differences: Float[np.ndarray, "*head example"]) -> Float[np.ndarray, "*head"]:
    """Compute the one-sided p-value of a t test that the mean over examples is above zero; NaN below two examples."""
    n = differences.shape[-1]
    if n < 2:
        return np.full(differences.shape[:-1], np.nan)
    mean, deviation = differences.mean(axis=-1), differences.std(axis=-1, ddof=1)
    error = deviation / math.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / error
    # Without variance p is 0 if the differences are above zero, otherwise 1.
    t = np.where(error > 0, t, np.where(mean > 0, np.inf, -np.inf))
    return student_t_tail(t, n - 1)


def student_t_tail(t: Float[np.ndarray, "*n"], degrees: int) -> Float[np.ndarray, "*n"]:
    """Compute the probability that Student's t with `degrees` degrees of freedom is above `t`."""
    from scipy.special import stdtr  # scipy.stats.t.sf calls it too, but importing scipy.stats takes 0.65 s longer

    return np.asarray(stdtr(degrees, -np.asarray(t, dtype=np.float64)))


def false_discovery_rate(p_values: Float[np.ndarray, "*head"]) -> Float[np.ndarray, "*head"]:
    """Compute Benjamini and Hochberg's adjusted p-values over all heads; NaN stays NaN and does not count.

    `scipy.stats.false_discovery_control` gives the same values, but its import takes longer than many searches.
    """
    flat = p_values.ravel()
    q_values = np.full(len(flat), np.nan)
    finite: Int64[np.ndarray, "n"] = np.flatnonzero(np.isfinite(flat))
    if len(finite):
        order = finite[np.argsort(flat[finite], kind="stable")]
        scaled = flat[order] * len(finite) / np.arange(1, len(finite) + 1)
        q_values[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q_values.reshape(p_values.shape)
