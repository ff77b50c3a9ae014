"""Masses of heads that know nothing of a pattern, from tokens alone: uniform attention and fixed offsets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import xarray as xr
from jaxtyping import Float, Int64

from ...patterns import Pattern, Vocabulary
from ...patterns.matching_rows import MatchingRows, MatchingWordRows
from ...patterns.segment_matcher import segment_matcher
from ...reading.snapshot import Snapshot
from ...reading.word_attention import Merge
from ...schema.traces import Site
from .resampling import random_half

MAX_OFFSET = 8
"""The offsets −8…+8 are tried."""
OFFSETS: tuple[int, ...] = tuple(sorted(range(-MAX_OFFSET, MAX_OFFSET + 1), key=lambda offset: (abs(offset), offset)))
"""Offsets in order of distance, so that the nearest of equally good offsets is chosen."""


@dataclass(frozen=True)
class Baselines:
    """Mass of uniform and of fixed-offset heads on matching keys, summed over the rows of each matched example."""

    rows: Int64[np.ndarray, "layer example"]
    """Number of rows that see a matching key."""
    uniform: Float[np.ndarray, "layer example"]
    """Mass of uniform attention over the visible keys in each layer."""
    uniform_without_special: Float[np.ndarray, "layer example"]
    """The same over the visible keys that match or are not special tokens."""
    offset_rows: Int64[np.ndarray, "mask offset example"]
    """Number of rows whose key at each of `OFFSETS` matches and is visible, for each different mask of the site."""
    mask_of_layer: Int64[np.ndarray, "layer"]

    @cached_property
    def best_offset(self) -> int:
        """The offset with the best score over all examples and layers."""
        return OFFSETS[int(self._over_layers.sum(axis=1).argmax())]

    @property
    def _over_layers(self) -> Int64[np.ndarray, "offset example"]:
        weights = np.bincount(self.mask_of_layer, minlength=len(self.offset_rows))
        return np.tensordot(weights, self.offset_rows, axes=1)

    def score(self, offset: int) -> Int64[np.ndarray, "layer example"]:
        """Count the rows of each example whose key at this offset matches."""
        return self.offset_rows[self.mask_of_layer, OFFSETS.index(offset)]

    def cross_score(
        self, unit: Int64[np.ndarray, "example"], seed: int = 0
    ) -> tuple[Int64[np.ndarray, "layer example"], list[int]]:
        """Score each half of the sampling units with the best offset of the other half.

        Returns the matching rows of each example and the chosen offsets: one, or two if the halves differ.
        """
        half = random_half(int(unit.max(initial=-1)) + 1, seed)[unit]
        score, offsets = np.zeros(self.rows.shape, np.int64), []
        for choosing in (half, ~half):
            best = int(self._over_layers[:, choosing].sum(axis=1).argmax())
            score[:, ~choosing] = self.score(OFFSETS[best])[:, ~choosing]
            offsets.append(OFFSETS[best])
        return score, list(dict.fromkeys(offsets))


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
    def example_rows(self) -> Int64[np.ndarray, "layer example"]: ...  # noqa: D102
    @cached_property
    def example_sums(self) -> Float[np.ndarray, "layer head example"]: ...  # noqa: D102
    @property
    def n_examples_searched(self) -> int: ...  # noqa: D102
    @property
    def basis(self) -> str: ...  # noqa: D102
    @cached_property
    def baselines(self) -> Baselines: ...  # noqa: D102


def compute_baselines(result: ScoredSearch) -> Baselines:
    """Compute the baselines of a search's matches. Only tokens are read."""
    site = result.site
    masks = list(site.layers_of_masks)
    ends = np.cumsum([segment.n_examples for segment in result.store.segments])
    segments = result.store.segments[: int(np.searchsorted(ends, result.n_examples_searched, "right"))]
    numbers = result.example_mass["example"].to_numpy()
    uniform, plain = np.zeros((2, len(masks), len(numbers)))
    offset_rows = np.zeros((len(masks), len(OFFSETS), len(numbers)), np.int64)
    offset_index = np.full(2 * MAX_OFFSET + 1, -1)
    offset_index[np.array(OFFSETS) + MAX_OFFSET] = np.arange(len(OFFSETS))
    for segment in segments:
        words = result.words
        matcher = segment_matcher(segment, site, result.pattern, result.vocabulary, words=words is not None)
        query = matcher.evaluator.query
        column = np.searchsorted(numbers, segment.first_example + np.arange(segment.n_examples))
        for matches in matcher:
            matching_rows = MatchingRows(matches, matcher, site, segment)
            if words is not None:
                matching_rows = MatchingWordRows(matches, matcher, site, segment, words)
            for index, mask in enumerate(masks):
                shown = matching_rows.of_mask(mask)
                if shown is None:
                    continue
                example = column[shown.example]
                uniform[index] += np.bincount(example, shown.uniform(mask), len(numbers))
                plain[index] += np.bincount(example, shown.uniform_without_special(mask), len(numbers))
                offset = shown.key_pos.astype(np.int64) - query.position[shown.matches.query]
                near = np.abs(offset) <= MAX_OFFSET
                example = column[query.example[shown.matches.query[near]]]
                cell = offset_index[offset[near] + MAX_OFFSET] * len(numbers) + example
                offset_rows[index].ravel()[:] += np.bincount(cell, minlength=offset_rows[index].size)
    layers = np.array([masks.index(mask) for mask in site.masks])
    return Baselines(result.example_rows, uniform[layers], plain[layers], offset_rows, layers)
