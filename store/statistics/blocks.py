"""Blocks of consecutive examples of a segment: statistics read the tokens once, then the attention layer by layer.

The size of a block is limited, so memory depends neither on the corpus nor on the depth of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
from jaxtyping import Float64, Int64

from ..errors import NotFoundError
from ..patterns import Pattern, Vocabulary
from ..patterns.segment_matcher import segment_matcher, site_vocabulary
from ..reading.block_rebuild import rebuild_examples
from ..reading.block_weights import example_weights
from ..reading.ordered_tasks import run_in_order
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..reading.visible_keys import visible_pairs
from ..schema.flat_rows import RowPlan, Rows
from ..schema.layer_masks import LayerMask
from ..schema.token_table import TokenTable
from ..schema.traces import Site

Result = TypeVar("Result")
BLOCK_WEIGHTS = 3 << 20
"""Approximate number of weights of one layer in memory at once."""


@dataclass(frozen=True)
class CorpusTokens:
    """Facts from the token tables of a whole store: the vocabulary of patterns and the count of each token id."""

    vocabulary: Vocabulary
    ids: Int64[np.ndarray, "distinct"]
    counts: Int64[np.ndarray, "distinct"]
    tags: tuple[str, ...] = ()
    """Every part of speech of a word with a token."""

    @staticmethod
    def of(store: Snapshot, site: Site) -> CorpusTokens:
        """Read the token tables of all segments."""
        ids, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        tags: set[str] = set()
        for segment in store.segments:
            table = segment.tokens(site.key_sequence)
            segment_ids, segment_counts = np.unique(table.id, return_counts=True)
            ids, index = np.unique(np.concatenate([ids, segment_ids]), return_inverse=True)
            counts = np.bincount(index, np.concatenate([counts, segment_counts])).astype(np.int64)
            upos = table.word_columns.get("upos")
            if upos is not None and upos.values is not None:
                codes = np.unique(upos.data[table.word_rank >= 0])
                tags.update(upos.values[code] for code in codes[codes >= 0].tolist())
        return CorpusTokens(site_vocabulary(store, site), ids.astype(np.int64), counts, tuple(sorted(tags)))

    def count_of(self, ids: np.ndarray) -> Int64[np.ndarray, "token"]:
        """Count the occurrences of each token's id in the store."""
        return self.counts[np.searchsorted(self.ids, ids)]


class Block:
    """The examples `examples` (rows of the segment) at one site."""

    def __init__(self, segment: Segment, site: Site, examples: range, corpus: CorpusTokens) -> None:
        self.segment, self.site, self.examples, self.corpus = segment, site, examples, corpus
        self.query: TokenTable = segment.tokens(site.query_sequence).examples(examples.start, examples.stop)
        self.key: TokenTable = segment.tokens(site.key_sequence).examples(examples.start, examples.stop)
        self._matches: dict[str, Int64[np.ndarray, "match"]] = {}
        self._of_mask: dict[LayerMask, Block] = {}

    @cached_property
    def plan(self) -> RowPlan:
        """Layout of the rows. They see every key, unless the block is one of `of_mask`."""
        one_text = self.site.query_sequence == self.site.key_sequence
        n_queries, n_keys = (table.n_tokens.astype(np.int64) for table in (self.query, self.key))
        return RowPlan(n_queries, n_keys, self.site.causal, self.key.special, one_text)

    @cached_property
    def numbers(self) -> Int64[np.ndarray, "example"]:
        """Numbers of the examples in the store."""
        return self.segment.first_example + np.arange(self.examples.start, self.examples.stop)

    def matches(self, expression: str) -> Int64[np.ndarray, "match"]:
        """Return the pairs of the block that match a pattern, ascending. The result is cached."""
        if expression not in self._matches:
            pattern = Pattern.parse(expression)
            matcher = segment_matcher(self.segment, self.site, pattern, self.corpus.vocabulary)
            start, stop = (int(self.segment.token_offset(self.site.query_sequence)[row]) for row in self._bounds)
            pairs = [matches.pair for matches in matcher.blocks(start, stop)]
            self._matches[expression] = np.concatenate([np.empty(0, np.int64), *pairs]) - self._pairs.start
        return self._matches[expression]

    def of_mask(self, mask: LayerMask) -> Block:
        """Return the block with the keys that rows see under a mask in its plan. The result is cached."""
        if mask.is_open:
            return self
        if mask not in self._of_mask:
            block = Block(self.segment, self.site, self.examples, self.corpus)
            block._matches = self._matches
            block.plan = self.plan.with_mask(visible_pairs(self.segment, self.site, mask, self._pairs))
            self._of_mask[mask] = block
        return self._of_mask[mask]

    def rows(self, layer: int) -> Rows:
        """Read the attention of all heads of a layer, or rebuild it from query and key if the store has none.

        Raises
        ------
        NotFoundError
            The store has neither attention nor query and key, or a sparse codec dropped weights.
        """
        return Rows(self.of_mask(self.site.masks[layer]).plan, self._weights(layer))

    def _weights(self, layer: int) -> Float64[np.ndarray, "head pair"]:
        keep = self.segment.spec.keep
        codec = self.segment.spec.attention_codec
        if codec is not None and codec.selection is not None:
            raise NotFoundError(
                f"{self.site.name}: this statistic needs every weight, and {codec.name} dropped weights. "
                'Run the job into another store with keep.attention = "sqrt8", or use the stored statistics.'
            )
        if keep.attention is None:
            return rebuild_examples(self.segment, self.site, layer, self.examples).astype(np.float64)
        return example_weights(self.segment, self.site, layer, self.examples, self._row_start).astype(np.float64)

    @cached_property
    def _row_start(self) -> Int64[np.ndarray, "query_token"]:
        """Offset of each query token's first pair, including tokens that have no keys."""
        n_keys = self.plan.n_keys[np.repeat(np.arange(self.plan.n_examples), self.plan.n_queries)]
        length = self.query.position.astype(np.int64) + 1 if self.site.causal else n_keys
        return np.cumsum(length) - length

    @property
    def _bounds(self) -> tuple[int, int]:
        return self.examples.start, self.examples.stop

    @cached_property
    def _pairs(self) -> slice:
        offset = self.segment.pair_offset(self.site.name)
        return slice(*(int(offset[row]) for row in self._bounds))


def iter_blocks(store: Snapshot, site: Site, corpus: CorpusTokens | None = None) -> Iterator[Block]:
    """Iterate over a store in blocks of about `BLOCK_WEIGHTS` weights in each layer (at least one example)."""
    corpus = corpus or CorpusTokens.of(store, site)
    for position, examples in _spans(store, site):
        yield Block(store.segments[position], site, examples, corpus)


def map_blocks(
    function: Callable[[Block], Result], store: Snapshot, site: Site, corpus: CorpusTokens | None = None
) -> Iterator[tuple[int, Result]]:
    """Iterate over the number of examples of each block and what the function returns for it, in order.

    The function runs here or on the workers of a cluster (`run_in_order`). It must be a function of a module, or a
    `functools.partial` of one.
    """
    of_span = partial(_of_span, function, store, site, corpus or CorpusTokens.of(store, site))
    for (_, examples), result in run_in_order(of_span, _spans(store, site)):
        yield len(examples), result


def _of_span(
    function: Callable[[Block], Result], store: Snapshot, site: Site, corpus: CorpusTokens, span: tuple[int, range]
) -> Result:
    return function(Block(store.segments[span[0]], site, span[1], corpus))


def _spans(store: Snapshot, site: Site) -> Iterator[tuple[int, range]]:
    """Iterate over the position of the segment and the examples of each block."""
    for position, segment in enumerate(store.segments):
        offset, start = segment.pair_offset(site.name), 0
        while start < segment.n_examples:
            limit = offset[start] + BLOCK_WEIGHTS // site.n_heads
            stop = max(start + 1, int(np.searchsorted(offset, limit, side="right")) - 1)
            yield position, range(start, stop)
            start = stop
