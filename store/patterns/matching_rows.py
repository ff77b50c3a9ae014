"""The rows of a block that have matching keys, with the share that uniform attention gives to those keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int64

from ..schema.traces import Site
from .matching import Matcher, Matches


@dataclass(frozen=True)
class MatchingRows:
    """Matches of one block at a site, grouped by row (query token)."""

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
        """Query token of each row."""
        return self.matches.query[self.first]

    @cached_property
    def n_matches(self) -> Int64[np.ndarray, "row"]:
        """Number of matching keys of each row."""
        return np.diff(np.append(self.first, len(self.matches)))

    @cached_property
    def n_keys(self) -> Int64[np.ndarray, "row"]:
        """Number of keys of each row."""
        return np.diff(self.matcher.row_start)[self.rows]

    @cached_property
    def example(self) -> Int64[np.ndarray, "row"]:
        """Index of each row's example within the segment."""
        return self.matcher.evaluator.query.example[self.rows]

    @cached_property
    def key_pos(self) -> Int64[np.ndarray, "match"]:
        """Key position of each match."""
        return self.matcher.evaluator.key.position[self.matches.key]

    @cached_property
    def first_of_example(self) -> Int64[np.ndarray, "matched_example"]:
        """Index of the first row of each example that has rows in the block."""
        return np.flatnonzero(np.concatenate([[True], self.example[1:] != self.example[:-1]]))

    def uniform(self, window: int | None) -> Float[np.ndarray, "row"]:
        """Compute the share of each row that uniform attention over its visible keys gives to matching keys.

        With a sliding window of w tokens a row sees the keys less than w tokens away.
        """
        if window is None:
            return self.n_matches / self.n_keys
        query = self.matcher.evaluator.query.position
        key = self.matcher.evaluator.key.position
        distance = query[self.matches.query] - key[self.matches.key]
        near = np.abs(distance) < window
        inside = np.add.reduceat(near.astype(np.int64), self.first) if len(near) else self.n_matches
        position = query[self.rows]
        stop = np.minimum(self.n_keys, position + (1 if self.site.causal else window))
        visible = stop - np.maximum(0, position - window + 1)
        return np.divide(inside, visible, out=np.zeros(len(inside)), where=visible > 0)
