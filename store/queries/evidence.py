"""What a search's scores rest on: a second baseline, an interval, a p-value and a false-discovery rate for each head.

A head that looks a fixed number of tokens away can score high for many patterns without knowing anything about them.
The offset baseline is the mass of the best such head: one that puts all of its attention on the key `offset` tokens
away. The offset is chosen on one random half of the examples and scored on the other, and the other way round, so the
choice never sees what it is scored on. All of this depends on tokens alone and is computed once for all heads.

`p_value` tests over examples that the head's mass is above the offset baseline and above uniform attention: the larger
of the two one-sided p-values. `q_value` is its false-discovery rate over all heads (Benjamini and Hochberg).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import xarray as xr
from jaxtyping import Float, Int64

from ..patterns import Pattern, Vocabulary
from ..patterns.matching_rows import RowSupport
from ..patterns.segment_matcher import segment_matcher
from ..reading.snapshot import Snapshot
from ..reading.word_attention import Merge
from ..schema.traces import Site
from .resampling import bootstrap_interval, false_discovery_rate, p_above_zero, random_half
from .word_scan import WordSupport

MAX_OFFSET = 8
"""Offsets −8…+8 are tried."""
MINIMUM_ROWS = 30
MINIMUM_EXAMPLES = 5
"""With less support than this a head is reported but not ranked: no rank, no p-value."""
OFFSETS: tuple[int, ...] = tuple(sorted(range(-MAX_OFFSET, MAX_OFFSET + 1), key=lambda offset: (abs(offset), offset)))
"""Nearest first: of offsets that score alike the nearest is taken."""


@dataclass(frozen=True)
class Chance:
    """What heads that know nothing would put on matching keys, summed over the rows of each matched example."""

    rows: Int64[np.ndarray, "example"]
    uniform: Float[np.ndarray, "layer example"]
    """Uniform attention over the keys that a row can see in each layer."""
    at_offset: Int64[np.ndarray, "offset example"]
    """Rows whose key at each of `OFFSETS` matches."""

    @cached_property
    def best_offset(self) -> int:
        """The offset that scores best over all examples."""
        return OFFSETS[int(self.at_offset.sum(axis=1).argmax())]

    def scored(self, offset: int) -> Int64[np.ndarray, "example"]:
        """Rows that a head at this offset gets right."""
        return self.at_offset[OFFSETS.index(offset)]

    def cross_scored(self, seed: int = 0) -> tuple[Int64[np.ndarray, "example"], list[int]]:
        """Rows that the offset chosen on the other half gets right, and the offsets chosen (one, or two that differ)."""
        half = random_half(len(self.rows), seed)
        score, chosen = np.zeros(len(self.rows), np.int64), []
        for part in (half, ~half):
            best = int(self.at_offset[:, part].sum(axis=1).argmax())
            score[~part] = self.at_offset[best, ~part]
            chosen.append(OFFSETS[best])
        return score, list(dict.fromkeys(chosen))


@dataclass(frozen=True)
class Evidence:
    """The proof beside a search's scores."""

    heads: xr.Dataset
    """`mass_low`, `mass_high` (95 % bootstrap interval over examples), `offset_lift`, `p_value`, `q_value`; dims
    (layer, head), float64."""
    offset_baseline: float
    """Mass of the best fixed offset; NaN with fewer than two examples."""
    offsets: tuple[int, ...]
    """The chosen offset: key position less query position; two where the halves chose differently."""
    is_supported: bool
    """Whether there are enough rows and examples to rank heads on."""
    minimum_rows: int
    minimum_examples: int = MINIMUM_EXAMPLES


class ScoredSearch(Protocol):
    """The part of a search's result that evidence is computed from; `SearchResult` has it."""

    @property
    def store(self) -> Snapshot: ...  # noqa: D102
    @property
    def site(self) -> Site: ...  # noqa: D102
    @property
    def pattern(self) -> Pattern: ...  # noqa: D102
    @property
    def vocabulary(self) -> Vocabulary: ...  # noqa: D102
    @property
    def words(self) -> Merge | None: ...  # noqa: D102
    @property
    def heads(self) -> xr.Dataset: ...  # noqa: D102
    @property
    def example_mass(self) -> xr.DataArray: ...  # noqa: D102
    @property
    def n_examples_searched(self) -> int: ...  # noqa: D102
    @cached_property
    def chance(self) -> Chance: ...  # noqa: D102


def chance_of(result: ScoredSearch) -> Chance:
    """What heads that know nothing would score on a search's matches; reads tokens alone."""
    site = result.site
    windows = list(dict.fromkeys(site.window))
    ends = np.cumsum([segment.n_examples for segment in result.store.segments])
    searched = result.store.segments[: int(np.searchsorted(ends, result.n_examples_searched, "right"))]
    numbers = result.example_mass["example"].to_numpy()
    uniform = np.zeros((len(windows), len(numbers)))
    at_offset = np.zeros((len(OFFSETS), len(numbers)), np.int64)
    place = np.full(2 * MAX_OFFSET + 1, -1)
    place[np.array(OFFSETS) + MAX_OFFSET] = np.arange(len(OFFSETS))
    for segment in searched:
        words = result.words
        matcher = segment_matcher(segment, site, result.pattern, result.vocabulary, words=words is not None)
        query, key = matcher.evaluator.query, matcher.evaluator.key
        column = np.searchsorted(numbers, segment.first_example + np.arange(segment.n_examples))
        for matches in matcher:
            support = RowSupport(matches, matcher, site)
            if words is not None:
                support = WordSupport(matches, matcher, site, segment, words)
            example = column[support.example]
            for sums, window in zip(uniform, windows, strict=True):
                sums += np.bincount(example, support.uniform(window), len(numbers))
            offset = key.position[matches.key].astype(np.int64) - query.position[matches.query]
            near = np.abs(offset) <= MAX_OFFSET
            cell = place[offset[near] + MAX_OFFSET] * len(numbers) + column[query.example[matches.query[near]]]
            at_offset += np.bincount(cell, minlength=at_offset.size).reshape(at_offset.shape)
    by_layer = uniform[[windows.index(window) for window in site.window]]
    return Chance(result.example_mass["rows"].to_numpy(), by_layer, at_offset)


def evidence_of(
    result: ScoredSearch,
    chosen_on: ScoredSearch | None = None,
    *,
    minimum_rows: int = MINIMUM_ROWS,
    seed: int = 0,
) -> Evidence:
    """The proof beside the scores of `result`.

    Parameters
    ----------
    chosen_on
        The same search over another store: the offset is then chosen there and scored here.
    minimum_rows
        Fewer rows than this are reported, not ranked.
    """
    chance = result.chance
    rows, n = chance.rows, len(chance.rows)
    sums = result.example_mass.to_numpy().astype(np.float64) * rows  # [layer, head, example]
    if chosen_on is not None and len(chosen_on.chance.rows):
        offsets = [chosen_on.chance.best_offset]
        by_offset = chance.scored(offsets[0])
    elif chosen_on is None and n >= 2:
        by_offset, offsets = chance.cross_scored(seed)
    else:
        by_offset, offsets = np.full(n, np.nan), []
    total = rows.sum()
    baseline = float(by_offset.sum() / total) if total else np.nan
    mass = result.heads["mass"].to_numpy()
    low, high = bootstrap_interval(sums, rows, seed=seed)
    is_supported = bool(total >= minimum_rows and n >= MINIMUM_EXAMPLES and offsets)
    p_value = np.full(mass.shape, np.nan)
    if is_supported:
        above = (p_above_zero(sums - expected) for expected in (by_offset, chance.uniform[:, None, :]))
        p_value = np.maximum(*above)
    lift = mass / baseline if baseline > 0 else np.full(mass.shape, np.nan)
    columns = {
        "mass_low": low,
        "mass_high": high,
        "offset_lift": lift,
        "p_value": p_value,
        "q_value": false_discovery_rate(p_value),
    }
    heads = xr.Dataset(
        {name: (("layer", "head"), values) for name, values in columns.items()}, dict(result.heads.coords)
    )
    return Evidence(heads, baseline, tuple(offsets), is_supported, minimum_rows)
