"""The rows of a block that have matching keys, and what attention that knows nothing would put on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int64

from ..schema.traces import Site
from .matching import Matcher, Matches


@dataclass(frozen=True)
class RowSupport:
    """The matches of one block at a site, by row (query token)."""

    matches: Matches
    matcher: Matcher
    site: Site

    @cached_property
    def first(self) -> Int64[np.ndarray, "row"]:
        """Index of each row's first match."""
        query = self.matches.query
        return np.flatnonzero(np.concatenate([[True], query[1:] != query[:-1]])) if len(query) else query

    @cached_property
    def rows(self) -> Int64[np.ndarray, "row"]:
        """The query token of each row."""
        return self.matches.query[self.first]

    @cached_property
    def n_matches(self) -> Int64[np.ndarray, "row"]:
        """Matching keys of each row."""
        return np.diff(np.append(self.first, len(self.matches)))

    @cached_property
    def n_keys(self) -> Int64[np.ndarray, "row"]:
        """Keys that each row has."""
        return np.diff(self.matcher.row_start)[self.rows]

    @cached_property
    def example(self) -> Int64[np.ndarray, "row"]:
        """Example of each row, within the segment."""
        return self.matcher.evaluator.query.example[self.rows]

    @cached_property
    def key_pos(self) -> Int64[np.ndarray, "match"]:
        """Key position of each match."""
        return self.matcher.evaluator.key.position[self.matches.key]

    @cached_property
    def first_of_example(self) -> Int64[np.ndarray, "matched_example"]:
        """Index of the first row of each example that has rows here."""
        return np.flatnonzero(np.concatenate([[True], self.example[1:] != self.example[:-1]]))

    def uniform(self, window: int | None) -> Float[np.ndarray, "row"]:
        """Share of each row that uniform attention over its visible keys gives to matching keys.

        A sliding window of w tokens shows a row the keys less than w away.
        """
        if window is None:
            return self.n_matches / self.n_keys
        query = self.matcher.evaluator.query.position
        key = self.matcher.evaluator.key.position
        apart = query[self.matches.query] - key[self.matches.key]
        near = np.abs(apart) < window
        inside = np.add.reduceat(near.astype(np.int64), self.first) if len(near) else self.n_matches
        at = query[self.rows]
        stop = np.minimum(self.n_keys, at + (1 if self.site.causal else window))
        visible = stop - np.maximum(0, at - window + 1)
        return np.divide(inside, visible, out=np.zeros(len(inside)), where=visible > 0)
