"""Records that corpus readers yield, record ids and annotation names: the part that all corpus readers share.

A reader never stops at a bad record. It yields a `Quarantined` with the line and the reason, and continues. Every
record of a file becomes one example or one `Quarantined`. An unreadable file raises `ConfigError`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from headatlas.store.errors import ConfigError
from headatlas.store.patterns.token_fields import EXAMPLE_FIELDS
from headatlas.store.schema.omissions import LISTED_NAMES, Omission
from headatlas.store.schema.text_tables import has_path

from .examples import CorpusExample

MAX_RECORD_BYTES = 16 * 2**20
TOO_LONG = f"longer than {MAX_RECORD_BYTES} bytes"
LINE_OVERHEAD = 16
"""Characters that a line of a record of several lines counts for besides its own, so that empty lines count too."""
MAX_COLUMNS = 64


@dataclass(frozen=True)
class Quarantined:
    """A record that cannot be used. `line` is its line number (row number in a Parquet table), from 1."""

    line: int
    reason: str
    file: str | None = None
    """Name of its file, if the corpus has several."""

    @property
    def location(self) -> str:
        """``line 12``, or ``shard.jsonl line 12``."""
        return f"line {self.line}" if self.file is None else f"{self.file} line {self.line}"


@dataclass(frozen=True)
class Renaming:
    """A column or an id that has another name in the store than in the corpus."""

    kind: Literal["columns", "ids"]
    old: str
    new: str


Record = CorpusExample | Quarantined | Omission | Renaming


class LeftOut:
    """Values that one record holds and its example does not: their names by kind and reason."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], list[str]] = {}

    def add(self, reason: str, name: str, what: str = "values") -> None:
        """Add a value of a field; `what` is the kind of value in the plural."""
        self._names.setdefault((what, reason), []).append(name)

    def omissions(self) -> tuple[Omission, ...]:
        """Return one omission for each kind and reason."""
        if not self._names:
            return ()
        return tuple(
            _omission(what, len(names), reason, tuple(dict.fromkeys(names))[:LISTED_NAMES])
            for (what, reason), names in self._names.items()
        )


@lru_cache(4096)  # many records leave out the same
def _omission(what: str, n: int, reason: str, names: tuple[str, ...]) -> Omission:
    return Omission(what=what, n=n, reason=reason, names=names, n_examples=1)


def check_text(text: str) -> str | None:
    """Return the reason why a text cannot be an example, or None if it can."""
    if not text.strip():
        return "empty text"
    if "\0" in text and (text[0] == "\0" or text.count("\0") > 0.3 * len(text)):
        return "zero bytes as in UTF-16: this part of the file has another encoding"
    if not text.isascii():
        for i, char in enumerate(text):
            if "\ud800" <= char <= "\udfff":
                return f"a lone surrogate (U+{ord(char):04X}) at character {i}"
    return None


class UniqueIds:
    """Makes repeated ids unique. The second ``a`` becomes ``a#2``, or the next number that is free."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """Return the id itself the first time, later the id with a number appended."""
        if name not in self._counts:
            self._counts[name] = 1
            return name
        while True:
            self._counts[name] += 1
            candidate = f"{name}#{self._counts[name]}"
            if candidate not in self._counts:
                self._counts[candidate] = 1
                return candidate


class ColumnNames:
    """Gives every field of a corpus the name of its column. A column has the name of its field wherever it can.

    A name is stored in Unicode's composed form (NFC). A name that expressions cannot use gets a plain form: other
    characters than letters, digits and ``_`` become ``_``, a name that would begin with a digit begins with ``column_``,
    and a long name is cut. A name that another column or every example has gets a number: ``id_2``.
    """

    def __init__(self, on_renaming: Callable[[Renaming], None] = lambda renaming: None) -> None:
        self._names: dict[str, str] = {}
        self._columns: set[str] = set(EXAMPLE_FIELDS)
        self._on_renaming = on_renaming

    def __call__(self, field: str) -> str:
        """Return the annotation name of a field, the same at every call.

        Raises
        ------
        ConfigError
            The corpus has more than 64 different fields.
        """
        name = self._names.get(field)
        if name is None:
            if len(self._names) >= MAX_COLUMNS:
                raise ConfigError(
                    f"more than {MAX_COLUMNS} different fields. Name the fields to keep in corpus.columns"
                )
            plain = name = _plain_name(unicodedata.normalize("NFC", field))
            n = 1
            while name in self._columns:
                n += 1
                name = _cut(plain, f"_{n}")
            self._columns.add(name)
            self._names[field] = name
            if unicodedata.normalize("NFC", field) != name:
                self._on_renaming(Renaming("columns", field, name))
        return name


def _plain_name(name: str) -> str:
    if name.isidentifier() and has_path(name):
        return name
    characters = [char if ("a" + char).isidentifier() else " " for char in name[:1000]]
    plain = "_".join("".join(characters).split()).strip("_") or "column"
    return _cut(plain if plain.isidentifier() else f"column_{plain}", "")


def _cut(name: str, ending: str) -> str:
    """Append an ending to a name, which is cut so far that the result may be the name of a column."""
    while not has_path(name + ending):
        name = name[:-1]
    return name + ending
