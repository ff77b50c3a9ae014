"""What the pages read from a store: session-free, thread-safe, every answer cached in a byte-bounded LRU.

One `DataSource` serves all sessions of a process. It returns NumPy arrays and plain records, never anything of a
session; arrays it hands out are read-only, because many readers share them.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Int64

from headatlas.store.errors import NotFoundError, PatternError
from headatlas.store.patterns import LIBRARY, LibraryPattern, Pattern, Vocabulary
from headatlas.store.reading.rebuild import why_not_rebuilt
from headatlas.store.schema import Site
from headatlas.store.search.search import ExampleHit, SearchResult, search
from headatlas.store.statistics.definitions import STATISTICS, aggregate
from headatlas.store.store import Example, Store

from .answers import Edge, HeadValues, upper_end
from .cache import ByteCache
from .labels import visible
from .state import Bounds

SEARCH = "search"
"""Stands among the statistics for the mass of the present search."""
MAX_HITS = 60
"""Examples of a search that are listed for a head."""


class DataSource:
    """Answers about one snapshot of a store."""

    def __init__(self, store: Store, cache_bytes: int = 256 << 20) -> None:
        self.store = store
        self._cache = ByteCache(cache_bytes)

    @property
    def name(self) -> str:
        """Name of the store's folder."""
        return visible(self.store.name)

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
        sites = {name: (site.n_layers, site.n_heads) for name, site in self.store.sites.items()}
        return Bounds(sites, (*names, SEARCH), self.example_numbers, start)

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
        return self._cache.get(("containing", text), lambda: self._containing(text.casefold()))

    def _containing(self, text: str) -> Int64[np.ndarray, "found"]:
        if not text:
            return _frozen(np.arange(self.n_examples, dtype=np.int64))
        pairs = zip(self.store.example_texts(), self.ids, strict=True)
        hits = [i for i, (body, name) in enumerate(pairs) if text in body.casefold() or text in name.casefold()]
        return _frozen(np.asarray(hits, np.int64))

    # heads

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The statistics that the store keeps."""
        return self.store.statistic_names

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
            known = STATISTICS.get(statistic)
            n_queries, n_keys = self.lengths(found.query_sequence), self.lengths(found.key_sequence)
            rows = known.rows(n_queries, n_keys) if known else n_queries
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
        profile = self._cache.get(("profile", self.site(site).name), make)
        likeness = np.exp(-3 * np.sqrt(np.square(profile - profile[layer, head]).mean(axis=-1)))
        order = [divmod(int(i), likeness.shape[1]) for i in np.argsort(-likeness, axis=None, kind="stable")[: n + 1]]
        return [(spot, float(likeness[spot])) for spot in order if spot != (layer, head)][:n]

    def has_attention(self, site: str) -> bool:
        """Whether attention of a site was kept or can be rebuilt."""
        keep = self.store.spec.keep
        return keep.attention is not None or why_not_rebuilt(self.site(site), keep) is None

    def strongest_edge(self, site: str, number: int, layer: int, head: int, statistic: str = "") -> Edge | None:
        """The strongest edge of a head in an example; for a statistic of a pattern, the strongest that matches it.

        Edges of tokens that the tokenizer added count only where there is no other. None where the store keeps nothing
        that tells, or nothing matches.
        """
        key = ("edge", self.site(site).name, number, layer, head, statistic)
        return self._cache.get(key, lambda: self._strongest_edge(self.site(site), number, layer, head, statistic))

    def _strongest_edge(self, found: Site, number: int, layer: int, head: int, statistic: str) -> Edge | None:
        example, keep = self.example(number), self.store.spec.keep
        if keep.attention or (not keep.edges and self.has_attention(found.name)):
            weights = example.attention(layer, head, found.name).values
        elif keep.edges:
            edges = example.edges(layer, head, found.name)
            weights = np.zeros(
                (len(example.tokens(found.query_sequence)), len(example.tokens(found.key_sequence))), np.float32
            )
            at = edges["key_pos"].values
            np.put_along_axis(weights, np.maximum(at, 0), np.where(at >= 0, edges["weight"].values, 0), axis=1)
        else:
            return None
        query_special, key_special = (
            example.tokens(name).special for name in (found.query_sequence, found.key_sequence)
        )
        weights = np.where(matching(statistic, weights.shape, key_special), weights, -1)
        plain = np.where(query_special[:, None] | key_special[None, :], -1, weights)
        weights = plain if plain.max(initial=-1) > 0.01 else weights
        if not weights.size or weights.max() <= 0:
            return None
        query, key = divmod(int(weights.argmax()), weights.shape[1])
        return Edge(query, key, float(weights[query, key]))

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

    def check_pattern(self, expression: str, site: str) -> None:
        """Read an expression and check its names; PatternError points at the first mistake."""
        Pattern.parse(expression).check(self.vocabulary(site))

    @cached_property
    def library(self) -> dict[str, LibraryPattern]:
        """The built-in patterns whose annotations this store has."""
        usable = {}
        for name, item in LIBRARY.items():
            try:
                self.check_pattern(item.expression, "")
                usable[name] = item
            except PatternError:
                continue
        return usable

    def search(self, expression: str, site: str) -> SearchResult:
        """Score every head for a pattern; kept per expression.

        Raises
        ------
        PatternError
            The expression cannot be read, or names what this store does not have.
        NotFoundError
            The store kept neither attention nor edges.
        """
        name = self.site(site).name
        return self._cache.get(
            ("search", name, expression),
            lambda: search(self.store, expression, name),
            lambda found: found.heads.nbytes + found.example_mass.nbytes + 4096,
        )

    def has_answer(self, expression: str, site: str) -> bool:
        """Whether a search was answered already."""
        return ("search", self.site(site).name, expression) in self._cache

    def search_values(self, expression: str, site: str) -> HeadValues:
        """Mass of every head under a pattern; NaN where nothing matched."""
        values = self.search(expression, site).heads["mass"].values.astype(np.float32)
        return HeadValues(SEARCH, "Mass of the search", "", _frozen(values), upper_end(values))

    def search_examples(self, expression: str, site: str, layer: int, head: int) -> list[ExampleHit]:
        """The examples that show the pattern best in one head, best first, at most `MAX_HITS`."""
        name, found = self.site(site).name, self.search(expression, site)
        return self._cache.get(
            ("hits", name, expression, layer, head), lambda: found.top_examples(layer, head, MAX_HITS)
        )

    def search_scores(self, expression: str, site: str, layer: int, head: int) -> Float32[np.ndarray, "example"]:
        """Mass of one head on every example, by position; NaN where nothing matched."""
        mass = self.search(expression, site).example_mass
        scores = np.full(self.n_examples, np.nan, np.float32)
        scores[np.searchsorted(self.numbers, mass["example"].values)] = mass.values[layer, head]
        return scores


def matching(
    statistic: str, shape: tuple[int, ...], key_special: Bool[np.ndarray, "key_pos"]
) -> Bool[np.ndarray, "query_pos key_pos"]:
    """Which pairs the statistic is the mass of; all where it is no mass."""
    query, key = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    if statistic == "special":
        return np.broadcast_to(key_special[None, :], shape)
    chosen = {
        "self": key == query,
        "previous": key == query - 1,
        "next": key == query + 1,
        "first": (key == 0) & (query >= 0),
    }
    return np.broadcast_to(chosen.get(statistic, True), shape)


def short(label: str) -> str:
    """A statistic's label without the words that all of them share."""
    bare = label.removeprefix("Attention to ").removeprefix("the ")
    return bare[:1].upper() + bare[1:]


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
