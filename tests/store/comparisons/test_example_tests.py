"""Tests over examples compared with scipy, and their rates of false alarms with units of several examples."""

import numpy as np
import pytest
from scipy import stats

from headatlas.store.comparisons.example_tests import (
    above_zero,
    groups_differ,
    interval,
    rank_correlation,
    two_sided,
    unit_codes,
)


def test_tests_of_single_examples_are_those_of_scipy():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.1, 1, (4, 30))
    unit = unit_codes(None, 30)
    np.testing.assert_allclose(
        two_sided(differences, unit), stats.ttest_1samp(differences, 0, axis=1).pvalue, rtol=1e-6
    )
    expected = stats.ttest_1samp(differences, 0, axis=1, alternative="greater").pvalue
    np.testing.assert_allclose(above_zero(differences, unit), expected, rtol=1e-6)
    x = rng.integers(0, 5, 30).astype(float)
    result = rank_correlation(differences, np.ones(30), x, unit)
    for head in range(4):
        rho = stats.spearmanr(differences[head], x)
        assert result.rho[head] == pytest.approx(rho.statistic, abs=1e-6)
        assert result.p_value[head] == pytest.approx(rho.pvalue, rel=1e-4)
        assert result.low[head] < result.rho[head] < result.high[head]


def test_rounding_and_few_units_give_no_evidence():
    noise = np.random.default_rng(0).normal(0, 1e-8, (2, 40))
    unit = unit_codes(None, 40)
    assert (two_sided(noise, unit) == 1).all()
    assert (above_zero(noise + 1e-9, unit) == 1).all()
    assert (groups_differ(noise, np.ones(40), np.arange(40) % 2, unit) == 1).all()
    for p_value in (two_sided(noise[:, :4], unit[:4]), groups_differ(noise, np.ones(40), (unit < 4).astype(int), unit)):
        assert np.isnan(p_value).all()
    assert np.isnan(interval(noise, np.ones(40), unit // 10)[0]).all()
    assert np.isnan(rank_correlation(noise, np.ones(40), np.arange(40.0), unit // 10).rho).all()


@pytest.mark.parametrize("size", [1, 5])
def test_false_alarms_do_not_grow_with_the_examples_of_a_unit(size):
    """400 data sets without effect, 40 units. Examples of a unit share most of their value."""
    rng = np.random.default_rng(3)
    n_units = 40
    unit = np.repeat(np.arange(n_units), size)
    values = np.repeat(rng.normal(size=(400, n_units)), size, axis=1) + 0.3 * rng.normal(size=(400, n_units * size))
    rows = rng.integers(1, 4, n_units * size)
    group = np.repeat(np.arange(n_units) % 2, size)
    x = np.repeat(rng.normal(size=n_units), size)
    rates = {
        "groups": groups_differ(values * rows, rows, group, unit),
        "correlation": rank_correlation(values * rows, rows, x, unit).p_value,
        "two-sided": two_sided(values, unit),
    }
    for name, p_value in rates.items():
        assert 0.02 <= (p_value < 0.05).mean() <= 0.085, name
    if size > 1:  # as if every example were a unit
        alone = groups_differ(values * rows, rows, group, np.arange(len(unit)))
        assert (alone < 0.05).mean() > 0.2


def test_an_effect_is_found_and_a_unit_may_be_in_both_groups():
    rng = np.random.default_rng(4)
    unit = np.repeat(np.arange(30), 2)
    group = np.tile([0, 1], 30)
    values = np.repeat(rng.normal(size=(50, 30)), 2, axis=1) + 0.2 * rng.normal(size=(50, 60)) + 0.2 * group
    paired = groups_differ(values, np.ones(60), group, unit)  # the part that both share cancels
    np.testing.assert_allclose(paired, stats.ttest_rel(values[:, ::2], values[:, 1::2], axis=1).pvalue, rtol=0.01)
    assert (paired < 0.05).mean() > 0.8
    assert (groups_differ(values, np.ones(60), group, np.arange(60)) < 0.05).mean() < 0.3
