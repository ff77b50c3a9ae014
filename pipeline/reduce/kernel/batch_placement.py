"""Lengths and array positions of the examples of a batch. They are checked once for all layers of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from headatlas.store.codecs.pairs import row_start
from headatlas.store.errors import ConfigError, ShapeError

Numbers = Sequence[int] | np.ndarray
LONGEST = 1 << 24
"""Largest number of positions. Distances are computed in float32, which is exact up to here."""


@dataclass(frozen=True, eq=False)
class BatchPlacement:
    """Lengths of the examples of a right-padded batch, and the position of each in the arrays of a segment.

    Arrays are copied, checked and made read-only, so that the checks stay valid.

    Parameters
    ----------
    lengths
        Number of tokens of each example [example]. Later positions are padding.
    causal
        True if a query sees its own position and earlier ones. Codes then hold the lower triangle.
    key_lengths
        Number of keys of each example, for attention between two sequences. None if queries and keys are the same
        tokens.
    pair_offset, row_offset, column
        First pair of the codes, first row, and column of the statistics of each example [example]. They are required
        for the arrays that use them. Examples must not overlap.
    special
        bool or uint8 [example, key_pos], nonzero for special tokens. Needed for the statistic `special`.
    band
        Codes are stored for keys less than `band` positions away from their query.

    Raises
    ------
    ShapeError
        Sizes or types do not match, or two examples overlap.
    ConfigError
        `causal` or a band between two sequences, or a band below 1.
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
    """Smallest sufficient length of the pair, row and column axes."""

    def __post_init__(self) -> None:
        """Check all fields, and compute the derived ones."""
        n_queries = copy_whole_numbers("lengths", self.lengths, np.size(self.lengths), LONGEST)
        n = len(n_queries)
        n_keys = (
            n_queries if self.key_lengths is None else copy_whole_numbers("key_lengths", self.key_lengths, n, LONGEST)
        )
        if self.key_lengths is not None and (self.causal or self.band is not None):
            raise ConfigError(
                "causal or band is set together with key_lengths. Positions of two sequences cannot be compared."
            )
        if self.band is not None and self.band < 1:
            raise ConfigError(f"band is {self.band}; expected at least 1, or None")
        if np.any((n_keys == 0) & (n_queries > 0)):
            raise ShapeError("key_lengths is 0 for an example that has queries; expected at least 1")
        pairs = row_start(n_queries, n_keys, causal=self.causal, window=self.band)
        counts = {"pair_offset": pairs, "row_offset": n_queries, "column": np.ones(n, np.int64)}
        stop: dict[str, int] = {}
        for name, count in counts.items():
            if getattr(self, name) is not None:
                starts = copy_whole_numbers(name, getattr(self, name), n, 1 << 60)
                stop[name] = check_no_overlap(name, starts, count)
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
        """Return `pair_offset`, `row_offset` or `column` after a check that the examples fit an axis of that size.

        Raises
        ------
        ShapeError
            The field is None, or the examples do not fit.
        """
        starts = getattr(self, name)
        if starts is None:
            raise ShapeError(f"{name} of the placement is None, but {axis} needs it")
        if self.stop[name] > size:
            raise ShapeError(f"{name}: the examples end at {self.stop[name]}, but {axis} has a length of {size}")
        return starts


def copy_whole_numbers(name: str, values: Numbers, n: int, largest: int) -> np.ndarray:
    """Return a read-only int64 copy after a check that `values` are `n` whole numbers in 0 ... `largest`."""
    array = np.asarray(values)
    if array.shape != (n,) or (array.dtype.kind not in "iu" and n):
        raise ShapeError(f"{name} has shape {array.shape}, dtype {array.dtype}; expected {n} whole numbers")
    if n and not 0 <= array.min() <= array.max() <= largest:
        raise ShapeError(f"{name} has values {array.min()} ... {array.max()}; expected 0 ... {largest}")
    array = np.array(array, np.int64)
    array.flags.writeable = False
    return array


def check_no_overlap(name: str, starts: np.ndarray, counts: np.ndarray) -> int:
    """Check that no two examples overlap, and return the largest stop."""
    filled = counts > 0
    order = np.argsort(starts[filled], kind="stable")
    starts, stops = starts[filled][order], (starts + counts)[filled][order]
    if np.any(stops[:-1] > starts[1:]):
        raise ShapeError(f"{name}: two examples overlap")
    return int(stops.max(initial=0))


def _flags(special: np.ndarray, n: int) -> np.ndarray:
    if not isinstance(special, np.ndarray) or special.dtype not in (np.bool_, np.uint8) or special.ndim != 2:
        raise ShapeError("special must be a bool or uint8 array [example, key_pos]")
    if special.shape[0] != n:
        raise ShapeError(f"special has {special.shape[0]} rows; expected {n}, one for each example")
    special = np.array(special, np.uint8, order="C")
    special.flags.writeable = False
    return special
