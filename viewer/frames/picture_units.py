"""Units of a picture: its rows and columns are tokens, words or sentences.

Attention between words or sentences is computed by the store (`store/reading/word_attention.py`): columns are summed
over the tokens of the key unit, rows are averaged over the tokens of the query unit. Tokens that belong to no word
(special tokens) are left out without renormalising. Words without a token are no units.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int64

from headatlas.store.reading.example import Example
from headatlas.store.reading.word_attention import merge_example
from headatlas.store.schema.token_table import TokenTable

from ..theme.token_labels import label
from .view_frames import TokensFrame, table_frame, tokens_frame

UnitKind = Literal["token", "word", "sentence"]
_END = re.compile(r"""[.!?\u2026\u3002\uff01\uff1f\u061f\u0964]["')\]\u201d\u2019\u00bb]*$""")
MAX_LABEL = 28
"""Longest label of a word or sentence, in characters."""


@dataclass(frozen=True)
class Units:
    """Units of one side. `table` groups tokens by unit, where the store's tables group them by word."""

    frame: TokensFrame
    of_token: Int64[np.ndarray, "token"]
    """Unit of each token, -1 for tokens without a unit."""
    table: TokenTable

    @property
    def first_token(self) -> Int64[np.ndarray, "unit"]:
        """First token of each unit."""
        first = np.zeros(len(self.frame["labels"]), np.int64)
        tokens = np.flatnonzero(self.of_token >= 0)[::-1]
        first[self.of_token[tokens]] = tokens
        return first

    @property
    def are_tokens(self) -> bool:
        """True if every token is a unit."""
        return np.array_equal(self.of_token, np.arange(len(self.frame["labels"])))

    @property
    def second(self) -> int | None:
        """First unit of the second text of a pair, or None if there is one text."""
        if not len(self.of_token):
            return None
        units = np.flatnonzero(self.table.second[self.first_token])
        return int(units[0]) if len(units) and units[0] else None

    def part(self, units: slice) -> tuple[Units, slice]:
        """Return consecutive units as if they were all, and the span of their tokens. `frame` stays that of all."""
        tokens = np.flatnonzero((self.of_token >= units.start) & (self.of_token < units.stop))
        span = slice(int(tokens[0]), int(tokens[-1]) + 1) if len(tokens) else slice(0, 0)
        is_inside = (self.of_token[span] >= units.start) & (self.of_token[span] < units.stop)
        of_token = np.where(is_inside, self.of_token[span] - units.start, -1)
        table = replace(
            self.table,
            token_offset=np.array([0, len(of_token)], np.int64),
            id=self.table.id[span],
            word=of_token.astype(np.int32),
            char_start=self.table.char_start[span],
            char_end=self.table.char_end[span],
            flags=self.table.flags[span],
            columns={name: column[span] for name, column in self.table.columns.items()},
            word_offset=np.array([0, units.stop - units.start], np.int64),
        )
        return Units(self.frame, of_token, table), span


def units_of(example: Example, sequence: str, kind: UnitKind, *, hide_first: bool = False) -> Units:
    """Return the units of one sequence of an example.

    `hide_first` is that of `tokens_frame`; it concerns the word of the first token, and no sentence.
    """
    tokens = example.tokens(sequence)
    if kind == "token":
        return Units(table_frame(tokens, hide_first=hide_first), np.arange(len(tokens), dtype=np.int64), tokens)
    texts = (example.target_text or "", "") if sequence == "target" else (example.text, example.text_pair or "")
    words = _words(tokens, texts)
    of_word = np.arange(len(words)) if kind == "word" else _sentences(words)
    has_token = tokens.word_rank >= 0
    numbers, unit = np.unique(of_word[has_token], return_inverse=True)
    parts: list[list[str]] = [[] for _ in numbers]
    for index, row in zip(unit.tolist(), np.flatnonzero(has_token).tolist(), strict=True):
        parts[index].append(words[row][0])
    labels = [" ".join(filter(None, part)).strip() for part in parts]
    of_token = np.append(unit, -1)[tokens.token_rank].astype(np.int64)
    is_hidden = hide_first and kind == "word" and bool(of_token.size) and of_token[0] == 0
    frame = tokens_frame([label(_short(text)) for text in labels], None, labels, hide_first=is_hidden)
    bounds = np.array([0, len(labels)], np.int64)
    return Units(frame, of_token, replace(tokens, word=of_token.astype(np.int32), word_offset=bounds))


def merged(
    maps: Float[np.ndarray, "n_heads query_pos key_pos"], query: Units, key: Units
) -> Float32[np.ndarray, "n_heads query_unit key_unit"]:
    """Merge attention between tokens to attention between units."""
    if query.are_tokens and key.are_tokens:
        return np.asarray(maps, np.float32)
    return merge_example(maps, query.table, key.table).astype(np.float32)


def _words(tokens: TokenTable, texts: tuple[str, str]) -> list[tuple[str, bool]]:
    """Return (text, is_second) for each word; `is_second` is True for words of the second text."""
    second = tokens.word_second.tolist()
    spans = zip(tokens.word_char_start.tolist(), tokens.word_char_end.tolist(), second, strict=True)
    return [(texts[side][start:stop], side) for start, stop, side in spans]


def _sentences(words: list[tuple[str, bool]]) -> Int64[np.ndarray, "word"]:
    """Return the sentence of each word. A sentence ends at its end mark or at the end of its text."""
    of_word, sentence = np.zeros(len(words), np.int64), -1
    is_first, side = True, False
    for index, (text, second) in enumerate(words):
        if is_first or second != side:
            sentence, side = sentence + 1, second
        of_word[index] = sentence
        is_first = bool(_END.search(text))
    return of_word


def _short(text: str) -> str:
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "\u2026"
