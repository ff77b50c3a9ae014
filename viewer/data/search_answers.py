"""Results as the pages use them: one number for each head with its scale and ranks, and one edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int64

from headatlas.store.errors import HeadAtlasError
from headatlas.store.queries.pattern_search import SearchResult
from headatlas.store.schema.traces import Site, head_index

SEARCH = "search"
"""Name of the mass of the current search among the statistics."""


def upper_end(values: Float32[np.ndarray, "*shape"]) -> float:
    """Return the upper end of a scale: a round number at or above the highest value."""
    finite = values[np.isfinite(values)]
    highest = float(finite.max()) if finite.size else 0.0
    if highest <= 0:
        return 1.0
    step = 10.0 ** np.floor(np.log10(highest))
    ends = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return next(float(f"{m * step:.3g}") for m in ends if m * step >= highest * (1 - 1e-9))


def short(label: str) -> str:
    """Return the label of a statistic without the words that all labels share."""
    bare = label.removeprefix("Attention to ").removeprefix("the ")
    return bare[:1].upper() + bare[1:]


@dataclass(frozen=True)
class HeadValues:
    """One number for each head, with label and unit. The scale runs from 0 to `high`."""

    name: str
    label: str
    unit: str
    values: Float32[np.ndarray, "layer head"]
    high: float
    site: Site

    @cached_property
    def ranks(self) -> Int64[np.ndarray, "layer head"]:
        """Rank of each head: 1 for the highest value, 0 for NaN. Equal values have the same rank."""
        flat = self.values.ravel()
        ascending = np.sort(flat[np.isfinite(flat)])
        above = len(ascending) - np.searchsorted(ascending, flat, side="right")
        return np.where(np.isfinite(flat), above + 1, 0).reshape(self.values.shape).astype(np.int64)

    @property
    def best(self) -> tuple[int, int]:
        """(layer, head) of the highest value, the first if there are several. The first head if all values are NaN."""
        flat = np.where(np.isfinite(self.values), self.values, -np.inf).ravel()
        return self.site.heads[int(flat.argmax())]


def similar_heads(
    tables: Sequence[HeadValues], layer: int, head: int, n: int
) -> list[tuple[tuple[int, int], float]]:
    """Return the `n` heads with the most similar values in `tables`, each with a similarity in (0, 1]."""
    if not tables:
        return []
    profile = np.stack([np.nan_to_num(t.values) / t.high for t in tables], axis=-1)  # [layer, head, statistic]
    site = tables[0].site
    similarity = np.exp(-3 * np.sqrt(np.square(profile - profile[head_index(site, layer, head)]).mean(axis=-1))).ravel()
    order = [(site.heads[i], i) for i in np.argsort(-similarity, kind="stable")[: n + 1].tolist()]
    return [(other, float(similarity[i])) for other, i in order if other != (layer, head)][:n]


@dataclass(frozen=True)
class Edge:
    """One (query, key) pair of one head in one example."""

    query_pos: int
    key_pos: int
    weight: float


class SearchStoppedError(HeadAtlasError):
    """Raised if a search stops early. `result` holds the part that was searched and is not cached."""

    kind = "stopped"

    def __init__(self, result: SearchResult) -> None:
        super().__init__("the search was stopped")
        self.result = result


def mass_of(result: SearchResult) -> HeadValues:
    """Return the mass of every head in a search result. NaN for heads without a match."""
    values = result.heads["mass"].values.astype(np.float32)
    return HeadValues(SEARCH, "Mass of the search", "", values, upper_end(values), result.site)
