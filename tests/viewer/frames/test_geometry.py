"""Drawn edges, windows and scores agree with slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.store.errors import ShapeError
from headatlas.store.reading.attention_rebuild import attention_scores
from headatlas.viewer.frames import geometry

from ..view_data import random_attention


def slow_edges(attention, share, keys, causal, query_shown, key_shown):
    """Apply the rule of the head view, one pair at a time."""
    edges, pairs = [], 0
    for q in range(attention.shape[0]):
        if not query_shown[q]:
            continue
        row = [k for k in range(attention.shape[1]) if key_shown[k] and (not causal or k <= q)]
        pairs += len(row)
        total = drawn = 0.0
        for k in row:
            total += float(attention[q, k])
        for n, k in enumerate(sorted(row, key=lambda k: (-attention[q, k], k))):
            w = float(attention[q, k])
            if n >= keys or drawn >= share * total or w < 0.01:
                break
            edges.append((q, k))
            drawn += w
    return edges, pairs


@given(
    n_queries=st.integers(1, 12),
    n_keys=st.integers(1, 12),
    share=st.sampled_from([0.1, 0.5, 0.75, 1.0]),
    keys=st.integers(1, 10),
    causal=st.booleans(),
    hide=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_strongest_edges_are_those_of_a_slow_loop(n_queries, n_keys, share, keys, causal, hide, seed):
    if causal:
        n_keys = n_queries
    attention = random_attention((n_queries, n_keys), causal, seed)
    rng = np.random.default_rng(seed)
    query_shown = rng.random(n_queries) < 0.7 if hide else np.ones(n_queries, bool)
    key_shown = rng.random(n_keys) < 0.7 if hide else np.ones(n_keys, bool)
    drawn = geometry.strongest_edges(
        attention, share=share, keys=keys, causal=causal, query_shown=query_shown, key_shown=key_shown
    )
    expected, pairs = slow_edges(attention, share, keys, causal, query_shown, key_shown)
    assert list(zip(drawn.query_pos.tolist(), drawn.key_pos.tolist(), strict=True)) == expected
    assert drawn.n_pairs == pairs
    np.testing.assert_array_equal(drawn.weight, attention[drawn.query_pos, drawn.key_pos])
    assert drawn.row_mass == pytest.approx(query_shown.sum(), rel=1e-5)
    assert 0 <= drawn.share <= 1 + 1e-6


def test_equal_weights_go_to_the_lower_key():
    drawn = geometry.strongest_edges(np.full((1, 4), 0.25, np.float32), share=0.5, keys=8)
    assert drawn.key_pos.tolist() == [0, 1]


def test_nothing_below_a_hundredth_is_drawn():
    attention = np.array([[0.985, 0.009, 0.006]], np.float32)
    assert len(geometry.strongest_edges(attention, share=1.0, keys=3)) == 1


@given(n=st.integers(1, 3000), size=st.integers(1, 600), center=st.none() | st.integers(0, 2999))
def test_a_window_lies_inside_and_holds_its_centre(n, size, center):
    shown = geometry.window(n, center, size)
    assert 0 <= shown.start < shown.stop <= n
    assert shown.stop - shown.start == min(n, size)
    if center is not None and center < n:
        assert shown.start <= center < shown.stop


def row_scores(query, keys, scaling, softcap=None):
    return attention_scores(query[None, None], keys[None], scaling, softcap)[0, 0]


@pytest.mark.parametrize(
    ("softcap", "window", "causal"), [(None, None, False), (5.0, None, True), (None, 4, True), (None, 4, False)]
)
def test_a_row_is_rebuilt_from_its_vectors(softcap, window, causal):
    rng = np.random.default_rng(1)
    query, keys, q = rng.normal(size=8), rng.normal(size=(9, 8)), 5
    scores = row_scores(query, keys, 0.3, softcap)
    mask = np.array([(k <= q or not causal) and (window is None or abs(q - k) < window) for k in range(9)])
    slow = np.array([0.3 * sum(a * b for a, b in zip(query, key, strict=True)) for key in keys])
    if softcap:
        slow = softcap * np.tanh(slow / softcap)
    np.testing.assert_allclose(scores, slow, rtol=1e-12)
    logsumexp = float(np.log(np.exp(slow[mask]).sum()))
    row = geometry.rebuilt_row(scores, logsumexp, mask)
    assert row.sum() == pytest.approx(1.0)
    assert not row[~mask].any()


def test_parts_sum_to_the_difference_from_the_mean_of_the_other_keys():
    rng = np.random.default_rng(2)
    query, keys = rng.normal(size=6), rng.normal(size=(5, 6))
    mask = np.array([True, True, False, True, True])
    parts = geometry.dimension_parts(query, keys, scaling=0.5, focus=1, mask=mask)
    scores = row_scores(query, keys, 0.5)
    assert parts.sum() == pytest.approx(scores[1] - scores[[0, 3, 4]].mean())


def test_parts_of_the_only_key_are_its_score():
    query, keys = np.ones(3), np.arange(3.0)[None]
    parts = geometry.dimension_parts(query, keys, scaling=1.0, focus=0, mask=np.array([True]))
    assert parts.tolist() == [0, 1, 2]


def test_keys_with_another_number_of_dimensions_are_rejected():
    with pytest.raises(ShapeError, match="8 dimensions and the keys 4"):
        row_scores(np.zeros(8), np.zeros((2, 4)), 1.0)
