"""Pair arithmetic compared with loops and numpy's triangles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.store.codecs.pairs import (
    n_pairs,
    pack_pairs,
    pair_index,
    pair_positions,
    pair_rows,
    unpack_pairs,
)
from headatlas.store.errors import ShapeError


@given(n_queries=st.integers(0, 12), n_keys=st.integers(0, 12), causal=st.booleans(), lead=st.integers(0, 2))
def test_pack_and_unpack(n_queries: int, n_keys: int, causal: bool, lead: int) -> None:
    n_keys = n_queries if causal else n_keys
    full = np.random.default_rng(0).random((3,) * lead + (n_queries, n_keys))
    full = np.tril(full) if causal else full
    pairs = pack_pairs(full, causal=causal)
    assert pairs.shape[-1] == n_pairs(n_queries, n_keys, causal=causal)
    assert np.array_equal(unpack_pairs(pairs, n_queries, n_keys, causal=causal), full)


@given(n_queries=st.integers(1, 30), n_keys=st.integers(1, 30), causal=st.booleans())
def test_order_is_row_by_row(n_queries: int, n_keys: int, causal: bool) -> None:
    n_keys = n_queries if causal else n_keys
    expected = [(q, k) for q in range(n_queries) for k in range(q + 1 if causal else n_keys)]
    query, key = np.array(expected).T
    pair = np.arange(len(expected))
    assert np.array_equal(pair_index(query, key, n_keys, causal=causal), pair)
    queries, keys = pair_positions(pair, n_keys, causal=causal)
    assert np.array_equal(queries, query)
    assert np.array_equal(keys, key)
    for row in range(n_queries):
        assert np.array_equal(pair[pair_rows(row, row + 1, n_keys, causal=causal)], pair[query == row])


@given(n=st.integers(1, 14), causal=st.booleans(), window=st.integers(1, 16))
def test_bands(n: int, causal: bool, window: int) -> None:
    """A band contains exactly the keys less than `window` away, row by row."""
    layout = {"causal": causal, "window": window}
    expected = [(q, k) for q in range(n) for k in range(n) if abs(q - k) < window and (k <= q or not causal)]
    query, key = np.array(expected).T
    pair = np.arange(len(expected))
    assert n_pairs(n, n, **layout) == len(expected)
    assert np.array_equal(pair_index(query, key, n, **layout), pair)
    for positions, expected_positions in zip(pair_positions(pair, n, **layout), (query, key), strict=True):
        assert np.array_equal(positions, expected_positions)
    for row in range(n):
        assert np.array_equal(pair[pair_rows(row, row + 1, n, **layout)], pair[query == row])
    full = np.zeros((2, n, n))
    full[:, query, key] = np.random.default_rng(0).random((2, len(expected)))
    assert np.array_equal(pack_pairs(full, **layout), full[:, query, key])
    assert np.array_equal(unpack_pairs(full[:, query, key], n, n, **layout), full)
    if n > window:
        with pytest.raises(ShapeError, match=f"less than {window} apart"):
            pair_index(np.array([n - 1]), np.array([n - 1 - window]), n, **layout)


@given(st.integers(0, 2**25))
def test_causal_rows_are_exact_at_their_borders(query: int) -> None:
    """Row borders, at which a floating-point square root would be off by one row."""
    first = query * (query + 1) // 2
    queries, keys = pair_positions(np.array([first, first + query]), 2**26, causal=True)
    assert queries.tolist() == [query, query]
    assert keys.tolist() == [0, query]


@pytest.mark.parametrize(("query", "key", "causal"), [(1, 2, True), (-1, 0, False), (0, -1, True), (0, 5, False)])
def test_positions_outside_are_refused(query: int, key: int, causal: bool) -> None:
    with pytest.raises(ShapeError, match="not a stored pair"):
        pair_index(np.array([query]), np.array([key]), 5, causal=causal)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="as many keys"):
        n_pairs(2, 3, causal=True)
    with pytest.raises(ShapeError, match="expected 6"):
        unpack_pairs(np.zeros(5), 2, 3, causal=False)
