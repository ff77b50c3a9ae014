"""Flat columns of the tokens and words of many examples, the input of patterns.

There is no padding. The tokens of all examples of a segment lie one after the other, and
`token_offset[i]:token_offset[i + 1]` is the span of example i. A `Column` holds one value per row (a token, a word or
an example). Text is dictionary-encoded, so a comparison with a constant is one comparison of integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, Num, UInt8

from ..errors import FormatError

MISSING = -1
POINTER_COLUMNS = ("head", "antecedent")
"""Word columns that hold the index of another word of the example; -1 for none."""


class TokenFlag(IntFlag):
    """Bits of a token's `flags` field."""

    SPECIAL = 1  # added by the tokenizer, or spelled by the text: [CLS], <s>, ...
    SECOND = 2  # belongs to the second text of a pair
    CONTINUATION = 4  # not the first token of its word
    GENERATED = 8  # written by the model
    CUT = 16  # the text goes on after the token and was cut off


@dataclass(frozen=True)
class Column:
    """Column with one value per row.

    In a column of numbers `values` is None and `data` holds the numbers. In a column of text `data` holds codes into
    `values`. Missing rows are NaN in columns of floats, else -1. Positions, word indices and counts are never negative.
    """

    data: Num[np.ndarray, "row"]
    values: tuple[str, ...] | None = None

    @staticmethod
    def of_text(rows: Iterable[str | None]) -> Column:
        """Dictionary-encode text, with values in order of first appearance."""
        texts = list(rows)
        values = [row for row in dict.fromkeys(texts) if row is not None]
        index: dict[str | None, int] = {None: MISSING} | {value: code for code, value in enumerate(values)}
        codes = np.fromiter(map(index.__getitem__, texts), np.int32, len(texts))  # 3 times faster than a Python loop
        return Column(codes, tuple(values))

    @staticmethod
    def of_numbers(rows: Sequence[int] | Sequence[float]) -> Column:
        """Return a column of numbers: whole numbers as int32, others as float64."""
        data = np.asarray(rows)
        return Column(data.astype(np.int32) if data.dtype.kind in "iub" or not data.size else data.astype(np.float64))

    def __len__(self) -> int:
        return len(self.data)

    @property
    def is_text(self) -> bool:
        """True if the rows are text."""
        return self.values is not None

    def __getitem__(self, rows: slice) -> Column:
        return Column(self.data[rows], self.values)

    @cached_property
    def folded(self) -> Column:
        """Column of the case-folded texts. It is cached, because folding takes longer than a search."""
        assert self.values is not None
        codes, row = np.unique(self.data, return_inverse=True)
        texts = [None if code < 0 else self.values[code].casefold() for code in codes.tolist()]
        return Column.of_text(texts).take(row)

    @property
    def missing(self) -> int | float:
        """Value of `data` in missing rows."""
        return np.nan if self.data.dtype.kind == "f" else MISSING

    def to_list(self) -> list[str | None] | list[int] | list[float]:
        """Return the rows as Python values; missing text is None."""
        if self.values is None:
            return self.data.tolist()
        return [None if code < 0 else self.values[code] for code in self.data.tolist()]

    def take(self, rows: Int[np.ndarray, "n"]) -> Column:
        """Select rows by index. A negative index gives a missing row."""
        is_row = rows >= 0
        data = np.full(rows.shape, self.missing, dtype=self.data.dtype)
        data[is_row] = self.data[rows[is_row]]
        return Column(data, self.values)


@dataclass(frozen=True)
class TokenTable:
    """Tokens and words of one sequence (`source` or `target`) of consecutive examples.

    Character spans are half open and count Unicode code points of the example's text, or of the second text for tokens
    flagged `SECOND`. Special tokens have an empty span and word -1. `columns` always holds `text` (the text of the
    span; the piece for special tokens) and `piece` (the tokenizer's spelling: ``##ing``, ``Ġthe``). `word` is the index
    of the word within the example. `word_columns` holds the annotations of the corpus. A column `head` is the index
    within the example of the governor's word, -1 for the root. The indices count all words, with and without a token.
    """

    token_offset: Int64[np.ndarray, "boundary"]
    id: Int32[np.ndarray, "token"]
    word: Int32[np.ndarray, "token"]
    char_start: Int32[np.ndarray, "token"]
    char_end: Int32[np.ndarray, "token"]
    flags: UInt8[np.ndarray, "token"]
    columns: dict[str, Column]
    word_offset: Int64[np.ndarray, "boundary"]
    word_char_start: Int32[np.ndarray, "word"]
    word_char_end: Int32[np.ndarray, "word"]
    word_columns: dict[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.id)

    @property
    def n_examples(self) -> int:
        """Number of examples in the table."""
        return len(self.token_offset) - 1

    @property
    def n_tokens(self) -> Int64[np.ndarray, "example"]:
        """Number of tokens of each example."""
        return np.diff(self.token_offset)

    @property
    def position(self) -> Int32[np.ndarray, "token"]:
        """Index of each token within its example."""
        start = np.repeat(self.token_offset[:-1], self.n_tokens)
        return (np.arange(len(self), dtype=np.int64) - start).astype(np.int32)

    @cached_property
    def word_row(self) -> Int64[np.ndarray, "token"]:
        """Row of each token's word among the words of all examples; -1 for a token without a word.

        Raises
        ------
        FormatError
            A token belongs to a word that its example does not have.
        """
        word = self.word.astype(np.int64)
        n_words, first = np.diff(self.word_offset), self.word_offset[:-1]
        if len(word) and (word >= np.repeat(n_words, self.n_tokens)).any():
            token = int(np.flatnonzero(word >= np.repeat(n_words, self.n_tokens))[0])
            raise FormatError(
                f"token {token} belongs to word {word[token]} of an example with "
                f"{np.repeat(n_words, self.n_tokens)[token]} words; expected a smaller number. Verify the store."
            )
        return np.where(word >= 0, np.repeat(first, self.n_tokens) + word, -1)

    @cached_property
    def word_rank(self) -> Int64[np.ndarray, "word"]:
        """Index of each word among the words of its example that have a token; -1 for a word without a token.

        Measures between words count only words with a token: neither a row nor a column belongs to the others.

        Raises
        ------
        FormatError
            As for `word_row`.
        """
        has_token = self._has_token
        n_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(has_token)])
        first = np.repeat(n_before[self.word_offset[:-1]], np.diff(self.word_offset))
        return np.where(has_token, n_before[:-1] - first, -1)

    @cached_property
    def n_words(self) -> Int64[np.ndarray, "example"]:
        """Number of words of each example that have a token."""
        n_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._has_token)])
        return np.diff(n_before[self.word_offset])

    @cached_property
    def token_rank(self) -> Int64[np.ndarray, "token"]:
        """Value of `word_rank` of each token's word; -1 for a token without a word."""
        return np.append(self.word_rank, -1)[self.word_row]

    @cached_property
    def word_second(self) -> Bool[np.ndarray, "word"]:
        """True for words of the second text of a pair. A word without a token is in the text of the word before it."""
        first = np.repeat(self.word_offset[:-1], np.diff(self.word_offset))
        source = np.maximum.accumulate(np.where(self._has_token, np.arange(len(first)), first))
        second = np.zeros(len(first), bool)
        tokens = np.flatnonzero(self.word_row >= 0)
        second[self.word_row[tokens]] = self.second[tokens]
        return second[source]

    @cached_property
    def _has_token(self) -> Bool[np.ndarray, "word"]:
        has_token = np.zeros(int(self.word_offset[-1]), bool)
        has_token[self.word_row[self.word_row >= 0]] = True
        return has_token

    @property
    def special(self) -> np.ndarray:
        """True for special tokens, bool [token]."""
        return (self.flags & TokenFlag.SPECIAL) != 0

    @property
    def second(self) -> np.ndarray:
        """True for tokens of the second text of a pair, bool [token]."""
        return (self.flags & TokenFlag.SECOND) != 0

    @property
    def text(self) -> list[str]:
        """Text that each token covers; the piece for special tokens."""
        return [row if isinstance(row, str) else "" for row in self.columns["text"].to_list()]

    @property
    def piece(self) -> list[str]:
        """Spelling of each token in the tokenizer's vocabulary."""
        return [row if isinstance(row, str) else "" for row in self.columns["piece"].to_list()]

    def example(self, index: int) -> TokenTable:
        """Return the table of one example."""
        return self.examples(index, index + 1)

    def examples(self, start: int, stop: int) -> TokenTable:
        """Return the table of examples `start:stop`."""
        token = slice(int(self.token_offset[start]), int(self.token_offset[stop]))
        word = slice(int(self.word_offset[start]), int(self.word_offset[stop]))
        return TokenTable(
            token_offset=self.token_offset[start : stop + 1] - token.start,
            id=self.id[token],
            word=self.word[token],
            char_start=self.char_start[token],
            char_end=self.char_end[token],
            flags=self.flags[token],
            columns={name: column[token] for name, column in self.columns.items()},
            word_offset=self.word_offset[start : stop + 1] - word.start,
            word_char_start=self.word_char_start[word],
            word_char_end=self.word_char_end[word],
            word_columns={name: column[word] for name, column in self.word_columns.items()},
        )


def join_columns(parts: Sequence[Column | None], lengths: Sequence[int]) -> Column:
    """Join the columns of segments. The rows of a segment without a column are missing (None, -1, NaN of floats)."""
    present = [part for part in parts if part is not None]
    if any(part.is_text for part in present):
        rows: list[str | None] = []
        for part, length in zip(parts, lengths, strict=True):
            values = [None] * length if part is None else part.to_list()
            rows += [value if value is None or isinstance(value, str) else str(value) for value in values]
        return Column.of_text(rows)
    dtype = np.result_type(*[part.data.dtype for part in present])
    data = [np.full(n, MISSING) if part is None else part.data for part, n in zip(parts, lengths, strict=True)]
    if dtype.kind == "f":
        data = [rows if rows.dtype.kind == "f" else np.where(rows == MISSING, np.nan, rows) for rows in data]
    return Column(np.concatenate(data).astype(dtype))
