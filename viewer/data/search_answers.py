"""Answers as the pages use them: one number a head with its scale and ranks, and one edge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int64

from headatlas.store.errors import HeadAtlasError
from headatlas.store.queries.pattern_search import SearchResult

SEARCH = "search"
"""Stands among the statistics for the mass of the present search."""


def upper_end(values: Float32[np.ndarray, "*shape"]) -> float:
    """A round number at or above the highest value: the end of its scale."""
    finite = values[np.isfinite(values)]
    highest = float(finite.max()) if finite.size else 0.0
    if highest <= 0:
        return 1.0
    step = 10.0 ** np.floor(np.log10(highest))
    ends = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return next(float(f"{m * step:.3g}") for m in ends if m * step >= highest * (1 - 1e-9))


@dataclass(frozen=True)
class HeadValues:
    """One number a head, with what a legend needs. `high` is the upper end of the scale; the lower is 0."""

    name: str
    label: str
    unit: str
    values: Float32[np.ndarray, "layer head"]
    high: float

    @cached_property
    def ranks(self) -> Int64[np.ndarray, "layer head"]:
        """Rank of each head from the highest value, 1 first, equal values alike; 0 where there is no value."""
        flat = self.values.ravel()
        known = np.sort(flat[np.isfinite(flat)])
        above = len(known) - np.searchsorted(known, flat, side="right")
        return np.where(np.isfinite(flat), above + 1, 0).reshape(self.values.shape).astype(np.int64)

    @property
    def best(self) -> tuple[int, int]:
        """(layer, head) of the highest value, the first of equals; (0, 0) where there is none."""
        flat = np.where(np.isfinite(self.values), self.values, -np.inf).ravel()
        layer, head = divmod(int(flat.argmax()), self.values.shape[1])
        return layer, head


@dataclass(frozen=True)
class Edge:
    """One (query, key) pair of one head in one example."""

    query_pos: int
    key_pos: int
    weight: float


class SearchStoppedError(HeadAtlasError):
    """A search ended before its end; `result` holds what was done. It is not kept."""

    kind = "stopped"

    def __init__(self, result: SearchResult) -> None:
        super().__init__("the search was stopped")
        self.result = result


def mass_of(found: SearchResult) -> HeadValues:
    """Mass of every head in an answer; NaN where nothing matched."""
    values = found.heads["mass"].values.astype(np.float32)
    return HeadValues(SEARCH, "Mass of the search", "", values, upper_end(values))
