"""Where a (query, key) pair lies on the flat `pair` axis, and back.

A full map of an example is stored row by row: pair = query_pos · n_keys + key_pos. A causal site keeps the lower
triangle only, row by row: pair = query_pos · (query_pos + 1) / 2 + key_pos. Either way the rows of one example are
contiguous, so a range of query positions is one slice. Pairs here count from the example's first pair.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int64, Shaped

from .errors import ShapeError


def n_pairs(n_queries: int, n_keys: int, *, causal: bool) -> int:
    """How many pairs of one head of one example are stored.

    Raises
    ------
    ShapeError
        A causal map that is not square.
    """
    if causal and n_queries != n_keys:
        raise ShapeError(f"a causal map of {n_queries} queries and {n_keys} keys; expected as many keys as queries.")
    return n_queries * (n_queries + 1) // 2 if causal else n_queries * n_keys


def pair_rows(start: int, stop: int, n_keys: int, *, causal: bool) -> slice:
    """The pairs of query positions `start:stop`."""
    if causal:
        return slice(start * (start + 1) // 2, stop * (stop + 1) // 2)
    return slice(start * n_keys, stop * n_keys)


def pair_index(
    query_pos: Int[np.ndarray, "n"], key_pos: Int[np.ndarray, "n"], n_keys: int, *, causal: bool
) -> Int64[np.ndarray, "n"]:
    """The pair of each (query position, key position).

    Raises
    ------
    ShapeError
        A position is negative, a key position is `n_keys` or more, or a causal query would see a later key.
    """
    query, key = query_pos.astype(np.int64), key_pos.astype(np.int64)
    wrong = (query < 0) | (key < 0) | (key >= n_keys) | ((key > query) if causal else False)
    if np.any(wrong):
        at = int(np.flatnonzero(wrong)[0])
        rule = "0 <= key_pos <= query_pos" if causal else f"0 <= key_pos < {n_keys}"
        raise ShapeError(f"query_pos {query[at]}, key_pos {key[at]} is not a stored pair; expected {rule}.")
    return query * (query + 1) // 2 + key if causal else query * n_keys + key


def pair_positions(
    pair: Int[np.ndarray, "n"], n_keys: int, *, causal: bool
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """(query position, key position) of each pair; exact for pairs up to 2**50."""
    pair = pair.astype(np.int64)
    if not causal:
        return pair // max(n_keys, 1), pair % max(n_keys, 1)
    query = ((np.sqrt(8.0 * pair + 1.0) - 1.0) / 2.0).astype(np.int64)
    query -= query * (query + 1) // 2 > pair  # the square root may round over a row's border
    query += (query + 1) * (query + 2) // 2 <= pair
    return query, pair - query * (query + 1) // 2


def unpack_pairs(
    pairs: Shaped[np.ndarray, "*lead pair"], n_queries: int, n_keys: int, *, causal: bool
) -> Shaped[np.ndarray, "*lead query_pos key_pos"]:
    """The map [..., query_pos, key_pos] of one example from its pairs; zero above the diagonal of a causal map."""
    expected = n_pairs(n_queries, n_keys, causal=causal)
    if pairs.shape[-1] != expected:
        raise ShapeError(f"{pairs.shape[-1]} pairs; expected {expected} for {n_queries} queries and {n_keys} keys.")
    if not causal:
        return pairs.reshape(*pairs.shape[:-1], n_queries, n_keys)
    full = np.zeros((*pairs.shape[:-1], n_queries, n_keys), dtype=pairs.dtype)
    full[..., *np.tril_indices(n_queries)] = pairs
    return full


def unpack_rows(
    pairs: Shaped[np.ndarray, "*lead pair"], rows: slice, n_keys: int, *, causal: bool
) -> Shaped[np.ndarray, "*lead row key_pos"]:
    """The rows [..., row, key_pos] of one example from the pairs of `rows` (see `pair_rows`); zero where none is stored."""
    n_rows = rows.stop - rows.start
    expected = pair_rows(rows.start, rows.stop, n_keys, causal=causal)
    if pairs.shape[-1] != expected.stop - expected.start:
        raise ShapeError(f"{pairs.shape[-1]} pairs; expected {expected.stop - expected.start} for {n_rows} rows.")
    if not causal:
        return pairs.reshape(*pairs.shape[:-1], n_rows, n_keys)
    full = np.zeros((*pairs.shape[:-1], n_rows, n_keys), dtype=pairs.dtype)
    full[..., np.tri(n_rows, n_keys, rows.start, dtype=bool)] = pairs
    return full


def pack_pairs(
    full: Shaped[np.ndarray, "*lead query_pos key_pos"], *, causal: bool
) -> Shaped[np.ndarray, "*lead pair"]:
    """The pairs of one example from its map [..., query_pos, key_pos]; the inverse of `unpack_pairs`."""
    n_queries, n_keys = full.shape[-2:]
    expected = n_pairs(n_queries, n_keys, causal=causal)
    if not causal:
        return full.reshape(*full.shape[:-2], expected)
    return full[..., *np.tril_indices(n_queries)]
