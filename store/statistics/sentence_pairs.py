"""Sentences of an example, and the pairs of tokens within one sentence.

The word annotation ``sentence`` defines the sentences if the corpus has it. Otherwise a sentence ends at a token of
full stops, question marks or exclamation marks, and at the end of each text of a pair. The full stop of an abbreviation
ends a sentence too; the annotation avoids this.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Int64

from ..schema.token_table import TokenTable
from .blocks import Block

_END = re.compile(r"[.!?…。！？]+")


def sentence_of(table: TokenTable) -> Int64[np.ndarray, "token"]:
    """Return the sentence of each token, from 0 within its example; -1 for special tokens and tokens without one."""
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
    return np.where(table.special, -1, number - first).astype(np.int64)


def same_sentence_pairs(block: Block) -> Int64[np.ndarray, "match"]:
    """Return the pairs whose query and key are in the same sentence."""
    if not block.plan.one_text:
        return np.empty(0, np.int64)
    sentence = sentence_of(block.query)
    query = sentence[block.plan.query][block.plan.row]
    return np.flatnonzero((query >= 0) & (query == sentence[block.plan.key]))
