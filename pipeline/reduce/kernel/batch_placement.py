"""Lengths and array positions of the examples of a batch, checked once for all layers of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from headatlas.store.codecs.pairs import row_start
from headatlas.store.errors import ConfigError, ShapeError

Numbers = Sequence[int] | np.ndarray
LONGEST = 1 << 24
"""Positions are counted in float32 for distances."""


@dataclass(frozen=True, eq=False)
class BatchPlacement:
    """Lengths of the examples of a right padded batch, and the position of each in the arrays of a segment.

    Arrays are copied, checked and made read-only, so that what was checked stays true.

    Parameters
    ----------
    lengths
        Tokens of each example [example]; positions beyond are padding.
    causal
        Queries see themselves and what is before them; codes hold the lower triangle.
    key_lengths
        Keys of each example, for attention between two sequences; without it queries and keys are the same tokens.
    pair_offset, row_offset, column
        First pair of the codes, first row, and column of the statistics of each example [example]; required if arrays
        that use them are passed. No two examples may overlap.
    special
        bool or uint8 [example, key_pos], not zero for special tokens; needed for the statistic `special`.
    band
        Codes are kept of the keys less than `band` away from their query.

    Raises
    ------
    ShapeError
        Sizes or types do not fit together, or two examples overlap.
    ConfigError
        `causal` or a band between two sequences, or an empty band.
    """

    lengths: Numbers
    causal: bool
    key_lengths: Numbers | None = None
    pair_offset: Numbers | None = None
    row_offset: Numbers | None = None
    column: Numbers | None = None
    special: np.ndarray | None = None
    band: int | None = None
    n_queries: np.ndarray = field(init=False, repr=False)
    n_keys: np.ndarray = field(init=False, repr=False)
    longest_query: int = field(init=False)
    longest_key: int = field(init=False)
    stop: dict[str, int] = field(init=False)
    """Least length of the pair, row and column axes."""

    def __post_init__(self) -> None:
        """Check everything; see the class."""
        n_queries = whole_numbers("lengths", self.lengths, np.size(self.lengths), LONGEST)
        n = len(n_queries)
        n_keys = n_queries if self.key_lengths is None else whole_numbers("key_lengths", self.key_lengths, n, LONGEST)
        if self.key_lengths is not None and (self.causal or self.band is not None):
            raise ConfigError("causal or a band with key_lengths: positions of two sequences cannot be compared")
        if self.band is not None and self.band < 1:
            raise ConfigError(f"band is {self.band}; it must be at least 1, or None")
        if np.any((n_keys == 0) & (n_queries > 0)):
            raise ShapeError("key_lengths holds 0 for an example that has queries: there is nothing to attend to")
        pairs = row_start(n_queries, n_keys, causal=self.causal, window=self.band)
        counts = {"pair_offset": pairs, "row_offset": n_queries, "column": np.ones(n, np.int64)}
        stop: dict[str, int] = {}
        for name, count in counts.items():
            if getattr(self, name) is not None:
                starts = whole_numbers(name, getattr(self, name), n, 1 << 60)
                stop[name] = check_apart(name, starts, count)
                object.__setattr__(self, name, starts)
        if self.special is not None:
            object.__setattr__(self, "special", _flags(self.special, n))
        for name, value in (("n_queries", n_queries), ("n_keys", n_keys), ("stop", stop)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "longest_query", int(n_queries.max(initial=0)))
        object.__setattr__(self, "longest_key", int(n_keys.max(initial=0)))

    @property
    def same_tokens(self) -> bool:
        """True if queries and keys are the same tokens."""
        return self.key_lengths is None

    def starts(self, name: str, axis: str, size: int) -> np.ndarray:
        """`pair_offset`, `row_offset` or `column`, sure to lie within an axis of that size.

        Raises
        ------
        ShapeError
            It was not given, or reaches beyond.
        """
        starts = getattr(self, name)
        if starts is None:
            raise ShapeError(f"{name} is missing from the placement; {axis} needs it")
        if self.stop[name] > size:
            raise ShapeError(f"{name}: the examples reach up to {self.stop[name]}, but {axis} has room for {size}")
        return starts


def whole_numbers(name: str, values: Numbers, n: int, largest: int) -> np.ndarray:
    """A copy as int64, read-only, once it is sure that there are `n` whole numbers in 0 ... `largest`."""
    array = np.asarray(values)
    if array.shape != (n,) or (array.dtype.kind not in "iu" and n):
        raise ShapeError(f"{name} has shape {array.shape}, dtype {array.dtype}; expected {n} whole numbers")
    if n and not 0 <= array.min() <= array.max() <= largest:
        raise ShapeError(f"{name} holds {array.min()} ... {array.max()}; expected 0 ... {largest}")
    array = np.array(array, np.int64)
    array.flags.writeable = False
    return array


def check_apart(name: str, starts: np.ndarray, counts: np.ndarray) -> int:
    """The largest stop, once it is sure that no two examples overlap."""
    filled = counts > 0
    order = np.argsort(starts[filled], kind="stable")
    starts, stops = starts[filled][order], (starts + counts)[filled][order]
    if np.any(stops[:-1] > starts[1:]):
        raise ShapeError(f"{name}: two examples would overlap")
    return int(stops.max(initial=0))


def _flags(special: np.ndarray, n: int) -> np.ndarray:
    if not isinstance(special, np.ndarray) or special.dtype not in (np.bool_, np.uint8) or special.ndim != 2:
        raise ShapeError("special must be a bool or uint8 array [example, key_pos]")
    if special.shape[0] != n:
        raise ShapeError(f"special has {special.shape[0]} rows for {n} examples")
    special = np.array(special, np.uint8, order="C")
    special.flags.writeable = False
    return special
