"""The scan behind nulls that need whole rows of attention: a sample of the matched examples is read twice.

The first pass measures the habits of every head: its mean attention at each offset, in each half of the sampling units.
The second pass computes the expected masses of each null. A null's habit comes from the half that it is not applied to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int64

from ...codecs.companding import decode_attention
from ...files.containers.shard_writer import CHUNK_PAIRS
from ...patterns import Pattern, Vocabulary
from ...patterns.matching import Matcher, expand
from ...patterns.segment_matcher import segment_matcher
from ...reading.block_weights import closest_rows, closest_weights, example_weights
from ...reading.pair_attention import read_pairs
from ...reading.segment import Segment
from ...reading.visible_keys import visible_pairs
from ...reading.word_attention import Merge, WordPairs, plan_segment, segment_word_attention
from ...schema.layer_masks import LayerMask
from ...schema.traces import Site
from .mismatched_pairs import MismatchedPairs, PairShapes
from .nulls import NullName
from .row_strata import (
    N_BINS,
    N_CLASSES,
    NO_WORD,
    OTHER,
    OWN_WORD,
    PUNCTUATION,
    SELF,
    Masses,
    RowPairs,
    Strata,
    distance_bins,
    habit_mass,
    hit_mass,
    key_classes,
    label_mass,
    matched_mass,
    merged_classes,
    offset_bins,
    put_own_classes,
    sink_free_mass,
)

MAX_WEIGHTS = 1 << 27
"""Number of weights, over all heads, that a scan reads. Examples beyond it are left out at random."""
LEAST_EXAMPLES = 64
"""Number of examples that are read although their weights are more, within `MAX_PAIRS`."""
MAX_PAIRS, MAX_EXAMPLE_PAIRS = 1 << 24, 1 << 18
"""Most pairs of tokens of all examples that are read, and of one of them. A pair takes tens of bytes of memory. Of an
example of more than 512 tokens only some runs of rows are read.
"""
MAX_WHOLE_PAIRS = 1 << 22
"""Most pairs of an example that must be read whole, for nulls over words or mismatched pairs. Longer ones are left out."""
N_RUNS = 16
"""Number of runs of rows of a long example, at equal distances."""
_BLOCK_WEIGHTS = 1 << 23


def sample_examples(n_pairs: Int64[np.ndarray, "example"], n_heads: int, seed: int = 0) -> Int64[np.ndarray, "sampled"]:
    """Choose the examples that are read, ascending.

    `n_pairs` are the pairs that are read of each, `n_heads` the heads of all layers.
    """
    order = np.random.default_rng(seed).permutation(len(n_pairs))
    total = np.cumsum(n_pairs[order])
    n_read, most = (int(np.searchsorted(total, limit, "right")) for limit in (MAX_WEIGHTS // n_heads, MAX_PAIRS))
    return np.sort(order[: min(max(n_read, LEAST_EXAMPLES), most)])


@dataclass(frozen=True)
class NullScan:
    """A pattern over sampled examples of a store."""

    segments: Sequence[Segment]
    site: Site
    pattern: Pattern
    vocabulary: Vocabulary
    words: Merge | None
    numbers: Int64[np.ndarray, "example"]
    """Numbers of the sampled examples, ascending."""
    unit: Int64[np.ndarray, "example"]
    """Sampling unit of each example."""
    half: Bool[np.ndarray, "example"]
    """True for the examples of one half of the sampling units."""
    names: tuple[NullName, ...]
    """Nulls to compute."""

    def masses(
        self,
    ) -> dict[NullName, tuple[Float[np.ndarray, "layer head example"], Float[np.ndarray, "layer head example"]]]:
        """Return the observed and the expected mass of each null, summed over the rows of each example.

        For ``"offset"`` both are the number of hits of the head. Matches that a null leaves out count in neither number.

        Raises
        ------
        NotFoundError
            The store has neither attention nor query and key.
        """
        shape = self.site.n_layers, self.site.n_heads, len(self.numbers)
        names = self.names
        sums: dict[NullName, tuple[np.ndarray, np.ndarray]] = {
            name: (np.zeros(shape), np.zeros(shape)) for name in names
        }
        classes = merged_classes([block.pairs for block in self.blocks])
        matching = [np.unique(block.pairs.key_class[block.pairs.is_match]) for block in self.blocks]
        never = np.setdiff1d([NO_WORD, SELF, OWN_WORD], np.concatenate([np.empty(0, np.int64), *matching]))
        profile = self._profile() if "habit" in names else None
        for block in self.blocks:
            pairs = block.pairs.with_classes(classes)
            for mask, layers in self.site.layers_of_masks.items():
                strata = _strata(block, pairs, mask, names, never)
                mismatched = block.mismatched(mask, self.shapes) if "mismatched" in names else None
                for layer in layers:
                    weights = block.weights(layer)
                    if mismatched is not None and len(mismatched.example):
                        for total, part in zip(sums["mismatched"], mismatched.masses(weights), strict=True):
                            total[layer][:, mismatched.example] += part
                    for name, of_null in strata.items():
                        if not len(of_null.start):
                            continue
                        parts = self._masses_of(name, of_null, weights, None if profile is None else profile[layer])
                        for total, part in zip(sums[name], parts, strict=True):
                            total[layer][:, of_null.example] += part * block.scale
        return sums

    def _masses_of(
        self,
        name: NullName,
        strata: Strata,
        weights: Float[np.ndarray, "head cell"],
        profile: Float[np.ndarray, "head half bin"] | None,
    ) -> Masses:
        if name == "habit":
            assert profile is not None
            other_half = (~self.half[strata.pairs.example[strata.pairs.row]]).astype(np.int64)
            index = other_half * N_BINS + offset_bins(strata.pairs.offset)
            return habit_mass(strata, weights, profile.reshape(len(profile), -1)[:, index])
        if name == "offset":
            hits = hit_mass(strata, weights)
            return hits, hits
        compute = {"labels": label_mass, "matched": matched_mass, "sink_free": sink_free_mass}[name]
        return compute(strata, weights)

    @cached_property
    def blocks(self) -> list[ScanBlock]:
        """Runs of consecutive examples with matches."""
        return list(self._blocks())

    @cached_property
    def _sampled(self) -> list[tuple[Segment, Matcher, Int64[np.ndarray, "_sampled"]]]:
        """Segments with a sampled example, their matchers, and the sampled examples by index within the segment."""
        result = []
        for segment in self.segments:
            first, stop = np.searchsorted(
                self.numbers, [segment.first_example, segment.first_example + segment.n_examples]
            )
            if first < stop:
                words = self.words is not None
                matcher = segment_matcher(segment, self.site, self.pattern, self.vocabulary, words=words)
                result.append((segment, matcher, self.numbers[first:stop] - segment.first_example))
        return result

    @cached_property
    def shapes(self) -> PairShapes:
        """Twos of examples, for the null of mismatched pairs."""
        return PairShapes(self._sampled, self.site, self.words, self.unit)

    def _blocks(self) -> Iterator[ScanBlock]:
        for segment, matcher, local in self._sampled:
            first, start = int(np.searchsorted(self.numbers, segment.first_example + local[0])), 0
            pair_offset = segment.pair_offset(self.site.name)
            is_long = (np.diff(pair_offset)[local] > MAX_EXAMPLE_PAIRS) & (self.words is None)
            while start < len(local):
                end = start + 1
                example = int(local[start])
                if is_long[start]:
                    yield from self._runs(segment, matcher, example, first + start)
                    start = end
                    continue
                limit = pair_offset[local[start]] + _BLOCK_WEIGHTS // self.site.n_heads
                while end < len(local) and pair_offset[local[end] + 1] <= limit and not is_long[end]:
                    if pair_offset[local[end]] - pair_offset[local[end - 1] + 1] > CHUNK_PAIRS:
                        break  # a chunk without a sampled example
                    end += 1
                examples = range(example, int(local[end - 1]) + 1)
                column = np.full(len(examples), -1)
                column[local[start:end] - examples.start] = np.arange(first + start, first + end)
                yield ScanBlock(
                    segment,
                    self.site,
                    matcher,
                    self.words,
                    examples,
                    column,
                    splits_ties="offset" in self.names,
                )
                start = end

    def _runs(self, segment: Segment, matcher: Matcher, example: int, column: int) -> Iterator[ScanBlock]:
        """Yield runs of rows of a long example, with about `MAX_EXAMPLE_PAIRS` pairs in all."""
        tokens = segment.token_offset(self.site.query_sequence)[example : example + 2].astype(np.int64)
        n_rows = int(tokens[1] - tokens[0])
        n_pairs = int(matcher.row_start[tokens[1]] - matcher.row_start[tokens[0]])
        length = max(1, MAX_EXAMPLE_PAIRS * n_rows // n_pairs // N_RUNS)
        begins = np.unique(np.linspace(0, n_rows - length, N_RUNS).astype(int))
        for begin in begins.tolist():
            yield ScanBlock(
                segment,
                self.site,
                matcher,
                None,
                range(example, example + 1),
                np.array([column]),
                run=range(begin, begin + length),
                scale=n_rows / (length * len(begins)),
                splits_ties="offset" in self.names,
            )

    def _profile(self) -> Float[np.ndarray, "layer head half bin"]:
        """Measure the attention of ordinary tokens to ordinary keys at each offset, in each half.

        It is divided by what rows of the same lengths would have without a habit: the mean over the row's ordinary keys.
        Otherwise short texts, whose keys all have larger weights, would make near keys seem preferred.
        """
        shape = self.site.n_layers, self.site.n_heads, 2 * N_BINS
        sums, means = np.zeros(shape), np.zeros(shape)
        for block in self.blocks:
            for mask, layers in self.site.layers_of_masks.items():
                pairs = block.ordinary_pairs(mask, self.half)
                if not len(pairs.cell):
                    continue
                order = np.argsort(pairs.bin, kind="stable")
                start = np.flatnonzero(np.diff(pairs.bin[order], prepend=-1))
                bins, row = pairs.bin[order][start], pairs.row[order]
                row_start = np.flatnonzero(np.diff(pairs.row, prepend=-1))
                n_keys = np.diff(np.append(row_start, len(pairs.row)))
                for layer in layers:
                    weights = block.weights(layer)[:, pairs.cell]
                    sums[layer][:, bins] += np.add.reduceat(weights[:, order], start, axis=1, dtype=np.float64)
                    mean = (np.add.reduceat(weights, row_start, axis=1) / n_keys).astype(np.float32)
                    means[layer][:, bins] += np.add.reduceat(mean[:, row], start, axis=1, dtype=np.float64)
        return np.divide(sums, means, out=np.zeros(shape), where=means > 0).reshape(*shape[:2], 2, N_BINS)


def _strata(
    block: ScanBlock,
    pairs: RowPairs,
    mask: LayerMask,
    names: Sequence[NullName],
    never: Int64[np.ndarray, "own_class"],
) -> dict[NullName, Strata]:
    """Group the visible pairs for each null. `never` has the classes from `NO_WORD` on that match in no row."""
    visible = block.visible(mask)
    shown = pairs if visible is None else pairs.select(visible[pairs.cell])
    result: dict[NullName, Strata] = {}
    for name in names:
        if name in ("habit", "labels"):
            result[name] = Strata.of(shown, shown.key_class)
        elif name == "matched":
            stratum = distance_bins(shown.offset) * N_CLASSES + shown.key_class
            result[name] = Strata.of(shown, stratum, with_controls=True)
        elif name == "sink_free":
            plain = shown.select(block.is_ordinary(shown) & ~np.isin(shown.key_class, never))
            result[name] = Strata.of(plain, np.zeros(len(plain.row), np.int64))
        elif name == "offset":
            result[name] = Strata.of(shown, np.zeros(len(shown.row), np.int64))
    return result


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
