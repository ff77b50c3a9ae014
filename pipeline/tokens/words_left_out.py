"""Parts of a text that its tokens do not have, counted by reason: words, characters, spans and messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from headatlas.store.schema.omissions import LISTED_NAMES, Omission
from headatlas.store.schema.token_table import MISSING, TokenFlag, TokenTable
from headatlas.store.schema.words_without_tokens import CUT, NO_TOKEN, REASONS, reason_of_words

from ..corpora.examples import CorpusExample, TokenSequence, Word

WORDS = "words"
TARGET_WORDS = "words of target texts"
UNCERTAIN = "it is not certain which tokens they have"
"""Reason for words without a token in a text with tokens whose characters are not certain."""


def words_left_out(
    sequence: TokenSequence, words: Sequence[Word], texts: tuple[str, str], what: str = WORDS
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
        text = UNCERTAIN if REASONS[code] == NO_TOKEN and MISSING in sequence.char_start else REASONS[code]
        yield Omission(what=what, n=len(rows), reason=text, names=() if text == CUT else names, n_examples=1)
    if is_cut and not (reason == REASONS.index(CUT)).any():
        ends = _cut_ends(sequence)
        if n_chars := sum(len(texts[second]) - end for second, end in ends.items()):
            yield Omission(what="characters", n=n_chars, reason=CUT, n_examples=1)


def spans_left_out(sequence: TokenSequence, tokenizer: str) -> Iterator[Omission]:
    """Count the tokens whose characters are not certain. `tokenizer` is the name of a tokenizer without a fast version."""
    if n_missing := int((sequence.char_start == MISSING).sum()):
        reason = f"{tokenizer} has no fast version, and an alignment of its tokens is not certain"
        yield Omission(what="character spans", n=n_missing, reason=reason, n_examples=1)


def target_left_out(example: CorpusExample, *, is_read: bool) -> Iterator[Omission]:
    """Count the target text of an example if no decoder reads it."""
    if example.target and not is_read:
        reason = (
            "they get no tokens: the model has no decoder, or writes the text itself. To keep such a field as an "
            "annotation, name it in corpus.columns"
        )
        yield Omission(what="target texts", n=1, reason=reason, n_examples=1)


def messages_left_out(example: CorpusExample) -> Iterator[Omission]:
    """Count the messages of a conversation that are not found in its text."""
    roles = [m.role for m in example.messages if m.start < 0 and m.content.strip()]
    if roles:
        reason = "the chat template does not write their content as it is, so no word has their role"
        names = tuple(dict.fromkeys(roles))[:LISTED_NAMES]
        yield Omission(what="messages", n=len(roles), reason=reason, names=names, n_examples=1)


def mark_cut(sequence: TokenSequence, is_cut: tuple[bool, bool]) -> TokenSequence:
    """Set `TokenFlag.CUT` at the last token of the first and of the second text, if they were cut."""
    if not any(is_cut):
        return sequence
    flags = sequence.flags.copy()
    is_text = ~sequence.is_added & (sequence.char_start != MISSING)
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
