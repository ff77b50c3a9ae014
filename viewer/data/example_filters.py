"""Which examples a reader means: with a text, with annotations, of one minimal pair; and what annotations hold.

Functions of a store, without a cache; `data.DataSource` keeps their answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from headatlas.store.errors import HeadAtlasError
from headatlas.store.patterns.token_fields import word_field_names
from headatlas.store.schema.token_table import Column
from headatlas.store.store import Store

from ..theme.token_labels import visible

MAX_VALUES = 24
"""Values of a field that are proposed."""


def sound(store: Store) -> tuple[Store, tuple[str, ...]]:
    """The store without segments that are damaged, and what is wrong with those."""
    damaged: dict[int, str] = {}
    for segment in store.segments:
        try:
            segment.listing  # noqa: B018 (reads it, and looks at every object)
        except HeadAtlasError as error:
            damaged[segment.index] = str(error)
    return (store.without(damaged) if damaged else store), tuple(damaged.values())


def containing(texts: Sequence[str], ids: Sequence[str], text: str) -> Int64[np.ndarray, "found"]:
    """Positions of the examples whose text or id contains `text`, upper and lower case alike."""
    if not text:
        return np.arange(len(ids), dtype=np.int64)
    wanted = text.casefold()
    pairs = zip(texts, ids, strict=True)
    hits = [i for i, (body, name) in enumerate(pairs) if wanted in body.casefold() or wanted in name.casefold()]
    return np.asarray(hits, np.int64)


def having(columns: Mapping[str, Column], n_examples: int, facets: Mapping[str, str]) -> Int64[np.ndarray, "found"]:
    """Positions of the examples whose annotations, made visible, have these values."""
    keep = np.ones(n_examples, bool)
    for name, value in facets.items():
        column = columns.get(name)
        if column is None or column.values is None:
            keep[:] = False
            continue
        codes = [code for code, text in enumerate(column.values) if visible(text) == value]
        keep &= np.isin(column.data, codes)
    return np.flatnonzero(keep).astype(np.int64)


def pair_groups(numbers: Int64[np.ndarray, "example"], column: Column) -> dict[object, list[int]]:
    """Numbers of the examples by the value of one annotation."""
    groups: dict[object, list[int]] = {}
    for number, value in zip(numbers.tolist(), column.to_list(), strict=True):
        groups.setdefault(value, []).append(number)
    return groups


def frequent_values(store: Store, sequence: str) -> dict[str, list[tuple[str, int]]]:
    """The most frequent values of each annotation of words that is text, every character visible, with counts."""
    counts: dict[str, Counter[str]] = {}
    for segment in store.segments:
        columns = segment.tokens(sequence).word_columns
        for field, name in word_field_names(columns).items():
            column = columns[name]
            if column.values is not None:
                numbers = np.bincount(column.data[column.data >= 0], minlength=len(column.values))
                counter = counts.setdefault(field, Counter())
                counter.update(dict(zip(column.values, numbers.tolist(), strict=True)))
    return {field: [(visible(v), n) for v, n in found.most_common(MAX_VALUES)] for field, found in counts.items()}


def sampled(ranked: Int64[np.ndarray, "example"], sample: str, n: int) -> Int64[np.ndarray, "chosen"]:
    """At most `n` of a ranking: its ends, `n` at even steps (as many of each tenth), or `n` drawn once and for all.

    ``weakest`` begins with the weakest; the others keep the order of the ranking.
    """
    if sample == "weakest":
        return ranked[::-1][:n]
    if sample == "strongest" or len(ranked) <= n:
        return ranked[:n]
    if sample == "deciles":
        return ranked[((np.arange(n) + 0.5) * len(ranked) / n).astype(np.int64)]
    return ranked[np.sort(np.random.default_rng(0).choice(len(ranked), n, replace=False))]
