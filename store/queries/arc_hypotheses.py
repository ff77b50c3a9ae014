"""Hypotheses: patterns that hold for all arcs marked in examples, the likeliest first.

A hypothesis joins at most three conditions: one on the relation of the two tokens (a named pattern, a fixed distance in
tokens or words, a word that an annotation points at, the same text or annotation), one on the query token, and one on
the key token. It holds for every arc. Hypotheses are ranked by their description length, the bits that encode the
conditions and then each arc among the matching pairs of its example:

    bits = bits of the conditions + Σ_arcs log₂(matching pairs in the arc's example)

One arc is described best by a simple condition, many arcs by what they have in common. A rare word costs as many bits
as it saves. This is minimum description length; the second term is the "size principle" of Tenenbaum 1999.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from ..errors import PatternError
from ..patterns import LIBRARY, LibraryPattern, Pattern, Vocabulary
from ..patterns.matching import Matcher
from ..patterns.segment_matcher import segment_matcher
from ..patterns.token_fields import word_field_names
from ..patterns.tree import Reference, to_text, value_text
from ..reading.snapshot import Snapshot
from ..schema.token_table import POINTER_COLUMNS, Column, TokenTable
from ..schema.traces import Site
from .marked_arcs import Arc

MAX_VALUES = 3
"""Largest number of different texts or annotations at the ends of the arcs that form a condition. Each needs at least
two arcs; otherwise the set would only list the marked tokens."""
_MAX_PAIRS = 1 << 21  # largest number of matches of a relation in one example; a relation with more is too unspecific
_TOKEN_CLASSES = (
    '{side}.text matches "^[[:punct:]]+$"',
    '{side}.text matches "^[0-9.,]*[0-9]$"',
    '{side}.text matches "^\\p{{Lu}}"',
    "{side}.continuation",
    "{side}.special",
)


@dataclass(frozen=True)
class Hypothesis:
    """An expression that holds for all arcs."""

    expression: str
    bits: float
    n_matches: int
    """Number of pairs of the marked examples that it matches, including the arcs."""


@dataclass(frozen=True)
class _Condition:
    text: str
    bits: float


def hypotheses(
    store: Snapshot,
    site: Site,
    vocabulary: Vocabulary,
    arcs: Sequence[Arc],
    library: Mapping[str, LibraryPattern] = LIBRARY,
) -> list[Hypothesis]:
    """List the expressions that hold for every arc, fewest bits first. Only tokens of the marked examples are read."""
    examples = [_MarkedExample.of(store, site, number, arcs) for number in dict.fromkeys(arc.example for arc in arcs)]
    marked = _MarkedExamples(store, site, vocabulary, library, examples)
    relations = [
        _Relation(c, pairs) for c in marked.relation_conditions() if (pairs := marked.pairs(c.text)) is not None
    ]
    query_conditions = [(c, marked.tokens(c.text, "query")) for c in marked.end_conditions("query")]
    key_conditions = [(c, marked.tokens(c.text, "key")) for c in marked.end_conditions("key")]
    by_text: dict[str, Hypothesis] = {}
    for relation in (None, *relations):
        for query in (None, *query_conditions):
            for key in (None, *key_conditions):
                if relation is None and key is None:
                    continue  # a condition on the query alone does not restrict the key
                conditions = [c for c in (relation and relation.condition, query and query[0], key and key[0]) if c]
                counts = marked.count(relation, query and query[1], key and key[1])
                # A condition that removes no pair is superfluous.
                if query and counts == marked.count(relation, None, key and key[1]):
                    continue
                if key and relation and counts == marked.count(relation, query and query[1], None):
                    continue
                bits = sum(condition.bits for condition in conditions)
                bits += sum(len(m.query) * math.log2(n) for m, n in zip(examples, counts, strict=True))
                text = " and ".join(condition.text for condition in conditions)
                by_text[text] = Hypothesis(text, bits, sum(counts))
    return sorted(by_text.values(), key=lambda h: (h.bits, len(h.expression)))


@dataclass(frozen=True)
class _MarkedExample:
    """One example with its arcs."""

    number: int
    queries: TokenTable
    keys: TokenTable
    query: Int64[np.ndarray, "arc"]
    key: Int64[np.ndarray, "arc"]

    @staticmethod
    def of(store: Snapshot, site: Site, number: int, arcs: Sequence[Arc]) -> _MarkedExample:
        example = store.examples[number]
        own_arcs = [arc for arc in arcs if arc.example == number]
        query, key = np.array([a.query for a in own_arcs], np.int64), np.array([a.key for a in own_arcs], np.int64)
        return _MarkedExample(
            number, example.tokens(site.query_sequence), example.tokens(site.key_sequence), query, key
        )

    @property
    def words(self) -> tuple[Int64[np.ndarray, "arc"], Int64[np.ndarray, "arc"]]:
        """Words at the ends of the arcs; -1 for a special token."""
        return self.queries.word[self.query].astype(np.int64), self.keys.word[self.key].astype(np.int64)


@dataclass(frozen=True)
class _Relation:
    condition: _Condition
    pairs: list[tuple[np.ndarray, np.ndarray]]
    """Query and key positions of its matches, one entry for each marked example."""


class _MarkedExamples:
    """The marked examples, and the conditions that hold for their arcs."""

    def __init__(
        self,
        store: Snapshot,
        site: Site,
        vocabulary: Vocabulary,
        library: Mapping[str, LibraryPattern],
        examples: Sequence[_MarkedExample],
    ) -> None:
        self.store, self.site, self.vocabulary, self.library, self.examples = store, site, vocabulary, library, examples
        self.one_text = site.query_sequence == site.key_sequence

    def matchers(self, text: str) -> list[Matcher] | None:
        """Create a matcher for each marked example; None if the expression does not fit the store."""
        try:
            pattern = Pattern.parse(text, self.library)
            pattern.check(self.vocabulary)
        except PatternError:
            return None
        matchers = []
        for m in self.examples:
            segment = self.store.segment_of(m.number)
            row = m.number - segment.first_example
            matchers.append(segment_matcher(segment, self.site, pattern, self.vocabulary, row))
        return matchers

    def pairs(self, text: str) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """Return the positions of a relation's matches in each example; None if it misses an arc or has too many."""
        positions = []
        for m, matcher in zip(self.examples, self.matchers(text) or [], strict=False):
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
            positions.append(
                (np.concatenate([query[b.query] for b in blocks]), np.concatenate([key[b.key] for b in blocks]))
            )
        return positions or None

    def tokens(self, text: str, side: str) -> list[Bool[np.ndarray, "_token"]]:
        """Return a mask of the tokens of each example for which the condition of one end holds."""
        matchers = self.matchers(text)
        assert matchers is not None, text
        masks = []
        for m, matcher in zip(self.examples, matchers, strict=True):
            n = len(m.queries if side == "query" else m.keys)
            node = Pattern.parse(text, self.library).node
            masks.append(np.broadcast_to(matcher.evaluator.condition(node), (n,)))
        return masks

    def count(
        self,
        relation: _Relation | None,
        query_masks: list[Bool[np.ndarray, "_token"]] | None,
        key_masks: list[Bool[np.ndarray, "_token"]] | None,
    ) -> list[int]:
        """Count the pairs of each example for which all three conditions hold."""
        counts = []
        for index, m in enumerate(self.examples):
            rows = np.ones(len(m.queries), bool) if query_masks is None else query_masks[index]
            keys = np.ones(len(m.keys), bool) if key_masks is None else key_masks[index]
            if relation is not None:
                q, k = relation.pairs[index]
                counts.append(int((rows[q] & keys[k]).sum()))
            elif self.site.causal:
                counts.append(int(np.cumsum(keys)[rows].sum()))
            else:
                counts.append(int(rows.sum()) * int(keys.sum()))
        return counts

    def relation_conditions(self) -> list[_Condition]:
        """List conditions on the relation of query and key that fit the positions and words of the arcs."""
        conditions = [
            *self._distance_conditions(),
            *self._named_conditions(),
            *self._equality_conditions(),
            *self._pointer_conditions(),
        ]
        bits = math.log2(max(2, len(conditions)))
        return [_Condition(c.text, c.bits + bits) for c in conditions]

    def _distance_conditions(self) -> Iterator[_Condition]:
        if not self.one_text:
            return
        distance = np.concatenate([m.key - m.query for m in self.examples])
        steps = set(distance.tolist())
        if len(steps) == 1:
            yield _offset("position", steps.pop())
        if (distance < 0).all():
            yield _Condition("key.position < query.position", 0)
        if (distance > 0).all():
            yield _Condition("key.position > query.position", 0)
        words = [m.words for m in self.examples]
        if all((a >= 0).all() and (b >= 0).all() for a, b in words):
            steps = {step for a, b in words for step in (b - a).tolist()}
            if len(steps) == 1:
                yield _offset("word", steps.pop())

    def _named_conditions(self) -> Iterator[_Condition]:
        for name, pattern in self.library.items():
            if not pattern.parameters and name not in ("previous_token", "next_token", "self_token"):
                yield _Condition(name, 0)

    def _equality_conditions(self) -> Iterator[_Condition]:
        yield _Condition("key.lower == query.lower and key.position != query.position", 0)
        for field in self._text_fields("query"):
            if field in self._text_fields("key"):
                key, query = to_text(Reference("key", field)), to_text(Reference("query", field))
                yield _Condition(f"{key} == {query} and key.word != query.word", 0)

    def _pointer_conditions(self) -> Iterator[_Condition]:
        for field in POINTER_COLUMNS:
            if field != "head" and field in self.vocabulary.query and field in self.vocabulary.key:
                yield _Condition(f"key.word == query.{field}", 0)
                yield _Condition(f"key.{field} == query.word", 0)

    def _text_fields(self, side: str) -> list[str]:
        table = self.examples[0].queries if side == "query" else self.examples[0].keys
        return [
            field for field, name in word_field_names(table.word_columns).items() if table.word_columns[name].is_text
        ]

    def end_conditions(self, side: str) -> list[_Condition]:
        """List conditions that the tokens at one end of all arcs have in common."""
        conditions = [
            *self._class_conditions(side),
            *(c for c in (*self._annotation_conditions(side), self._text_condition(side)) if c is not None),
        ]
        bits = math.log2(max(2, len(conditions)))
        return [_Condition(c.text, c.bits + bits) for c in conditions]

    def _class_conditions(self, side: str) -> Iterator[_Condition]:
        for form in _TOKEN_CLASSES:
            text = form.format(side=side)
            holds = self.tokens(text, side)
            ends = [m.query if side == "query" else m.key for m in self.examples]
            if all(mask[positions].all() for mask, positions in zip(holds, ends, strict=True)):
                yield _Condition(text, 1)

    def _annotation_conditions(self, side: str) -> Iterator[_Condition | None]:
        for field in self._text_fields(side):
            yield self._value_condition(side, field, lambda m, f=field: self._column(m, side, f))

    def _column(self, marked: _MarkedExample, side: str, field: str) -> tuple[Column, np.ndarray]:
        """Return an annotation of words and its rows at the ends of the arcs."""
        table = marked.queries if side == "query" else marked.keys
        name = word_field_names(table.word_columns).get(field)
        column = table.word_columns[name] if name else Column.of_text([None] * int(table.word_offset[-1]))
        return column, marked.words[side == "key"]

    def _text_condition(self, side: str) -> _Condition | None:
        def texts(m: _MarkedExample) -> tuple[Column, np.ndarray]:
            return (m.queries.columns["text"], m.query) if side == "query" else (m.keys.columns["text"], m.key)

        return self._value_condition(side, "text", texts)

    def _value_condition(
        self, side: str, field: str, column_of: Callable[[_MarkedExample], tuple[Column, np.ndarray]]
    ) -> _Condition | None:
        """Return the condition that a field has one of the values at the ends of the arcs.

        None if a value is missing or there are too many.
        """
        values: dict[str, None] = {}
        n_values = 2
        for m in self.examples:
            column, rows = column_of(m)
            if column.values is None or (rows < 0).any():
                return None
            codes = column.data[rows]
            if (codes < 0).any():
                return None
            values |= dict.fromkeys(column.values[code] for code in codes.tolist())
            n_values = max(n_values, len(column.values))
        n_arcs = sum(len(m.query) for m in self.examples)
        if len(values) > MAX_VALUES or (len(values) > 1 and n_arcs < 2 * len(values)):
            return None
        value_list = tuple(values)
        name = to_text(Reference("query" if side == "query" else "key", field))
        text = (
            f"{name} == {value_text(value_list[0])}" if len(value_list) == 1 else f"{name} in {value_text(value_list)}"
        )
        return _Condition(text, len(value_list) * math.log2(n_values))


def _offset(field: str, step: int) -> _Condition:
    """Return the condition that the key is `step` tokens or words away. Long steps and steps in words cost more bits."""
    text = f"key.{field} == query.{field}" + (f" {'-' if step < 0 else '+'} {abs(step)}" if step else "")
    return _Condition(text, (3 if field == "word" else 1) + 2 * math.log2(abs(step) + 1))
