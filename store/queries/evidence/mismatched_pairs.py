"""The null of mismatched pairs: the keys that match in another example, at the same positions of this example's texts.

A pattern that compares two texts, such as a word that occurs in both, matches other positions in every example. A head
that only follows the shape of such pairs (say, the second text looks back at the first) puts as much attention on the
positions of another example's matches as on those of its own.

Sampling units are compared in twos, and their examples in twos of similar length. Both members lend each other their
matches, as far as the keys are of the same class in both. If the head knows nothing of the pattern, exchanging the matches
of two units is as likely as not, and changes only the sign of the difference: the differences of the twos are symmetric
around zero, and independent. Were each example compared with several others, the same matches would enter several
differences, and a test over units would be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int64

from ...patterns.matching import Matcher
from ...patterns.token_fields import TokenFields
from ...reading.segment import Segment
from ...reading.visible_keys import visible_pairs
from ...reading.word_attention import Merge, plan_segment
from ...schema.layer_masks import LayerMask
from ...schema.traces import Site
from .row_strata import Masses, key_classes, put_own_classes

Positions = tuple[Int64[np.ndarray, "_match"], Int64[np.ndarray, "_match"]]
"""Query positions and key positions of pairs."""


def unit_pairs(
    unit: Int64[np.ndarray, "example"], n_tokens: Int64[np.ndarray, "example"]
) -> tuple[Int64[np.ndarray, "two member"], Int64[np.ndarray, "two"]]:
    """Put units together in twos, those of similar numbers and lengths of examples, and their examples in twos by length.

    Returns the examples of each two, and the number of their two of units. An odd unit, and examples that the other unit
    has no partner for, are left out.
    """
    members = [np.flatnonzero(unit == number) for number in range(int(unit.max(initial=-1)) + 1)]
    members.sort(key=lambda examples: (len(examples), float(n_tokens[examples].mean())))
    twos, number_of_two = [], []
    for number, units in enumerate(zip(members[::2], members[1::2], strict=False)):
        n = min(map(len, units))
        chosen = []
        for examples in units:
            by_length = examples[np.argsort(n_tokens[examples], kind="stable")]
            chosen.append(by_length[(2 * np.arange(n) + 1) * len(examples) // (2 * n)])
        twos += list(zip(*chosen, strict=True))
        number_of_two += [number] * n
    return np.array(twos, np.int64).reshape(-1, 2), np.array(number_of_two, np.int64)


@dataclass(frozen=True)
class MismatchedPairs:
    """Pairs of a block: those that match, and those that match in the partner of each example."""

    cell: Int64[np.ndarray, "match"]
    n_matches: Int64[np.ndarray, "example"]
    other_cell: Int64[np.ndarray, "other"]
    n_others: Int64[np.ndarray, "example"]
    """Every example has both; the pairs lie example by example."""
    example: Int64[np.ndarray, "example"]
    """Column of each example in the answer."""

    def masses(self, weights: Float[np.ndarray, "head cell"]) -> Masses:
        """Return the mean weight of the matching pairs and of the partner's, times the mean number of both."""
        scale = (self.n_matches + self.n_others) / 2
        observed, others = (
            np.add.reduceat(weights[:, cells], np.cumsum(counts) - counts, axis=1, dtype=np.float64) * (scale / counts)
            for cells, counts in ((self.cell, self.n_matches), (self.other_cell, self.n_others))
        )
        return observed, others


@dataclass(frozen=True)
class _Shape:
    """The matches of one example, and what it takes to move them to another one."""

    segment: Segment
    site: Site
    matcher: Matcher
    spans: tuple[_TextSpans, _TextSpans]
    classes: Int64[np.ndarray, "key_token"]
    """Class of each key of the segment."""
    words: Merge | None
    example: int
    """Index within the segment."""

    @cached_property
    def matches(self) -> Positions:
        """Positions of the matching pairs."""
        matches, evaluator = self.matcher.example(self.example), self.matcher.evaluator
        return evaluator.query.position[matches.query], evaluator.key.position[matches.key]

    def moved_from(self, other: _Shape, pairs: Positions) -> tuple[Positions, Bool[np.ndarray, "match"]]:
        """Move pairs of another example to the same places of this example's texts; False where there is no such place."""
        positions, exists = [], np.ones(len(pairs[0]), bool)
        for own, theirs, position in zip(self.spans, other.spans, pairs, strict=True):
            moved, is_inside = own.moved(theirs, other.example, self.example, position)
            positions.append(moved)
            exists &= is_inside
        if self.site.causal:
            exists &= positions[1] <= positions[0]
        return (positions[0], positions[1]), exists

    def key_class(self, pairs: Positions) -> Int64[np.ndarray, "match"]:
        """Return the class of each pair: that of its key, or one of two for the row's own token and its own word."""
        first = [int(span.offset[self.example]) for span in self.spans]
        query, key = first[0] + pairs[0], first[1] + pairs[1]
        if self.site.query_sequence != self.site.key_sequence:
            return self.classes[key]
        return put_own_classes(self.classes[key], self.matcher.evaluator.query.table, query, key)

    def sees(self, mask: LayerMask, pairs: Positions) -> Bool[np.ndarray, "match"]:
        """Return True for each pair that the mask shows."""
        if mask.is_open:
            return np.ones(len(pairs[0]), bool)
        offset = self.segment.pair_offset(self.site.name)
        visible = visible_pairs(
            self.segment, self.site, mask, slice(int(offset[self.example]), int(offset[self.example + 1]))
        )
        if self.words is not None:
            plan = plan_segment(self.segment, self.site, range(self.example, self.example + 1), self.words)
            visible = plan.merge(visible[None].astype(np.float64))[0] > 0
            return visible[plan.begin[pairs[0]] + pairs[1]]
        first_row = int(self.spans[0].offset[self.example])
        row_start = self.matcher.row_start
        return visible[row_start[first_row + pairs[0]] - row_start[first_row] + pairs[1]]


class PairShapes:
    """The twos of sampled examples, whose matches are placed on each other.

    Parameters
    ----------
    segments
        Each segment with its matcher and its sampled examples, by index within the segment. The examples of all segments
        in order are the columns of the answer.
    unit
        Sampling unit of each column.
    """

    def __init__(
        self,
        segments: Sequence[tuple[Segment, Matcher, Int64[np.ndarray, "_sampled"]]],
        site: Site,
        words: Merge | None,
        unit: Int64[np.ndarray, "column"],
    ) -> None:
        self._shapes, n_tokens = [], []
        for segment, matcher, local in segments:
            query, key = matcher.evaluator.query, matcher.evaluator.key
            spans = _TextSpans(query), _TextSpans(key)
            classes = key_classes(key)
            self._shapes += [_Shape(segment, site, matcher, spans, classes, words, e) for e in local.tolist()]
            n_tokens.append(query.table.n_tokens[local].astype(np.int64))
        twos, of_units = unit_pairs(unit, np.concatenate([np.empty(0, np.int64), *n_tokens]))
        self.two_of_units: Int64[np.ndarray, "column"] = np.full(len(unit), -1)
        """Number of the two of units that each example is compared in; -1 for examples without a partner."""
        self.two_of_units[twos] = of_units[:, None]
        self._partner = dict(twos.tolist()) | dict(twos[:, ::-1].tolist())
        self._placed: dict[tuple[int, LayerMask], tuple[Positions, Positions]] = {}

    def placed(self, column: int, mask: LayerMask) -> tuple[Positions, Positions] | None:
        """Return the compared matches of an example, and those of its partner at the same places of this example.

        None if one of the two has no match whose key has the same class, and is visible, in both.
        """
        partner = self._partner.get(column)
        if partner is None:
            return None
        if (column, mask) not in self._placed:
            here, there = self._shapes[column], self._shapes[partner]
            own, own_there = _compared(here, there, mask)
            theirs, theirs_here = _compared(there, here, mask)
            self._placed[column, mask], self._placed[partner, mask] = (own, theirs_here), (theirs, own_there)
        own, others = self._placed[column, mask]
        return (own, others) if len(own[0]) and len(others[0]) else None


def _compared(donor: _Shape, receiver: _Shape, mask: LayerMask) -> tuple[Positions, Positions]:
    """Return the matches of the donor that exist in both examples: there, and moved to the receiver."""
    moved, exists = receiver.moved_from(donor, donor.matches)
    own, moved = _select(donor.matches, exists), _select(moved, exists)
    alike = np.asarray(donor.key_class(own) == receiver.key_class(moved))
    alike &= donor.sees(mask, own) & receiver.sees(mask, moved)
    return _select(own, alike), _select(moved, alike)


def _select(pairs: Positions, chosen: Bool[np.ndarray, "match"]) -> Positions:
    return pairs[0][chosen], pairs[1][chosen]


class _TextSpans:
    """First token and end of both texts of each example of a segment, without the special tokens around them."""

    def __init__(self, fields: TokenFields) -> None:
        self.offset = fields.table.token_offset.astype(np.int64)
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
        self, source: _TextSpans, example: int, target: int, position: Int64[np.ndarray, "match"]
    ) -> tuple[Int64[np.ndarray, "match"], Bool[np.ndarray, "match"]]:
        """Move positions of an example of `source` to the same places of a target; False where that text is shorter."""
        text = source._text[source.offset[example] + position]
        start, end = (bounds[text, example] for bounds in (source._start, source._end))
        new_start, new_end = (bounds[text, target] for bounds in (self._start, self._end))
        moved = position - start + new_start
        exists = (moved >= new_start) & (moved < new_end)
        is_after, is_before = position >= end, position < start  # special tokens around the text
        moved = np.where(is_after, position - end + new_end, moved)
        length = self.offset[target + 1] - self.offset[target]
        exists = (exists | is_after | is_before) & (moved >= 0) & (moved < length)
        return np.where(exists, moved, 0), exists
