"""Evidence for the scores of a search: offset baseline, interval, p-value and false-discovery rate of each head.

A head that attends a fixed number of tokens away scores high for many patterns although it does not follow them. The
offset baseline is the mass of the best such head, which puts all of its attention on the key `offset` tokens away. The
offset is chosen on one random half of the examples and scored on the other, and vice versa, so that choice and score
use different examples. The baselines depend on tokens alone and are computed once for all heads.

`p_value` tests over examples whether the mass of a head is above the offset baseline and above uniform attention; it is
the larger of the two one-sided p-values. `q_value` is its false-discovery rate over all heads (Benjamini and Hochberg).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import xarray as xr
from jaxtyping import Float, Int64

from ..evidence.resampling import bootstrap_interval, false_discovery_rate, p_above_zero, random_half
from ..patterns import Pattern, Vocabulary
from ..patterns.matching_rows import MatchingRows
from ..patterns.segment_matcher import segment_matcher
from ..reading.snapshot import Snapshot
from ..reading.word_attention import Merge
from ..schema.traces import Site
from .word_scan import MatchingWordRows

MAX_OFFSET = 8
"""The offsets −8…+8 are tried."""
MINIMUM_ROWS = 30
MINIMUM_EXAMPLES = 5
"""With fewer rows or examples heads are reported but not ranked: they have no rank and no p-value."""
OFFSETS: tuple[int, ...] = tuple(sorted(range(-MAX_OFFSET, MAX_OFFSET + 1), key=lambda offset: (abs(offset), offset)))
"""Offsets in order of distance, so that the nearest of equally good offsets is chosen."""


@dataclass(frozen=True)
class Baselines:
    """Mass of uniform and of fixed-offset heads on matching keys, summed over the rows of each matched example."""

    rows: Int64[np.ndarray, "example"]
    uniform: Float[np.ndarray, "layer example"]
    """Mass of uniform attention over the visible keys in each layer."""
    offset_rows: Int64[np.ndarray, "offset example"]
    """Number of rows whose key at each of `OFFSETS` matches, and is visible in a layer of the site."""

    @cached_property
    def best_offset(self) -> int:
        """The offset with the best score over all examples."""
        return OFFSETS[int(self.offset_rows.sum(axis=1).argmax())]

    def score(self, offset: int) -> Int64[np.ndarray, "example"]:
        """Count the rows of each example whose key at this offset matches."""
        return self.offset_rows[OFFSETS.index(offset)]

    def cross_score(self, seed: int = 0) -> tuple[Int64[np.ndarray, "example"], list[int]]:
        """Score each half of the examples with the best offset of the other half.

        Returns the matching rows of each example and the chosen offsets: one, or two if the halves differ.
        """
        half = random_half(len(self.rows), seed)
        score, offsets = np.zeros(len(self.rows), np.int64), []
        for choosing in (half, ~half):
            best = int(self.offset_rows[:, choosing].sum(axis=1).argmax())
            score[~choosing] = self.offset_rows[best, ~choosing]
            offsets.append(OFFSETS[best])
        return score, list(dict.fromkeys(offsets))


@dataclass(frozen=True)
class Evidence:
    """The evidence for the scores of a search."""

    heads: xr.Dataset
    """`mass_low`, `mass_high` (95 % bootstrap interval over examples), `offset_lift`, `p_value`, `q_value`; dims
    (layer, head), float64."""
    offset_baseline: float
    """Mass of the best fixed offset; NaN with fewer than two examples."""
    offsets: tuple[int, ...]
    """The chosen offset (key position − query position); two offsets if the halves differ."""
    is_supported: bool
    """True if there are enough rows and examples to rank heads."""
    minimum_rows: int
    minimum_examples: int = MINIMUM_EXAMPLES


class ScoredSearch(Protocol):
    """The attributes of a `SearchResult` that evidence is computed from."""

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
    def baselines(self) -> Baselines: ...  # noqa: D102


def compute_baselines(result: ScoredSearch) -> Baselines:
    """Compute the baselines of a search's matches. Only tokens are read."""
    site = result.site
    masks = list(dict.fromkeys(site.masks))
    ends = np.cumsum([segment.n_examples for segment in result.store.segments])
    segments = result.store.segments[: int(np.searchsorted(ends, result.n_examples_searched, "right"))]
    numbers = result.example_mass["example"].to_numpy()
    uniform = np.zeros((len(masks), len(numbers)))
    offset_rows = np.zeros((len(OFFSETS), len(numbers)), np.int64)
    offset_index = np.full(2 * MAX_OFFSET + 1, -1)
    offset_index[np.array(OFFSETS) + MAX_OFFSET] = np.arange(len(OFFSETS))
    for segment in segments:
        words = result.words
        matcher = segment_matcher(segment, site, result.pattern, result.vocabulary, words=words is not None)
        query, key = matcher.evaluator.query, matcher.evaluator.key
        column = np.searchsorted(numbers, segment.first_example + np.arange(segment.n_examples))
        for matches in matcher:
            matching_rows = MatchingRows(matches, matcher, site, segment)
            if words is not None:
                matching_rows = MatchingWordRows(matches, matcher, site, segment, words)
            example = column[matching_rows.example]
            for sums, mask in zip(uniform, masks, strict=True):
                sums += np.bincount(example, matching_rows.uniform(mask), len(numbers))
            offset = key.position[matches.key].astype(np.int64) - query.position[matches.query]
            near = np.abs(offset) <= MAX_OFFSET
            if not any(mask.is_open for mask in masks):
                near &= np.any([matching_rows.is_visible(mask) for mask in masks], axis=0)
            cell = offset_index[offset[near] + MAX_OFFSET] * len(numbers) + column[query.example[matches.query[near]]]
            offset_rows += np.bincount(cell, minlength=offset_rows.size).reshape(offset_rows.shape)
    by_layer = uniform[[masks.index(mask) for mask in site.masks]]
    return Baselines(result.example_mass["rows"].to_numpy(), by_layer, offset_rows)


def compute_evidence(
    result: ScoredSearch,
    selection: ScoredSearch | None = None,
    *,
    minimum_rows: int = MINIMUM_ROWS,
    seed: int = 0,
) -> Evidence:
    """Compute the evidence for the scores of `result`.

    Parameters
    ----------
    selection
        The same search over another store. The offset is then chosen on that store and scored on the store of `result`.
    minimum_rows
        Smallest number of rows to rank heads.
    """
    baselines = result.baselines
    rows, n = baselines.rows, len(baselines.rows)
    sums = result.example_mass.to_numpy().astype(np.float64) * rows  # [layer, head, example]
    if selection is not None and len(selection.baselines.rows):
        offsets = [selection.baselines.best_offset]
        offset_rows = baselines.score(offsets[0])
    elif selection is None and n >= 2:
        offset_rows, offsets = baselines.cross_score(seed)
    else:
        offset_rows, offsets = np.full(n, np.nan), []
    total = rows.sum()
    baseline = float(offset_rows.sum() / total) if total else np.nan
    mass = result.heads["mass"].to_numpy()
    low, high = bootstrap_interval(sums, rows, seed=seed)
    is_supported = bool(total >= minimum_rows and n >= MINIMUM_EXAMPLES and offsets)
    p_value = np.full(mass.shape, np.nan)
    if is_supported:
        above = (p_above_zero(sums - expected) for expected in (offset_rows, baselines.uniform[:, None, :]))
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
