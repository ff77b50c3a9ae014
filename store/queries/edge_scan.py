"""The mass that stored edges or codes of a layer put on matching keys, for the rows of a block with matches.

The pattern is evaluated once, on tokens. For edges it becomes one bit for each pair, in words of 64 bits, which every
head looks up. For codes it becomes a list of pairs, whose weights every head adds up. Compiled loops do this
(`kernel/edges.cpp`, a few ns for each row). Without them numpy computes the same about ten times slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt, UInt8, UInt64

from ..errors import FormatError
from ..patterns.matching_rows import MatchingRows
from ..reading.stored_edges import Edges
from .kernel import CodeScan, EdgeScan, Library, installed

_WORD = 64


@dataclass(frozen=True)
class EdgeRows:
    """The rows of a block with a matching key, in the form that the loops need."""

    table: Int32[np.ndarray, "row 5"]
    """Columns: query token, first word of its bits, number of keys, number of matching keys, example."""
    bits: UInt64[np.ndarray, "word"]
    """One bit for each key of each row. Each row begins with a new word."""

    @staticmethod
    def of(matching_rows: MatchingRows) -> EdgeRows:
        """Build the rows of a block."""
        return EdgeRows.make(
            matching_rows.rows,
            matching_rows.n_keys,
            matching_rows.n_matches,
            matching_rows.example,
            matching_rows.key_pos,
        )

    @staticmethod
    def make(
        rows: Int64[np.ndarray, "row"],
        n_keys: Int64[np.ndarray, "row"],
        n_matches: Int64[np.ndarray, "row"],
        example: Int64[np.ndarray, "row"],
        key_pos: Int64[np.ndarray, "match"],
    ) -> EdgeRows:
        """Set the bits of the matches. `key_pos` lists the matches row by row."""
        n_words = -(-n_keys // _WORD)
        first_word = np.cumsum(n_words) - n_words
        flags = np.zeros(int(n_words.sum()) * _WORD, dtype=bool)
        flags[np.repeat(first_word, n_matches) * _WORD + key_pos] = True
        table = np.stack([rows, first_word, n_keys, n_matches, example], axis=1).astype(np.int32)
        return EdgeRows(table, np.packbits(flags, bitorder="little").view("<u8"))

    @cached_property
    def _flags(self) -> Bool[np.ndarray, "bit"]:
        return np.unpackbits(self.bits.view(np.uint8), bitorder="little").view(bool)

    def is_match(self, key: UInt[np.ndarray, "head row *edge"]) -> Bool[np.ndarray, "head row *edge"]:
        """Return True for each stored edge of these rows that is a matching pair; False for the padding of short rows.

        Raises
        ------
        FormatError
            An edge names a key outside its row.
        """
        shape = (-1,) + (1,) * (key.ndim - 2)
        n_keys = self.table[:, 2].reshape(shape)
        inside = key < n_keys
        if not inside.all():
            strongest = inside if key.ndim == 2 else inside[:, :, 0]
            if not (inside | (key == np.iinfo(key.dtype).max)).all() or not strongest.all():
                raise _unsound()
        first = (self.table[:, 1].astype(np.int64) * _WORD).reshape(shape)
        return self._flags[first + np.where(inside, key, 0)] & inside


def scan_edges(
    rows: EdgeRows,
    edges: Edges,
    mass: Float64[np.ndarray, "head example"],
    hits: Int64[np.ndarray, "head"],
    slack: Float64[np.ndarray, "head"],
    library: Library | None = None,
) -> None:
    """Scan the edges of one layer and add to the mass of each example, to hits and to slack.

    `slack` is an upper bound of the additional mass on matching keys without an edge. `library` replaces the installed
    library in tests.

    Raises
    ------
    FormatError
        An edge names a key outside its row.
    """
    library = library or installed()
    if library is None or not (_rows_follow(edges.key) and _rows_follow(edges.weight) and _flat(mass, hits, slack)):
        _scan_edges_numpy(rows, edges, mass, hits, slack)
    elif not library.run(_edges_call(rows, edges, mass, hits, slack)):
        raise _unsound()


@dataclass(frozen=True)
class CodedPairs:
    """Stored codes of one layer, the indices of the matches, and the strongest key of each query token."""

    codes: UInt8[np.ndarray, "head pair"]
    match: Int64[np.ndarray, "match"]
    """Index of each match in `codes`."""
    weight: Float64[np.ndarray, "256"]
    """Weight of each code."""
    strongest: UInt[np.ndarray, "head token"]
    first_token: int
    """First query token of `strongest`."""


def scan_codes(
    rows: EdgeRows,
    pairs: CodedPairs,
    mass: Float64[np.ndarray, "head example"],
    hits: Int64[np.ndarray, "head"],
    library: Library | None = None,
) -> None:
    """Scan the stored codes of one layer and add to the mass of each example and to hits.

    Raises
    ------
    FormatError
        The strongest key of a row is not one of its keys.
    """
    library = library or installed()
    if library is None or not _flat(pairs.match, pairs.codes, pairs.weight, mass, hits):
        _scan_codes_numpy(rows, pairs, mass, hits)
    elif not library.run(_codes_call(rows, pairs, mass, hits)):
        raise _unsound()


def _codes_call(rows: EdgeRows, pairs: CodedPairs, mass: np.ndarray, hits: np.ndarray) -> CodeScan:
    codes, strongest = pairs.codes, pairs.strongest
    head_stride, row_stride = (stride // strongest.itemsize for stride in strongest.strides)
    return CodeScan(
        codes.ctypes.data,
        codes.strides[0],
        len(codes),
        pairs.match.ctypes.data,
        pairs.weight.ctypes.data,
        rows.table.ctypes.data,
        len(rows.table),
        mass.ctypes.data,
        mass.strides[0] // mass.itemsize,
        strongest.ctypes.data - pairs.first_token * strongest.strides[1],  # rows are numbered from the segment's first
        strongest.itemsize,
        head_stride,
        row_stride,
        rows.bits.ctypes.data,
        hits.ctypes.data,
    )


def _scan_codes_numpy(rows: EdgeRows, pairs: CodedPairs, mass: np.ndarray, hits: np.ndarray) -> None:
    hits += rows.is_match(pairs.strongest[:, rows.table[:, 0] - pairs.first_token]).sum(axis=1)
    example = np.repeat(rows.table[:, 4], rows.table[:, 3])
    first = _first_of_example(example)
    weights = pairs.weight[np.take(pairs.codes, pairs.match, axis=1)]
    mass[:, example[first]] += np.add.reduceat(weights, first, axis=1)


def _rows_follow(edges: np.ndarray) -> bool:
    """Return True if the rows are contiguous, as the loop expects."""
    return edges.strides[1:] == (edges.shape[2] * edges.itemsize, edges.itemsize)


def _flat(*arrays: np.ndarray) -> bool:
    """Return True if the last axis of every array is contiguous."""
    return all(array.strides[-1] == array.itemsize for array in arrays)


def _edges_call(rows: EdgeRows, edges: Edges, mass: np.ndarray, hits: np.ndarray, slack: np.ndarray) -> EdgeScan:
    n_heads, _, k = edges.key.shape
    before = edges.first_row * k  # rows are numbered from the segment's first
    return EdgeScan(
        edges.key.ctypes.data - before * edges.key.itemsize,
        edges.weight.ctypes.data - before * edges.weight.itemsize,
        edges.key.itemsize,
        k,
        n_heads,
        edges.key.strides[0] // edges.key.itemsize,
        edges.weight.strides[0] // edges.weight.itemsize,
        rows.table.ctypes.data,
        len(rows.table),
        rows.bits.ctypes.data,
        mass.ctypes.data,
        mass.strides[0] // mass.itemsize,
        hits.ctypes.data,
        slack.ctypes.data,
    )


def _scan_edges_numpy(rows: EdgeRows, edges: Edges, mass: np.ndarray, hits: np.ndarray, slack: np.ndarray) -> None:
    token, example = rows.table[:, 0] - edges.first_row, rows.table[:, 4]
    key, weight = edges.key, edges.weight
    if len(token) < key.shape[1]:
        key, weight = key[:, token], weight[:, token]
    weight = weight.astype(np.float32)
    match = rows.is_match(key)  # [head, row, edge]
    # A product with ones, because numpy sums a short last axis slowly.
    ones = np.ones(key.shape[2], np.float32)
    n_without_edge = rows.table[:, 3] - match.astype(np.float32) @ ones
    # A key without an edge is at most as strong as the weakest edge; together they get the rest of the row at most.
    remainder = np.clip(1.0 - weight @ ones, 0.0, None)
    row_slack = np.where(n_without_edge > 0, np.minimum(n_without_edge * weight[:, :, -1], remainder), 0.0)
    slack += row_slack.sum(axis=1, dtype=np.float64)
    hits += match[:, :, 0].sum(axis=1)
    first = _first_of_example(example)
    mass[:, example[first]] += np.add.reduceat(
        np.where(match, weight, np.float32(0)) @ ones, first, axis=1, dtype=np.float64
    )


def _first_of_example(example: Int32[np.ndarray, "item"]) -> Int64[np.ndarray, "example"]:
    return np.flatnonzero(np.concatenate([[True], example[1:] != example[:-1]]))


def _unsound() -> FormatError:
    return FormatError("edge_key has a key_pos outside its row. Verify the store.")
