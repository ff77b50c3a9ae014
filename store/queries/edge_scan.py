"""What stored edges or codes of a layer put on matching keys, for the rows of a block that have any.

The pattern was evaluated once, on tokens; here it is one bit a pair, in words of 64 a row, which every head looks up,
or the list of the pairs, whose codes every head adds up. Compiled loops do that (`kernel/edges.cpp`: some ns a row);
without them numpy does the same, ten times slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt, UInt8, UInt64

from ..errors import FormatError
from ..patterns.matching_rows import RowSupport
from ..reading.stored_edges import Edges
from .kernel import CodeScan, EdgeScan, Library, installed

_WORD = 64


@dataclass(frozen=True)
class EdgeRows:
    """The rows of a block with a matching key, as the loop over edges takes them."""

    table: Int32[np.ndarray, "row 5"]
    """Query token, first word of its bits, keys, matching keys, example."""
    bits: UInt64[np.ndarray, "word"]
    """One bit for each key of each row; a row begins with a new word."""

    @staticmethod
    def of(support: RowSupport) -> EdgeRows:
        """The rows of a block."""
        return EdgeRows.make(support.rows, support.n_keys, support.n_matches, support.example, support.key_pos)

    @staticmethod
    def make(
        rows: Int64[np.ndarray, "row"],
        n_keys: Int64[np.ndarray, "row"],
        n_matches: Int64[np.ndarray, "row"],
        example: Int64[np.ndarray, "row"],
        key_pos: Int64[np.ndarray, "match"],
    ) -> EdgeRows:
        """Set the bits of matches, which are given row by row."""
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
        """Whether each stored edge of these rows is a matching pair; the filling of short rows is none.

        Raises
        ------
        FormatError
            An edge names a key that its row does not have.
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
    """Add what the edges of one layer say about `rows`: to the mass of each example, to hits and to slack.

    `slack` is how much more mass the matching keys without an edge may have. `library` is for tests: default is what
    was installed.

    Raises
    ------
    FormatError
        An edge names a key that its row does not have.
    """
    library = library or installed()
    if library is None or not (_rows_follow(edges.key) and _rows_follow(edges.weight) and _flat(mass, hits, slack)):
        _scan_numpy(rows, edges, mass, hits, slack)
    elif not library.run(_call(rows, edges, mass, hits, slack)):
        raise _unsound()


@dataclass(frozen=True)
class CodedPairs:
    """Stored codes of one layer, which of them match, and the strongest key of each query token."""

    codes: UInt8[np.ndarray, "head pair"]
    match: Int64[np.ndarray, "match"]
    """Where in `codes` each match of the rows lies."""
    weight: Float64[np.ndarray, "256"]
    """What each code means."""
    strongest: UInt[np.ndarray, "head token"]
    first_token: int
    """The query token that `strongest` begins with."""


def scan_codes(
    rows: EdgeRows,
    pairs: CodedPairs,
    mass: Float64[np.ndarray, "head example"],
    hits: Int64[np.ndarray, "head"],
    library: Library | None = None,
) -> None:
    """Add what stored codes of one layer say about `rows`: to the mass of each example and to hits.

    Raises
    ------
    FormatError
        The strongest key of a row is one that it does not have.
    """
    library = library or installed()
    if library is None or not _flat(pairs.match, pairs.codes, pairs.weight, mass, hits):
        _codes_numpy(rows, pairs, mass, hits)
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


def _codes_numpy(rows: EdgeRows, pairs: CodedPairs, mass: np.ndarray, hits: np.ndarray) -> None:
    hits += rows.is_match(pairs.strongest[:, rows.table[:, 0] - pairs.first_token]).sum(axis=1)
    example = np.repeat(rows.table[:, 4], rows.table[:, 3])
    first = _first_of_example(example)
    weights = pairs.weight[np.take(pairs.codes, pairs.match, axis=1)]
    mass[:, example[first]] += np.add.reduceat(weights, first, axis=1)


def _rows_follow(edges: np.ndarray) -> bool:
    """Whether rows lie one after the other, as the loop reads them."""
    return edges.strides[1:] == (edges.shape[2] * edges.itemsize, edges.itemsize)


def _flat(*arrays: np.ndarray) -> bool:
    """Whether items of the last axis lie one after the other."""
    return all(array.strides[-1] == array.itemsize for array in arrays)


def _call(rows: EdgeRows, edges: Edges, mass: np.ndarray, hits: np.ndarray, slack: np.ndarray) -> EdgeScan:
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


def _scan_numpy(rows: EdgeRows, edges: Edges, mass: np.ndarray, hits: np.ndarray, slack: np.ndarray) -> None:
    at, example = rows.table[:, 0] - edges.first_row, rows.table[:, 4]
    key, weight = edges.key, edges.weight
    if len(at) < key.shape[1]:
        key, weight = key[:, at], weight[:, at]
    weight = weight.astype(np.float32)
    match = rows.is_match(key)  # [head, row, edge]
    # A product with ones: numpy is slow at summing a short last axis.
    ones = np.ones(key.shape[2], np.float32)
    n_unseen = rows.table[:, 3] - match.astype(np.float32) @ ones
    # Every unseen key is at most as strong as the weakest edge, and all of them share what the edges leave over.
    left = np.clip(1.0 - weight @ ones, 0.0, None)
    more = np.where(n_unseen > 0, np.minimum(n_unseen * weight[:, :, -1], left), 0.0)
    slack += more.sum(axis=1, dtype=np.float64)
    hits += match[:, :, 0].sum(axis=1)
    first = _first_of_example(example)
    mass[:, example[first]] += np.add.reduceat((weight * match) @ ones, first, axis=1, dtype=np.float64)


def _first_of_example(example: Int32[np.ndarray, "item"]) -> Int64[np.ndarray, "example"]:
    return np.flatnonzero(np.concatenate([[True], example[1:] != example[:-1]]))


def _unsound() -> FormatError:
    return FormatError("edge_key holds a key_pos that its row does not have. Verify the store.")
