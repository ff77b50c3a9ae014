"""Statistics compared with a slow loop over single weights, written from their descriptions."""

import math

import numpy as np
import pytest

from headatlas.store.errors import ConfigError, ShapeError
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES, STATISTICS
from headatlas.store.statistics.definitions import aggregate, head_statistics


def random_attention(n_heads, n_queries, n_keys, causal, seed=0):
    scores = np.random.default_rng(seed).normal(size=(n_heads, n_queries, n_keys)) * 3
    if causal:
        scores[:, np.triu(np.ones((n_queries, n_keys), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def slow(name, matrix, special):
    """Compute one head's statistic by the sentence of the specification; return the mean and the number of rows."""
    n_queries = len(matrix)
    rows = []
    for q in range(n_queries):
        weights = [float(w) for w in matrix[q]]
        match name:
            case "entropy":
                rows.append(-sum(w * math.log(w) for w in weights if w > 0))
            case "distance":
                rows.append(sum(w * abs(q - k) for k, w in enumerate(weights)))
            case "maximum":
                rows.append(max(weights))
            case "self":
                rows.append(weights[q])
            case "previous":
                rows += [weights[q - 1]] if q >= 1 else []
            case "next":
                rows += [weights[q + 1]] if q + 1 <= n_queries - 1 else []
            case "first":
                rows.append(weights[0])
            case "special":
                rows.append(sum(w for k, w in enumerate(weights) if special[k]))
    return (math.fsum(rows) / len(rows), len(rows)) if rows else (math.nan, 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_every_statistic_equals_the_slow_loop(causal, length):
    attention = random_attention(3, length, length, causal, seed=length)
    special = np.zeros(length, bool)
    special[[0, -1]] = True
    values = head_statistics(attention, special)
    assert values.dtype == np.float32
    size = np.array([length])
    for row, name in zip(values, STATISTIC_NAMES, strict=True):
        expected = [slow(name, matrix, special) for matrix in attention]
        np.testing.assert_allclose(row, [mean for mean, _ in expected], rtol=2e-6, atol=1e-7)
        assert STATISTICS[name].rows(size, size)[0] == expected[0][1]


@pytest.mark.parametrize("name", [name for name, statistic in STATISTICS.items() if statistic.has_pair])
def test_the_pairs_of_a_statistic_have_its_mass(name):
    attention = random_attention(3, 7, 7, causal=False)
    special = np.arange(7) % 3 == 0
    query, key = np.indices((7, 7))
    pairs = np.broadcast_to(STATISTICS[name].has_pair(query, key, special[None, :]), (7, 7))
    n_rows = STATISTICS[name].rows(np.array([7]), np.array([7]))[0]
    np.testing.assert_allclose(
        head_statistics(attention, special, (name,))[0], (attention * pairs).sum((1, 2)) / n_rows, rtol=1e-5
    )


def test_between_two_texts_neighbours_are_undefined():
    attention = random_attention(2, 3, 5, causal=False)
    special = np.array([True, False, False, False, True])
    values = dict(zip(STATISTIC_NAMES, head_statistics(attention, special, cross=True), strict=True))
    assert all(np.isnan(values[name]).all() for name in ("self", "previous", "next"))
    for name in ("entropy", "distance", "maximum", "first", "special"):
        np.testing.assert_allclose(values[name], [slow(name, matrix, special)[0] for matrix in attention], rtol=2e-6)


def test_one_hot_rows_have_exact_values():
    attention = np.eye(4, k=-1, dtype=np.float32)[None]
    attention[0, 0, 0] = 1
    values = dict(zip(STATISTIC_NAMES, head_statistics(attention, np.zeros(4, bool))[:, 0].tolist(), strict=True))
    assert values == {
        "entropy": 0,
        "distance": 0.75,
        "maximum": 1,
        "self": 0.25,
        "previous": 1,
        "next": 0,
        "first": 0.5,
        "special": 0,
    }


def test_shapes_and_names_are_checked(without_shape_checks):
    attention = random_attention(1, 3, 5, causal=False)
    with pytest.raises(ShapeError, match="cross=True"):
        head_statistics(attention, np.zeros(5, bool))
    with pytest.raises(ShapeError, match="key_special has 4"):
        head_statistics(attention, np.zeros(4, bool), cross=True)
    with pytest.raises(ConfigError, match="no statistic 'sharpness'"):
        head_statistics(attention, np.zeros(5, bool), ["sharpness"], cross=True)


def test_aggregate_by_rows_and_by_examples():
    values = np.array([[[1.0, 4.0, np.nan], [0.0, 2.0, np.nan]]], dtype=np.float32)
    rows = np.array([3, 1, 5])
    np.testing.assert_allclose(aggregate(values, rows), [[7 / 4, 2 / 4]])
    np.testing.assert_allclose(aggregate(values, rows, "examples"), [[2.5, 1.0]])
    np.testing.assert_allclose(aggregate(values, np.array([0, 1, 1]), "examples"), [[4.0, 2.0]])
    assert np.isnan(aggregate(values, np.zeros(3, np.int64))).all()


def test_aggregate_checks_its_arguments(without_shape_checks):
    values, rows = np.zeros((1, 2, 3), np.float32), np.array([3, 1, 5])
    with pytest.raises(ShapeError, match="rows 2"):
        aggregate(values, np.array([1, 2]))
    with pytest.raises(ConfigError, match="'tokens'"):
        aggregate(values, rows, "tokens")  # type: ignore[arg-type]


def test_row_aggregate_is_the_mean_over_all_rows_of_the_corpus():
    attentions = [random_attention(2, n, n, causal=True, seed=n) for n in (1, 2, 7)]
    lengths = np.array([1, 2, 7])
    values = np.stack(
        [head_statistics(a, np.zeros(a.shape[1], bool)) for a in attentions], axis=-1
    )  # [statistic, head, example]
    for index, name in enumerate(STATISTIC_NAMES):
        means = aggregate(values[index][None], STATISTICS[name].rows(lengths, lengths))[0]
        for head in range(2):
            slow_means = [slow(name, a[head], np.zeros(a.shape[1], bool)) for a in attentions]
            total = sum(mean * n for mean, n in slow_means if n)
            assert means[head] == pytest.approx(total / sum(n for _, n in slow_means), rel=1e-6)
