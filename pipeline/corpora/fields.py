"""From a record of named fields (a JSON object, a table row) to an example."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from headatlas.store.errors import ConfigError

from .corpus_options import FieldOptions
from .examples import CorpusExample
from .records import ColumnNames, Quarantined, check_text, default_id

_ROLES = ("text", "text_pair", "target", "id")


class RecordReader:
    """Reads records of one file by its options, keeping annotation names the same throughout."""

    def __init__(self, options: FieldOptions) -> None:
        self._options = options
        self._names = ColumnNames()
        self._role_field = {role: getattr(options, role) or role for role in _ROLES}
        self._asked = {role for role in _ROLES if getattr(options, role) is not None}

    def check_header(self, fields: Iterable[str]) -> None:
        """Raise ConfigError where a table lacks a column that the options name."""
        known = list(fields)
        wanted = [(f"corpus.{role}", self._role_field[role]) for role in _ROLES if role in self._asked]
        wanted += [("corpus.columns", name) for name in self._options.columns or ()]
        wanted += [("corpus.numbers", name) for name in getattr(self._options, "numbers", ())]
        for setting, name in wanted:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(
                    f"{setting}: {self._options.path} has no column {name!r}, only {', '.join(known)}{hint}"
                )

    def read(self, number: int, record: Mapping[str, Any]) -> CorpusExample | Quarantined:
        """The example of a record, or why there is none."""
        found: dict[str, str | None] = {}
        for role, name in self._role_field.items():
            value = record.get(name)
            if value is None and role in self._asked:
                return Quarantined(number, f"no {name!r}")
            if role == "id" and isinstance(value, int):
                value = str(value)
            if value is not None and not isinstance(value, str):
                return Quarantined(number, f"{name!r} is {type(value).__name__}, expected text")
            found[role] = value
        for role in ("text", "text_pair", "target"):
            text = found[role]
            if text is not None and (reason := check_text(text)):
                return Quarantined(number, reason if role == "text" else f"{self._role_field[role]!r}: {reason}")
        text = found["text"]
        if text is None:
            return Quarantined(number, f"no {self._role_field['text']!r}")
        name = found["id"] or default_id(self._options.path, number)
        if check_text(name):
            return Quarantined(number, f"the id {name!r} is {check_text(name)}")
        columns = self._read_columns(record)
        return CorpusExample(id=name, text=text, text_pair=found["text_pair"], target=found["target"], columns=columns)

    def _read_columns(self, record: Mapping[str, Any]) -> dict[str, str | int | float | None]:
        kept = self._options.columns
        taken = set(self._role_field.values())
        columns: dict[str, str | int | float | None] = {}
        for name in record if kept is None else kept:
            value = record.get(name)
            if name in taken or not isinstance(value, (str, int, float, type(None))):
                continue
            if isinstance(value, bool):
                value = "true" if value else "false"
            elif isinstance(value, float) and not math.isfinite(value):
                value = None
            elif isinstance(value, str) and not value.isascii():
                value = value.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate becomes ?
            columns[self._names(name)] = value
        return columns
