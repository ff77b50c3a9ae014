"""Conversion of records with named fields (JSON objects, table rows) to examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from headatlas.store.errors import ConfigError

from .corpus_options import FieldOptions
from .examples import CorpusExample
from .messages import read_messages
from .records import ColumnNames, Quarantined, check_text, default_id

_ROLES = ("text", "text_pair", "target", "id")


class RecordReader:
    """Reads the records of one file by its options. A field has the same annotation name in all records."""

    def __init__(self, options: FieldOptions) -> None:
        self._options = options
        self._names = ColumnNames()
        self._role_field = {role: getattr(options, role) or role for role in _ROLES}
        self._messages = options.messages or "messages"
        self._named_roles = {role for role in _ROLES if getattr(options, role) is not None}

    def check_header(self, fields: Iterable[str]) -> None:
        """Raise ConfigError if the table lacks a column that the options name."""
        header = list(fields)
        settings = [(f"corpus.{role}", self._role_field[role]) for role in _ROLES if role in self._named_roles]
        settings += [("corpus.messages", name) for name in (self._options.messages,) if name is not None]
        settings += [("corpus.columns", name) for name in self._options.columns or ()]
        settings += [("corpus.numbers", name) for name in getattr(self._options, "numbers", ())]
        if self._messages in header:  # a conversation takes the place of the text
            settings.remove(("corpus.text", self._role_field["text"]))
        for setting, name in settings:
            if name not in header:
                near = get_close_matches(name, header, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(
                    f"{setting}: {self._options.path} has no column {name!r}, only {', '.join(header)}{hint}"
                )

    def read(self, number: int, record: Mapping[str, Any]) -> CorpusExample | Quarantined:
        """Convert a record to an example, or to a `Quarantined` with the reason."""
        messages, left_out = (), ()
        has_messages = self._options.messages is not None or self._messages in record
        if has_messages and (self._options.messages is not None or record.get(self._role_field["text"]) is None):
            outcome = read_messages(record.get(self._messages))
            if isinstance(outcome, str):
                return Quarantined(number, f"{self._messages!r}: {outcome}")
            messages, left_out = outcome
        values: dict[str, str | None] = {}
        for role, name in self._role_field.items():
            value = "" if role == "text" and messages else record.get(name)
            if value is None and role in self._named_roles:
                return Quarantined(number, f"no {name!r}")
            if role == "id" and isinstance(value, int):
                value = str(value)
            if value is not None and not isinstance(value, str):
                return Quarantined(number, f"{name!r} is {type(value).__name__}, expected text")
            values[role] = value
        for role in ("text", "text_pair", "target"):
            text = values[role]
            if text is not None and not (role == "text" and messages) and (reason := check_text(text)):
                return Quarantined(number, reason if role == "text" else f"{self._role_field[role]!r}: {reason}")
        text = values["text"]
        if text is None:
            return Quarantined(number, f"no {self._role_field['text']!r}")
        name = values["id"] or default_id(self._options.path, number)
        if check_text(name):
            return Quarantined(number, f"the id {name!r} is {check_text(name)}")
        columns = self._read_columns(record)
        return CorpusExample(
            id=name,
            text=text,
            text_pair=values["text_pair"],
            target=values["target"],
            columns=columns,
            left_out=left_out,
            messages=messages,
        )

    def _read_columns(self, record: Mapping[str, Any]) -> dict[str, str | int | float | None]:
        selection = self._options.columns
        role_fields = set(self._role_field.values())
        columns: dict[str, str | int | float | None] = {}
        for name in record if selection is None else selection:
            value = record.get(name)
            if name in role_fields or not isinstance(value, (str, int, float, type(None))):
                continue
            if isinstance(value, bool):
                value = "true" if value else "false"
            elif isinstance(value, float) and not math.isfinite(value):
                value = None
            elif isinstance(value, str) and not value.isascii():
                value = value.encode("utf-8", "replace").decode("utf-8")  # lone surrogates become "?"
            columns[self._names(name)] = value
        return columns
