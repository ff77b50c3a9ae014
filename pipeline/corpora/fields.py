"""Conversion of records with named fields (JSON objects, table rows) to examples."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from headatlas.store.errors import ConfigError
from headatlas.store.schema.omissions import LISTED_NAMES, Omission

from .corpus_files import CorpusFile, default_id
from .corpus_options import FieldOptions
from .examples import CorpusExample, Message
from .messages import read_messages
from .records import ColumnNames, LeftOut, Quarantined, Record, Renaming, check_text
from .word_annotations import UnusableField, WordAnnotations, annotate_spans, read_words

_TEXTS = ("text", "text_pair", "target")
_NESTED = ("words", "spans", "messages")
_NO_SINGLE_VALUE = "an annotation of an example is a single value, not "

_NONE: Mapping[str, str] = {}

Rows = Iterator[tuple[int, dict[str, Any] | Quarantined]]
"""Numbered records of a file."""


class RecordReader:
    """Reads the records of a corpus by its options. A field has the same annotation name in all files and records.

    A field that an option names must be usable in every record. A field that is only read because it has the name of
    an option (such as `id`) never costs a record: what it cannot be used for is an annotation, or left out.
    """

    def __init__(self, options: FieldOptions) -> None:
        self._options = options
        self._renamings: list[Renaming] = []
        self._names = ColumnNames(self._renamings.append)
        self._field = {role: getattr(options, role, None) or role for role in (*_TEXTS, "id", *_NESTED)}
        self._named_roles = {role for role in self._field if getattr(options, role, None) is not None}
        self._unread: dict[str, str] = {}
        self._absent = dict.fromkeys(options.columns or ())

    def read_file(self, file: CorpusFile, rows: Rows) -> Iterator[Record]:
        """Yield the examples of one file, and the columns that were renamed."""
        for number, row in rows:
            yield row if isinstance(row, Quarantined) else self.read(file, number, row)
            if self._renamings:
                yield from self._renamings
                self._renamings.clear()

    def check_header(
        self, header: list[str], nested: Mapping[str, str] = _NONE, lists: Collection[str] = ()
    ) -> Collection[str]:
        """Check the columns of a table, and return those to read.

        `nested` has the types of columns without single values. Those that are in `lists` are read if the table has
        words, spans or conversations.

        Raises
        ------
        ConfigError
            The table lacks a column that the options name, or has a name twice.
        """
        check_unique(self._options.path, header)
        has_words = self._field["words"] in header
        has_text = not has_words and self._field["messages"] not in header
        settings = [
            (f"corpus.{role}", name)
            for role, name in self._field.items()
            if role in self._named_roles and (role != "text" or has_text)
        ]
        settings += [("corpus.columns", name) for name in self._options.columns or ()]
        settings += [("corpus.numbers", name) for name in getattr(self._options, "numbers", ())]
        for setting, name in settings:
            if name not in header:
                near = get_close_matches(name, header, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                if header[0].startswith("sep="):
                    hint = "; the first line is for Excel: delete it"
                elif len(header) == 1 and (signs := [sign for sign in ";\t|," if sign in header[0]]):
                    hint = f"; is {signs[0]!r} the separator? (corpus.delimiter)"
                raise ConfigError(
                    f"{setting}: {self._options.path} has no column {name!r}, only {', '.join(header)}{hint}"
                )
        columns = {name for name in header if name not in nested}
        columns |= {name for name in lists if has_words or name in (self._field["spans"], self._field["messages"])}
        for role in self._named_roles:
            if (name := self._field[role]) in nested and name not in columns:
                raise ConfigError(f"corpus.{role}: column {name!r} is {nested[name]}, which cannot be its type")
        selection = self._options.columns
        self._unread |= {
            name: kind
            for name, kind in nested.items()
            if name not in columns and (selection is None or name in selection)
        }
        return columns

    def left_out(self) -> Iterator[Omission]:
        """Yield the columns of tables that were not read, and the named columns that no record had."""
        for kind in dict.fromkeys(self._unread.values()):
            names = [name for name in self._unread if self._unread[name] == kind]
            reason = f"annotations are texts, numbers, truth values or dates, not {kind}"
            yield Omission(what="columns", n=len(names), reason=reason, names=tuple(names[:LISTED_NAMES]))
        if absent := tuple(name for name in self._absent if name not in self._unread):
            reason = "named in corpus.columns, but no record has them"
            yield Omission(what="columns", n=len(absent), reason=reason, names=absent[:LISTED_NAMES])

    def read(self, file: CorpusFile, number: int, record: Mapping[str, Any]) -> CorpusExample | Quarantined:
        """Convert a record to an example, or to a `Quarantined` with the reason."""
        left_out = LeftOut()
        messages: tuple[Message, ...] = ()
        messages_left_out: tuple[Omission, ...] = ()
        if self._is_conversation(record):
            outcome = read_messages(record.get(self._field["messages"]))
            if isinstance(outcome, str):
                return Quarantined(number, f"{self._field['messages']!r}: {outcome}")
            messages, messages_left_out = outcome
        texts: dict[str, str | None] = dict.fromkeys(_TEXTS)
        consumed = {self._field["messages"]} if messages else set[str]()
        for role in _TEXTS[bool(messages) :]:  # a conversation takes the place of the text
            name = self._field[role]
            value = record.get(name)
            is_named = role in self._named_roles
            if role != "text" and not is_named and name in (self._options.columns or ()):
                continue  # an annotation
            if isinstance(value, str):
                consumed.add(name)
                reason = check_text(value)
                if reason is None:
                    texts[role] = value
                elif is_named:
                    return Quarantined(number, reason if role == "text" else f"{name!r}: {reason}")
                elif value.strip():
                    left_out.add(f"no {role}: a lone surrogate", name)
            elif value is not None and is_named:
                return Quarantined(number, f"{name!r} is {type(value).__name__}, expected text")
            elif is_named and role != "text":
                return Quarantined(number, f"no {name!r}")
        text = "" if messages else texts["text"]
        try:
            annotations = None
            if not messages and (self._field["words"] in record or self._field["spans"] in record):
                annotations = self._annotate_words(record, text, texts["text_pair"], consumed, left_out)
                text = annotations.text
            name = self._read_id(file, number, record, consumed, left_out)
        except UnusableField as error:
            return Quarantined(number, str(error))
        if text is None:
            return Quarantined(number, f"no {self._field['text']!r}")
        columns = self._read_columns(record, consumed, left_out)
        return CorpusExample(
            id=name,
            text=text,
            text_pair=texts["text_pair"],
            target=texts["target"],
            words=() if annotations is None else annotations.words,
            word_columns={}
            if annotations is None
            else {self._names(field): values for field, values in annotations.columns.items()},
            columns=columns,
            left_out=(*left_out.omissions(), *messages_left_out),
            messages=messages,
        )

    def _is_conversation(self, record: Mapping[str, Any]) -> bool:
        """Return True if the example is the conversation of a record: it has no text, or an option names the field."""
        texts = (record.get(self._field[role]) for role in ("text", "words"))
        return "messages" in self._named_roles or (
            self._field["messages"] in record and all(value is None for value in texts)
        )

    def _read_id(
        self, file: CorpusFile, number: int, record: Mapping[str, Any], consumed: set[str], left_out: LeftOut
    ) -> str:
        field = self._field["id"]
        value, is_named = record.get(field), "id" in self._named_roles
        consumed.add(field)
        if isinstance(value, float):
            value = None if not math.isfinite(value) else int(value) if value.is_integer() else value
        if isinstance(value, (int, float)):
            value = str(value)
        if value is None or value == "":
            if is_named:
                raise UnusableField(f"no {field!r}")
            return default_id(file.name, number)
        if not isinstance(value, str):
            reason = f"{field!r} is {type(value).__name__}, expected text"
        elif fault := check_text(value):
            reason = f"the id {value!r} is {fault}"
        else:
            return value
        if is_named:
            raise UnusableField(reason)
        left_out.add("no id: expected text or a number", field)
        return default_id(file.name, number)

    def _annotate_words(
        self,
        record: Mapping[str, Any],
        text: str | None,
        text_pair: str | None,
        consumed: set[str],
        left_out: LeftOut,
    ) -> WordAnnotations:
        annotations = WordAnnotations(text)
        for role, is_list in (("words", _is_words), ("spans", _is_spans)):
            field = self._field[role]
            value: Any = record.get(field)
            if not is_list(value):
                if role in self._named_roles and value is not None and value != []:
                    raise UnusableField(f"{field!r} is no list of {role}")
                continue
            consumed.add(field)
            try:
                if role == "words":
                    lists = {name: items for name, items in record.items() if name != self._field["spans"]}
                    annotations = read_words(text, text_pair, field, lists, consumed)
                elif annotations.text is not None:
                    annotations = annotate_spans(annotations, text_pair, field, value, left_out)
            except UnusableField as error:
                if role in self._named_roles:
                    raise
                left_out.add(str(error), field)
        return annotations

    def _read_columns(
        self, record: Mapping[str, Any], consumed: set[str], left_out: LeftOut
    ) -> dict[str, str | int | float | None]:
        selection = self._options.columns
        columns: dict[str, str | int | float | None] = {}
        for name in record if selection is None else selection:
            if name in self._absent and name in record:
                del self._absent[name]
            if name in consumed:
                continue
            value = record.get(name)
            if isinstance(value, bool):
                value = "true" if value else "false"
            elif isinstance(value, str):
                if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
                    value = value.encode("utf-8", "replace").decode("utf-8")
                    left_out.add("lone surrogates, which are stored as ?", name)
            elif isinstance(value, float):
                if math.isinf(value):
                    left_out.add("infinite numbers, which are stored as missing", name)
                value = value if math.isfinite(value) else None
            elif isinstance(value, (list, dict)):
                if value:
                    left_out.add(_NO_SINGLE_VALUE + ("a list" if isinstance(value, list) else "an object"), name)
                continue
            columns[self._names(name)] = value
        return columns


def check_unique(path: Path, header: list[str]) -> None:
    """Check that no column of a table has the name of another.

    Raises
    ------
    ConfigError
        Names occur twice.
    """
    if len(set(header)) < len(header):
        repeated = sorted({name for name in header if header.count(name) > 1})
        raise ConfigError(
            f"corpus.path {str(path)!r}: the header repeats {', '.join(map(repr, repeated))}; rename these columns"
        )


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _is_spans(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, (dict, list, tuple)) for item in value)
