"""The fields of ``query.`` and ``key.``: each is one array over the tokens of a segment.

A `Values` is an array with its kind and its missing rows. Text stays dictionary-encoded: comparison, case folding and
regular expressions run once for each distinct text, not for each token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

from ..errors import ShapeError
from ..schema.token_table import MISSING, Column, TokenFlag, TokenTable
from .acronyms import expansions
from .tree import Step

Kind = Literal["number", "text", "bool"]


@dataclass(frozen=True)
class Field:
    """A field of ``query.``, ``key.`` or ``example.``."""

    name: str
    kind: Kind
    description: str


TOKEN_FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("position", "number", "position in the example, from 0"),
        Field("text", "text", "the part of the text that the token covers; the piece for special tokens"),
        Field("lower", "text", "the text, case-folded"),
        Field("piece", "text", "the tokenizer's own spelling"),
        Field("id", "number", "the tokenizer's number of the token"),
        Field(
            "special", "bool", "true for special tokens ([CLS], <s>): the tokenizer adds them, or the text spells them"
        ),
        Field("segment", "number", "0 in the first text of a pair, 1 in the second"),
        Field("continuation", "bool", "true if the token continues the word of the token before"),
        Field("generated", "bool", "true if the model generated the token"),
        Field("word", "number", "number of its word in the example, from 0; missing for special tokens"),
        Field("word_text", "text", "text of its whole word"),
        Field("length", "number", "number of tokens of the example"),
        Field("expansion_start", "number", "for an acronym: the first word of its long form; otherwise missing"),
        Field(
            "expansion_stop",
            "number",
            "for an acronym: the word after the last one of its long form; otherwise missing",
        ),
    )
}
FROM_TEXTS = frozenset({"word_text", "expansion_start", "expansion_stop"})
"""Fields that are computed from the texts of the words."""
WORD_FIELDS = FROM_TEXTS | {"word"}
"""Fields of a token's word. The annotations of words are further ones."""
EXAMPLE_FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("id", "text", "the example's id"),
        Field("index", "number", "the example's number in the store, from 0"),
    )
}


@dataclass(frozen=True)
class Values:
    """One value for each token or pair, or a single value, with its kind.

    `data` holds numbers (int64 or float64), truth values, or codes into `texts`. `missing` marks rows without a value;
    None if every row has one. Truth values are never missing: they are False instead.
    """

    kind: Kind
    data: np.ndarray
    missing: np.ndarray | None = None
    texts: tuple[str, ...] = ()

    def take(self, rows: np.ndarray) -> Values:
        """Select rows by index."""
        return Values(self.kind, self.data[rows], None if self.missing is None else self.missing[rows], self.texts)


def column_kind(column: Column) -> Kind:
    """Return the kind of the values of an annotation column."""
    return "text" if column.is_text else "number"


def column_values(column: Column, kind: Kind | None = None) -> Values:
    """Read an annotation column; code or number -1, NaN and infinities are missing.

    If other segments hold the column as text (`kind`), numbers are converted to text.
    """
    if column.values is None and kind == "text":
        numbers = column_values(column)
        assert numbers.missing is not None
        rows = zip(numbers.data.tolist(), numbers.missing.tolist(), strict=True)
        column = Column.of_text(None if missing else str(number) for number, missing in rows)
    if column.values is not None:
        return Values("text", column.data, column.data < 0, column.values)
    if column.data.dtype.kind == "f":
        return Values("number", column.data, ~np.isfinite(column.data))
    return Values("number", column.data.astype(np.int64), column.data == MISSING)


def word_field_names(columns: Mapping[str, Column]) -> dict[str, str]:
    """Map field names to word columns. A column with the name of a token field gets the field name ``word_NAME``.

    If another column or a token field has that name too, it gets a number: ``word_text_2``.
    """
    names = {name: name for name in columns if name not in TOKEN_FIELDS}
    for name in columns:
        if name in TOKEN_FIELDS:
            field, n = f"word_{name}", 1
            while field in names or field in TOKEN_FIELDS:
                n += 1
                field = f"word_{name}_{n}"
            names[field] = name
    return names


@dataclass(frozen=True)
class Texts:
    """Texts of the examples that the words of a sequence belong to, and the second texts of pairs."""

    first: Sequence[str]
    second: Sequence[str] | None = None


class TokenFields:
    """The fields of one token sequence, computed on first use.

    Parameters
    ----------
    table
        The tokens.
    texts
        Texts for the fields in `FROM_TEXTS`. Without them the text of a word is joined from its tokens.
    """

    def __init__(self, table: TokenTable, texts: Texts | None = None) -> None:
        if texts is not None and len(texts.first) != table.n_examples:
            raise ShapeError(
                f"{len(texts.first)} texts for {table.n_examples} examples; expected one text for each example"
            )
        self.table, self.texts = table, texts
        self.position: Int64[np.ndarray, "token"] = table.position.astype(np.int64)
        self.example: Int64[np.ndarray, "token"] = np.repeat(np.arange(table.n_examples), table.n_tokens)
        self._fields: dict[str, Values] = {}
        self._words = word_field_names(table.word_columns)

    def values(self, name: str, steps: tuple[Step, ...] = (), kind: Kind | None = None) -> Values:
        """Return one value for each token. `kind` is the kind of an annotation column in the store's vocabulary."""
        values = self._fields.get(name)
        if values is None:
            values = self._fields[name] = self._compute(name, kind)
        if not steps:
            return values
        index, inside = self._step(steps)
        shifted = values.take(index)
        if values.kind == "bool":
            return Values("bool", shifted.data & inside)
        return Values(
            values.kind, shifted.data, ~inside if shifted.missing is None else ~inside | shifted.missing, values.texts
        )

    def _step(self, steps: tuple[Step, ...]) -> tuple[Int64[np.ndarray, "token"], Bool[np.ndarray, "token"]]:
        """Return the index of the token that `steps` lead to, and True if that token is in the example."""
        moves = [-1 if step == "previous" else 1 for step in steps]
        offset = np.cumsum([0, *moves])
        last = self.table.n_tokens[self.example] - 1
        inside = (self.position + offset.min() >= 0) & (self.position + offset.max() <= last)
        return np.where(inside, np.arange(len(self.table)) + offset[-1], 0), inside

    def _compute(self, name: str, kind: Kind | None) -> Values:
        table = self.table
        match name:
            case "position":
                return Values("number", self.position)
            case "length":
                return Values("number", table.n_tokens.astype(np.int64)[self.example])
            case "id":
                return Values("number", table.id.astype(np.int64))
            case "text" | "piece":
                return column_values(table.columns[name])
            case "lower":
                return column_values(table.columns["text"].folded)
            case "special":
                return Values("bool", table.special)
            case "segment":
                return Values("number", table.second.astype(np.int64))
            case "continuation":
                return Values("bool", (table.flags & TokenFlag.CONTINUATION) != 0)
            case "generated":
                return Values("bool", (table.flags & TokenFlag.GENERATED) != 0)
            case "word":
                return Values("number", table.word.astype(np.int64), table.word < 0)
            case "word_text":
                return self._of_words(self._word_texts)
            case "expansion_start" | "expansion_stop":
                return self._of_words(Column(self._expansions[name == "expansion_stop"]))
        if name in table.columns:
            return column_values(table.columns[name], kind)
        if name in self._words:
            return self._of_words(table.word_columns[self._words[name]], kind)
        data = np.full(len(table), MISSING, dtype=np.int64)
        return Values(kind or "number", data, np.ones(len(table), dtype=bool))

    def _of_words(self, column: Column, kind: Kind | None = None) -> Values:
        values = column_values(column.take(self.table.word_row), kind)
        outside = self.table.word_row < 0
        missing = outside if values.missing is None else outside | values.missing
        return Values(values.kind, values.data, missing, values.texts)

    @cached_property
    def _expansions(self) -> tuple[np.ndarray, np.ndarray]:
        texts, has_token = self._word_texts.to_list(), self.table.word_rank >= 0
        words = [
            text if isinstance(text, str) and is_key else "" for text, is_key in zip(texts, has_token, strict=True)
        ]
        return expansions(words, self.table.word_offset.astype(np.int64))

    @cached_property
    def _word_texts(self) -> Column:
        table = self.table
        if self.texts is None:
            pieces: list[list[str]] = [[] for _ in table.word_char_start]
            text = table.columns["text"].to_list()
            for token in np.flatnonzero(table.word >= 0).tolist():
                pieces[table.word_row[token]].append(str(text[token]))
            return Column.of_text("".join(piece) for piece in pieces)
        example = np.repeat(np.arange(table.n_examples), np.diff(table.word_offset))
        words = zip(
            example.tolist(),
            table.word_second.tolist(),
            table.word_char_start.tolist(),
            table.word_char_end.tolist(),
            strict=True,
        )
        other = self.texts.second if self.texts.second is not None else self.texts.first
        return Column.of_text(
            (other if of_second else self.texts.first)[e][start:stop] for e, of_second, start, stop in words
        )
