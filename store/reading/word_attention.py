"""Attention between words, merged from the attention between their tokens.

Columns are summed over the key word's tokens. Rows are averaged over the query word's tokens, or taken from its first
token. A word's row therefore sums to 1 minus the mass on special tokens. Special tokens and tokens without a word are
left out without renormalization. This is the merging of Clark et al. 2019. Their paper uses the mean and their released
code the first token; this module offers both. A word without a token (cut off, or part of a multi-word token) is neither
a row nor a column: words are numbered by `TokenTable.word_rank`. The result is flat: the word pairs of an example are
row-major (query word, key word), and the examples lie one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float64, Int64, Num

from ..errors import ConfigError
from ..schema.token_table import TokenTable
from ..schema.traces import Site
from .block_weights import closest_weights
from .segment import Segment

Merge = Literal["mean", "first"]


@dataclass(frozen=True)
class WordPairs:
    """Plan for merging the token pairs of consecutive examples to word pairs."""

    n_query_words: Int64[np.ndarray, "example"]
    n_key_words: Int64[np.ndarray, "example"]
    pair: Int64[np.ndarray, "kept_pair"]
    """Token pairs that count, ascending, relative to the first pair of the first example."""
    cell: Int64[np.ndarray, "kept_pair"]
    """Word pair of each token pair that counts."""
    row_start: Int64[np.ndarray, "query_token"]
    """Offset of each query token's row of pairs."""
    n_rows: Int64[np.ndarray, "query_word"]
    """Number of token rows that are averaged for each query word, at least 1."""

    @cached_property
    def start(self) -> Int64[np.ndarray, "boundary"]:
        """Offset of each example's word pairs."""
        sizes = self.n_query_words * self.n_key_words
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])

    @cached_property
    def row_length(self) -> Int64[np.ndarray, "query_word"]:
        """Number of key words of each query word's example."""
        return np.repeat(self.n_key_words, self.n_query_words)

    @cached_property
    def begin(self) -> Int64[np.ndarray, "query_word"]:
        """Offset of each query word's row on the axis of word pairs."""
        return np.cumsum(self.row_length) - self.row_length

    @cached_property
    def row_of_pair(self) -> Int64[np.ndarray, "word_pair"]:
        """Query word of each word pair, counted over all examples."""
        return np.repeat(np.arange(len(self.row_length)), self.row_length)

    def strongest(self, weights: Float64[np.ndarray, "word_pair"]) -> Int64[np.ndarray, "query_word"]:
        """Return the key word with the largest weight of each row, the first of equal ones; -1 if every weight is 0."""
        result = np.full(len(self.begin), -1, np.int64)
        if not len(weights):
            return result
        rows = np.flatnonzero(self.row_length)
        largest = np.zeros(len(self.begin))
        largest[rows] = np.maximum.reduceat(weights, self.begin[rows])
        maxima = np.flatnonzero(weights == largest[self.row_of_pair])
        row = self.row_of_pair[maxima]
        first = maxima[np.concatenate([[True], row[1:] != row[:-1]])]
        result[rows] = np.where(largest[rows] > 0, first - self.begin[rows], -1)
        return result

    def merge(self, attention: Num[np.ndarray, "head pair"]) -> Float64[np.ndarray, "head word_pair"]:
        """Merge decoded token pairs to word-to-word attention.

        Weights are summed first, then divided once. In float64 the sum is exact for all codecs of 8 and 16 bits.
        """
        merged = np.empty((len(attention), int(self.start[-1])))
        for row, weights in zip(merged, attention, strict=True):
            row[:] = np.bincount(self.cell, weights[self.pair], merged.shape[1])
        if self.n_rows.max(initial=1) > 1:
            merged /= np.repeat(self.n_rows, self.row_length)
        return merged


def word_pairs(
    query: TokenTable, key: TokenTable, *, causal: bool, merge: Merge = "mean", sink_free: bool = False
) -> WordPairs:
    """Plan the merge of the flat token pairs of the examples of two token tables.

    Within one text both tables are the same. With `sink_free` the mass on the first token of an example is left out
    too, like that on special tokens.

    Raises
    ------
    ConfigError
        `merge` is neither ``"mean"`` nor ``"first"``.
    """
    if merge not in get_args(Merge):
        raise ConfigError(f"merge is {merge!r}; expected 'mean' (average the word's rows) or 'first' (its first token)")
    n_query_words, n_key_words = query.n_words, key.n_words
    example = np.repeat(np.arange(query.n_examples), query.n_tokens)
    n_keys = (query.position + 1 if causal else key.n_tokens[example]).astype(np.int64)
    row_start = np.cumsum(n_keys) - n_keys
    first_cell = np.cumsum(n_query_words * n_key_words) - n_query_words * n_key_words
    rows = np.flatnonzero(query.token_rank >= 0)
    if merge == "first":
        rows = rows[np.unique(query.word_row[rows], return_index=True)[1]]
    first_word = np.cumsum(n_query_words) - n_query_words
    n_rows = np.bincount((first_word[example] + query.token_rank)[rows], minlength=int(n_query_words.sum()))
    row_cell = first_cell[example] + query.token_rank * n_key_words[example]
    length = n_keys[rows]
    row = np.repeat(rows, length)
    key_pos = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
    key_word = key.token_rank[key.token_offset[:-1][example[row]] + key_pos]
    counts = (key_word >= 0) & (key_pos > 0) if sink_free else key_word >= 0
    row, key_pos, key_word = row[counts], key_pos[counts], key_word[counts]
    return WordPairs(n_query_words, n_key_words, row_start[row] + key_pos, row_cell[row] + key_word, row_start, n_rows)


def segment_word_attention(
    segment: Segment, site: Site, layer: int, examples: range, plan: WordPairs
) -> Float64[np.ndarray, "head word_pair"]:
    """Compute word-to-word attention of all heads of a layer for consecutive examples of the segment.

    Weights that a sparse codec left out are 0 unless they can be rebuilt from query and key; see `closest_weights`.

    Raises
    ------
    NotFoundError
        Attention was not kept and cannot be rebuilt.
    """
    return plan.merge(closest_weights(segment, site, layer, examples, plan.row_start))


def plan_segment(
    segment: Segment, site: Site, examples: range, merge: Merge = "mean", *, sink_free: bool = False
) -> WordPairs:
    """Return the merge plan of consecutive examples of the segment. One plan is used for every layer."""
    query, key = (
        segment.tokens(name).examples(examples.start, examples.stop)
        for name in (site.query_sequence, site.key_sequence)
    )
    return word_pairs(query, key, causal=site.causal, merge=merge, sink_free=sink_free)


def example_blocks(
    pair_offset: Int64[np.ndarray, "boundary"], max_pairs: int, start: int = 0, stop: int | None = None
) -> Iterator[range]:
    """Yield ranges of the examples `start:stop` of a segment with at most `max_pairs` token pairs, or one example."""
    stop = len(pair_offset) - 1 if stop is None else stop
    while start < stop:
        end = int(np.searchsorted(pair_offset, pair_offset[start] + max_pairs, side="right")) - 1
        end = min(stop, max(start + 1, end))
        yield range(start, end)
        start = end


def merge_example(
    maps: Float[np.ndarray, "*lead query_pos key_pos"],
    query: TokenTable,
    key: TokenTable,
    merge: Merge = "mean",
    *,
    sink_free: bool = False,
) -> Float64[np.ndarray, "*lead query_word key_word"]:
    """Compute word-to-word attention from the full maps of one example."""
    plan = word_pairs(query, key, causal=False, merge=merge, sink_free=sink_free)
    lead, n_pairs = maps.shape[:-2], maps.shape[-2] * maps.shape[-1]
    n_heads = int(np.prod(lead, dtype=np.int64))
    merged = plan.merge(maps.reshape(n_heads, n_pairs))
    return merged.reshape(*lead, int(plan.n_query_words[0]), int(plan.n_key_words[0]))
