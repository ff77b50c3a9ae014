"""Positions of (query, key) pairs on the flat `pair` axis.

There are three layouts. All of them store pairs row by row, so the rows of one example are contiguous and a range of
query positions is one slice. A full map stores every key of each row: pair = query_pos · n_keys + key_pos. A causal map
stores the lower triangle: pair = query_pos · (query_pos + 1) / 2 + key_pos. A band stores the keys less than `window`
away from the row's own position; a causal band has no later keys. Pairs are counted from the example's first pair.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Int, Int64, Shaped

from ..errors import ShapeError

Counts = Int64[np.ndarray, "*n"]


def first_key(query_pos: Counts, *, window: int | None = None) -> Counts:
    """Return the first key position that each row stores."""
    return np.zeros_like(query_pos) if window is None else np.maximum(query_pos - window + 1, 0)


def n_row_pairs(query_pos: Counts, n_keys: int | Counts, *, causal: bool, window: int | None = None) -> Counts:
    """Return the number of keys that each row stores, starting at `first_key`."""
    stop = query_pos + 1 if causal else n_keys + 0 * query_pos
    if window is not None and not causal:
        stop = np.minimum(stop, query_pos + window)
    return stop - first_key(query_pos, window=window)


@overload
def row_start(query_pos: int, n_keys: int, *, causal: bool, window: int | None = None) -> int: ...
@overload
def row_start(query_pos: Counts, n_keys: int | Counts, *, causal: bool, window: int | None = None) -> Counts: ...
def row_start(
    query_pos: int | Counts, n_keys: int | Counts, *, causal: bool, window: int | None = None
) -> int | Counts:
    """Return the first pair of a row: the sum of `n_row_pairs` over the rows before it. Exact for any int64."""
    if window is None:
        return query_pos * (query_pos + 1) // 2 if causal else query_pos * n_keys
    if causal:
        n_short = np.minimum(query_pos, window)
        return _as(query_pos, n_short * (n_short + 1) // 2 + (query_pos - n_short) * window)
    n_cut = np.clip(np.asarray(n_keys) - window, 0, query_pos)  # rows whose window ends before the last key
    n_late = np.maximum(np.asarray(query_pos) - window, 0)  # rows whose window starts after the first key
    stops = n_cut * (n_cut - 1) // 2 + n_cut * window + (query_pos - n_cut) * n_keys
    return _as(query_pos, stops - n_late * (n_late + 1) // 2)


def _as(like: int | Counts, value: Any) -> Any:
    return value if isinstance(like, np.ndarray) else int(value)


def n_pairs(n_queries: int, n_keys: int, *, causal: bool, window: int | None = None) -> int:
    """Return the number of pairs that one head of one example stores.

    Raises
    ------
    ShapeError
        A causal map or a band is not square.
    """
    if n_queries != n_keys and (causal or window is not None):
        shape = "causal map" if causal else "band"
        raise ShapeError(f"a {shape} of {n_queries} queries and {n_keys} keys; expected as many keys as queries.")
    return row_start(n_queries, n_keys, causal=causal, window=window)


def pair_rows(start: int, stop: int, n_keys: int, *, causal: bool, window: int | None = None) -> slice:
    """Return the pairs of query positions `start:stop`."""
    first, last = (row_start(row, n_keys, causal=causal, window=window) for row in (start, stop))
    return slice(first, last)


def pair_index(
    query_pos: Int[np.ndarray, "n"],
    key_pos: Int[np.ndarray, "n"],
    n_keys: int,
    *,
    causal: bool,
    window: int | None = None,
) -> Int64[np.ndarray, "n"]:
    """Return the pair of each (query position, key position).

    Raises
    ------
    ShapeError
        The layout does not store such a pair.
    """
    query, key = query_pos.astype(np.int64), key_pos.astype(np.int64)
    first = first_key(query, window=window)
    n = n_row_pairs(query, n_keys, causal=causal, window=window)
    wrong = (query < 0) | (key < first) | (key >= first + n) | (key >= n_keys)
    if np.any(wrong):
        i = int(np.flatnonzero(wrong)[0])
        rule = "0 <= key_pos <= query_pos" if causal else f"0 <= key_pos < {n_keys}"
        if window is not None:
            rule += f", less than {window} apart"
        raise ShapeError(f"query_pos {query[i]}, key_pos {key[i]} is not a stored pair; expected {rule}.")
    return row_start(query, n_keys, causal=causal, window=window) + key - first


def pair_positions(
    pair: Int[np.ndarray, "n"], n_keys: int, *, causal: bool, window: int | None = None
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """Return (query position, key position) of each pair. Exact for pairs up to 2**50."""
    pair = pair.astype(np.int64)
    if window is not None:
        starts = row_start(np.arange(n_keys + 1), n_keys, causal=causal, window=window)
        query = np.searchsorted(starts, pair, side="right") - 1
        return query, pair - starts[query] + first_key(query, window=window)
    if not causal:
        return pair // max(n_keys, 1), pair % max(n_keys, 1)
    query = ((np.sqrt(8.0 * pair + 1.0) - 1.0) / 2.0).astype(np.int64)
    query -= query * (query + 1) // 2 > pair  # the rounded square root can be off by one row
    query += (query + 1) * (query + 2) // 2 <= pair
    return query, pair - query * (query + 1) // 2


def unpack_pairs(
    pairs: Shaped[np.ndarray, "*lead pair"], n_queries: int, n_keys: int, *, causal: bool, window: int | None = None
) -> Shaped[np.ndarray, "*lead query_pos key_pos"]:
    """Return the map [..., query_pos, key_pos] of one example from its pairs; 0 where no pair is stored."""
    expected = n_pairs(n_queries, n_keys, causal=causal, window=window)
    if pairs.shape[-1] != expected:
        raise ShapeError(f"{pairs.shape[-1]} pairs; expected {expected} for {n_queries} queries and {n_keys} keys.")
    return unpack_rows(pairs, slice(0, n_queries), n_keys, causal=causal, window=window)


def unpack_rows(
    pairs: Shaped[np.ndarray, "*lead pair"], rows: slice, n_keys: int, *, causal: bool, window: int | None = None
) -> Shaped[np.ndarray, "*lead row key_pos"]:
    """Return the rows [..., row, key_pos] of one example from the pairs of `rows` (see `pair_rows`).

    Weights whose pair is not stored are 0.
    """
    n_rows = rows.stop - rows.start
    expected = pair_rows(rows.start, rows.stop, n_keys, causal=causal, window=window)
    if pairs.shape[-1] != expected.stop - expected.start:
        raise ShapeError(f"{pairs.shape[-1]} pairs; expected {expected.stop - expected.start} for {n_rows} rows.")
    if not causal and window is None:
        return pairs.reshape(*pairs.shape[:-1], n_rows, n_keys)
    full = np.zeros((*pairs.shape[:-1], n_rows, n_keys), dtype=pairs.dtype)
    full[..., _stored_mask(rows, n_keys, causal=causal, window=window)] = pairs
    return full


def pack_pairs(
    full: Shaped[np.ndarray, "*lead query_pos key_pos"], *, causal: bool, window: int | None = None
) -> Shaped[np.ndarray, "*lead pair"]:
    """Return the pairs of one example from its map [..., query_pos, key_pos]; the inverse of `unpack_pairs`."""
    n_queries, n_keys = full.shape[-2:]
    expected = n_pairs(n_queries, n_keys, causal=causal, window=window)
    if not causal and window is None:
        return full.reshape(*full.shape[:-2], expected)
    return full[..., _stored_mask(slice(0, n_queries), n_keys, causal=causal, window=window)]


def _stored_mask(rows: slice, n_keys: int, *, causal: bool, window: int | None) -> Bool[np.ndarray, "row key_pos"]:
    """Return a mask of the stored pairs."""
    query, key = np.arange(rows.start, rows.stop)[:, None], np.arange(n_keys)
    mask = key <= query if causal else np.ones((len(query), n_keys), dtype=bool)
    return mask if window is None else mask & (np.abs(query - key) < window)
