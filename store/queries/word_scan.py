"""The scan of one segment in a search between words: tokens are merged to words before pairs are looked up.

A pattern is then a condition on a query word and a key word (`patterns/word_table.py`). Attention is the word-to-word
attention of `reading/word_attention.py`: columns are summed, rows are averaged or are those of the first token, and
special tokens are left out. Uniform attention is merged in the same way. Whole examples are read, because the row of a
word needs the rows of all of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from ..files.containers.shard_writer import CHUNK_PAIRS
from ..patterns.matching import Matcher, Matches
from ..patterns.matching_rows import MatchingWordRows
from ..reading.block_weights import is_rebuilt
from ..reading.pair_attention import read_dropped
from ..reading.segment import Segment
from ..reading.word_attention import Merge, example_blocks, segment_word_attention
from ..schema.traces import Site
from .segment_scan import BLOCK_WEIGHTS, Basis, SegmentScores, Stopped


def word_basis(segment: Segment, site: Site) -> Basis:
    """Return the basis of word-to-word attention."""
    return "rebuilt" if is_rebuilt(segment, site) else "attention"


def scan_words(
    segment: Segment, site: Site, matcher: Matcher, merge: Merge, stop: Callable[[], bool] = lambda: False
) -> SegmentScores:
    """Score every head of `site` on one segment. The matcher must be over words.

    Raises
    ------
    Stopped
        `stop` returned True.
    NotFoundError
        The store has neither attention nor query and key.
    """
    scores = SegmentScores.zeros(site, segment.n_examples)
    for matches in _blocks(segment, site, matcher):
        every_row = MatchingWordRows(matches, matcher, site, segment, merge)
        every_row.count_rows(scores.matched_rows)
        for mask, layers in site.layers_of_masks.items():
            matching_rows = every_row.of_mask(mask)
            if matching_rows is None:
                continue
            uniform = matching_rows.uniform(mask).sum()
            for layer in layers:
                if stop():
                    raise Stopped
                matching_rows.count_rows(scores.rows[layer])
                scores.uniform[layer] += uniform
                _add_layer(scores, matching_rows, layer)
    return scores


def _add_layer(scores: SegmentScores, matching_rows: MatchingWordRows, layer: int) -> None:
    """Add the mass, hits and slack of the rows of a block in one layer."""
    segment, site, plan = matching_rows.segment, matching_rows.site, matching_rows.plan
    query, key = matching_rows.word
    example = matching_rows.example[matching_rows.first_of_example]
    weights = segment_word_attention(segment, site, layer, matching_rows.examples, plan)
    mass = np.add.reduceat(weights[:, matching_rows.cell], matching_rows.first, axis=1)  # [head, row]
    scores.mass[layer][:, example] += np.add.reduceat(mass, matching_rows.first_of_example, axis=1)
    strongest = np.stack([plan.strongest(head_weights) for head_weights in weights])
    scores.hits[layer] += (strongest[:, query] == key).sum(axis=1)
    scores.slack[layer] += _dropped_mass(matching_rows, layer).sum(axis=1)


def _blocks(segment: Segment, site: Site, matcher: Matcher) -> Iterator[Matches]:
    """Iterate over the matches of runs of whole examples, split where a chunk of attention has no match."""
    offset, rows = segment.pair_offset(site.name), matcher.evaluator.query.table.token_offset
    every_pair = int(matcher.row_start[-1]) + 1
    for examples in example_blocks(offset, BLOCK_WEIGHTS // site.n_heads):
        for block in matcher.blocks(int(rows[examples.start]), int(rows[examples.stop]), every_pair):
            example = matcher.evaluator.query.example[block.query]
            far = np.flatnonzero(offset[example[1:]] - offset[example[:-1] + 1] > CHUNK_PAIRS) + 1
            for start, stop in zip([0, *far.tolist()], [*far.tolist(), len(block)], strict=True):
                yield block.select(slice(start, stop))


def _dropped_mass(matching_rows: MatchingWordRows, layer: int) -> Float[np.ndarray, "head row"]:
    """Compute an upper bound of the mass of each row that a sparse codec dropped: the dropped mass of its tokens."""
    segment, site, plan = matching_rows.segment, matching_rows.site, matching_rows.plan
    codec = segment.spec.attention_codec
    rows = matching_rows.word[0][matching_rows.first]
    if word_basis(segment, site) == "rebuilt" or codec is None or codec.selection is None:
        return np.zeros((site.n_heads, len(rows)))
    tokens = segment.token_offset(site.query_sequence)
    span = slice(int(tokens[matching_rows.examples.start]), int(tokens[matching_rows.examples.stop]))
    dropped = read_dropped(segment, site, layer, slice(None), span)
    table = segment.tokens(site.query_sequence).examples(matching_rows.examples.start, matching_rows.examples.stop)
    token_rows = np.flatnonzero(table.token_rank >= 0)
    n_before = np.cumsum(plan.n_query_words) - plan.n_query_words
    word = np.repeat(n_before, table.n_tokens)[token_rows] + table.token_rank[token_rows]
    if matching_rows.merge == "first":
        word, first = np.unique(word, return_index=True)
        token_rows = token_rows[first]
    sums = np.stack([np.bincount(word, head_dropped[token_rows], len(plan.n_rows)) for head_dropped in dropped])
    return (sums / plan.n_rows)[:, rows]
