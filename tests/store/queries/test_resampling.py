"""Resampling and tests compared with closed forms, printed tables, and loops."""

import math

import numpy as np
import pytest

from headatlas.store.errors import ShapeError
from headatlas.store.queries.resampling import (
    MAX_UNITS,
    bootstrap_interval,
    false_discovery_rate,
    p_above_zero,
    random_half,
    student_t_tail,
)


# Critical values of printed tables: P(T > t) = 0.05, 0.025, 0.005. For 20,000 degrees of freedom they are
# z + (z³ + z) / 80,000 with the quantile z of the normal distribution.
@pytest.mark.parametrize(
    ("degrees", "values"),
    [
        (1, (6.313752, 12.706205, 63.656741)),
        (5, (2.015048, 2.570582, 4.032143)),
        (30, (1.697261, 2.042272, 2.749996)),
        (1000, (1.646379, 1.962339, 2.580755)),
        (20_000, (1.644930, 1.960083, 2.576075)),
    ],
)
def test_student_t_tail_agrees_with_printed_tables(degrees, values):
    tail = student_t_tail(np.array(values), degrees)
    np.testing.assert_allclose(tail, [0.05, 0.025, 0.005], rtol=1e-5)
    np.testing.assert_allclose(student_t_tail(-np.array(values), degrees), 1 - tail, rtol=1e-12)


@pytest.mark.parametrize("degrees", [1, 2, 7, 100, 9_000])
def test_student_t_tail_agrees_with_the_integral_of_its_density(degrees):
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    for t in (0.0, 0.1, 1.0, 3.5):
        x = np.linspace(0, t, 20_001)
        density = np.exp(log_scale - (degrees + 1) / 2 * np.log1p(x * x / degrees))
        area = float(((density[1:] + density[:-1]) / 2 * np.diff(x)).sum())
        assert student_t_tail(np.array(t), degrees) == pytest.approx(0.5 - area, abs=1e-8)
    assert student_t_tail(np.array([np.inf, -np.inf]), degrees).tolist() == [0.0, 1.0]


def test_p_values_are_uniform_without_an_effect_and_small_with_one():
    rng = np.random.default_rng(0)
    p = p_above_zero(rng.normal(size=(2_000, 12)))
    for share in (0.01, 0.05, 0.2, 0.5):
        assert abs((p < share).mean() - share) < 4 * math.sqrt(share * (1 - share) / 2_000)
    assert p_above_zero(rng.normal(size=(1, 50)) + 1.5) < 1e-6
    assert p_above_zero(np.full((1, 6), 0.3)) == 0
    assert p_above_zero(np.full((1, 6), -0.3)) == 1
    assert p_above_zero(np.zeros((1, 6))) == 1
    assert np.isnan(p_above_zero(np.ones((2, 1)))).all()


def test_false_discovery_rate_is_benjamini_and_hochbergs():
    p = np.array([[0.01, 0.04, np.nan], [0.03, 0.005, 0.9]])
    # Computed by hand: ranks .005 .01 .03 .04 .9 of 5: .025 .025 .05 .05 .9
    np.testing.assert_allclose(false_discovery_rate(p), [[0.025, 0.05, np.nan], [0.05, 0.025, 0.9]])
    rng = np.random.default_rng(1)
    false = [bool((false_discovery_rate(rng.uniform(size=40)) < 0.1).any()) for _ in range(500)]
    assert np.mean(false) < 0.15


@pytest.mark.parametrize("n", [2, 40, MAX_UNITS + 904])
def test_the_interval_is_that_of_the_ratio_of_sums(n):
    rng = np.random.default_rng(n)
    rows = rng.integers(1, 9, n)
    share = rng.beta(2, 5, (3, n))
    sums = share * rows
    low, high = bootstrap_interval(sums, rows, seed=3)
    again = bootstrap_interval(sums, rows, seed=3)
    np.testing.assert_array_equal([low, high], again)
    mean = sums.sum(axis=1) / rows.sum()
    assert ((low <= mean) & (mean <= high)).all()
    if n > 2:
        # The standard error by the delta method gives the same width.
        error = np.sqrt(((sums - mean[:, None] * rows) ** 2).sum(axis=1)) / rows.sum()
        np.testing.assert_allclose(high - low, 2 * 1.96 * error, rtol=0.15)


def test_the_interval_has_about_its_nominal_coverage():
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(200):
        rows = rng.integers(1, 6, 60)
        low, high = bootstrap_interval(rng.binomial(rows, 0.3)[None], rows, n_resamples=300, seed=trial)
        covered += bool(low[0] <= 0.3 <= high[0])
    assert 0.88 <= covered / 200 <= 0.99


def test_intervals_without_examples_and_of_unequal_lengths():
    low, high = bootstrap_interval(np.zeros((2, 3, 0)), np.zeros(0, int))
    assert low.shape == high.shape == (2, 3)
    assert np.isnan(low).all()
    assert np.isnan(bootstrap_interval(np.ones((1, 1)), np.ones(1))[0]).all()
    with pytest.raises(ShapeError, match="sums have 3 examples, rows 2"):
        bootstrap_interval(np.ones((1, 3)), np.ones(2))


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_a_random_half_is_half(n):
    assert random_half(n).sum() == n // 2
    assert random_half(n, 4).tolist() == random_half(n, 4).tolist()
