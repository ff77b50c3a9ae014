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
SPECIAL = "the tokenizer reads them as a special token"
NO_TOKEN = "without a token of their own"
REASONS = (SKIPPED, CUT, SPECIAL, NO_TOKEN)


def reason_of_words(table: TokenTable) -> Int64[np.ndarray, "word"]:
    """Return the index of the reason in `REASONS` for each word without a token; -1 for words with one.

    A word is cut off if it begins after the token of its text that has `TokenFlag.CUT`. In stores of releases before
    this flag such words count as words without a token.
    """
    example = np.repeat(np.arange(table.n_examples), np.diff(table.word_offset))
    cuts = np.flatnonzero((table.flags & TokenFlag.CUT) != 0)
    # character at which the first and the second text of each example was cut
    ends = np.full((table.n_examples, 2), np.iinfo(np.int64).max)
    ends[np.searchsorted(table.token_offset, cuts, "right") - 1, table.second[cuts].astype(int)] = table.char_end[cuts]
    is_cut = table.word_char_start >= ends[example, table.word_second.astype(int)]
    reason = np.where(is_cut, REASONS.index(CUT), REASONS.index(NO_TOKEN))
    reason[table.n_tokens[example] == 0] = REASONS.index(SKIPPED)
    reason[table.word_rank >= 0] = -1
    has_other = np.bincount(example[reason == REASONS.index(NO_TOKEN)], minlength=table.n_examples) > 0
    second, word_second = table.second, table.word_second
    of_token = np.repeat(np.arange(table.n_examples), table.n_tokens)
    for token in np.flatnonzero(table.special & (table.char_end > table.char_start) & has_other[of_token]).tolist():
        words = slice(*table.word_offset[of_token[token] : of_token[token] + 2].tolist())
        is_inside = (table.word_char_start[words] < table.char_end[token]) & (
            table.word_char_end[words] > table.char_start[token]
        )
        is_inside &= word_second[words] == second[token]
        reason[words][is_inside & (reason[words] == REASONS.index(NO_TOKEN))] = REASONS.index(SPECIAL)
    return reason


def covered_ends(table: TokenTable) -> Int64[np.ndarray, "word"]:
    """Return the character up to which the tokens of each word cover it; -1 for a word without a token.

    It is the end of the word, or the character at which the text was cut inside the word.
    """
    ends = np.where(table.word_rank >= 0, table.word_char_end, -1).astype(np.int64)
    cuts = np.flatnonzero(((table.flags & TokenFlag.CUT) != 0) & (table.word_row >= 0))
    ends[table.word_row[cuts]] = np.minimum(ends[table.word_row[cuts]], table.char_end[cuts])
    return ends


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
