"""Words of a corpus that no token belongs to, counted by reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headatlas.store.schema.omissions import LISTED_NAMES, Omission, Omissions
from headatlas.store.schema.token_table import TokenFlag

from ..corpora.examples import EncodedExample

CUT = "behind the last token that was kept (tokens.max_tokens)"
NO_TOKEN = "the tokenizer makes no token of them that belongs to no other word"


def words_left_out(examples: Sequence[EncodedExample]) -> Omissions:
    """Count the words of the examples that have no token: cut off behind the last token, or without a token."""
    omissions = Omissions()
    for encoded in examples:
        words = encoded.example.words
        if not words or not len(encoded.source):
            continue
        has_token = np.zeros(len(words), bool)
        has_token[encoded.source.word[encoded.source.word >= 0]] = True
        without = np.flatnonzero(~has_token).tolist()
        ends = {second: _last_end(encoded, second) for second in {words[i].second for i in without}}
        for reason in (CUT, NO_TOKEN):
            rows = [
                i
                for i in without
                if (encoded.truncated and words[i].char_start >= ends[words[i].second]) == (reason == CUT)
            ]
            if rows:
                names = () if reason == CUT else tuple(_word_text(encoded, i) for i in rows[:LISTED_NAMES])
                omissions.add(Omission(what="words", n=len(rows), reason=reason, names=names, n_examples=1))
    return omissions


def _last_end(encoded: EncodedExample, second: bool) -> int:
    """Return the end of the last token of the first or the second text."""
    is_second = (encoded.source.flags & TokenFlag.SECOND) != 0
    return int(encoded.source.char_end[is_second == second].max(initial=0))


def _word_text(encoded: EncodedExample, index: int) -> str:
    word = encoded.example.words[index]
    text = encoded.example.text_pair if word.second else encoded.example.text
    return (text or "")[word.char_start : word.char_end]
