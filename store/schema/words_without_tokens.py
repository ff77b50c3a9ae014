"""Words that have no token, with the reason. Measures between words leave them out and count them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Int64

from .omissions import Omission, Omissions
from .token_table import TokenFlag, TokenTable

SKIPPED = "of a skipped example"
CUT = "behind the cut of a text that is too long (tokens.too_long)"
NO_TOKEN = "without a token of their own"
REASONS = (SKIPPED, CUT, NO_TOKEN)


def reason_of_words(table: TokenTable) -> Int64[np.ndarray, "word"]:
    """Return the index of the reason in `REASONS` for each word without a token; -1 for words with one.

    A word counts as cut off if the last token before it has `TokenFlag.CUT`. Stores of releases before this flag
    report such words as words without a token.
    """
    reason = np.where(table.word_rank >= 0, -1, REASONS.index(NO_TOKEN))
    end = np.full(len(reason), np.iinfo(np.int64).max)  # character at which the text was cut after a word
    cuts = np.flatnonzero((table.flags & TokenFlag.CUT) != 0)
    if len(cuts):  # the token at a cut may be whitespace, which belongs to no word
        tokens = np.maximum.accumulate(np.where(table.word_row >= 0, np.arange(len(table)), 0))[cuts]
        end[table.word_row[tokens]] = table.char_end[cuts]
    before = table.word_before
    is_behind = (before >= 0) & (table.word_char_start >= end[before])
    reason[(reason >= 0) & is_behind] = REASONS.index(CUT)
    reason[np.repeat(table.n_tokens == 0, np.diff(table.word_offset))] = REASONS.index(SKIPPED)
    return reason


def count_left_out(
    table: TokenTable, what: str, reason: Int64[np.ndarray, "word"], reasons: Sequence[str] = REASONS
) -> Iterator[Omission]:
    """Count words by reason. `what` names them in the plural; words with a negative `reason` are not counted."""
    example = np.repeat(np.arange(table.n_examples), np.diff(table.word_offset))
    for index, text in enumerate(reasons):
        words = np.flatnonzero(reason == index)
        if len(words):
            yield Omission(what=what, n=len(words), reason=text, n_examples=len(np.unique(example[words])))


def words_left_out(tables: Iterable[TokenTable]) -> tuple[Omission, ...]:
    """Count the words without a token, by reason."""
    counts = (count_left_out(table, "words", reason_of_words(table)) for table in tables)
    return tuple(Omissions(chain.from_iterable(counts)))
