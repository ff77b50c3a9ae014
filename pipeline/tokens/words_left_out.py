"""Words of a text that no token belongs to, counted by reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from headatlas.store.schema.omissions import LISTED_NAMES, Omission
from headatlas.store.schema.token_table import MISSING, TokenFlag, TokenTable
from headatlas.store.schema.words_without_tokens import CUT, REASONS, reason_of_words

from ..corpora.examples import TokenSequence, Word

TARGET_WORDS = "words of target texts"


def words_left_out(
    sequence: TokenSequence, words: Sequence[Word], texts: tuple[str, str], what: str = "words"
) -> Iterator[Omission]:
    """Count the words without a token. `what` names them. If a cut loses no whole word, its characters are counted."""
    is_cut = bool((sequence.flags & TokenFlag.CUT).any())
    if not is_cut and len(set(sequence.word.tolist()) - {MISSING}) == len(words):
        return
    reason = reason_of_words(_table(sequence, words))
    for code in np.unique(reason[reason >= 0]).tolist():
        rows = np.flatnonzero(reason == code).tolist()
        shown = (words[i] for i in rows[:LISTED_NAMES])
        names = tuple(texts[word.second][word.char_start : word.char_end] for word in shown)
        without_names = REASONS[code] == CUT
        yield Omission(what=what, n=len(rows), reason=REASONS[code], names=() if without_names else names, n_examples=1)
    if is_cut and not (reason == REASONS.index(CUT)).any():
        ends = _cut_ends(sequence)
        if n_chars := sum(len(texts[second]) - end for second, end in ends.items()):
            yield Omission(what="characters", n=n_chars, reason=CUT, n_examples=1)


def mark_cut(sequence: TokenSequence, is_cut: tuple[bool, bool]) -> TokenSequence:
    """Set `TokenFlag.CUT` at the last token of the first and of the second text, if they were cut."""
    if not any(is_cut):
        return sequence
    flags = sequence.flags.copy()
    is_text = (flags & TokenFlag.SPECIAL) == 0
    for second in (False, True):
        tokens = np.flatnonzero(is_text & (((flags & TokenFlag.SECOND) != 0) == second))
        if is_cut[second] and len(tokens):
            flags[tokens[-1]] |= TokenFlag.CUT
    return replace(sequence, flags=flags)


def _cut_ends(sequence: TokenSequence) -> dict[bool, int]:
    """Return the character at which the first and the second text were cut, for those that were."""
    cuts = np.flatnonzero((sequence.flags & TokenFlag.CUT) != 0).tolist()
    return {bool(sequence.flags[i] & TokenFlag.SECOND): int(sequence.char_end[i]) for i in cuts}


def _table(sequence: TokenSequence, words: Sequence[Word]) -> TokenTable:
    return TokenTable(
        token_offset=np.array([0, len(sequence)]),
        id=sequence.id,
        word=sequence.word,
        char_start=sequence.char_start,
        char_end=sequence.char_end,
        flags=sequence.flags,
        columns={},
        word_offset=np.array([0, len(words)]),
        word_char_start=np.array([word.char_start for word in words], np.int32),
        word_char_end=np.array([word.char_end for word in words], np.int32),
    )
