"""An example on its way from a corpus to a model: text with annotated words, then token sequences."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8


@dataclass(frozen=True)
class Word:
    """One word: a half-open character span of the text it lies in. Only syntactic words of a corpus are listed."""

    char_start: int
    char_end: int
    second: bool = False  # lies in the second text of a pair


@dataclass(frozen=True)
class CorpusExample:
    """One input as the corpus has it, before tokenization.

    `word_columns` has one list as long as `words` for each annotation (``upos``, ``deprel``, ``head`` ...); `head` is
    the index of the head's word, -1 for the root. `columns` are annotations of the whole example.
    """

    id: str
    text: str
    text_pair: str | None = None
    target: str | None = None
    words: tuple[Word, ...] = ()
    word_columns: dict[str, list[str | None] | list[int]] = field(default_factory=dict)
    columns: dict[str, str | int | float | None] = field(default_factory=dict)
    image: Path | None = None
    """What an image corpus has instead of a text to read."""


@dataclass(frozen=True)
class TokenSequence:
    """The tokens of one sequence of one example; the columns mean what `headatlas.store.schema.token_table.TokenTable` says."""

    id: Int32[np.ndarray, "token"]
    word: Int32[np.ndarray, "token"]
    char_start: Int32[np.ndarray, "token"]
    char_end: Int32[np.ndarray, "token"]
    flags: UInt8[np.ndarray, "token"]
    text: tuple[str, ...]
    piece: tuple[str, ...]
    columns: dict[str, Int32[np.ndarray, "token"]] = field(default_factory=dict)
    """More of each token, by name: row and column of an image's patches; -1 is missing."""

    def __len__(self) -> int:
        return len(self.id)

    def beginning(self, n_tokens: int) -> TokenSequence:
        """The first tokens."""
        if len(self) <= n_tokens:
            return self
        return self.take(np.arange(n_tokens))

    def take(self, rows: Int[np.ndarray, "n"]) -> TokenSequence:
        """Some tokens, by index."""
        picked: dict[str, Any] = {}
        for part in fields(self):
            column = getattr(self, part.name)
            if isinstance(column, dict):
                picked[part.name] = {name: values[rows] for name, values in column.items()}
            else:
                picked[part.name] = column[rows] if isinstance(column, np.ndarray) else tuple(column[i] for i in rows)
        return TokenSequence(**picked)


@dataclass(frozen=True)
class EncodedExample:
    """An example ready for the model; `example.words` are filled in, also where the corpus had none."""

    example: CorpusExample
    source: TokenSequence
    target: TokenSequence | None = None
    truncated: bool = False  # text beyond the token limit was cut off

    def beginning(self, n_tokens: int) -> EncodedExample:
        """The same with the first tokens of each side alone; the text stays, and an image whole."""
        if self.example.image is not None:
            return self
        target = None if self.target is None else self.target.beginning(n_tokens)
        return replace(self, source=self.source.beginning(n_tokens), target=target)


def empty_tokens() -> TokenSequence:
    """A sequence of no tokens."""
    none = np.empty(0, dtype=np.int32)
    return TokenSequence(none, none, none, none, np.empty(0, dtype=np.uint8), (), ())


def without_tokens(example: CorpusExample, two_sided: bool) -> EncodedExample:
    """An example that is listed but not traced."""
    return EncodedExample(example, empty_tokens(), empty_tokens() if two_sided else None)
