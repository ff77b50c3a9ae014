"""Intervals and tests of comparisons, one call each. The unit is an example, or a group of examples that share a unit.

Every function takes sums over the rows of each example, in float64 [..., example], and the unit of each example. The
other modules of this folder call nothing else for intervals and tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Num

from ..queries.evidence.resampling import (
    MINIMUM_UNITS,
    bootstrap_interval,
    false_discovery_rate,
    p_above_zero,
    student_t_tail,
)

Unit = Int64[np.ndarray, "example"]
ROUNDING = 1e-6
"""Differences up to this size are rounding: weights are float32."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of heads with a number, with its 95 % interval and two-sided p-value."""

    rho: Float64[np.ndarray, "*head"]
    low: Float64[np.ndarray, "*head"]
    high: Float64[np.ndarray, "*head"]
    p_value: Float64[np.ndarray, "*head"]
    n_units: int


def unit_codes(unit: Num[np.ndarray, "example"] | None, n_examples: int) -> Unit:
    """Return the units of examples as numbers from 0. Without units each example is one."""
    return np.arange(n_examples) if unit is None else np.unique(unit, return_inverse=True)[1].astype(np.int64)


def interval(
    sums: Num[np.ndarray, "*head example"], rows: Num[np.ndarray, "one"], unit: Num[np.ndarray, "one"]
) -> tuple[Float[np.ndarray, "*head"], Float[np.ndarray, "*head"]]:
    """Compute the 95 % interval of ``sums.sum() / rows.sum()`` over units; NaN for fewer than five units."""
    unit_sums, unit_rows = _by_unit(sums, unit), _by_unit(rows, unit)
    if unit_sums.shape[-1] < MINIMUM_UNITS:
        nothing = np.full(unit_sums.shape[:-1], np.nan)
        return nothing, nothing
    return bootstrap_interval(unit_sums, unit_rows)


def two_sided(
    differences: Num[np.ndarray, "*head example"], unit: Num[np.ndarray, "one"]
) -> Float[np.ndarray, "*head"]:
    """Test that the mean difference over units is not 0; NaN for fewer than five units, 1 if all are rounding."""
    means = _by_unit(differences, unit) / np.bincount(unit)
    if means.shape[-1] < MINIMUM_UNITS:
        return np.full(means.shape[:-1], np.nan)
    smaller = np.minimum(p_above_zero(means), p_above_zero(-means))
    return np.where(np.abs(means).max(axis=-1) <= ROUNDING, 1.0, np.minimum(2 * smaller, 1.0))


def above_zero(
    differences: Num[np.ndarray, "*head example"], unit: Num[np.ndarray, "one"]
) -> Float[np.ndarray, "*head"]:
    """Test that the sum of the differences over units is above 0; NaN for fewer than five units, 1 for rounding."""
    sums = _by_unit(differences, unit)
    if sums.shape[-1] < MINIMUM_UNITS:
        return np.full(sums.shape[:-1], np.nan)
    return np.where(np.abs(sums).max(axis=-1) <= ROUNDING, 1.0, p_above_zero(sums))


def groups_differ(
    sums: Num[np.ndarray, "*head example"],
    rows: Num[np.ndarray, "one"],
    group: Int64[np.ndarray, "one"],
    unit: Num[np.ndarray, "one"],
) -> Float[np.ndarray, "*head"]:
    """Test that groups of examples have different means over rows: a Wald test with a covariance that units cluster.

    Groups are numbered from 0. A unit may have examples in several groups. NaN if a group has fewer than five units.
    """
    lead, n_groups, n_units = sums.shape[:-1], int(group.max(initial=0)) + 1, int(unit.max(initial=0)) + 1
    n_units_of = [len(np.unique(unit[group == number])) for number in range(n_groups)]
    if n_groups < 2 or min(n_units_of) < MINIMUM_UNITS:
        return np.full(lead, np.nan)
    flat = sums.reshape(-1, len(rows)).astype(np.float64)
    total = np.bincount(group, rows, n_groups)
    mean = np.stack([np.bincount(group, values, n_groups) for values in flat]) / total
    residual = flat - mean[:, group] * rows
    cell = unit * n_groups + group
    influence = np.stack([np.bincount(cell, values, n_units * n_groups) for values in residual])
    influence = influence.reshape(len(flat), n_units, n_groups) / total
    covariance = np.einsum("hug,huk->hgk", influence, influence) * n_units / (n_units - 1)
    contrast = np.eye(n_groups)[1:] - np.eye(n_groups)[0]
    difference = mean @ contrast.T
    scatter = contrast @ covariance @ contrast.T
    # Rounding gets no p-value: it is a floor of the variance, and of the differences.
    scatter += np.eye(n_groups - 1) * ROUNDING**2
    wald = np.einsum("hc,hc->h", difference, np.linalg.solve(scatter, difference[..., None])[..., 0]) / (n_groups - 1)
    degrees = min(n_units - 1, (min(n_units_of) - 1) * n_groups)
    p_value = _f_tail(wald, n_groups - 1, degrees)
    return np.where(np.abs(difference).max(axis=1) <= ROUNDING, 1.0, p_value).reshape(lead)


def rank_correlation(
    sums: Num[np.ndarray, "*head example"],
    rows: Num[np.ndarray, "one"],
    values: Num[np.ndarray, "one"],
    unit: Num[np.ndarray, "one"],
) -> Correlation:
    """Correlate the mean over rows of each unit with the mean of its values: Spearman's ρ, Bonett and Wright's interval.

    NaN for fewer than five units, and for heads or values that are constant.
    """
    from scipy.stats import rankdata

    means = _by_unit(sums, unit) / _by_unit(rows, unit)
    number = _by_unit(values, unit) / np.bincount(unit)
    n = means.shape[-1]
    lead = means.shape[:-1]
    if n < MINIMUM_UNITS:
        nothing = np.full(lead, np.nan)
        return Correlation(nothing, nothing, nothing, nothing, n)
    x = rankdata(number) - (n + 1) / 2
    y = rankdata(np.round(means / ROUNDING), axis=-1) - (n + 1) / 2
    norm = np.sqrt((x @ x) * (y * y).sum(axis=-1))
    rho = np.divide(y @ x, norm, out=np.full(lead, np.nan), where=norm > 0)
    inside = np.clip(rho, -1 + 1e-12, 1 - 1e-12)
    half_width = 1.959964 * np.sqrt((1 + rho**2 / 2) / max(n - 3, 1))
    low, high = np.tanh(np.arctanh(inside) - half_width), np.tanh(np.arctanh(inside) + half_width)
    t = np.abs(inside) * np.sqrt((n - 2) / (1 - inside**2))
    return Correlation(rho, low, high, np.minimum(1.0, 2 * student_t_tail(t, n - 2)), n)


def q_values(p_values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Compute the false-discovery rate over all entries of an array: every head and every question of one call."""
    return false_discovery_rate(p_values)


def _by_unit(values: Num[np.ndarray, "*head example"], unit: Num[np.ndarray, "example"]) -> Float64[np.ndarray, "*h u"]:
    n_units = int(unit.max(initial=-1)) + 1
    lead = values.shape[:-1]
    result = np.zeros((*lead, n_units))
    for index in np.ndindex(lead):
        result[index] = np.bincount(unit, values[index], n_units)
    return result


def _f_tail(f: Float64[np.ndarray, "head"], numerator: int, denominator: int) -> Float64[np.ndarray, "head"]:
    from scipy.special import fdtrc

    return np.asarray(fdtrc(numerator, max(denominator, 1), np.maximum(f, 0)))
