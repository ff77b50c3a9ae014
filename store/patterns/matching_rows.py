"""The rows of a block that have matching keys, with the share that uniform attention gives to those keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int64

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

    def is_visible(self, mask: LayerMask) -> Bool[np.ndarray, "match"]:
        """Return True for each match whose key its row sees."""
        if mask.is_open or not len(self.matches):
            return np.ones(len(self.matches), bool)
        if mask.stored is None:
            return mask.shows(self.matcher.evaluator.query.position[self.matches.query], self.key_pos)
        begin = int(self.matcher.row_start[self.rows[0]])
        return self._stored(mask)[self.matches.pair - begin]

    def uniform(self, mask: LayerMask) -> Float[np.ndarray, "row"]:
        """Compute the share of each row that uniform attention over its visible keys gives to matching keys."""
        if mask.is_open or not len(self.matches):
            return self.n_matches / self.n_keys
        if mask.stored is None:
            first, stop = mask.span(self.matcher.evaluator.query.position[self.rows], self.n_keys)
            n_visible = stop - first
        else:
            before = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._stored(mask))])
            row_start = self.matcher.row_start - self.matcher.row_start[self.rows[0]]
            n_visible = before[row_start[self.rows + 1]] - before[row_start[self.rows]]
        n_matching = np.add.reduceat(self.is_visible(mask).astype(np.int64), self.first)
        return np.divide(n_matching, n_visible, out=np.zeros(len(n_visible)), where=n_visible > 0)

    def _stored(self, mask: LayerMask) -> Bool[np.ndarray, "pair"]:
        """Read the keys that the rows from the first to the last see."""
        begin, end = (int(self.matcher.row_start[row]) for row in (self.rows[0], self.rows[-1] + 1))
        return visible_pairs(self.segment, self.site, mask, slice(begin, end))
