"""The rows of a block that have matching keys, tokens or words, with the share that uniform attention gives to those keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int64

from ..reading.segment import Segment
from ..reading.visible_keys import visible_pairs
from ..reading.word_attention import Merge, WordPairs, plan_segment
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

    def of_mask(self, mask: LayerMask) -> Self | None:
        """Leave out the matches whose keys the mask hides, and rows without another match; None if no row is left."""
        if mask.is_open:
            return self
        visible = self.is_visible(mask)
        if not visible.any():
            return None
        return self if visible.all() else replace(self, matches=self.matches.select(visible))

    def count_rows(self, scores: Int64[np.ndarray, "example"]) -> None:
        """Add the number of rows of each example of the segment to `scores`."""
        scores += np.bincount(self.example, minlength=len(scores))

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

    def uniform_without_special(self, mask: LayerMask) -> Float[np.ndarray, "row"]:
        """Compute the share of uniform attention over the visible keys that match or are not special tokens."""
        share = self.uniform(mask)
        if not len(self.matches):
            return share
        n_visible, n_special = self._n_visible(mask), self._n_visible(mask, special=True)
        is_special = self.matcher.evaluator.key.values("special").data[self.matches.key] & self.is_visible(mask)
        n_special -= np.add.reduceat(is_special.astype(np.int64), self.first)
        plain = n_visible - n_special
        return np.divide(share * n_visible, plain, out=np.zeros(len(share)), where=plain > 0)

    def _n_visible(self, mask: LayerMask, *, special: bool = False) -> Int64[np.ndarray, "row"]:
        """Count the keys that each row sees, or the special tokens among them."""
        key = self.matcher.evaluator.key
        counted = key.values("special").data if special else np.ones(len(key.position), bool)
        first_key = key.table.token_offset[:-1].astype(np.int64)[self.example]
        if mask.stored is None:
            first, stop = mask.span(self.matcher.evaluator.query.position[self.rows], self.n_keys)
            before = np.concatenate([np.zeros(1, np.int64), np.cumsum(counted)])
            return before[first_key + stop] - before[first_key + first]
        row_start = self.matcher.row_start
        begin = int(row_start[self.rows[0]])
        visible, result = self._stored(mask), np.zeros(len(self.rows), np.int64)
        for index, (row, key_start) in enumerate(zip(self.rows.tolist(), first_key.tolist(), strict=True)):
            shown = visible[row_start[row] - begin : row_start[row + 1] - begin]
            result[index] = (shown & counted[key_start : key_start + len(shown)]).sum()
        return result

    def _stored(self, mask: LayerMask) -> Bool[np.ndarray, "pair"]:
        """Read the keys that the rows from the first to the last see."""
        begin, end = (int(self.matcher.row_start[row]) for row in (self.rows[0], self.rows[-1] + 1))
        return visible_pairs(self.segment, self.site, mask, slice(begin, end))


@dataclass(frozen=True)
class MatchingWordRows(MatchingRows):
    """The query words of some examples that have matching key words."""

    merge: Merge

    @cached_property
    def examples(self) -> range:
        """Examples from the first to the last with a match, within the segment."""
        return range(int(self.example[0]), int(self.example[-1]) + 1)

    @cached_property
    def plan(self) -> WordPairs:
        """Plan that merges the token pairs of these examples to word pairs."""
        return plan_segment(self.segment, self.site, self.examples, self.merge)

    @cached_property
    def word(self) -> tuple[Int64[np.ndarray, "match"], Int64[np.ndarray, "match"]]:
        """Query word and key word of each match: its index over all examples of the plan, and in its example."""
        evaluator = self.matcher.evaluator  # its positions count words with tokens, as the plan does
        example = evaluator.query.example[self.matches.query] - self.examples.start
        n_before = np.cumsum(self.plan.n_query_words) - self.plan.n_query_words
        return n_before[example] + evaluator.query.position[self.matches.query], self.key_pos

    @cached_property
    def cell(self) -> Int64[np.ndarray, "match"]:
        """Word pair of each match in the plan."""
        query, key = self.word
        return self.plan.begin[query] + key

    def is_visible(self, mask: LayerMask) -> Bool[np.ndarray, "match"]:
        """Return True for each match of which a token of the query word sees a token of the key word."""
        return self.plan.merge(self._visible(mask).astype(np.float64)[None])[0][self.cell] > 0

    def uniform(self, mask: LayerMask) -> Float[np.ndarray, "row"]:
        """Compute the mass of uniform attention under this mask on the matching words, merged like attention."""
        visible = self._visible(mask)
        length = np.diff(np.append(self.plan.row_start, len(visible)))
        token_row = np.repeat(np.arange(len(length)), length)
        shares = visible / np.maximum(np.bincount(token_row, visible, len(length)), 1)[token_row]
        merged = self.plan.merge(shares[None])[0]
        return np.add.reduceat(merged[self.cell], self.first)

    def uniform_without_special(self, mask: LayerMask) -> Float[np.ndarray, "row"]:
        """Compute the share of uniform attention over the visible words; no word is a special token."""
        seen = (self.plan.merge(self._visible(mask).astype(np.float64)[None])[0] > 0).astype(np.int64)
        n_visible = np.bincount(self.plan.row_of_pair, seen, len(self.plan.begin))
        n_matching = np.add.reduceat(seen[self.cell], self.first)
        n_words = n_visible[self.word[0][self.first]]
        return np.divide(n_matching, n_words, out=np.zeros(len(n_words)), where=n_words > 0)

    def _visible(self, mask: LayerMask) -> Bool[np.ndarray, "pair"]:
        offset = self.segment.pair_offset(self.site.name)
        pairs = slice(int(offset[self.examples.start]), int(offset[self.examples.stop]))
        return visible_pairs(self.segment, self.site, mask, pairs)
