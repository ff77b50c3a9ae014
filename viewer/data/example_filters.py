"""Filters of examples: by text, by annotations, by minimal pair; and the frequent values of annotations.

The functions read a store and have no cache. `DataSource` caches their results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int64

from headatlas.store.errors import HeadAtlasError
from headatlas.store.patterns.token_fields import word_field_names
from headatlas.store.schema.token_table import Column
from headatlas.store.store import Store

from ..theme.token_labels import visible

MAX_VALUES = 24
"""Most values of a field that are suggested."""
CHECK_EXAMPLES = 256
"""Number of examples that are read between two calls of `check`."""


def without_damage(store: Store) -> tuple[Store, tuple[str, ...]]:
    """Return the store without its damaged segments, and one message for each of those."""
    damaged: dict[int, str] = {}
    for segment in store.segments:
        try:
            segment.listing  # noqa: B018 (reads the listing and checks every object)
        except HeadAtlasError as error:
            damaged[segment.index] = str(error)
    return (store.without(damaged) if damaged else store), tuple(damaged.values())


def containing(store: Store, text: str, check: Callable[[], None]) -> Int64[np.ndarray, "match"]:
    """Return the positions of the examples whose text or id contains `text`. Ignores case.

    The texts of one segment at a time are in memory. `check` is called often and raises an error to end the reading.
    """
    if not text:
        return np.arange(store.n_examples, dtype=np.int64)
    needle, positions, start = text.casefold(), list[int](), 0
    for segment in store.segments:
        check()
        for i, (body, name) in enumerate(zip(segment.texts(), segment.ids(), strict=True), start):
            if i % CHECK_EXAMPLES == 0:
                check()
            if needle in body.casefold() or needle in name.casefold():
                positions.append(i)
        start += segment.n_examples
    return np.asarray(positions, np.int64)


def having(columns: Mapping[str, Column], n_examples: int, facets: Mapping[str, str]) -> Int64[np.ndarray, "match"]:
    """Return the positions of the examples that have these values of annotations (`facets`, as visible text)."""
    is_match = np.ones(n_examples, bool)
    for name, value in facets.items():
        column = columns.get(name)
        if column is None or column.values is None:
            is_match[:] = False
            continue
        codes = [code for code, text in enumerate(column.values) if visible(text) == value]
        is_match &= np.isin(column.data, codes)
    return np.flatnonzero(is_match).astype(np.int64)


def pair_groups(numbers: Int64[np.ndarray, "example"], column: Column) -> dict[object, list[int]]:
    """Group the numbers of the examples by the value of one annotation."""
    groups: dict[object, list[int]] = {}
    for number, value in zip(numbers.tolist(), column.to_list(), strict=True):
        groups.setdefault(value, []).append(number)
    return groups


def frequent_values(store: Store, sequence: str) -> dict[str, list[tuple[str, int]]]:
    """Return the most frequent values of each text annotation of words with tokens, as (visible text, count)."""
    counts: dict[str, Counter[str]] = {}
    for segment in store.segments:
        table = segment.tokens(sequence)
        for field, name in word_field_names(table.word_columns).items():
            column = table.word_columns[name]
            if column.values is not None:
                codes = column.data[(column.data >= 0) & (table.word_rank >= 0)]
                numbers = np.bincount(codes, minlength=len(column.values))
                counter = counts.setdefault(field, Counter())
                counter.update(dict(zip(column.values, numbers.tolist(), strict=True)))
    return {field: [(visible(v), n) for v, n in counter.most_common(MAX_VALUES)] for field, counter in counts.items()}


def sample_ranking(ranked: Int64[np.ndarray, "example"], sample: str, n: int) -> Int64[np.ndarray, "item"]:
    """Return at most `n` items of a ranking.

    ``strongest`` and ``weakest`` are the ends of the ranking, ``deciles`` are items at even steps (equally many of each
    tenth), and ``random`` is a random sample with a fixed seed. ``weakest`` begins with the weakest item. The others
    keep the order of the ranking.
    """
    if sample == "weakest":
        return ranked[::-1][:n]
    if sample == "strongest" or len(ranked) <= n:
        return ranked[:n]
    if sample == "deciles":
        return ranked[((np.arange(n) + 0.5) * len(ranked) / n).astype(np.int64)]
    return ranked[np.sort(np.random.default_rng(0).choice(len(ranked), n, replace=False))]
