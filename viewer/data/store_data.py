"""Data source of the pages: thread-safe access to one store, with all results in an LRU cache of limited size.

One `DataSource` serves all sessions of a process and holds no state of a session. It returns NumPy arrays and plain
records. The arrays are read-only, because sessions share them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Float32, Int64

from headatlas.store.errors import NotFoundError
from headatlas.store.files.byte_cache import ByteCache
from headatlas.store.patterns import LibraryPattern, Pattern, Vocabulary
from headatlas.store.patterns.segment_matcher import segment_matcher
from headatlas.store.queries.pattern_search import ExampleHit, SearchProgress, SearchResult
from headatlas.store.reading.attention_rebuild import why_not_rebuilt
from headatlas.store.reading.example import Example
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.traces import Site, head_index
from headatlas.store.statistics.definitions import DERIVED_STATISTICS, aggregate
from headatlas.store.statistics.measurement import statistic_rows
from headatlas.store.store import Store

from ..state.reader_state import Bounds
from ..theme.token_labels import visible
from .bookmarks import Bookmarks
from .example_filters import containing, frequent_values, having, pair_groups, sample_ranking, without_damage
from .pattern_library import searched_statistics, usable_patterns
from .search_answers import (  # fmt: skip
    SEARCH,
    Edge,
    HeadValues,
    SearchLimits,
    mass_of,
    search,
    short,
    similar_heads,
    upper_end,
)
from .strongest_edge import strongest_edge

Value = TypeVar("Value")
MAX_HITS = 60
"""Most examples of a search that are listed for a head."""
AT_ONCE_EXAMPLES, AT_ONCE_TEXT = 1 << 13, 1 << 20
"""Most examples, and most tokens of all of them, whose texts are read in the server's event loop."""
AT_ONCE_TABLES = 16 << 20
"""Most bytes of all texts and columns of these examples. A text may be far longer than its tokens: behind a cut."""
MAX_HIT_PAIRS = 4 << 20
"""Most weights of an example that are read for its strongest edge, and of all examples in one step."""


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
    """Data of one snapshot of a store.

    Every number excludes segments with a missing or truncated object. `damaged` holds one message for each of them.

    Parameters
    ----------
    name
        Name of the store. The name of its folder by default.
    served_with
        The stores that are served together, for views that compare stores.
    bookmarks
        Stars and notes on heads. None if the viewer has no bookmarks.
    limits
        Limits of one search.
    """

    def __init__(
        self,
        store: Store,
        cache_bytes: int = 256 << 20,
        *,
        name: str | None = None,
        served_with: StoreGroup | None = None,
        bookmarks: Bookmarks | None = None,
        limits: SearchLimits = SearchLimits(),
    ) -> None:
        self.store, self.damaged = without_damage(store)
        self.name, self.served_with = name or visible(store.name), served_with
        self.bookmarks, self.limits = bookmarks, limits
        self._cache = ByteCache(cache_bytes)

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of the stores that are served together. The first store is shown by default."""
        return self.served_with.names if self.served_with else (self.name,)

    def error_text(self, error: BaseException) -> str:
        """Return the message of an error for readers: all characters visible, stores by name instead of path."""
        text = str(error)
        for source in self.served_with or (self,):
            text = text.replace(source.store.location, source.name)
        return visible(text)

    def site(self, name: str = "") -> Site:
        """Return a site by name, or the first site if the name is empty."""
        return self.store.site(name or None)

    @cached_property
    def bounds(self) -> Bounds:
        """Limits of a reader's choices, and the choices of a fresh page (the head with the highest value)."""
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
        sites = {name: (site.layers, site.n_heads) for name, site in self.store.sites.items()}
        start.setdefault("layer", next((layers[0] for layers, _ in sites.values()), 0))
        return Bounds(sites, (*names, SEARCH), self.example_numbers, start, self.stores)

    def cached(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the cached value of a key; call `make` if there is none. Callers must not change the value."""
        return self._cache.get(("cached", key), make)

    def has_cached(self, key: Hashable) -> bool:
        """Return True if `cached` returns the value of a key at once."""
        return ("cached", key) in self._cache

    @cached_property
    def is_small(self) -> bool:
        """True if a list of all examples is made in one step of the event loop."""
        if self.n_examples > AT_ONCE_EXAMPLES or sum(self.store.n_tokens.values()) > AT_ONCE_TEXT:
            return False
        entries = (entry for segment in self.store.segments for entry in segment.listing.arrays)
        return sum(entry.layout().raw_bytes for entry in entries if entry.path.startswith("example/")) <= AT_ONCE_TABLES

    # examples

    @property
    def n_examples(self) -> int:
        """Number of committed examples."""
        return self.store.n_examples

    @cached_property
    def numbers(self) -> Int64[np.ndarray, "example"]:
        """Numbers of the committed examples, ascending. A store that still grows may have gaps."""
        return _read_only(np.asarray(self.store.example_numbers(), np.int64))

    @cached_property
    def example_numbers(self) -> Collection[int]:
        """Numbers of the committed examples for membership tests: a range if there are no gaps."""
        n = len(self.numbers)
        if n and self.numbers[-1] - self.numbers[0] == n - 1:
            return range(int(self.numbers[0]), int(self.numbers[-1]) + 1)
        return frozenset(self.numbers.tolist())

    def example(self, number: int) -> Example:
        """Return one example. Its segment caches texts and tokens."""
        return self.store.examples[number]

    def neighbours(self, number: int) -> tuple[int | None, int | None]:
        """Return the numbers of the committed examples before and after a number. None at the ends."""
        index = int(np.searchsorted(self.numbers, number))
        after = index + 1 if index < len(self.numbers) and self.numbers[index] == number else index
        previous = int(self.numbers[index - 1]) if index else None
        return previous, int(self.numbers[after]) if after < len(self.numbers) else None

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the examples by position."""
        return self.store.example_ids()

    def lengths(self, sequence: str = "source") -> Int64[np.ndarray, "example"]:
        """Return the numbers of tokens of the examples by position."""
        parts = [segment.tokens(sequence).n_tokens for segment in self.store.segments]
        return self._cache.get(
            ("lengths", sequence), lambda: _read_only(np.concatenate([np.zeros(0, np.int64), *parts]))
        )

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position of each id, the first position if several examples have the id."""
        return {name: position for position, name in reversed(list(enumerate(self.ids)))}

    def number_of(self, name: str) -> int:
        """Return the number of the example with an id."""
        return int(self.numbers[self.positions[name]])

    def shown_text(self, number: int, n: int) -> str:
        """Return the first `n` characters of an example's texts (both texts of a pair) on one line, all visible."""
        example = self.example(number)
        return visible("  |  ".join(t[:n] for t in (example.text, example.text_pair, example.target_text) if t))[:n]

    def containing(self, text: str, check: Callable[[], None] = lambda: None) -> Int64[np.ndarray, "match"]:
        """Return the positions of the examples whose text or id contains `text`. Ignores case.

        `check` is called often and raises an error to end the reading.
        """
        return self._cache.get(("containing", text), lambda: _read_only(containing(self.store, text, check)))

    # heads

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """Names of the statistics in the store, and of those that a search gives. Added ones belong to one site."""
        sites = self.store.sites
        names = [name for site in sites for name in self.store.statistic_names(site)]
        return tuple(dict.fromkeys([*names, *(name for site in sites for name in self.searched_statistics(site))]))

    def statistics_of(self, site: str) -> tuple[str, ...]:
        """Return the names of the statistics of a site: those in the store, and those whose search is cached."""
        searched = [name for name, text in self.searched_statistics(site).items() if self.has_answer(text, site)]
        return (*self.store.statistic_names(self.site(site).name), *searched)

    def searched_statistics(self, site: str) -> dict[str, str]:
        """Return the statistics of a site that are the mass of a search: name to expression."""
        stored = self.store.statistic_names(self.site(site).name)
        return searched_statistics(self.library(site), stored) if self.can_search(site) else {}

    def can_search(self, site: str) -> bool:
        """Return True if a search has data to read at a site."""
        return self.has_attention(site) or bool(self.store.spec.keep.edges)

    def over_examples(self, site: str, statistic: str) -> Float32[np.ndarray, "layer head example"]:
        """Return a statistic of every head on every example, by position. NaN for examples without a counting row."""
        if (expression := self.searched_statistics(site).get(statistic)) is not None:
            return self._over_examples(self.search(expression, site))

        def read() -> np.ndarray:
            data = self.store.statistics(self.site(site).name)
            if statistic not in data:
                raise NotFoundError(f"no statistic {statistic!r}; this site has {', '.join(self.statistics_of(site))}.")
            return _read_only(np.ascontiguousarray(data[statistic].values, np.float32))

        return self._cache.get(("over", self.site(site).name, statistic), read)

    def _over_examples(self, result: SearchResult) -> Float32[np.ndarray, "layer head example"]:
        mass = result.example_mass
        scores = np.full((*mass.shape[:2], self.n_examples), np.nan, np.float32)
        scores[:, :, np.searchsorted(self.numbers, mass["example"].values)] = mass.values
        return scores

    def has_scores(self, site: str, statistic: str) -> bool:
        """Return True if `over_examples`, or the result of a search, is cached."""
        return statistic == SEARCH or ("over", self.site(site).name, statistic) in self._cache

    def head_values(self, site: str, statistic: str) -> HeadValues:
        """Return the corpus mean of a statistic for every head. Every row (query token) has the same weight."""
        site_ = self.site(site)

        def make() -> HeadValues:
            definition = STATISTICS.get(statistic) or DERIVED_STATISTICS.get(statistic)
            expression = self.searched_statistics(site).get(statistic)
            if expression is None:
                rows = statistic_rows(self.store, site_, statistic)
                values = aggregate(self.over_examples(site, statistic), rows).astype(np.float32)
            else:
                values = mass_of(self.search(expression, site)).values
            added = {overlay.name: overlay.unit for overlay in self.store.overlays if overlay.group == site_.name}
            label, unit = visible(statistic), added.get(statistic, "")
            if definition:
                label, unit = short(definition.label), definition.unit
            unit = "" if unit == "share" else unit
            return HeadValues(statistic, label, unit, _read_only(values), upper_end(values), site_)

        return self._cache.get(("values", site_.name, statistic), make)

    def similar_heads(self, site: str, layer: int, head: int, n: int = 5) -> list[tuple[tuple[int, int], float]]:
        """Return the `n` heads with the most similar statistics, each with a similarity in (0, 1]."""

        def rank() -> list[tuple[tuple[int, int], float]]:
            return similar_heads([self.head_values(site, name) for name in self.statistics_of(site)], layer, head, n)

        return self._cache.get(("similar", self.site(site).name, layer, head, n), rank)

    def has_attention(self, site: str) -> bool:
        """Return True if the attention of a site is stored or can be rebuilt."""
        keep = self.store.spec.keep
        return keep.attention is not None or why_not_rebuilt(self.site(site), keep) is None

    def strongest_edge(self, site: str, number: int, layer: int, head: int, statistic: str = "") -> Edge | None:
        """Return the strongest edge of a head in an example, cached. See `strongest_edge.strongest_edge`."""
        site_ = self.site(site)
        key = ("edge", site_.name, number, layer, head, statistic)
        return self._cache.get(
            key, lambda: strongest_edge(self.example(number), site_, layer, head, statistic, self.has_attention(site))
        )

    # search

    def vocabulary(self, site: str) -> Vocabulary:
        """Return the names that a pattern can use at a site."""
        site_ = self.site(site)

        def collect() -> Vocabulary:
            segments = self.store.segments
            queries, keys = ([s.tokens(name) for s in segments] for name in (site_.query_sequence, site_.key_sequence))
            return Vocabulary.of(queries, keys, [s.columns() for s in segments])

        return self._cache.get(("vocabulary", site_.name), collect)

    def fields(self, site: str) -> list[str]:
        """Return the field names of a query token."""
        return list(self.vocabulary(site).query)

    def field_values(self, site: str) -> dict[str, list[tuple[str, int]]]:
        """Return the most frequent values of each text annotation of words as (visible text, count), for completion."""
        site_ = self.site(site)
        return self._cache.get(
            ("values of fields", site_.name), lambda: frequent_values(self.store, site_.query_sequence)
        )

    def check_pattern(self, expression: str, site: str) -> None:
        """Parse an expression and check its names.

        Raises
        ------
        PatternError
            The expression has a mistake. The error holds its position.
        """
        Pattern.parse(expression).check(self.vocabulary(site))

    def library(self, site: str) -> dict[str, LibraryPattern]:
        """Return the built-in patterns that this store can answer at a site."""
        site_ = self.site(site)
        return self._cache.get(
            ("library", site_.name), lambda: usable_patterns(self.store, site_, self.vocabulary(site))
        )

    def search(
        self,
        expression: str,
        site: str,
        on_progress: Callable[[SearchProgress], None] = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> SearchResult:
        """Score every head for a pattern, see `search_answers.search`. Results that were not stopped are cached.

        Raises
        ------
        PatternError
            The expression cannot be parsed, or uses a name that this store does not have.
        NotFoundError
            The store keeps neither attention nor edges.
        BudgetError
            Every segment takes more bytes than the limit of a search.
        SearchStoppedError
            `stop` returned True, or the search reached its time limit.
        """
        name = self.site(site).name
        return self._cache.get(
            ("search", name, expression), lambda: search(self.store, expression, name, self.limits, on_progress, stop),
            lambda result: result.heads.nbytes + result.example_mass.nbytes + 4096,
        )  # fmt: skip

    def has_answer(self, expression: str, site: str) -> bool:
        """Return True if the result of a search is cached."""
        return ("search", self.site(site).name, expression) in self._cache

    def search_values(self, expression: str, site: str) -> HeadValues:
        """Return the mass of every head for a pattern. NaN for heads without a match."""
        return mass_of(self.search(expression, site))

    def hits_of(
        self, result: SearchResult, layer: int, head: int, sample: str = "strongest", n: int = MAX_HITS,
        check: Callable[[], None] = lambda: None, *, prefer_plain: bool = True,
    ) -> list[ExampleHit]:  # fmt: skip
        """Return at most `n` examples of one head from a (partial) result. `sample` is as in `sample_ranking`.

        `prefer_plain` is as in `SearchResult.hits`.
        """
        key = ("hits", result.site.name, result.pattern.expression, result.n_examples_searched, layer, head, sample, n)
        key += (prefer_plain,)
        return self._cache.get(
            key,
            lambda: result.hits(
                layer, head, sample_ranking(result.ranked_examples(layer, head), sample, n),
                max_pairs=MAX_HIT_PAIRS, prefer_plain=prefer_plain, check=check,
            ),
        )  # fmt: skip

    def matches(
        self, expression: str, site: str, number: int
    ) -> tuple[Int64[np.ndarray, "match"], Int64[np.ndarray, "match"]]:
        """Return the query and key positions of the pairs of one example that match a pattern.

        Raises
        ------
        PatternError
            The expression has a mistake.
        """
        site_, pattern, vocabulary = self.site(site), Pattern.parse(expression), self.vocabulary(site)
        pattern.check(vocabulary)

        def read() -> tuple[np.ndarray, np.ndarray]:
            segment = self.store.segment_of(number)
            row = number - segment.first_example
            matcher = segment_matcher(segment, site_, pattern, vocabulary, row, words=False)
            matches = matcher.example(0)
            return matcher.evaluator.query.position[matches.query], matcher.evaluator.key.position[matches.key]

        return self._cache.get(("matches", site_.name, expression, number), read)

    def search_scores(self, expression: str, site: str, layer: int, head: int) -> Float32[np.ndarray, "example"]:
        """Return the mass of one head on every example, by position. NaN for examples without a match."""
        mass = self.search(expression, site).example_mass
        scores = np.full(self.n_examples, np.nan, np.float32)
        scores[np.searchsorted(self.numbers, mass["example"].values)] = mass.values[
            head_index(self.site(site), layer, head)
        ]
        return scores

    def head_bookmarks(self, site: str) -> dict[str, dict[str, str | bool]]:
        """Return the bookmarks of a site by head (``5.8``), with all characters visible."""
        heads = self.bookmarks.heads(self.site(site).name) if self.bookmarks else {}
        return {head: {"star": bookmark.star, "note": visible(bookmark.note)} for head, bookmark in heads.items()}

    # annotations

    def pair_members(self, number: int) -> list[int]:
        """Return the other members of a minimal pair: examples with the same value of the annotation `pair`."""
        columns = self.store.example_columns()
        if "pair" not in columns:
            return []

        value = self.example(number).columns.get("pair")
        groups = self._cache.get(("pairs",), lambda: pair_groups(self.numbers, columns["pair"]))
        return [] if value in (None, "", -1) else [other for other in groups.get(value, []) if other != number]

    def having(self, facets: Mapping[str, str]) -> Int64[np.ndarray, "match"]:
        """Return the positions of the examples that have these values of annotations (`facets`, as visible text)."""
        key = ("having", *sorted(facets.items()))
        return self._cache.get(key, lambda: _read_only(having(self.store.example_columns(), self.n_examples, facets)))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
