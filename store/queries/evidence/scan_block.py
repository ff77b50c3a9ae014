"""The rows of some examples, or of a run of rows of a long one, as the scan of the nulls reads them: pairs and weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int64

from ...codecs.companding import decode_attention
from ...patterns.matching import Matcher, expand
from ...reading.block_weights import closest_rows, closest_weights, example_weights
from ...reading.pair_attention import read_pairs
from ...reading.segment import Segment
from ...reading.visible_keys import visible_pairs
from ...reading.word_attention import Merge, WordPairs, plan_segment, segment_word_attention
from ...schema.layer_masks import LayerMask
from ...schema.traces import Site
from .mismatched_pairs import MismatchedPairs, PairShapes
from .row_strata import (
    N_BINS,
    NO_WORD,
    OTHER,
    OWN_WORD,
    PUNCTUATION,
    SELF,
    RowPairs,
    key_classes,
    offset_bins,
    put_own_classes,
)


@dataclass(frozen=True)
class OrdinaryPairs:
    """Pairs that habits are measured on; rows ascend from 0."""

    cell: Int64[np.ndarray, "pair"]
    row: Int64[np.ndarray, "pair"]
    bin: Int64[np.ndarray, "pair"]
    """Bin of the offset, plus `N_BINS` in the second half of the sampling units."""


class ScanBlock:
    """A run of examples of a segment: the pairs of its rows that have a matching key, and the weights of its pairs.

    Parameters
    ----------
    column
        Column of each example of the run in the answer; -1 for examples that are not sampled.
    run
        Positions of the rows that are read, of one example; None: all rows.
    scale
        Factor of the masses of a run, so that they stand for all rows of the example.
    splits_ties
        Take the order of equal weights from the stored edges, for nulls that need the strongest key.
    """

    def __init__(
        self,
        segment: Segment,
        site: Site,
        matcher: Matcher,
        words: Merge | None,
        examples: range,
        column: Int64[np.ndarray, "example"],
        *,
        run: range | None = None,
        scale: float = 1.0,
        splits_ties: bool = False,
    ) -> None:
        self.run, self.scale, self.splits_ties = run, scale, splits_ties
        self.segment, self.site, self.matcher, self.examples, self.column = segment, site, matcher, examples, column
        self._plan: WordPairs | None = None if words is None else plan_segment(segment, site, examples, words)
        query, key = matcher.evaluator.query, matcher.evaluator.key
        offset = query.table.token_offset
        first = int(offset[examples.start])
        stop = int(offset[examples.stop]) if run is None else first + run.stop
        self._rows = slice(first if run is None else first + run.start, stop)
        if self._plan is None:
            row_start = matcher.row_start[self._rows.start : self._rows.stop + 1] - matcher.row_start[self._rows.start]
            self._row_start, self._row_length = row_start[:-1], np.diff(row_start)
        else:
            self._row_start, self._row_length = self._plan.begin, self._plan.row_length
        self._first_key = key.table.token_offset[:-1].astype(np.int64)[query.example[self._rows]]

    @cached_property
    def pairs(self) -> RowPairs:
        """Pairs of the rows of sampled examples that have a matching key, and that a layer of the site may show."""
        matches = list(self.matcher.blocks(self._rows.start, self._rows.stop))
        query = np.concatenate([np.empty(0, np.int64), *(part.query for part in matches)]) - self._rows.start
        key = np.concatenate([np.empty(0, np.int64), *(part.key for part in matches)])
        example = self.matcher.evaluator.query.example[self._rows] - self.examples.start
        is_sampled = self.column[example[query]] >= 0
        query, key = query[is_sampled], key[is_sampled]
        rows = np.unique(query)
        flags = np.zeros(int(self._row_length.sum()), bool)
        flags[self._row_start[query] + self.matcher.evaluator.key.position[key]] = True
        pairs = self._of_rows(rows)
        return RowPairs(
            self.column[example[rows]], pairs.row, pairs.cell, pairs.offset, pairs.key_class, flags[pairs.cell]
        )

    def _of_rows(self, rows: Int64[np.ndarray, "row"]) -> RowPairs:
        cell, row = expand(self._row_start[rows], self._row_start[rows] + self._row_length[rows])
        key_pos = cell - self._row_start[rows[row]]
        offset = key_pos - self.matcher.evaluator.query.position[self._rows][rows[row]]
        key_class = self._classes[self._first_key[rows[row]] + key_pos]
        if self.site.query_sequence == self.site.key_sequence:
            query, first = self._rows.start + rows[row], self._first_key[rows[row]]
            key_class = put_own_classes(key_class, self.matcher.evaluator.query.table, query, first + key_pos)
        return RowPairs(rows, row, cell, offset, key_class, np.zeros(len(row), bool))

    @cached_property
    def _classes(self) -> Int64[np.ndarray, "key_token"]:
        """Class of each key token of the segment."""
        return key_classes(self.matcher.evaluator.key)

    def is_ordinary(self, pairs: RowPairs) -> Bool[np.ndarray, "pair"]:
        """Return True for each pair whose key is neither the first token nor a special token."""
        return self._is_ordinary_cell[pairs.cell]

    @cached_property
    def _is_ordinary_cell(self) -> Bool[np.ndarray, "cell"]:
        is_ordinary = np.isin(self._classes, (OTHER, PUNCTUATION, NO_WORD))
        cell, row = expand(self._row_start, self._row_start + self._row_length)
        return is_ordinary[self._first_key[row] + cell - self._row_start[row]]

    def ordinary_pairs(self, mask: LayerMask, half: Bool[np.ndarray, "sampled"]) -> OrdinaryPairs:
        """Return the visible pairs of sampled examples whose keys are ordinary tokens of another word."""
        example = self.matcher.evaluator.query.example[self._rows] - self.examples.start
        column = self.column[example]
        is_special = self.matcher.evaluator.query.values("special").data[self._rows]
        rows = np.flatnonzero((column >= 0) & ~is_special)
        pairs = self._of_rows(rows)
        is_used, visible = (
            self.is_ordinary(pairs) & ~np.isin(pairs.key_class, (NO_WORD, SELF, OWN_WORD)),
            self.visible(mask),
        )
        if visible is not None:
            is_used &= visible[pairs.cell]
        in_half = half[column[rows][pairs.row[is_used]]].astype(np.int64)
        row = np.unique(pairs.row[is_used], return_inverse=True)[1].astype(np.int64)
        return OrdinaryPairs(pairs.cell[is_used], row, in_half * N_BINS + offset_bins(pairs.offset[is_used]))

    def mismatched(self, mask: LayerMask, shapes: PairShapes) -> MismatchedPairs:
        """Return the pairs of the null of mismatched pairs, in examples that have both kinds."""
        first_row = self.matcher.evaluator.query.table.token_offset.astype(np.int64) - self._rows.start
        kinds, columns = list[list[np.ndarray]]([[], []]), []
        for example, column in zip(self.examples, self.column.tolist(), strict=True):
            placed = shapes.placed(column, mask)
            if placed is not None:
                columns.append(column)
                for kind, (query, key) in zip(kinds, placed, strict=True):
                    kind.append(self._row_start[first_row[example] + query] + key)
        joined = [np.concatenate([np.empty(0, np.int64), *kind]) for kind in kinds]
        counts = [np.array(list(map(len, kind)), np.int64) for kind in kinds]
        return MismatchedPairs(joined[0], counts[0], joined[1], counts[1], np.array(columns, np.int64))

    def visible(self, mask: LayerMask) -> Bool[np.ndarray, "cell"] | None:
        """Return True for each cell that its row sees; None if it sees all."""
        if mask.is_open and (self._plan is None or not self.site.causal):
            return None
        tokens = visible_pairs(self.segment, self.site, mask, self._pairs)
        return tokens if self._plan is None else self._plan.merge(tokens[None].astype(np.float64))[0] > 0

    def weights(self, layer: int) -> Float[np.ndarray, "head cell"]:
        """Read the weights of all heads of a layer."""
        if self._plan is not None:
            return segment_word_attention(self.segment, self.site, layer, self.examples, self._plan)
        if self.run is not None:
            heads, rows = np.arange(self.site.n_heads), np.arange(self.run.start, self.run.stop)
            weights = closest_rows(self.segment, self.site, layer, heads, self.examples.start, rows)
            return weights[:, np.arange(weights.shape[2]) < self._row_length[:, None]]
        codec = self.segment.spec.attention_codec
        if codec is None:
            return closest_weights(self.segment, self.site, layer, self.examples, self._row_start)
        if self.splits_ties:
            return example_weights(self.segment, self.site, layer, self.examples, self._row_start)
        return decode_attention(read_pairs(self.segment, self.site, layer, slice(None), self._pairs), codec.name)

    @property
    def _pairs(self) -> slice:
        """Span of the rows on the flat pair axis of the segment. The matcher's axis has words if the plan merges tokens."""
        if self.run is None:
            offset = self.segment.pair_offset(self.site.name)
            return slice(int(offset[self.examples.start]), int(offset[self.examples.stop]))
        row_start = self.matcher.row_start
        return slice(int(row_start[self._rows.start]), int(row_start[self._rows.stop]))
