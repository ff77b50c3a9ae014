"""The rows of a block that have matching keys, with the share that uniform attention gives to those keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int64

from ..reading.segment import Segment
from ..reading.visible_keys import visible_pairs
from ..schema.layer_masks import LayerMask
from ..schema.traces import Site
from .matching import Matcher, Matches


@dataclass(frozen=True)
class MatchingRows:
    """Matches of one block at a site, grouped by row (query token)."""

    matches: Matches
    matcher: Matcher
    site: Site
    segment: Segment

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

    def uniform(self, mask: LayerMask) -> Float[np.ndarray, "row"]:
        """Compute the share of each row that uniform attention over its visible keys gives to matching keys."""
        if mask.is_open or not len(self.matches):
            return self.n_matches / self.n_keys
        query = self.matcher.evaluator.query.position
        if mask.stored is None:
            is_visible = mask.shows(query[self.matches.query], self.key_pos)
            first, stop = mask.span(query[self.rows], self.n_keys)
            n_visible = stop - first
        else:
            row_start = self.matcher.row_start
            begin, end = int(row_start[self.rows[0]]), int(row_start[self.rows[-1] + 1])
            visible = visible_pairs(self.segment, self.site, mask, slice(begin, end))
            is_visible = visible[self.matches.pair - begin]
            before = np.concatenate([np.zeros(1, np.int64), np.cumsum(visible)])
            n_visible = before[row_start[self.rows + 1] - begin] - before[row_start[self.rows] - begin]
        n_matching = np.add.reduceat(is_visible.astype(np.int64), self.first)
        return np.divide(n_matching, n_visible, out=np.zeros(len(n_visible)), where=n_visible > 0)
