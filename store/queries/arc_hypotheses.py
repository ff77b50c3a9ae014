"""From arcs marked in examples to patterns that hold for all of them, the likeliest first.

A hypothesis joins at most three conditions: how the two tokens are related (a named pattern, a fixed distance in tokens or
words, a word that an annotation points at, the same text or annotation), what the query token is, and what the key token
is. It must hold for every arc. Hypotheses are ranked by the bits that it takes to write them down and then to point out
each arc among the pairs of its example that match:

    bits = bits of the conditions + Σ_arcs log₂(matching pairs in the arc's example)

so one arc is best told by something simple, many arcs by what they have in common, and a rare word costs as much as it
narrows down. (This is minimum description length; the second term is the "size principle" of Tenenbaum 1999.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from ..errors import ConfigError, NotFoundError, PatternError
from ..patterns import LIBRARY, LibraryPattern, Pattern, Vocabulary
from ..patterns.matching import Matcher
from ..patterns.segment_matcher import segment_matcher
from ..patterns.token_fields import word_field_names
from ..patterns.tree import value_text
from ..reading.snapshot import Snapshot
from ..schema.token_table import Column, TokenTable
from ..schema.traces import Site

MAX_ARCS = 64
MAX_VALUES = 3
"""So many different texts or annotations at the arcs' ends make a set if there are two arcs or more for each; else they are
no class, but a list of what was marked."""
_MAX_PAIRS = 1 << 21  # matches of a relation in one example; what has more says little
_TOKEN_CLASSES = (
    '{side}.text matches "^[[:punct:]]+$"',
    '{side}.text matches "^[0-9.,]*[0-9]$"',
    '{side}.text matches "^\\p{{Lu}}"',
    "{side}.continuation",
    "{side}.special",
)
_POINTERS = ("head", "antecedent")
_ARC = re.compile(r"(?:(?P<example>.+):)?(?P<query>[0-9]{1,9})>(?P<key>[0-9]{1,9})")


class Arc(NamedTuple):
    """From a query position to a key position of an example (its number)."""

    example: int
    query: int
    key: int


@dataclass(frozen=True)
class Hypothesis:
    """An expression that holds for all arcs."""

    expression: str
    bits: float
    n_matches: int
    """Pairs of the marked examples that it matches, the arcs among them."""


@dataclass(frozen=True)
class _Condition:
    text: str
    bits: float


def parse_arcs(store: Snapshot, written: str | Iterable[str]) -> list[Arc]:
    """Read ``12:5>2 7>4``: example (number or id), query position, key position; the example holds for what follows.

    Raises
    ------
    ConfigError
        Something else is written.
    NotFoundError
        There is no such example.
    """
    arcs: list[Arc] = []
    number: int | None = None
    words = written.replace(",", " ").split() if isinstance(written, str) else [w for part in written for w in part.replace(",", " ").split()]  # fmt: skip
    for word in words:
        match = _ARC.fullmatch(word)
        if match is None and ">" not in word:
            number = _example(store, word)
            continue
        if match is None or (match["example"] is None and number is None):
            raise ConfigError(
                f"{word!r} is no arc; expected EXAMPLE:QUERY>KEY such as 12:5>2, two positions of tokens of example 12"
            )
        if match["example"] is not None:
            number = _example(store, match["example"])
        assert number is not None
        arcs.append(Arc(number, int(match["query"]), int(match["key"])))
    if not 0 < len(arcs) <= MAX_ARCS:
        raise ConfigError(f"{len(arcs)} arcs; expected 1 to {MAX_ARCS}, such as 12:5>2 12:7>4")
    return list(dict.fromkeys(arcs))


def _example(store: Snapshot, name: str) -> int:
    if name.isdecimal():
        return store.examples[int(name)].index
    return store.examples[name].index


def check_arcs(store: Snapshot, site: Site, arcs: Sequence[Arc]) -> None:
    """Check that each arc lies in its example, and that the site lets it be.

    Raises
    ------
    NotFoundError
        A position is outside its example.
    ConfigError
        There is none, or a causal site hides the key.
    """
    if not arcs:
        raise ConfigError("no arc; expected at least one, such as 12:5>2")
    for arc in arcs:
        example = store.examples[arc.example]
        for name, position, sequence in (
            ("query", arc.query, site.query_sequence),
            ("key", arc.key, site.key_sequence),
        ):
            n = len(example.tokens(sequence))
            if not 0 <= position < n:
                raise NotFoundError(f"example {arc.example} has no {name} position {position}; it has 0:{n}")
        if site.causal and arc.key > arc.query:
            raise ConfigError(
                f"{arc.example}:{arc.query}>{arc.key}: at site {site.name} no token sees what comes after it; "
                "expected a key position that is not after the query's"
            )


def hypotheses(
    store: Snapshot,
    site: Site,
    vocabulary: Vocabulary,
    arcs: Sequence[Arc],
    library: Mapping[str, LibraryPattern] = LIBRARY,
) -> list[Hypothesis]:
    """Expressions that hold for every arc, the fewest bits first; reads tokens of the marked examples alone."""
    marked = [_Marked.of(store, site, number, arcs) for number in dict.fromkeys(arc.example for arc in arcs)]
    view = _View(store, site, vocabulary, library, marked)
    relations = [_Relation(c, pairs) for c in view.relations() if (pairs := view.pairs(c.text)) is not None]
    at_query = [(c, view.tokens(c.text, "query")) for c in view.ends("query")]
    at_key = [(c, view.tokens(c.text, "key")) for c in view.ends("key")]
    found: dict[str, Hypothesis] = {}
    for relation in (None, *relations):
        for query in (None, *at_query):
            for key in (None, *at_key):
                if relation is None and key is None:
                    continue  # what the query is says nothing about where it looks
                parts = [p for p in (relation and relation.condition, query and query[0], key and key[0]) if p]
                counts = view.count(relation, query and query[1], key and key[1])
                # A condition that takes no pair away says nothing of these arcs.
                if query and counts == view.count(relation, None, key and key[1]):
                    continue
                if key and relation and counts == view.count(relation, query and query[1], None):
                    continue
                bits = sum(part.bits for part in parts)
                bits += sum(len(m.query) * math.log2(n) for m, n in zip(marked, counts, strict=True))
                text = " and ".join(part.text for part in parts)
                found[text] = Hypothesis(text, bits, sum(counts))
    return sorted(found.values(), key=lambda h: (h.bits, len(h.expression)))


@dataclass(frozen=True)
class _Marked:
    """One example with its arcs."""

    number: int
    queries: TokenTable
    keys: TokenTable
    query: Int64[np.ndarray, "arc"]
    key: Int64[np.ndarray, "arc"]

    @staticmethod
    def of(store: Snapshot, site: Site, number: int, arcs: Sequence[Arc]) -> _Marked:
        example = store.examples[number]
        here = [arc for arc in arcs if arc.example == number]
        query, key = np.array([a.query for a in here], np.int64), np.array([a.key for a in here], np.int64)
        return _Marked(number, example.tokens(site.query_sequence), example.tokens(site.key_sequence), query, key)

    @property
    def words(self) -> tuple[Int64[np.ndarray, "arc"], Int64[np.ndarray, "arc"]]:
        """The words at the arcs' ends; -1 for a special token."""
        return self.queries.word[self.query].astype(np.int64), self.keys.word[self.key].astype(np.int64)


@dataclass(frozen=True)
class _Relation:
    condition: _Condition
    pairs: list[tuple[np.ndarray, np.ndarray]]
    """Query and key positions of its matches, one entry a marked example."""


class _View:
    """The marked examples, and what may be said of them."""

    def __init__(
        self,
        store: Snapshot,
        site: Site,
        vocabulary: Vocabulary,
        library: Mapping[str, LibraryPattern],
        marked: Sequence[_Marked],
    ) -> None:
        self.store, self.site, self.vocabulary, self.library, self.marked = store, site, vocabulary, library, marked
        self.one_text = site.query_sequence == site.key_sequence

    def matchers(self, text: str) -> list[Matcher] | None:
        """Of each marked example; None where the store cannot be asked this."""
        try:
            pattern = Pattern.parse(text, self.library)
            pattern.check(self.vocabulary)
        except PatternError:
            return None
        made = []
        for m in self.marked:
            segment = self.store.segment_of(m.number)
            row = m.number - segment.first_example
            made.append(segment_matcher(segment, self.site, pattern, self.vocabulary, row))
        return made

    def pairs(self, text: str) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """Positions of a relation's matches in each example; None where an arc is not among them, or they are too many."""
        found = []
        for m, matcher in zip(self.marked, self.matchers(text) or [], strict=False):
            blocks, n_pairs = [], 0
            for matches in matcher:
                blocks.append(matches)
                n_pairs += len(matches)
                if n_pairs > _MAX_PAIRS:
                    return None
            pair = matcher.row_start[m.query] + m.key
            if not blocks or not np.isin(pair, np.concatenate([b.pair for b in blocks])).all():
                return None
            query, key = matcher.evaluator.query.position, matcher.evaluator.key.position
            places = (np.concatenate([query[b.query] for b in blocks]), np.concatenate([key[b.key] for b in blocks]))
            found.append(places)
        return found or None

    def tokens(self, text: str, side: str) -> list[Bool[np.ndarray, "_token"]]:
        """Which tokens of each example an end's condition holds for."""
        matchers = self.matchers(text)
        assert matchers is not None, text
        made = []
        for m, matcher in zip(self.marked, matchers, strict=True):
            n = len(m.queries if side == "query" else m.keys)
            node = Pattern.parse(text, self.library).node
            made.append(np.broadcast_to(matcher.evaluator.condition(node), (n,)))
        return made

    def count(
        self,
        relation: _Relation | None,
        at_query: list[Bool[np.ndarray, "_token"]] | None,
        at_key: list[Bool[np.ndarray, "_token"]] | None,
    ) -> list[int]:
        """Pairs of each example for which all three hold."""
        counts = []
        for index, m in enumerate(self.marked):
            rows = np.ones(len(m.queries), bool) if at_query is None else at_query[index]
            keys = np.ones(len(m.keys), bool) if at_key is None else at_key[index]
            if relation is not None:
                q, k = relation.pairs[index]
                counts.append(int((rows[q] & keys[k]).sum()))
            elif self.site.causal:
                counts.append(int(np.cumsum(keys)[rows].sum()))
            else:
                counts.append(int(rows.sum()) * int(keys.sum()))
        return counts

    def relations(self) -> list[_Condition]:
        """How query and key may be related, as far as the arcs' positions and words allow."""
        found = [*self._distances(), *self._named(), *self._shared(), *self._pointed()]
        bits = math.log2(max(2, len(found)))
        return [_Condition(c.text, c.bits + bits) for c in found]

    def _distances(self) -> Iterator[_Condition]:
        if not self.one_text:
            return
        apart = np.concatenate([m.key - m.query for m in self.marked])
        steps = set(apart.tolist())
        if len(steps) == 1:
            yield _offset("position", steps.pop())
        if (apart < 0).all():
            yield _Condition("key.position < query.position", 0)
        if (apart > 0).all():
            yield _Condition("key.position > query.position", 0)
        words = [m.words for m in self.marked]
        if all((a >= 0).all() and (b >= 0).all() for a, b in words):
            steps = {step for a, b in words for step in (b - a).tolist()}
            if len(steps) == 1:
                yield _offset("word", steps.pop())

    def _named(self) -> Iterator[_Condition]:
        for name, pattern in self.library.items():
            if not pattern.parameters and name not in ("previous_token", "next_token", "self_token"):
                yield _Condition(name, 0)

    def _shared(self) -> Iterator[_Condition]:
        yield _Condition("key.lower == query.lower and key.position != query.position", 0)
        for field in self._text_fields("query"):
            if field in self._text_fields("key"):
                yield _Condition(f"key.{field} == query.{field} and key.word != query.word", 0)

    def _pointed(self) -> Iterator[_Condition]:
        for field in _POINTERS:
            if field != "head" and field in self.vocabulary.query and field in self.vocabulary.key:
                yield _Condition(f"key.word == query.{field}", 0)
                yield _Condition(f"key.{field} == query.word", 0)

    def _text_fields(self, side: str) -> list[str]:
        table = self.marked[0].queries if side == "query" else self.marked[0].keys
        return [
            field for field, name in word_field_names(table.word_columns).items() if table.word_columns[name].is_text
        ]

    def ends(self, side: str) -> list[_Condition]:
        """What the tokens at one end of all arcs have in common."""
        found = [c for c in (*self._classes(side), *self._annotated(side), *self._spelled(side)) if c is not None]
        bits = math.log2(max(2, len(found)))
        return [_Condition(c.text, c.bits + bits) for c in found]

    def _classes(self, side: str) -> Iterator[_Condition]:
        for form in _TOKEN_CLASSES:
            text = form.format(side=side)
            holds = self.tokens(text, side)
            places = [m.query if side == "query" else m.key for m in self.marked]
            if all(truth[at].all() for truth, at in zip(holds, places, strict=True)):
                yield _Condition(text, 1)

    def _annotated(self, side: str) -> Iterator[_Condition | None]:
        for field in self._text_fields(side):
            yield self._one_of(side, field, lambda m, f=field: self._column(m, side, f))

    def _column(self, marked: _Marked, side: str, field: str) -> tuple[Column, np.ndarray]:
        """An annotation of words, and the rows at the arcs' ends."""
        table = marked.queries if side == "query" else marked.keys
        name = word_field_names(table.word_columns).get(field)
        column = table.word_columns[name] if name else Column.of_text([None] * int(table.word_offset[-1]))
        return column, marked.words[side == "key"]

    def _spelled(self, side: str) -> Iterator[_Condition | None]:
        def texts(m: _Marked) -> tuple[Column, np.ndarray]:
            return (m.queries.columns["text"], m.query) if side == "query" else (m.keys.columns["text"], m.key)

        yield self._one_of(side, "text", texts)

    def _one_of(
        self, side: str, field: str, column_of: Callable[[_Marked], tuple[Column, np.ndarray]]
    ) -> _Condition | None:
        """The condition that a field has one of the values at the arcs' ends; None where they are too many or missing."""
        values: dict[str, None] = {}
        n_known = 2
        for m in self.marked:
            column, rows = column_of(m)
            if column.values is None or (rows < 0).any():
                return None
            codes = column.data[rows]
            if (codes < 0).any():
                return None
            values |= dict.fromkeys(column.values[code] for code in codes.tolist())
            n_known = max(n_known, len(column.values))
        n_arcs = sum(len(m.query) for m in self.marked)
        if len(values) > MAX_VALUES or (len(values) > 1 and n_arcs < 2 * len(values)):
            return None
        listed = tuple(values)
        text = (
            f"{side}.{field} == {value_text(listed[0])}"
            if len(listed) == 1
            else f"{side}.{field} in {value_text(listed)}"
        )
        return _Condition(text, len(listed) * math.log2(n_known))


def _offset(field: str, step: int) -> _Condition:
    """The condition that the key is `step` tokens or words away; the further, the more bits, and tokens before words."""
    text = f"key.{field} == query.{field}" + (f" {'-' if step < 0 else '+'} {abs(step)}" if step else "")
    return _Condition(text, (3 if field == "word" else 1) + 2 * math.log2(abs(step) + 1))
