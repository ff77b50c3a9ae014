"""What the pages read from a store: session-free, thread-safe, every answer cached in a byte-bounded LRU.

One `DataSource` serves all sessions of a process. It returns NumPy arrays and plain records, never anything of a
session; arrays it hands out are read-only, because many readers share them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Float32, Int64

from headatlas.store.errors import NotFoundError, PatternError
from headatlas.store.files.byte_cache import ByteCache
from headatlas.store.patterns import LIBRARY, LibraryPattern, Pattern, Vocabulary
from headatlas.store.queries.pattern_search import ExampleHit, SearchProgress, SearchResult, search
from headatlas.store.reading.attention_rebuild import why_not_rebuilt
from headatlas.store.reading.example import Example
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.traces import Site
from headatlas.store.statistics.definitions import DERIVED_STATISTICS, aggregate
from headatlas.store.statistics.measurement import statistic_rows
from headatlas.store.store import Store

from ..state.reader_state import Bounds
from ..theme.token_labels import visible
from .bookmarks import Bookmarks
from .example_filters import containing, frequent_values, having, pair_groups, sampled, sound
from .search_answers import SEARCH, Edge, HeadValues, SearchStoppedError, mass_of, upper_end
from .strongest_edge import strongest_edge

Answer = TypeVar("Answer")
MAX_HITS = 60
"""Examples of a search that are listed for a head."""


class StoreGroup(Protocol):
    """Stores that are served together, by name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stores. The first store is shown by default."""
        ...

    def __getitem__(self, name: str) -> DataSource: ...

    def __iter__(self) -> Iterator[DataSource]: ...

    def new_segments(self, data: DataSource) -> int:
        """Number of segments committed since the snapshot that `data` shows."""
        ...

    def refresh(self, name: str) -> DataSource:
        """Open the newest snapshot of a store for later sessions."""
        ...


class DataSource:
    """Answers about one snapshot of a store.

    Segments with a missing or cut object are left out of every number; `damaged` says which and why.

    Parameters
    ----------
    name
        What the store is called; the name of its folder by default.
    served_with
        The stores that are served together, for views that compare.
    bookmarks
        Stars and notes on heads. None if bookmarks are not kept.
    search_s
        Seconds that a search may take; then it ends with what is done.
    """

    def __init__(
        self,
        store: Store,
        cache_bytes: int = 256 << 20,
        *,
        name: str | None = None,
        served_with: StoreGroup | None = None,
        bookmarks: Bookmarks | None = None,
        search_s: float | None = None,
    ) -> None:
        self.store, self.damaged = sound(store)
        self.name, self.served_with = name or visible(store.name), served_with
        self.bookmarks, self.search_s = bookmarks, search_s
        self._cache = ByteCache(cache_bytes)

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of the stores that are served together, the first one first."""
        return self.served_with.names if self.served_with else (self.name,)

    def told(self, error: BaseException) -> str:
        """An error as readers may see it: every character visible, and stores' names instead of their paths."""
        text = str(error)
        for source in self.served_with or (self,):
            text = text.replace(source.store.location, source.name)
        return visible(text)

    def site(self, name: str = "") -> Site:
        """The site of that name; the first without a name."""
        return self.store.site(name or None)

    @cached_property
    def bounds(self) -> Bounds:
        """What a reader may choose, and what a fresh page shows: the statistic's strongest head."""
        names = self.statistic_names
        start: dict[str, str | int] = {}
        if names and self.store.sites:
            start["statistic"] = "previous" if "previous" in names else names[0]
            start["x"] = "first" if "first" in names else names[0]
            start["y"] = "entropy" if "entropy" in names else names[-1]
            if self.n_examples:
                start["layer"], start["head"] = self.head_values("", str(start["statistic"])).best
        if self.n_examples:
            start["example"] = int(self.numbers[0])
        start["store"] = self.stores[0]
        sites = {name: (site.n_layers, site.n_heads) for name, site in self.store.sites.items()}
        return Bounds(sites, (*names, SEARCH), self.example_numbers, start, self.stores)

    def once(self, key: Hashable, make: Callable[[], Answer]) -> Answer:
        """An answer that is the same for every session, kept; who gets it does not change it."""
        return self._cache.get(("once", key), make)

    # examples

    @property
    def n_examples(self) -> int:
        """Committed examples."""
        return self.store.n_examples

    @cached_property
    def numbers(self) -> Int64[np.ndarray, "example"]:
        """Numbers of the committed examples; a store that still grows may have gaps."""
        return _frozen(np.asarray(self.store.example_numbers(), np.int64))

    @cached_property
    def example_numbers(self) -> Collection[int]:
        """The same for membership tests: a range where there is no gap."""
        n = len(self.numbers)
        if n and self.numbers[-1] - self.numbers[0] == n - 1:
            return range(int(self.numbers[0]), int(self.numbers[-1]) + 1)
        return frozenset(self.numbers.tolist())

    def example(self, number: int) -> Example:
        """One example; its segment keeps texts and tokens in memory."""
        return self.store.examples[number]

    def neighbours(self, number: int) -> tuple[int | None, int | None]:
        """The committed examples before and after one."""
        at = int(np.searchsorted(self.numbers, number))
        after = at + 1 if at < len(self.numbers) and self.numbers[at] == number else at
        return (
            int(self.numbers[at - 1]) if at else None,
            int(self.numbers[after]) if after < len(self.numbers) else None,
        )

    @cached_property
    def ids(self) -> list[str]:
        """Ids by position."""
        return self.store.example_ids()

    def lengths(self, sequence: str = "source") -> Int64[np.ndarray, "example"]:
        """Token counts by position."""
        parts = [segment.tokens(sequence).n_tokens for segment in self.store.segments]
        return self._cache.get(("lengths", sequence), lambda: _frozen(np.concatenate([np.zeros(0, np.int64), *parts])))

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position of each id, the first of equals."""
        return {name: at for at, name in reversed(list(enumerate(self.ids)))}

    def number_of(self, name: str) -> int:
        """The number of the example with an id."""
        return int(self.numbers[self.positions[name]])

    def shown_text(self, number: int) -> str:
        """An example's text (both texts of a pair) on one line, every character visible."""
        example = self.example(number)
        return visible("  |  ".join(t for t in (example.text, example.text_pair, example.target_text) if t))

    def containing(self, text: str) -> Int64[np.ndarray, "found"]:
        """Positions of the examples whose text or id contains `text`, upper and lower case alike."""
        return self._cache.get(
            ("containing", text), lambda: _frozen(containing(self.store.example_texts(), self.ids, text))
        )

    # heads

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The statistics that the store keeps."""
        return self.store.statistic_names()

    def over_examples(self, site: str, statistic: str) -> Float32[np.ndarray, "layer head example"]:
        """A statistic of every head on every example, by position; NaN where no row counts."""

        def read() -> np.ndarray:
            data = self.store.statistics(self.site(site).name)
            if statistic not in data:
                raise NotFoundError(f"no statistic {statistic!r}; this store has {', '.join(self.statistic_names)}")
            return _frozen(np.ascontiguousarray(data[statistic].values, np.float32))

        return self._cache.get(("over", self.site(site).name, statistic), read)

    def head_values(self, site: str, statistic: str) -> HeadValues:
        """The corpus mean of a statistic for every head; each row (query token) counts alike."""
        found = self.site(site)

        def make() -> HeadValues:
            known = STATISTICS.get(statistic) or DERIVED_STATISTICS.get(statistic)
            rows = statistic_rows(self.store, found, statistic)
            values = aggregate(self.over_examples(site, statistic), rows).astype(np.float32)
            label, unit = (short(known.label), known.unit) if known else (visible(statistic), "")
            return HeadValues(statistic, label, "" if unit == "share" else unit, _frozen(values), upper_end(values))

        return self._cache.get(("values", found.name, statistic), make)

    def like(self, site: str, layer: int, head: int, n: int = 5) -> list[tuple[tuple[int, int], float]]:
        """The heads whose statistics are most like one head's, with a likeness in (0, 1]."""

        def make() -> np.ndarray:
            tables = [self.head_values(site, name) for name in self.statistic_names]
            return np.stack([np.nan_to_num(t.values) / t.high for t in tables], axis=-1)  # [layer, head, statistic]

        if not self.statistic_names:
            return []

        def rank() -> list[tuple[tuple[int, int], float]]:
            profile = self._cache.get(("profile", self.site(site).name), make)
            likeness = np.exp(-3 * np.sqrt(np.square(profile - profile[layer, head]).mean(axis=-1)))
            order = [
                divmod(int(i), likeness.shape[1]) for i in np.argsort(-likeness, axis=None, kind="stable")[: n + 1]
            ]
            return [(spot, float(likeness[spot])) for spot in order if spot != (layer, head)][:n]

        return self._cache.get(("like", self.site(site).name, layer, head, n), rank)

    def has_attention(self, site: str) -> bool:
        """Whether attention of a site was kept or can be rebuilt."""
        keep = self.store.spec.keep
        return keep.attention is not None or why_not_rebuilt(self.site(site), keep) is None

    def strongest_edge(self, site: str, number: int, layer: int, head: int, statistic: str = "") -> Edge | None:
        """The strongest edge of a head in an example; for a statistic of a pattern, the strongest that matches it.

        Edges of tokens that the tokenizer added count only where there is no other. None where the store keeps nothing
        that tells, or nothing matches.
        """
        found = self.site(site)
        key = ("edge", found.name, number, layer, head, statistic)
        return self._cache.get(
            key, lambda: strongest_edge(self.example(number), found, layer, head, statistic, self.has_attention(site))
        )

    # search

    def vocabulary(self, site: str) -> Vocabulary:
        """The names that a pattern may use at a site."""
        found = self.site(site)

        def collect() -> Vocabulary:
            segments = self.store.segments
            queries, keys = ([s.tokens(name) for s in segments] for name in (found.query_sequence, found.key_sequence))
            return Vocabulary.of(queries, keys, [s.columns() for s in segments])

        return self._cache.get(("vocabulary", found.name), collect)

    def fields(self, site: str) -> list[str]:
        """Field names of a query token."""
        return list(self.vocabulary(site).query)

    def field_values(self, site: str) -> dict[str, list[tuple[str, int]]]:
        """The most frequent values of each annotation of words that is text, for completion: every character visible."""
        found = self.site(site)
        return self._cache.get(
            ("values of fields", found.name), lambda: frequent_values(self.store, found.query_sequence)
        )

    def check_pattern(self, expression: str, site: str) -> None:
        """Read an expression and check its names; PatternError points at the first mistake."""
        Pattern.parse(expression).check(self.vocabulary(site))

    @cached_property
    def library(self) -> dict[str, LibraryPattern]:
        """The built-in patterns whose annotations this store has."""
        usable = {}
        for name, item in LIBRARY.items():
            try:
                self.check_pattern(item.filled, "")
                usable[name] = replace(item, expression=item.filled) if item.parameters else item
            except PatternError:
                continue
        return usable

    def search(
        self,
        expression: str,
        site: str,
        on_progress: Callable[[SearchProgress], None] = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> SearchResult:
        """Score every head for a pattern, with the evidence for the scores; kept per expression once it is complete.

        Raises
        ------
        PatternError
            The expression cannot be read, or names what this store does not have.
        NotFoundError
            The store kept neither attention nor edges.
        SearchStoppedError
            `stop` answered True, or the time was up.
        """
        name, began = self.site(site).name, time.monotonic()

        def ended() -> bool:
            return stop() or (self.search_s is not None and time.monotonic() - began > self.search_s)

        def make() -> SearchResult:
            found = search(self.store, expression, name, on_progress=on_progress, stop=ended)
            _ = found.evidence  # here, where a thread waits for it: pages ask for it in the server's loop
            if not found.is_complete:
                raise SearchStoppedError(found)
            return found

        return self._cache.get(
            ("search", name, expression), make, lambda found: found.heads.nbytes + found.example_mass.nbytes + 4096
        )

    def has_answer(self, expression: str, site: str) -> bool:
        """Whether a search was answered already."""
        return ("search", self.site(site).name, expression) in self._cache

    def search_values(self, expression: str, site: str) -> HeadValues:
        """Mass of every head under a pattern; NaN where nothing matched."""
        return mass_of(self.search(expression, site))

    def search_examples(self, expression: str, site: str, layer: int, head: int) -> list[ExampleHit]:
        """The examples that show the pattern best in one head, best first, at most `MAX_HITS`."""
        return self.hits_of(self.search(expression, site), layer, head)

    def hits_of(
        self, found: SearchResult, layer: int, head: int, sample: str = "strongest", n: int = MAX_HITS
    ) -> list[ExampleHit]:
        """The same of an answer, which may be one that was stopped; or another `sampled` part of its ranking."""
        key = ("hits", found.site.name, found.pattern.expression, found.n_examples_searched, layer, head, sample, n)
        return self._cache.get(
            key, lambda: found.hits(layer, head, sampled(found.ranked_examples(layer, head), sample, n))
        )

    def search_scores(self, expression: str, site: str, layer: int, head: int) -> Float32[np.ndarray, "example"]:
        """Mass of one head on every example, by position; NaN where nothing matched."""
        mass = self.search(expression, site).example_mass
        scores = np.full(self.n_examples, np.nan, np.float32)
        scores[np.searchsorted(self.numbers, mass["example"].values)] = mass.values[layer, head]
        return scores

    def head_bookmarks(self, site: str) -> dict[str, dict[str, str | bool]]:
        """Bookmarks by head (``5.8``), with every character visible."""
        heads = self.bookmarks.heads(self.site(site).name) if self.bookmarks else {}
        return {head: {"star": bookmark.star, "note": visible(bookmark.note)} for head, bookmark in heads.items()}

    # what belongs together

    def pair_members(self, number: int) -> list[int]:
        """The other examples with the same value of the annotation `pair`: the rest of a minimal pair."""
        columns = self.store.example_columns()
        if "pair" not in columns:
            return []

        value = self.example(number).columns.get("pair")
        groups = self._cache.get(("pairs",), lambda: pair_groups(self.numbers, columns["pair"]))
        return [] if value in (None, "", -1) else [other for other in groups.get(value, []) if other != number]

    def having(self, facets: Mapping[str, str]) -> Int64[np.ndarray, "found"]:
        """Positions of the examples whose annotations, made visible, have these values."""
        key = ("having", *sorted(facets.items()))
        return self._cache.get(key, lambda: _frozen(having(self.store.example_columns(), self.n_examples, facets)))


def short(label: str) -> str:
    """A statistic's label without the words that all of them share."""
    bare = label.removeprefix("Attention to ").removeprefix("the ")
    return bare[:1].upper() + bare[1:]


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
