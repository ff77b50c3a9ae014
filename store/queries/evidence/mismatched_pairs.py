"""The null of mismatched pairs: the keys that match in other examples, at the same positions of this example's texts.

A pattern that compares two texts, such as a word that occurs in both, matches other positions in every example. A head
that only follows the shape of such pairs (say, the second text looks back at the first) puts as much attention on the
positions of another example's matches as on those of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from ...patterns.matching import Matcher
from ...patterns.token_fields import TokenFields
from .row_strata import Masses

N_PARTNERS = 4
"""Number of other examples whose matches are placed on each example."""


@dataclass(frozen=True)
class MismatchedPairs:
    """Pairs of a block: those that match, and those that match in other examples."""

    cell: Int64[np.ndarray, "match"]
    n_matches: Int64[np.ndarray, "example"]
    other_cell: Int64[np.ndarray, "other"]
    n_others: Int64[np.ndarray, "example"]
    """Every example has both; the pairs lie example by example."""
    example: Int64[np.ndarray, "example"]
    """Column of each example in the answer."""

    def masses(self, weights: Float[np.ndarray, "head cell"]) -> Masses:
        """Return the mass on the matching pairs, and the mass that as many mismatched pairs have on average."""
        observed, others = (
            np.add.reduceat(weights[:, cells], np.cumsum(counts) - counts, axis=1, dtype=np.float64)
            for cells, counts in ((self.cell, self.n_matches), (self.other_cell, self.n_others))
        )
        return observed, others * (self.n_matches / self.n_others)


class PairShapes:
    """Matches of the sampled examples of a segment, relative to the beginnings of their texts.

    Parameters
    ----------
    local
        The sampled examples, by index within the segment.
    """

    def __init__(self, matcher: Matcher, local: Int64[np.ndarray, "sampled"]) -> None:
        self.matcher = matcher
        query, key = matcher.evaluator.query, matcher.evaluator.key
        self._sides = _TextSpans(query), _TextSpans(key)
        self._matches: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        order = local[np.argsort(query.table.n_tokens[local], kind="stable")].tolist()
        self._partners = {
            example: [order[(index + step) % len(order)] for step in _steps(len(order))]
            for index, example in enumerate(order)
        }

    def matches(self, example: int) -> tuple[Int64[np.ndarray, "match"], Int64[np.ndarray, "match"]]:
        """Return the query and key positions of an example's matches."""
        if example not in self._matches:
            matches, evaluator = self.matcher.example(example), self.matcher.evaluator
            self._matches[example] = evaluator.query.position[matches.query], evaluator.key.position[matches.key]
        return self._matches[example]

    def placed(self, example: int) -> tuple[Int64[np.ndarray, "other"], Int64[np.ndarray, "other"]]:
        """Return the positions in this example at which its partners have their matches."""
        parts = []
        for partner in self._partners[example]:
            positions, inside = [], np.ones(len(self.matches(partner)[0]), bool)
            for side, of_partner in zip(self._sides, self.matches(partner), strict=True):
                position, exists = side.moved(partner, example, of_partner)
                positions.append(position)
                inside &= exists
            if self.matcher.layout.causal:
                inside &= positions[1] <= positions[0]
            parts.append([position[inside] for position in positions])
        query, key = ([part[side] for part in parts] for side in (0, 1))
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *query]), np.concatenate([empty, *key])


def _steps(n_examples: int) -> list[int]:
    """Return the distances to the partners in the order of length: as many shorter as longer ones."""
    steps = [step for size in range(1, N_PARTNERS // 2 + 1) for step in (-size, size)]
    return list({step % n_examples: step for step in steps if step % n_examples}.values())


class _TextSpans:
    """First token and end of both texts of each example, without the special tokens around them."""

    def __init__(self, fields: TokenFields) -> None:
        self._offset = fields.table.token_offset.astype(np.int64)
        self._text: Int64[np.ndarray, "token"] = fields.table.second.astype(np.int64)
        is_plain: Bool[np.ndarray, "token"] = ~np.asarray(fields.values("special").data, bool)
        n_examples = fields.table.n_examples
        self._start = np.zeros((2, n_examples), np.int64)
        self._end = np.zeros((2, n_examples), np.int64)
        for text in (0, 1):
            tokens = np.flatnonzero(is_plain & (self._text == text))
            example, first, count = np.unique(fields.example[tokens], return_index=True, return_counts=True)
            self._start[text, example] = fields.position[tokens[first]]
            self._end[text, example] = fields.position[tokens[first + count - 1]] + 1

    def moved(
        self, source: int, target: int, position: Int64[np.ndarray, "match"]
    ) -> tuple[Int64[np.ndarray, "match"], Bool[np.ndarray, "match"]]:
        """Move positions of one example to the same places of another's texts; False where that text is shorter."""
        text = self._text[self._offset[source] + position]
        start, end = (bounds[text, source] for bounds in (self._start, self._end))
        new_start, new_end = (bounds[text, target] for bounds in (self._start, self._end))
        moved = position - start + new_start
        exists = (moved >= new_start) & (moved < new_end)
        is_after, is_before = position >= end, position < start  # special tokens around the text
        moved = np.where(is_after, position - end + new_end, moved)
        length = self._offset[target + 1] - self._offset[target]
        return moved, (exists | is_after | is_before) & (moved >= 0) & (moved < length)
