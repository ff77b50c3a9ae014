"""From arcs drawn on an example to expressions that say what they have in common.

A guess is put together from relations (the library, a fixed distance, before or after) and from what the tokens at both
ends share (annotations, text). It is kept if it matches every arc. What says how the two tokens are related comes before
what only describes them, and that before what spells them; among equals, what matches least besides comes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from headatlas.store.errors import HeadAtlasError
from headatlas.store.patterns import Pattern
from headatlas.store.patterns.fields import word_field_names
from headatlas.store.search.segment_tokens import segment_matcher
from headatlas.store.store import Example
from headatlas.store.tokens import TokenTable

from .data import DataSource

Arc = tuple[int, int]
MAX_ARCS = 12
MAX_GUESSES = 6
_MAX_TRIED = 160
_MAX_VALUES = 3
_SPELLED = re.compile(r"\.(text|form|lemma)\b")


@dataclass(frozen=True)
class Guess:
    """An expression that matches all arcs, and how many pairs of the example it matches."""

    expression: str
    n_matches: int


def guesses(data: DataSource, number: int, site_name: str, arcs: Sequence[Arc]) -> list[Guess]:
    """Expressions that match all `arcs` (query position, key position) of one example, the closest first."""
    if not arcs:
        return []
    site, example = data.site(site_name), data.example(number)
    queries, keys = example.tokens(site.query_sequence), example.tokens(site.key_sequence)
    tried: list[Guess] = []
    for expression in list(dict.fromkeys(_candidates(data, arcs, queries, keys)))[:_MAX_TRIED]:
        found = _matches(data, example, site_name, expression)
        if found is not None and set(arcs) <= found:
            tried.append(Guess(expression, len(found)))
    relations = set(_relations(data, arcs))
    simple = sorted((g for g in tried if g.expression in relations), key=lambda g: g.n_matches)
    others = (g for g in tried if g.expression not in relations)
    closer = sorted(others, key=lambda g: (len(_SPELLED.findall(g.expression)), g.n_matches, len(g.expression)))
    return [*simple[:2], *closer][:MAX_GUESSES]


def _matches(data: DataSource, example: Example, site_name: str, expression: str) -> set[Arc] | None:
    """Matching pairs of one example; None where the store cannot be asked this."""
    site, segment = data.site(site_name), example.segment
    try:
        pattern = Pattern.parse(expression)
        pattern.check(data.vocabulary(site_name))
        matcher = segment_matcher(segment, site, pattern, data.vocabulary(site_name), example.row)
        found = matcher.example(0)
    except HeadAtlasError:
        return None
    query, key = matcher.evaluator.query.position[found.query], matcher.evaluator.key.position[found.key]
    return set(zip(query.tolist(), key.tolist(), strict=True))


def _candidates(data: DataSource, arcs: Sequence[Arc], queries: TokenTable, keys: TokenTable) -> Iterator[str]:
    relations = list(_relations(data, arcs))
    at_query = list(_shared("query", queries, [q for q, _ in arcs]))
    at_key = list(_shared("key", keys, [k for _, k in arcs]))
    yield from relations
    ends = [*at_query, *at_key, *(f"{q} and {k}" for q in at_query for k in at_key)]
    yield from ends
    for relation in relations:
        yield from (f"{relation} and {end}" for end in ends)


def _relations(data: DataSource, arcs: Sequence[Arc]) -> Iterator[str]:
    distances = {key - query for query, key in arcs}
    if len(distances) == 1:
        step = distances.pop()
        sign = f"{'-' if step < 0 else '+'} {abs(step)}"
        yield f"key.position == query.position {sign}" if step else "key.position == query.position"
    for item in data.library.values():
        yield f"({item.expression})" if " or " in item.expression else item.expression
    if all(key < query for query, key in arcs):
        yield "key.position < query.position"
    if all(key > query for query, key in arcs):
        yield "key.position > query.position"


def _shared(side: str, tokens: TokenTable, positions: Sequence[int]) -> Iterator[str]:
    """What the tokens at one end have in common: an annotation's value, or their texts."""
    words = tokens.word[np.asarray(positions)]
    if (words >= 0).all():
        for field, name in word_field_names(tokens.word_columns).items():
            column = tokens.word_columns[name]
            if column.values is not None:
                yield from _one_of(f"{side}.{field}", (column.values[c] for c in column.data[words] if c >= 0))
    texts = tokens.text
    yield from _one_of(f"{side}.text", (texts[position] for position in positions))


def _one_of(field: str, given: Iterable[str]) -> Iterator[str]:
    values = list(dict.fromkeys(given))
    quoted = ['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]
    if len(values) == 1:
        yield f"{field} == {quoted[0]}"
    elif 1 < len(values) <= _MAX_VALUES:
        yield f"{field} in {{{', '.join(quoted)}}}"
