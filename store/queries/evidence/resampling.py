"""Intervals, one-sided tests and false-discovery rates over sampling units.

Tokens of one sentence are not independent; neither are sentences of one document. Everything here is computed from one
sum for each sampling unit (`sampling_units.py`), so the cost does not depend on the number of tokens.

Intervals are studentised bootstrap intervals (Efron and Tibshirani 1993, chapter 12): each resample has a standard error
of its own. The percentile interval, and the bias-corrected one, are too narrow for few units or skewed numbers
(docs/calibration.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, Num, Shaped

from ...errors import ShapeError

N_RESAMPLES = 1_000
MAX_UNITS = 1_024
"""Largest number of units of a bootstrap. More units are grouped at random, which keeps the spread of a ratio of sums."""
EXACT_UNITS = 12
"""Up to this number of units a test enumerates every choice of signs instead of relying on Student's t."""
MINIMUM_UNITS = 5
"""With fewer units there is no p-value: the smallest possible one would be 1/16."""
RELIABLE_UNITS = 20
"""With fewer units the answer warns: intervals and p-values hold only roughly."""
_BLOCK = 1 << 20  # largest number of draws in memory at once


@dataclass(frozen=True)
class Intervals:
    """Intervals of ratios of sums. `joint_low` and `joint_high` cover the ratios of all heads at once."""

    low: Float[np.ndarray, "*head"]
    high: Float[np.ndarray, "*head"]
    joint_low: Float[np.ndarray, "*head"]
    joint_high: Float[np.ndarray, "*head"]


def bootstrap_interval(
    sums: Num[np.ndarray, "*head unit"],
    rows: Num[np.ndarray, "*layer unit_of_rows"],
    *,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*head"], Float[np.ndarray, "*head"]]:
    """Compute the studentised bootstrap interval of ``sums.sum() / rows.sum()`` over units: low, high.

    See `studentised_intervals`.
    """
    intervals = studentised_intervals(
        sums, rows, confidence=confidence, n_resamples=n_resamples, bounds=bounds, seed=seed
    )
    return intervals.low, intervals.high


def same_rows(
    rows: Shaped[np.ndarray, "layer n"],
) -> Iterator[tuple[Int64[np.ndarray, "member"], Shaped[np.ndarray, "n"]]]:
    """Group the layers that have the same rows; most sites are one group. Yields the layers and their rows."""
    numbers, group = np.unique(rows, axis=0, return_inverse=True)
    for index, of_group in enumerate(numbers):
        yield np.flatnonzero(group.ravel() == index), of_group


def studentised_intervals(
    sums: Num[np.ndarray, "*head unit"],
    rows: Num[np.ndarray, "*layer unit_of_rows"],
    *,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
) -> Intervals:
    """Compute the studentised bootstrap intervals of ``sums.sum() / rows.sum()`` over units, for one head and for all.

    All heads share the resamples, as matrix products. The joint intervals use the distribution of the largest
    deviation among the heads: they hold for the head that was chosen because it is the best. The same seed gives the
    same intervals. NaN with fewer than two units that have rows.

    If the ratios of all units are equal and lie on one of the `bounds`, the other end is the exact one of a binomial
    share: units that all hit do not prove that every unit does.

    Parameters
    ----------
    rows
        Rows of each unit, or of each layer and unit if `sums` have a leading axis `layer`. Layers with different rows
        have resamples of their own, and their joint intervals share the error (Bonferroni).
    bounds
        Smallest and largest possible ratio; intervals do not exceed them.

    Raises
    ------
    ShapeError
        `sums` and `rows` have different numbers of units.
    """
    if sums.shape[-1] != rows.shape[-1]:
        raise ShapeError(f"sums have {sums.shape[-1]} units, rows {rows.shape[-1]}; expected the same number")
    groups = [(..., rows)] if rows.ndim == 1 else list(same_rows(rows))
    ends = [np.full(sums.shape[:-1], np.nan) for _ in range(4)]
    for layers, of_group in groups:
        joint_confidence = 1 - (1 - confidence) / len(groups)
        parts = _intervals(sums[layers], of_group, confidence, joint_confidence, n_resamples, bounds, seed)
        for end, part in zip(ends, parts, strict=True):
            end[layers] = part
    return Intervals(*ends)


def _intervals(
    sums: Num[np.ndarray, "*head unit"],
    rows: Num[np.ndarray, "unit"],
    confidence: float,
    joint_confidence: float,
    n_resamples: int,
    bounds: tuple[float, float],
    seed: int,
) -> list[Float[np.ndarray, "*head"]]:
    """Compute the four ends of `Intervals`."""
    lead = sums.shape[:-1]
    has_rows = rows > 0
    flat = sums.reshape(math.prod(lead), len(rows))[:, has_rows].astype(np.float64)
    weights = rows[has_rows].astype(np.float64)
    n_units = len(weights)
    if n_units < 2 or not len(flat):
        return [np.full(lead, np.nan) for _ in range(4)]
    rng = np.random.default_rng(seed)
    ratio, error = _ratio_and_error(flat, weights)
    deviation = _deviations(flat, weights, ratio, n_resamples, rng)  # [resample, head]
    tail = (1 - confidence) / 2
    smallest, largest = _ranked(deviation, tail), _ranked(deviation, 1 - tail)
    joint = float(_ranked(np.abs(deviation).max(axis=1, keepdims=True), joint_confidence)[0])
    ends = [_shifted(ratio, factor, error) for factor in (-largest, -smallest, -joint, joint)]
    is_constant = error <= 1e-12 * np.maximum(np.abs(ratio), 1e-300)
    exact = 1 - tail ** (1 / n_units)
    for index, end in enumerate(ends):
        end[is_constant] = ratio[is_constant]
        bound, inside = bounds[index % 2 == 0], exact if index % 2 else -exact
        at_bound = is_constant & np.isclose(ratio, bound, rtol=0, atol=1e-12)
        end[at_bound] = bound + inside * (bounds[1] - bounds[0]) if math.isfinite(bounds[1] - bounds[0]) else bound
    return [np.clip(end, *bounds).reshape(lead) for end in ends]


def _ratio_and_error(
    sums: Float[np.ndarray, "head unit"], weights: Float[np.ndarray, "unit"]
) -> tuple[Float[np.ndarray, "head"], Float[np.ndarray, "head"]]:
    """Compute the ratios of sums and their standard errors by the delta method."""
    ratio = sums.sum(axis=1) / weights.sum()
    residual = sums - ratio[:, None] * weights
    n_units = len(weights)
    return ratio, np.sqrt(np.square(residual).sum(axis=1) * n_units / (n_units - 1)) / weights.sum()


def _deviations(
    sums: Float[np.ndarray, "head unit"],
    weights: Float[np.ndarray, "unit"],
    ratio: Float[np.ndarray, "head"],
    n_resamples: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "resample head"]:
    """Compute (ratio of the resample − ratio) / standard error of the resample."""
    n_units = len(weights)
    if n_units > MAX_UNITS:
        order = rng.permutation(n_units)
        start = np.linspace(0, n_units, MAX_UNITS, endpoint=False).astype(np.int64)
        sums, weights = (np.add.reduceat(values[..., order], start, axis=-1) for values in (sums, weights))
        n_units = MAX_UNITS
    residual = sums - ratio[:, None] * weights  # the ratio of a resample is close to `ratio`: no digits are lost
    linear = np.concatenate([residual, weights[None]]).T
    squares = np.concatenate([np.square(residual), residual * weights, np.square(weights)[None]]).T
    n_heads, blocks = len(sums), []
    step = max(1, _BLOCK // n_units)
    for start in range(0, n_resamples, step):
        counts = _draw_counts(rng, min(step, n_resamples - start), n_units)
        first, second = counts @ linear, counts @ squares
        total = first[:, -1:]
        shift = first[:, :-1] / total
        variance = second[:, :n_heads] - 2 * shift * second[:, n_heads:-1] + shift**2 * second[:, -1:]
        error = np.sqrt(np.maximum(variance, 0) * n_units / (n_units - 1)) / total
        with np.errstate(divide="ignore", invalid="ignore"):
            deviation = shift / error
        scale = np.abs(residual).max(axis=1, initial=0) / weights.mean()
        is_constant = error <= 1e-9 * scale
        beyond = np.where(np.abs(shift) <= 1e-9 * scale, 0, np.where(shift > 0, np.inf, -np.inf))
        blocks.append(np.where(is_constant, beyond, deviation))
    return np.concatenate(blocks)


def _ranked(values: Float[np.ndarray, "resample *head"], share: float) -> Float[np.ndarray, "*head"]:
    """Return the value below which about this share of the resamples lie; infinite values are allowed."""
    return np.sort(values, axis=0)[round(share * (len(values) - 1))]


def _shifted(
    ratio: Float[np.ndarray, "head"], factor: Float[np.ndarray, "#head"] | float, error: Float[np.ndarray, "head"]
) -> Float[np.ndarray, "head"]:
    with np.errstate(invalid="ignore"):
        shift = factor * error
    return ratio + np.where(error > 0, shift, 0.0)


def _draw_counts(rng: np.random.Generator, n_resamples: int, n_units: int) -> Float[np.ndarray, "resample unit"]:
    """Draw `n_units` of `n_units` units with replacement for each resample, and count each unit."""
    units = rng.integers(0, n_units, (n_resamples, n_units)) + np.arange(n_resamples)[:, None] * n_units
    counts = np.bincount(units.ravel(), minlength=n_resamples * n_units)
    return counts.reshape(n_resamples, n_units).astype(np.float64)


def random_half(n_units: int, seed: int = 0) -> Bool[np.ndarray, "unit"]:
    """Return a random mask of half of the units; of an odd number, the smaller half."""
    half = np.zeros(n_units, dtype=bool)
    half[np.random.default_rng(seed).permutation(n_units)[: n_units // 2]] = True
    return half


def p_above_zero(differences: Float[np.ndarray, "*head unit"], rounding: float = 0.0) -> Float[np.ndarray, "*head"]:
    """Compute the one-sided p-value that the mean over units is above zero.

    Up to `EXACT_UNITS` units it is the share of all choices of signs whose sum is at least as large (a sign-flip test,
    exact if differences are symmetric around zero). With more it is that of Student's t. NaN with fewer than
    `MINIMUM_UNITS` units, and where no difference exceeds `rounding`.
    """
    n_units = differences.shape[-1]
    p_value = np.full(differences.shape[:-1], np.nan)
    if n_units < MINIMUM_UNITS:
        return p_value
    has_size = np.abs(differences).max(axis=-1) > rounding
    values = differences[has_size].astype(np.float64)
    p_value[has_size] = _sign_flip_tail(values) if n_units <= EXACT_UNITS else _t_tail(values)
    return p_value


def p_two_sided(differences: Float[np.ndarray, "*head unit"], rounding: float = 0.0) -> Float[np.ndarray, "*head"]:
    """Compute the two-sided p-value that the mean over units is not zero; NaN as in `p_above_zero`."""
    tails = p_above_zero(differences, rounding), p_above_zero(-differences, rounding)
    return np.minimum(2 * np.minimum(*tails), 1.0)


def _sign_flip_tail(values: Float[np.ndarray, "head unit"]) -> Float[np.ndarray, "head"]:
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=values.shape[1])))  # the first row is the data
    sums = signs @ values.T
    tolerance = 1e-12 * np.abs(values).sum(axis=1)
    return (sums >= sums[0] - tolerance).mean(axis=0)


def _t_tail(values: Float[np.ndarray, "head unit"]) -> Float[np.ndarray, "head"]:
    n_units = values.shape[1]
    mean, error = values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(n_units)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / error
    # Without variance p is 0 if the differences are above zero, otherwise 1.
    t = np.where(error > 0, t, np.where(mean > 0, np.inf, -np.inf))
    return student_t_tail(t, n_units - 1)


def student_t_tail(t: Float[np.ndarray, "*n"], degrees: int) -> Float[np.ndarray, "*n"]:
    """Compute the probability that Student's t with `degrees` degrees of freedom is above `t`."""
    from scipy.special import stdtr  # scipy.stats.t.sf calls it too, but importing scipy.stats takes 0.65 s longer

    return np.asarray(stdtr(degrees, -np.asarray(t, dtype=np.float64)))


def upper_end(differences: Float[np.ndarray, "*head unit"]) -> Float[np.ndarray, "*head"]:
    """Compute the upper end of the 95 % interval of a sum over units (Student's t); NaN below `MINIMUM_UNITS` units."""
    from scipy.special import stdtrit

    n_units = differences.shape[-1]
    if n_units < MINIMUM_UNITS:
        return np.full(differences.shape[:-1], np.nan)
    total = differences.sum(axis=-1, dtype=np.float64)
    error = np.sqrt(n_units * differences.var(axis=-1, ddof=1, dtype=np.float64))
    return np.asarray(total + stdtrit(n_units - 1, 0.975) * error)


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
