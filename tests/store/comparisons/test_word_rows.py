"""The divergence of word rows, by the compiled loop and in numpy, compared with float64."""

import numpy as np
import pytest

from headatlas.store.comparisons import word_rows
from headatlas.store.comparisons.word_rows import summed_divergence
from headatlas.store.queries.kernel import installed


def has_compiled_loop():
    """Return True if the loop was compiled and this processor can run it."""
    cell = np.full((1, 1), 0.5, np.float32)
    return (library := installed()) is not None and library.add_divergence(np.zeros((1, 1)), cell, cell.copy())


@pytest.fixture(params=["compiled", "numpy"])
def implementation(request, monkeypatch):
    """Compute by the compiled loop, or as without it."""
    if request.param == "numpy":
        monkeypatch.setattr(word_rows, "installed", lambda: None)
    elif not has_compiled_loop():
        pytest.skip("the compiled loop is missing, or this processor has no AVX2 and FMA")


def random_rows(seed, n_heads, n_rows, n_cells):
    """Rows that sum to 1: even ones, sinks, one-hot rows, rows of zeros, and weights down to 1e-12."""
    rng = np.random.default_rng(seed)
    rows = rng.random((n_heads, n_rows, n_cells)) ** rng.choice([1, 4, 40], (n_heads, n_rows, 1))
    rows[rng.random(rows.shape) < 0.3] = 0
    rows[:, 0] = 0
    rows[rng.random(n_heads) < 0.3, 0, 0] = 1
    return (rows / np.maximum(rows.sum(axis=2, keepdims=True), 1e-30)).astype(np.float32)


def exact(rows, others):
    """Divergences by the definition, in float64."""

    def x_log2_x(x):
        return np.where(x > 0, x * np.log2(np.where(x > 0, x, 1)), 0).sum(axis=(-2, -1))

    rows, others = rows.astype(np.float64), others.astype(np.float64)
    middle = x_log2_x((rows[:, None] + others[None]) / 2)
    return (x_log2_x(rows)[:, None] + x_log2_x(others)[None]) / 2 - middle


@pytest.mark.parametrize("n_cells", [1, 7, 8, 16, 17, 200])
def test_the_divergence_is_within_1e_6_for_each_row(n_cells, implementation, monkeypatch):
    monkeypatch.setattr(word_rows, "_BLOCK_CELLS", 300)
    rows, others = random_rows(n_cells, 7, 9, n_cells), random_rows(n_cells + 1, 5, 9, n_cells)
    np.testing.assert_allclose(summed_divergence(rows, others) / 9, exact(rows, others) / 9, atol=1e-6)
    within = summed_divergence(rows, rows)
    np.testing.assert_allclose(within / 9, exact(rows, rows) / 9, atol=1e-6)
    np.testing.assert_array_equal(within, within.T)


def test_equal_rows_have_no_divergence(implementation):
    rows = random_rows(3, 4, 20, 50)
    assert np.diag(summed_divergence(rows, rows.copy())).max() < 1e-6
    assert np.diag(summed_divergence(rows, rows)).tolist() == [0.0] * 4


def test_the_error_of_the_logarithm_is_below_1e_6(implementation):
    """Single weights from 1/4 to 1 beside the weight 1, whose logarithm is exact."""
    weights = np.linspace(0.25, 1, 20_001, dtype=np.float32)[:, None, None]
    one = np.ones((1, 1, 1), np.float32)
    np.testing.assert_allclose(summed_divergence(weights, one), np.maximum(exact(weights, one), 0), atol=7e-7)
