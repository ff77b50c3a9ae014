"""Word rows of one example as distributions, and the summed Jensen–Shannon divergence of the rows of many heads.

A row is word-to-word attention (`reading/word_attention.py`): columns are summed over the tokens of the key word, rows
are averaged over the tokens of the query word. One more entry holds the attention to special tokens, so that each row
sums to 1. Only the rows of the requested query words are read.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from ..queries.kernel import installed
from ..reading.block_weights import closest_rows
from ..reading.snapshot import Snapshot
from ..reading.visible_keys import visible_rows
from ..reading.word_attention import Merge
from ..schema.token_table import TokenTable
from ..schema.traces import Site

_BLOCK_CELLS = 1_024  # cells of all heads that stay in the processor's cache
_TINY = np.float32(1e-30)


def counted_words(
    store: Snapshot, site: Site, example: int, merge: Merge, *, sink_free: bool
) -> Bool[np.ndarray, "word"]:
    """Return a mask of the word rows of an example that count: a token of the word sees a key in every layer.

    With `sink_free` it has to see another key than sinks.
    """
    segment = store.segment_of(example)
    index = example - segment.first_example
    table = segment.tokens(site.query_sequence).example(index)
    counts = np.zeros(int(table.n_words[0]), bool)
    tokens = _query_tokens(table, np.arange(len(counts)), merge)
    if sink_free:
        others = ~table.special & (table.position > 0)
        for mask in dict.fromkeys(site.masks):
            layer = site.masks.index(mask)
            visible = visible_rows(segment, site, layer, index, slice(0, len(table)))
            tokens = tokens[(visible[tokens] & others).any(axis=1)]
    counts[table.token_rank[tokens]] = True
    return counts


def read_word_rows(
    store: Snapshot,
    site: Site,
    example: int,
    words: Int64[np.ndarray, "row"],
    merge: Merge,
    *,
    sink_free: bool,
    head: tuple[int, int] | None = None,
) -> Float32[np.ndarray, "head row cell"]:
    """Read the rows of some query words of one example for all heads of a site, layer by layer, or for one head.

    Parameters
    ----------
    example
        Number of the example in the store.
    words
        Ascending indices among the words that have a token.
    head
        Indices of layer and head. Only this head is read.

    Returns
    -------
    rows
        Each row sums to 1, or is 0 if it has no weight left without sinks. The last cell is for special tokens.

    Raises
    ------
    NotFoundError
        Attention was not kept and cannot be rebuilt.
    """
    segment = store.segment_of(example)
    index = example - segment.first_example
    table = segment.tokens(site.query_sequence).example(index)
    tokens = _query_tokens(table, words, merge)
    row_of_token = np.searchsorted(words, table.token_rank[tokens])
    order = np.argsort(row_of_token, kind="stable")
    begin = np.searchsorted(row_of_token[order], np.arange(len(words)))
    n_tokens = np.bincount(row_of_token, minlength=len(words)).astype(np.float32)
    n_words = int(table.n_words[0])
    last_word = int(table.token_rank[: tokens[-1] + 1].max()) if site.causal else n_words - 1  # later ones are hidden
    columns = np.argsort(table.token_rank, kind="stable")
    columns = columns[(table.token_rank[columns] >= 0) & (table.token_rank[columns] <= last_word)]
    first_column = np.searchsorted(table.token_rank[columns], np.arange(last_word + 1))
    is_run = columns[-1] - columns[0] == len(columns) - 1 and bool((np.diff(columns) == 1).all())
    layers, heads = (
        (range(site.n_layers), np.arange(site.n_heads)) if head is None else ([head[0]], np.array([head[1]]))
    )
    result = np.zeros((len(layers) * len(heads), len(words), n_words + 1), np.float32)
    for number, layer in enumerate(layers):
        weights = closest_rows(segment, site, layer, heads, index, tokens)
        if sink_free:
            weights[:, :, 0] = 0
        of_words = weights[:, :, columns[0] : columns[-1] + 1] if is_run else np.take(weights, columns, axis=2)
        if len(first_column) < len(columns):
            of_words = np.add.reduceat(of_words, first_column, axis=2)
        if len(words) < len(tokens):
            of_words = np.add.reduceat(np.take(of_words, order, axis=1), begin, axis=1) / n_tokens[:, None]
        rows = result[number * len(heads) : (number + 1) * len(heads)]
        total = of_words.sum(axis=2, keepdims=True)
        np.divide(of_words, np.maximum(total, _TINY if sink_free else 1), out=rows[:, :, : last_word + 1])
        if not sink_free:
            rows[:, :, -1:] = np.maximum(1 - total, 0)
    return result


def _query_tokens(table: TokenTable, words: Int64[np.ndarray, "row"], merge: Merge) -> Int64[np.ndarray, "token"]:
    """Return the positions of the tokens whose rows are averaged for some query words, ascending."""
    tokens = np.flatnonzero(table.token_rank >= 0)
    if merge == "first":
        tokens = np.sort(tokens[np.unique(table.token_rank[tokens], return_index=True)[1]])
    return tokens[np.isin(table.token_rank[tokens], words)]


def summed_divergence(
    rows: Float32[np.ndarray, "head row cell"], others: Float32[np.ndarray, "other_head row cell"]
) -> Float64[np.ndarray, "head other_head"]:
    """Sum the Jensen–Shannon divergence in bits over the rows, for each pair of heads.

    If `rows` and `others` are the same array, each pair is computed once. The result does not depend on the order of
    the heads. Its error is about 1e-6 for each row.
    """
    is_same = rows is others
    half, other_half = _halves(rows), None
    has_weight = (half > _TINY).any(axis=0)
    if not is_same:
        other_half = _halves(others)
        has_weight |= (other_half > _TINY).any(axis=0)
    cells = np.flatnonzero(has_weight)  # a cell without weight in every head contributes nothing
    result, library = np.zeros((len(rows), len(others))), installed()
    for start in range(0, len(cells), _BLOCK_CELLS):
        block_cells = cells[start : start + _BLOCK_CELLS]
        block = np.take(half, block_cells, axis=1)  # contiguous, as indexing would not be
        other_block = block if other_half is None else np.take(other_half, block_cells, axis=1)
        if library is None or not library.add_divergence(result, block, other_block):
            _add_block(result, block, other_block, is_same=is_same)
    if is_same:
        result += result.T
    return np.maximum(result, 0.0)


def _add_block(
    result: Float64[np.ndarray, "head other_head"],
    half: Float32[np.ndarray, "head cell"],
    other_half: Float32[np.ndarray, "other_head cell"],
    *,
    is_same: bool,
) -> None:
    """Add ½ Σ p log₂ p + ½ Σ q log₂ q − Σ m log₂ m of a block of cells, with m = (p + q) / 2. `half` is p / 2.

    The compiled loop (`queries/kernel/divergence.cpp`) does the same about three times as fast.
    """
    middle, logarithm = np.empty_like(other_half), np.empty_like(other_half)
    entropy, other_entropy = (np.vecdot(h, np.log2(2 * h)).astype(np.float64) for h in (half, other_half))
    for head, own in enumerate(half):
        first = head + 1 if is_same else 0
        if first == len(other_half):
            break
        m, log_m = middle[first:], logarithm[first:]
        np.add(other_half[first:], own, out=m)
        np.log2(m, out=log_m)
        result[head, first:] += entropy[head] + other_entropy[first:] - np.vecdot(m, log_m)


def _halves(rows: Float32[np.ndarray, "head row key"]) -> Float32[np.ndarray, "head cell"]:
    """Return half of each weight. A tiny number is added, so that 0 · log 0 is 0."""
    return rows.reshape(len(rows), -1) * np.float32(0.5) + _TINY
