"""What a row or column of a picture stands for: a token, a word or a sentence.

Attention between words or sentences is what the store's merging says (`store/reading/word_attention.py`): columns are summed
over the tokens of the key unit, rows are averaged over those of the query unit; tokens of no word (special ones) are
left out without renormalising.
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


@dataclass(frozen=True)
class Units:
    """The units of one side; `table` counts tokens by unit where the store's tables count them by word."""

    frame: TokensFrame
    of_token: Int64[np.ndarray, "token"]
    """The unit of each token, -1 for tokens of none."""
    table: TokenTable

    @property
    def first_token(self) -> Int64[np.ndarray, "unit"]:
        """The first token of each unit; 0 for a unit without tokens."""
        n = len(self.frame["labels"])
        first = np.zeros(n, np.int64)
        tokens = np.flatnonzero(self.of_token >= 0)[::-1]
        first[self.of_token[tokens]] = tokens
        return first

    @property
    def second(self) -> int | None:
        """The first unit of the second text of a pair."""
        if not len(self.of_token):
            return None
        found = np.flatnonzero(self.table.second[self.first_token])
        return int(found[0]) if len(found) and found[0] else None


def units_of(example: Example, sequence: str, kind: UnitKind) -> Units:
    """The units of one sequence of an example."""
    tokens = example.tokens(sequence)
    if kind == "token":
        return Units(table_frame(tokens), np.arange(len(tokens), dtype=np.int64), tokens)
    texts = (example.target_text or "", "") if sequence == "target" else (example.text, example.text_pair or "")
    words = _words(tokens, texts)
    of_word, labels = (np.arange(len(words)), [w for w, _ in words]) if kind == "word" else _sentences(words)
    word = tokens.word.astype(np.int64)
    of_token = np.where(word >= 0, np.append(of_word, -1)[word], -1).astype(np.int64)
    frame = tokens_frame([label(_short(text)) for text in labels], None, labels)
    bounds = np.array([0, len(labels)], np.int64)
    return Units(frame, of_token, replace(tokens, word=of_token.astype(np.int32), word_offset=bounds))


def merged(
    maps: Float[np.ndarray, "n_heads query_pos key_pos"], query: Units, key: Units
) -> Float32[np.ndarray, "n_heads query_unit key_unit"]:
    """Attention between units out of attention between tokens."""
    if all(np.array_equal(side.of_token, np.arange(n)) for side, n in zip((query, key), maps.shape[1:], strict=True)):
        return np.asarray(maps, np.float32)
    return merge_example(maps, query.table, key.table).astype(np.float32)


def _words(tokens: TokenTable, texts: tuple[str, str]) -> list[tuple[str, bool]]:
    """Text of each word, and whether it is of the second text."""
    n = len(tokens.word_char_start)
    second = np.zeros(n, bool)
    inside = tokens.word >= 0
    second[tokens.word[inside]] = tokens.second[inside]
    spans = zip(tokens.word_char_start.tolist(), tokens.word_char_end.tolist(), second.tolist(), strict=True)
    return [(texts[side][start:stop], side) for start, stop, side in spans]


def _sentences(words: list[tuple[str, bool]]) -> tuple[Int64[np.ndarray, "word"], list[str]]:
    """The sentence of each word: a sentence ends with its mark, and with its text."""
    of_word, labels, at = np.zeros(len(words), np.int64), [], -1
    ended, side = True, False
    for index, (text, second) in enumerate(words):
        if ended or second != side:
            at, side = at + 1, second
            labels.append("")
        labels[at] = f"{labels[at]} {text}".strip()
        of_word[index] = at
        ended = bool(_END.search(text))
    return of_word, labels


def _short(text: str) -> str:
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "\u2026"
