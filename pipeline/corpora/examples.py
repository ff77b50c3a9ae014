"""Examples before and after tokenization: texts with annotated words, and their token sequences."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from headatlas.store.schema.omissions import Omission
from headatlas.store.schema.token_table import TokenFlag


@dataclass(frozen=True)
class Word:
    """One word: a half-open character span of its text. For a treebank, only syntactic words."""

    char_start: int
    char_end: int
    second: bool = False  # True if it is in the second text of a pair


WordColumn = list[str | None] | list[int] | list[float]
"""An annotation of words: texts or None, numbers from 0 or -1 for missing, or numbers with NaN for missing."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation, and the characters of its content in the text that a chat template writes."""

    role: str
    content: str
    start: int = -1
    stop: int = -1  # -1: the template does not write the content as it is


@dataclass(frozen=True)
class CorpusExample:
    """One input of the corpus before tokenization.

    `word_columns` has one list for each annotation (``upos``, ``deprel``, ``head`` ...), as long as `words`. `head` is
    the word index of the governor, -1 for the root. `columns` are annotations of the whole example.
    """

    id: str
    text: str
    text_pair: str | None = None
    target: str | None = None
    words: tuple[Word, ...] = ()
    word_columns: dict[str, WordColumn] = field(default_factory=dict)
    columns: dict[str, str | int | float | None] = field(default_factory=dict)
    left_out: tuple[Omission, ...] = ()
    """Omissions: data that the record holds and the example does not."""
    image: Path | None = None
    """Image file to read instead of the text; None in text corpora."""
    messages: tuple[Message, ...] = ()
    """Conversation that the chat template of the model turns into the text."""

    @property
    def memory_bytes(self) -> int:
        """Approximate memory of the example."""
        contents = (message.content for message in self.messages)
        values = (self.id, self.text, self.text_pair, self.target, *contents, *self.columns.values())
        return sum(map(sys.getsizeof, values)) + 64 * len(self.words) * (2 + len(self.word_columns))


@dataclass(frozen=True)
class TokenSequence:
    """The tokens of one sequence of one example. `headatlas.store.schema.token_table.TokenTable` defines the columns.

    A token that the tokenizer added has the characters 0 to 0, and a token whose characters are not certain -1 to -1.
    """

    id: Int32[np.ndarray, "token"]
    word: Int32[np.ndarray, "token"]
    char_start: Int32[np.ndarray, "token"]
    char_end: Int32[np.ndarray, "token"]
    flags: UInt8[np.ndarray, "token"]
    text: tuple[str, ...]
    piece: tuple[str, ...]
    columns: dict[str, Int32[np.ndarray, "token"]] = field(default_factory=dict)
    """Further columns by name, such as row and column of image patches; -1 is missing."""

    def __len__(self) -> int:
        return len(self.id)

    @property
    def is_added(self) -> Bool[np.ndarray, "token"]:
        """True for special tokens that the tokenizer added."""
        is_special = (self.flags & TokenFlag.SPECIAL) != 0
        return is_special & (self.char_start == self.char_end) & (self.char_start >= 0)

    @property
    def is_written_special(self) -> Bool[np.ndarray, "token"]:
        """True for special tokens that the text itself spells."""
        return ((self.flags & TokenFlag.SPECIAL) != 0) & ~self.is_added

    def beginning(self, n_tokens: int) -> TokenSequence:
        """Return the first `n_tokens` tokens."""
        if len(self) <= n_tokens:
            return self
        return self.take(np.arange(n_tokens))

    def take(self, rows: Int[np.ndarray, "n"]) -> TokenSequence:
        """Return the tokens with these indices."""
        columns: dict[str, Any] = {}
        for column_field in fields(self):
            values = getattr(self, column_field.name)
            if isinstance(values, dict):
                columns[column_field.name] = {name: array[rows] for name, array in values.items()}
            else:
                columns[column_field.name] = (
                    values[rows] if isinstance(values, np.ndarray) else tuple(values[i] for i in rows)
                )
        return TokenSequence(**columns)


@dataclass(frozen=True)
class EncodedExample:
    """An example ready for the model. `example.words` is always filled in, also if the corpus has no words."""

    example: CorpusExample
    source: TokenSequence
    target: TokenSequence | None = None
    truncated: bool = False  # True if the text was cut at the token limit
    left_out: tuple[Omission, ...] = ()
    """Parts of the texts that no token has. Of several windows of a document the first one has them all."""
    written_special: tuple[str, ...] = ()
    """Special tokens that the text itself spells; of a conversation, those in the content of messages."""

    def beginning(self, n_tokens: int) -> EncodedExample:
        """Return the example with only the first tokens of each sequence. The text stays; images are returned unchanged."""
        if self.example.image is not None:
            return self
        target = None if self.target is None else self.target.beginning(n_tokens)
        return replace(self, source=self.source.beginning(n_tokens), target=target)


def empty_tokens() -> TokenSequence:
    """Return a sequence without tokens."""
    none = np.empty(0, dtype=np.int32)
    return TokenSequence(none, none, none, none, np.empty(0, dtype=np.uint8), (), ())


def without_tokens(example: CorpusExample, two_sided: bool) -> EncodedExample:
    """Return an example that is listed in the store but has no tokens and no traces."""
    return EncodedExample(example, empty_tokens(), empty_tokens() if two_sided else None)
