"""Searches within limits, and results as the pages use them: one number for each head with its scale and ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int64

from headatlas.store.errors import BudgetError, HeadAtlasError
from headatlas.store.queries.pattern_search import SearchProgress, SearchResult
from headatlas.store.queries.pattern_search import search as pattern_search
from headatlas.store.queries.segment_scan import basis_for
from headatlas.store.schema.traces import Site, head_index
from headatlas.store.store import Store

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


def similar_heads(tables: Sequence[HeadValues], layer: int, head: int, n: int) -> list[tuple[tuple[int, int], float]]:
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


@dataclass(frozen=True)
class SearchLimits:
    """Limits of one search, so that no reader can occupy the server."""

    seconds: float | None = None
    """Time limit. A search that exceeds it stops with a partial result."""
    n_bytes: int = 16 << 30
    """Most bytes of traces that a search decodes. It is decided before the search which segments that is."""


def search(
    store: Store,
    expression: str,
    site: str,
    limits: SearchLimits,
    on_progress: Callable[[SearchProgress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> SearchResult:
    """Score every head for a pattern on the segments within the limit, with the evidence for the scores.

    A note of the result names the examples that were left out. Errors are those of `DataSource.search`.
    """
    start, n_examples = time.monotonic(), store.n_examples

    def must_stop() -> bool:
        return stop() or (limits.seconds is not None and time.monotonic() - start > limits.seconds)

    outside = _segments_outside(store, site, limits.n_bytes)
    part = store.without(outside) if outside else store
    result = pattern_search(part, expression, site, on_progress=on_progress, stop=must_stop)
    _ = result.evidence  # computed here, in a thread: pages read it in the server's event loop
    if not result.is_complete:
        raise SearchStoppedError(result)
    if outside:
        note = (
            f"{n_examples - part.n_examples:,} of {n_examples:,} examples are left out: a search of the viewer reads "
            f"at most {limits.n_bytes / 2**30:.3g} GiB of traces. headatlas search reads all, and so does "
            "headatlas view with a higher --search-gib"
        )
        result = replace(result, notes=(*result.notes, note))
    return result


def _segments_outside(store: Store, site: str, max_bytes: int) -> list[int]:
    """Return the indices of the segments after the first ones that a search may read.

    Raises
    ------
    BudgetError
        It may read none.
    """
    names = {
        "attention": ("attention", "visible_keys", "edge_"),
        "edges": ("edge_",),
        "rebuilt": ("query", "key", "logsumexp", "position_bias", "sinks"),
    }[basis_for(store.segments, store.site(site), "auto")]
    prefixes = tuple(f"{site}/{name}" for name in names)
    total, outside = 0, list[int]()
    for segment in store.segments:
        arrays = [entry.layout() for entry in segment.listing.arrays if entry.path.startswith(prefixes)]
        total += sum(layout.raw_bytes for layout in arrays)
        if total > max_bytes:
            outside.append(segment.index)
            if len(outside) == len(store.segments):
                raise BudgetError(
                    f"a search reads {total / 2**30:.3g} GiB of the first segment; at most "
                    f"{max_bytes / 2**30:.3g} GiB are read. Use headatlas search, or start the viewer with a "
                    "higher --search-gib."
                )
    return outside


def mass_of(result: SearchResult) -> HeadValues:
    """Return the mass of every head in a search result. NaN for heads without a match."""
    values = result.heads["mass"].values.astype(np.float32)
    return HeadValues(SEARCH, "Mass of the search", "", values, upper_end(values), result.site)
