"""Resampling and tests compared with closed forms, printed tables, and loops."""

import itertools
import math

import numpy as np
import pytest

from headatlas.store.errors import ShapeError
from headatlas.store.queries.evidence.resampling import (
    EXACT_UNITS,
    MAX_UNITS,
    bootstrap_interval,
    false_discovery_rate,
    p_above_zero,
    p_two_sided,
    random_half,
    student_t_tail,
    studentised_intervals,
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
    for n_units in (EXACT_UNITS, 40):
        p = p_above_zero(rng.normal(size=(2_000, n_units)))
        for share in (0.01, 0.05, 0.2, 0.5):
            assert abs((p < share).mean() - share) < 4 * math.sqrt(share * (1 - share) / 2_000)
        two = p_two_sided(rng.normal(size=(2_000, n_units)))
        assert abs((two < 0.05).mean() - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2_000)
    assert p_above_zero(rng.normal(size=(1, 50)) + 1.5) < 1e-6
    assert p_above_zero(np.full((1, 50), 0.3)) == 0
    assert p_above_zero(np.full((1, 50), -0.3)) == 1


def test_few_units_are_tested_by_all_choices_of_signs():
    values = np.array([[0.5, 0.2, -0.1, 0.4, 0.3], [-0.5, 0.2, -0.1, 0.1, 0.3]])
    for row, p in zip(values, p_above_zero(values), strict=True):
        sums = [sum(s * v for s, v in zip(signs, row, strict=True)) for signs in itertools.product((1, -1), repeat=5)]
        assert p == sum(total >= row.sum() - 1e-12 for total in sums) / 32
    assert p_above_zero(np.full((1, 6), 0.3)) == 1 / 64
    assert np.isnan(p_above_zero(np.ones((2, 4)))).all()


def test_differences_of_rounding_have_no_p_value():
    rng = np.random.default_rng(3)
    noise = 1e-8 * (1 + rng.uniform(size=(1, 30)))
    assert p_above_zero(noise) < 1e-6
    assert np.isnan(p_above_zero(noise, 1e-6)).all()
    assert np.isnan(p_two_sided(np.zeros((2, 30)))).all()
    assert p_two_sided(np.stack([noise[0], 0.1 + noise[0]]), 1e-6)[1] < 1e-6


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
        np.testing.assert_allclose(high - low, 2 * 1.96 * error, rtol=0.2)


def test_the_interval_equals_a_loop_over_resamples():
    rng = np.random.default_rng(5)
    n = 9
    rows = rng.integers(1, 9, n)
    sums = rng.beta(0.6, 2.4, n) * rows

    def ratio_and_error(sums, rows):
        ratio = sums.sum() / rows.sum()
        return ratio, math.sqrt(((sums - ratio * rows) ** 2).sum() * n / (n - 1)) / rows.sum()

    ratio, error = ratio_and_error(sums, rows)
    draws = np.random.default_rng(4).integers(0, n, (1_000, n))
    scores = []
    for drawn in draws:
        of_resample = ratio_and_error(sums[drawn], rows[drawn])
        scores.append((of_resample[0] - ratio) / of_resample[1])
    scores.sort()
    low, high = scores[25], scores[974]
    intervals = studentised_intervals(sums[None], rows, seed=4)
    np.testing.assert_allclose([intervals.low[0], intervals.high[0]], [ratio - high * error, ratio - low * error])
    joint = sorted(map(abs, scores))[949]
    np.testing.assert_allclose(
        [intervals.joint_low[0], intervals.joint_high[0]], [ratio - joint * error, ratio + joint * error]
    )


@pytest.mark.parametrize(("n_units", "least"), [(8, 0.87), (20, 0.9), (60, 0.92)])
def test_the_interval_covers_skewed_shares(n_units, least):
    """The percentile interval covered 0.73 of the first kind with 8 units."""
    rng = np.random.default_rng(7)
    covered, mean = [], 1 / 11
    for trial in range(25):
        rows = rng.integers(1, 8, n_units)
        share = np.concatenate([rng.beta(0.15, 1.5, (20, n_units)), rng.beta(5, 50, (20, n_units))])
        low, high = bootstrap_interval(share * rows, rows, n_resamples=300, bounds=(0, 1), seed=trial)
        covered.append((low <= mean) & (mean <= high))
    assert least <= np.mean(covered) <= 0.99


def test_the_joint_interval_covers_the_head_that_ranks_first():
    rng = np.random.default_rng(11)
    joint, single = [], []
    for trial in range(200):
        share = rng.beta(2, 6, (72, 20))
        best = int(share.mean(axis=1).argmax())
        intervals = studentised_intervals(share, np.ones(20), n_resamples=300, bounds=(0, 1), seed=trial)
        joint.append(intervals.joint_low[best] <= 0.25 <= intervals.joint_high[best])
        single.append(intervals.low[best] <= 0.25 <= intervals.high[best])
    assert np.mean(joint) >= 0.93
    assert np.mean(single) < 0.8


def test_equal_units_at_a_bound_have_the_interval_of_a_binomial_share():
    low, high = bootstrap_interval(np.stack([np.ones(30), np.zeros(30), np.full(30, 0.5)]), np.ones(30), bounds=(0, 1))
    # Clopper and Pearson: 30 of 30 have the lower end 0.025 ** (1 / 30)
    np.testing.assert_allclose(low, [0.025 ** (1 / 30), 0, 0.5])
    np.testing.assert_allclose(high, [1, 1 - 0.025 ** (1 / 30), 0.5])


def test_intervals_without_examples_and_of_unequal_lengths():
    low, high = bootstrap_interval(np.zeros((2, 3, 0)), np.zeros(0, int))
    assert low.shape == high.shape == (2, 3)
    assert np.isnan(low).all()
    assert np.isnan(bootstrap_interval(np.ones((1, 1)), np.ones(1))[0]).all()
    with pytest.raises(ShapeError, match="sums have 3 units, rows 2"):
        bootstrap_interval(np.ones((1, 3)), np.ones(2))


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_a_random_half_is_half(n):
    assert random_half(n).sum() == n // 2
    assert random_half(n, 4).tolist() == random_half(n, 4).tolist()
