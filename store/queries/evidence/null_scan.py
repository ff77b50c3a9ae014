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

from ...files.containers.shard_writer import CHUNK_PAIRS
from ...patterns import Pattern, Vocabulary
from ...patterns.matching import Matcher
from ...patterns.segment_matcher import segment_matcher
from ...reading.segment import Segment
from ...reading.word_attention import Merge
from ...schema.layer_masks import LayerMask
from ...schema.traces import Site
from .mismatched_pairs import PairShapes
from .nulls import NullName
from .row_strata import (
    N_BINS,
    N_CLASSES,
    NO_WORD,
    OWN_WORD,
    SELF,
    Masses,
    RowPairs,
    Strata,
    distance_bins,
    habit_mass,
    hit_mass,
    label_mass,
    matched_mass,
    merged_classes,
    offset_bins,
    sink_free_mass,
)
from .scan_block import ScanBlock

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
