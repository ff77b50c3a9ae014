"""Pairs of the rows that have a matching key, grouped into strata of exchangeable keys; expected masses of nulls.

A stratum is a set of visible keys of one row. If the pattern's labels say nothing about the head, every key of a
stratum is equally likely to be one of its matching keys, so the difference between the mass on the matching keys and
the expected mass has the mean 0 in every row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, Num

from ...patterns.regex import matching_texts
from ...patterns.token_fields import TokenFields
from ...schema.token_table import TokenTable

FIRST, SPECIAL, PUNCTUATION, OTHER, NO_WORD, SELF, OWN_WORD = range(7)
"""Classes of keys. Tokens without a word, the row's own token and the other tokens of its word are three: many patterns
always or never have them."""
N_CLASSES = 7
_MARKS = r"^[\pP\pS]+$"
_OFFSET_LIMIT = 8
_OFFSET_EDGES = np.array([9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 1025, 2049, 4097])
_DISTANCE_EDGES = np.array([1, 3, 5, 9, 17, 33, 65, 129, 257, 513, 1025, 2049, 4097])
_SIDE = _OFFSET_LIMIT + len(_OFFSET_EDGES)
N_BINS = 2 * _SIDE + 1
"""Number of bins of offsets: each offset up to 8, and ranges beyond."""


def key_classes(keys: TokenFields) -> Int64[np.ndarray, "key_token"]:
    """Return the class of each key token of a segment: first, special, punctuation, without a word, or other.

    In a segment without any word no token is in the class of tokens without a word.
    """
    text = keys.values("text")
    is_mark = np.append(matching_texts(_MARKS, text.texts) if text.texts else np.zeros(0, bool), False)
    classes = np.where(is_mark[text.data], PUNCTUATION, OTHER)
    if (keys.table.word >= 0).any():
        classes[keys.table.word < 0] = NO_WORD
    classes[keys.values("special").data] = SPECIAL
    classes[keys.position == 0] = FIRST
    return classes


def put_own_classes(
    key_class: Int64[np.ndarray, "pair"],
    table: TokenTable,
    query: Int64[np.ndarray, "pair"],
    key: Int64[np.ndarray, "pair"],
) -> Int64[np.ndarray, "pair"]:
    """Return the classes of pairs within one text, with those of the row's own token and its own word.

    `query` and `key` are tokens of the table. Each pair is one of the same example.
    """
    word = table.word
    is_own_word = (word[query] == word[key]) & (word[query] >= 0)
    return np.where(query == key, SELF, np.where(is_own_word, OWN_WORD, key_class))


def offset_bins(offset: Int64[np.ndarray, "pair"]) -> Int64[np.ndarray, "pair"]:
    """Return the bin of each offset (key position − query position)."""
    distance = np.abs(offset)
    size = np.where(
        distance <= _OFFSET_LIMIT, distance, _OFFSET_LIMIT + np.searchsorted(_OFFSET_EDGES, distance, "right")
    )
    return _SIDE + np.sign(offset) * size


def distance_bins(offset: Int64[np.ndarray, "pair"]) -> Int64[np.ndarray, "pair"]:
    """Return a coarser bin, in which adjacent keys of one side share a stratum: 0, 1 to 2, 3 to 4, 5 to 8 and so on."""
    size = np.searchsorted(_DISTANCE_EDGES, np.abs(offset), "right")
    return len(_DISTANCE_EDGES) + np.sign(offset) * size


@dataclass(frozen=True)
class RowPairs:
    """All pairs of some rows; rows and examples ascend."""

    example: Int64[np.ndarray, "row"]
    """Column of each row's example in the answer."""
    row: Int64[np.ndarray, "pair"]
    cell: Int64[np.ndarray, "pair"]
    """Index of each pair in the weights of its block."""
    offset: Int64[np.ndarray, "pair"]
    key_class: Int64[np.ndarray, "pair"]
    is_match: Bool[np.ndarray, "pair"]

    def select(self, pairs: Bool[np.ndarray, "pair"]) -> RowPairs:
        """Select pairs."""
        columns = (self.row, self.cell, self.offset, self.key_class, self.is_match)
        return RowPairs(self.example, *(column[pairs] for column in columns))

    def with_classes(self, classes: Int64[np.ndarray, "old_class"]) -> RowPairs:
        """Rename the classes of keys."""
        return RowPairs(self.example, self.row, self.cell, self.offset, classes[self.key_class], self.is_match)


@dataclass(frozen=True)
class Strata:
    """The pairs of strata with a matching key, stratum by stratum."""

    pairs: RowPairs
    start: Int64[np.ndarray, "stratum"]
    """Index of each stratum's first pair."""
    n_keys: Int64[np.ndarray, "stratum"]
    n_matches: Int64[np.ndarray, "stratum"]
    first: Int64[np.ndarray, "example"]
    """Index of the first stratum of each example that has one."""
    example: Int64[np.ndarray, "example"]
    """Column of these examples."""

    @staticmethod
    def of(pairs: RowPairs, stratum: Int[np.ndarray, "pair"], *, with_controls: bool = False) -> Strata:
        """Group pairs by row and stratum, a small number.

        Strata without a matching key are left out; `with_controls` also leaves out those without any other key.
        """
        n_strata = int(stratum.max(initial=0)) + 1
        code = pairs.row * n_strata + stratum
        order = np.argsort(code, kind="stable")
        code = code[order]
        start = np.flatnonzero(np.diff(code, prepend=-1))
        group = np.cumsum(np.diff(code, prepend=-1) != 0) - 1
        n_matches = np.bincount(group, pairs.is_match[order], len(start)).astype(np.int64)
        n_keys = np.bincount(group, minlength=len(start))
        is_used = (n_matches > 0) & (n_keys > n_matches if with_controls else True)
        order = order[is_used[group]]
        n_keys, n_matches = n_keys[is_used], n_matches[is_used]
        used = RowPairs(
            pairs.example, *(getattr(pairs, n)[order] for n in ("row", "cell", "offset", "key_class", "is_match"))
        )
        start = np.cumsum(n_keys) - n_keys
        example = pairs.example[used.row[start]]
        first = np.flatnonzero(np.diff(example, prepend=-1))
        return Strata(used, start, n_keys, n_matches, first, example[first])

    def sums(self, weights: Num[np.ndarray, "head pair"]) -> Float[np.ndarray, "head stratum"]:
        """Add up the weights of each stratum."""
        return np.add.reduceat(weights, self.start, axis=1, dtype=np.float64)

    def of_examples(self, values: Float[np.ndarray, "head stratum"]) -> Float[np.ndarray, "head example"]:
        """Add up the strata of each example."""
        return np.add.reduceat(values, self.first, axis=1)


Masses = tuple[Float[np.ndarray, "head example"], Float[np.ndarray, "head example"]]
"""Observed and expected mass of each example of the strata, summed over its rows."""


def habit_mass(
    strata: Strata, weights: Float[np.ndarray, "head cell"], profile: Float[np.ndarray, "head bin_of_pair"]
) -> Masses:
    """Spread the mass of each stratum over its keys in proportion to `profile`, which has one number for each pair.

    A stratum whose profile is 0 everywhere is spread evenly.
    """
    attention = weights[:, strata.pairs.cell]
    match = strata.pairs.is_match
    matching, total = strata.sums(profile * match), strata.sums(profile)
    even = np.broadcast_to(strata.n_matches / strata.n_keys, total.shape)
    share = np.divide(matching, total, out=even.copy(), where=total > 0)
    expected = strata.sums(attention) * share
    return strata.of_examples(strata.sums(attention * match)), strata.of_examples(expected)


def label_mass(strata: Strata, weights: Float[np.ndarray, "head cell"]) -> Masses:
    """Compute the mean mass over all ways to place the labels of a stratum on its keys."""
    attention = weights[:, strata.pairs.cell]
    expected = strata.sums(attention) * (strata.n_matches / strata.n_keys)
    return strata.of_examples(strata.sums(attention * strata.pairs.is_match)), strata.of_examples(expected)


def matched_mass(strata: Strata, weights: Float[np.ndarray, "head cell"]) -> Masses:
    """Compute the mass that the matching keys would have if each had the mean weight of its stratum's other keys.

    `strata` must have other keys (`with_controls`).
    """
    attention = weights[:, strata.pairs.cell]
    observed = strata.sums(attention * strata.pairs.is_match)
    controls = np.maximum(strata.sums(attention) - observed, 0)
    expected = controls * (strata.n_matches / (strata.n_keys - strata.n_matches))
    return strata.of_examples(observed), strata.of_examples(expected)


def sink_free_mass(strata: Strata, weights: Float[np.ndarray, "head cell"]) -> Masses:
    """Compare the share of each stratum's mass on matching keys with their share of its keys.

    The strata are rows without sinks. A row without any mass counts in neither number.
    """
    attention = weights[:, strata.pairs.cell]
    total = strata.sums(attention)
    observed = np.divide(
        strata.sums(attention * strata.pairs.is_match), total, out=np.zeros(total.shape), where=total > 0
    )
    expected = np.where(total > 0, strata.n_matches / strata.n_keys, 0.0)
    return strata.of_examples(observed), strata.of_examples(expected)


def hit_mass(strata: Strata, weights: Float[np.ndarray, "head cell"]) -> Float[np.ndarray, "head example"]:
    """Count the rows of each example whose strongest key matches. The strata are whole rows."""
    attention = weights[:, strata.pairs.cell]
    strongest = np.maximum.reduceat(attention, strata.start, axis=1)
    matching = np.maximum.reduceat(np.where(strata.pairs.is_match, attention, -1), strata.start, axis=1)
    return strata.of_examples((matching >= strongest).astype(np.float64))


def merged_classes(pairs: list[RowPairs], share: float = 0.8) -> Int64[np.ndarray, "old_class"]:
    """Return the new number of each class, after classes that the pattern names itself were joined with the other keys.

    A class is named by a pattern that matches at least `share` of its keys: nothing is left within it to compare with.
    If the pattern matches nearly every ordinary key, all classes become one.
    """
    n_keys, n_matches = np.zeros(N_CLASSES), np.zeros(N_CLASSES)
    for part in pairs:
        n_keys += np.bincount(part.key_class, minlength=N_CLASSES)
        n_matches += np.bincount(part.key_class, part.is_match, minlength=N_CLASSES)
    is_named = n_matches >= share * np.maximum(n_keys, 1)
    if is_named[OTHER] and n_matches[OTHER] >= 0.99 * n_keys[OTHER]:
        return np.full(N_CLASSES, OTHER)
    is_named[SELF] = False
    return np.where(is_named, OTHER, np.arange(N_CLASSES))
