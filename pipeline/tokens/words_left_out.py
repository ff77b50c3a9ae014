"""Words of a corpus that no token belongs to, counted by reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headatlas.store.schema.omissions import LISTED_NAMES, Omission, Omissions
from headatlas.store.schema.token_table import MISSING, TokenFlag

from ..corpora.examples import EncodedExample

CUT = "behind the last token that was kept (tokens.max_tokens)"
SPECIAL = "the tokenizer reads them as a special token"
UNCERTAIN = "it is not certain which tokens they have"
NO_TOKEN = "the tokenizer makes no token of them that belongs to no other word"


def words_left_out(examples: Sequence[EncodedExample]) -> Omissions:
    """Count the words of the examples that have no token, by reason."""
    omissions = Omissions()
    for encoded in examples:
        words, tokens = encoded.example.words, encoded.source
        if not words or not len(tokens):
            continue
        has_token = np.zeros(len(words), bool)
        has_token[tokens.word[tokens.word >= 0]] = True
        without = np.flatnonzero(~has_token).tolist()
        ends = {second: _last_end(encoded, second) for second in {words[i].second for i in without}}
        is_uncertain = bool(np.any(tokens.char_start == MISSING))
        rows: dict[str, list[int]] = {}
        for i in without:
            overlaps = (tokens.char_start < words[i].char_end) & (tokens.char_end > words[i].char_start)
            if np.any(overlaps & tokens.is_written_special):
                reason = SPECIAL
            elif is_uncertain:
                reason = UNCERTAIN
            else:
                is_cut = encoded.truncated and words[i].char_start >= ends[words[i].second]
                reason = CUT if is_cut else NO_TOKEN
            rows.setdefault(reason, []).append(i)
        for reason, indices in rows.items():
            names = () if reason == CUT else tuple(_word_text(encoded, i) for i in indices[:LISTED_NAMES])
            omissions.add(Omission(what="words", n=len(indices), reason=reason, names=names, n_examples=1))
    return omissions


def _last_end(encoded: EncodedExample, second: bool) -> int:
    """Return the end of the last token of the first or the second text."""
    is_second = (encoded.source.flags & TokenFlag.SECOND) != 0
    return int(encoded.source.char_end[is_second == second].max(initial=0))


def _word_text(encoded: EncodedExample, index: int) -> str:
    word = encoded.example.words[index]
    text = encoded.example.text_pair if word.second else encoded.example.text
    return (text or "")[word.char_start : word.char_end]
