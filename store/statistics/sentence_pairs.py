"""Sentences of an example, and the pairs of tokens within one sentence.

The word annotation ``sentence`` defines the sentences if the corpus has it. In a treebank the words of one dependency
tree are a sentence, so a full stop inside it ends none. Otherwise a sentence ends at a token of full stops, question
marks or exclamation marks, and at the end of each text of a pair. The full stop of an abbreviation ends a sentence too.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Bool, Int64

from ..schema.token_table import TokenTable
from .blocks import Block

_END = re.compile(r"[.!?…。！？]+")


def sentence_of(table: TokenTable) -> Int64[np.ndarray, "token"]:
    """Return a number for the sentence of each token, distinct within its example.

    -1 for special tokens and for tokens without a sentence.
    """
    example = np.repeat(np.arange(table.n_examples), table.n_tokens)
    annotation = table.word_columns.get("sentence")
    if annotation is not None:
        return np.where(table.word_row >= 0, annotation.take(table.word_row).data, -1).astype(np.int64)
    text = table.columns["text"]
    assert text.values is not None, "the column holds text"
    ends = np.array([bool(_END.fullmatch(value.strip())) for value in text.values] + [False])[text.data]
    border = np.zeros(len(table), bool)  # True at the first token of a sentence
    if len(table):
        border[1:] = (ends[:-1] & ~table.special[:-1] & ~ends[1:]) | (table.second[1:] != table.second[:-1])
    number = np.cumsum(border)
    first = np.concatenate([number, [0]])[table.token_offset[:-1]][example]
    by_marks = np.where(table.special, -1, number - first).astype(np.int64)
    return np.where(_is_parsed(table)[example], _tree_of(table), by_marks)


def _is_parsed(table: TokenTable) -> Bool[np.ndarray, "example"]:
    """Return True for each example with a dependency tree: fewer roots than words, or a single word."""
    governor = table.word_columns.get("head")
    if governor is None:
        return np.zeros(table.n_examples, bool)
    n_words = np.diff(table.word_offset)
    example = np.repeat(np.arange(table.n_examples), n_words)
    n_roots = np.bincount(example[governor.data < 0], minlength=table.n_examples)
    return (n_words > 0) & ((n_roots < n_words) | (n_words == 1))


def _tree_of(table: TokenTable) -> Int64[np.ndarray, "token"]:
    """Return the number of each token's dependency tree: of the words that governors join; -1 for a token without one."""
    from scipy.sparse import coo_array  # importing it takes longer than many answers
    from scipy.sparse.csgraph import connected_components

    governor = table.word_columns.get("head")
    if governor is None:
        return np.full(len(table), -1, np.int64)
    lengths = np.diff(table.word_offset)
    first, n_words, number = np.repeat(table.word_offset[:-1], lengths), np.repeat(lengths, lengths), governor.data
    word = np.flatnonzero((number >= 0) & (number < n_words))
    joined = coo_array((np.ones(len(word)), (word, (first + number)[word].astype(np.int64))), shape=(len(first),) * 2)
    tree = connected_components(joined, directed=False)[1] if len(first) else np.zeros(0, np.int64)
    return np.append(tree, -1)[table.word_row].astype(np.int64)


def same_sentence_pairs(block: Block) -> Int64[np.ndarray, "match"]:
    """Return the pairs whose query and key are in the same sentence."""
    if not block.plan.one_text:
        return np.empty(0, np.int64)
    sentence = sentence_of(block.query)
    query = sentence[block.plan.query][block.plan.row]
    return np.flatnonzero((query >= 0) & (query == sentence[block.plan.key]))
