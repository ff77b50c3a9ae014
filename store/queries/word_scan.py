"""Searches between words: the tokens of a word are merged before a pattern's pairs are looked up.

A pattern is then a condition on a query word and a key word (`word_tokens.py`), and attention is W[i, j] of `reading/words.py` (columns summed, rows averaged
or the first token's; special tokens left out). Uniform attention is merged the same way. Whole examples are read, since
a word's row needs all of its tokens' rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64, Int64

from ..containers.shard_writer import CHUNK_PAIRS
from ..patterns.matching import Matcher, Matches
from ..patterns.matching_rows import RowSupport
from ..reading.block_weights import is_rebuilt
from ..reading.pair_attention import read_dropped
from ..reading.segment import Segment
from ..reading.visible_keys import keys_seen
from ..reading.word_attention import Merge, WordPairs, example_blocks, plan_segment, segment_word_attention
from ..schema.traces import Site
from .segment_scan import BLOCK_WEIGHTS, Basis, SegmentScores, Stopped


@dataclass(frozen=True)
class WordSupport(RowSupport):
    """The query words of some examples that have matching key words."""

    segment: Segment
    merge: Merge

    @cached_property
    def examples(self) -> range:
        """From the first example with a match to the last, within the segment."""
        return range(int(self.example[0]), int(self.example[-1]) + 1)

    @cached_property
    def plan(self) -> WordPairs:
        """Where the token pairs of these examples go."""
        return plan_segment(self.segment, self.site, self.examples, self.merge)

    @cached_property
    def word(self) -> tuple[Int64[np.ndarray, "match"], Int64[np.ndarray, "match"]]:
        """Query word and key word of each match, as the plan counts them: over all examples, and within its own."""
        evaluator = self.matcher.evaluator
        example = evaluator.query.example[self.matches.query] - self.examples.start
        n_before = np.cumsum(self.plan.n_query_words) - self.plan.n_query_words
        query = n_before[example] + evaluator.query.table.word[self.matches.query]
        return query, evaluator.key.table.word[self.matches.key].astype(np.int64)

    @cached_property
    def cell(self) -> Int64[np.ndarray, "match"]:
        """The plan's word pair of each match."""
        query, key = self.word
        return self.plan.begin[query] + key

    def uniform(self, window: int | None) -> Float[np.ndarray, "row"]:
        """What uniform attention of a layer with this window puts on the matching words, merged like attention."""
        layer = self.site.window.index(window)
        sizes = zip(*(np.diff(self.segment.token_offset(name)) for name in self._sequences), strict=True)
        counts = list(sizes)[self.examples.start : self.examples.stop]
        flat = [_uniform(self.site, layer, int(n_queries), int(n_keys)) for n_queries, n_keys in counts]
        merged = self.plan.merge(np.concatenate(flat)[None])[0]
        return np.add.reduceat(merged[self.cell], self.first)

    @property
    def _sequences(self) -> tuple[str, str]:
        return self.site.query_sequence, self.site.key_sequence


def _uniform(site: Site, layer: int, n_queries: int, n_keys: int) -> Float64[np.ndarray, "pair"]:
    query, key = np.arange(n_queries), np.arange(n_keys)
    seen = keys_seen(site, layer, query, key, n_keys)
    shares = seen / np.maximum(seen.sum(axis=1, keepdims=True), 1)
    return shares[key <= query[:, None]] if site.causal else shares.ravel()


def word_basis(segment: Segment, site: Site) -> Basis:
    """What attention between words comes from."""
    return "rebuilt" if is_rebuilt(segment, site) else "attention"


def scan_words(
    segment: Segment, site: Site, matcher: Matcher, merge: Merge, stop: Callable[[], bool] = lambda: False
) -> SegmentScores:
    """Score every head of `site` on one segment; `matcher` is one over its words.

    Raises
    ------
    Stopped
        `stop` answered True.
    NotFoundError
        Attention was not kept and cannot be rebuilt.
    """
    scores = SegmentScores.none(site, segment.n_examples)
    for matches in _blocks(segment, site, matcher):
        support = WordSupport(matches, matcher, site, segment, merge)
        example = support.example[support.first_of_example]
        scores.example_rows[example] += np.diff(np.append(support.first_of_example, len(support.rows)))
        uniform = {window: support.uniform(window).sum() for window in set(site.window)}
        query, key = support.word
        for layer in range(site.n_layers):
            if stop():
                raise Stopped
            scores.uniform[layer] += uniform[site.window[layer]]
            weights = segment_word_attention(segment, site, layer, support.examples, support.plan)
            mass = np.add.reduceat(weights[:, support.cell], support.first, axis=1)  # [head, row]
            scores.mass[layer][:, example] += np.add.reduceat(mass, support.first_of_example, axis=1)
            strongest = np.stack([support.plan.strongest(of_head) for of_head in weights])
            scores.hits[layer] += (strongest[:, query] == key).sum(axis=1)
            scores.slack[layer] += _missing(support, layer).sum(axis=1)
    return scores


def _blocks(segment: Segment, site: Site, matcher: Matcher) -> Iterator[Matches]:
    """Matches of runs of whole examples: those between which a chunk of attention has none are read apart."""
    offset, rows = segment.pair_offset(site.name), matcher.evaluator.query.table.token_offset
    every_pair = int(matcher.row_start[-1]) + 1
    for examples in example_blocks(offset, BLOCK_WEIGHTS // site.n_heads):
        for found in matcher.blocks(int(rows[examples.start]), int(rows[examples.stop]), every_pair):
            example = matcher.evaluator.query.example[found.query]
            far = np.flatnonzero(offset[example[1:]] - offset[example[:-1] + 1] > CHUNK_PAIRS) + 1
            for start, stop in zip([0, *far.tolist()], [*far.tolist(), len(found)], strict=True):
                part = slice(start, stop)
                yield Matches(found.first_pair, found.last_pair, found.pair[part], found.query[part], found.key[part])


def _missing(support: WordSupport, layer: int) -> Float[np.ndarray, "head row"]:
    """How much more mass each row may have where a sparse codec left weights out: what its tokens' rows lack."""
    segment, site, plan = support.segment, support.site, support.plan
    codec = segment.spec.attention_codec
    rows = support.word[0][support.first]
    if word_basis(segment, site) == "rebuilt" or codec is None or codec.selection is None:
        return np.zeros((site.n_heads, len(rows)))
    tokens = segment.token_offset(site.query_sequence)
    span = slice(int(tokens[support.examples.start]), int(tokens[support.examples.stop]))
    dropped = read_dropped(segment, site, layer, slice(None), span)
    table = segment.tokens(site.query_sequence).examples(support.examples.start, support.examples.stop)
    example = np.repeat(np.arange(table.n_examples), table.n_tokens)
    of_word = np.flatnonzero(table.word >= 0)
    word = table.word_offset[example[of_word]] + table.word[of_word]
    if support.merge == "first":
        word, first = np.unique(word, return_index=True)
        of_word = of_word[first]
    sums = np.stack([np.bincount(word, of_head[of_word], len(plan.n_rows)) for of_head in dropped])
    return (sums / np.maximum(plan.n_rows, 1))[:, rows]
