"""Tables of text whose fields are separated by commas, tabs or another character."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from headatlas.store.errors import ConfigError

from .corpus_files import iter_lines
from .fields import Rows
from .records import MAX_RECORD_BYTES, TOO_LONG, Quarantined

_LINE_OVERHEAD = 128
"""Memory of a line besides its characters."""
_REASONS = {
    "unexpected end of data": "a quote is opened here and never closed",
    "expected after": "text follows a closing quote",
    "new-line character": "a carriage return outside quotes",
    "field limit": TOO_LONG,
}
"""Reasons of the csv module by a part of them, and ours."""


def iter_delimited(
    path: Path, encoding: str, check_header: Callable[[list[str]], object], delimiter: str, has_quotes: bool = True
) -> Rows:
    """Yield the rows of a delimited table as text by column. The number of a row is that of its last line.

    If a quote is not closed as it should be, only the line that opens it is unusable: the lines after it are read
    again. `check_header` receives the column names.

    Raises
    ------
    ConfigError
        The header is missing or cannot be read.
    """
    lines = _Lines(path, encoding)
    quoting = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
    rows = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    while (row := _next_row(rows, lines)) is not None:
        number = lines.number
        faults, lines.faults = lines.faults, []
        if header is None:
            fault = faults[0] if faults else row if isinstance(row, Quarantined) else None
            if fault is not None:
                raise ConfigError(
                    f"corpus.path {str(path)!r}: the header, line {fault.line}, cannot be read: {fault.reason}. "
                    + _advice(fault.reason)
                )
            assert isinstance(row, list)
            header = row
            check_header(header)
            continue
        if faults or not row:  # a record with an unreadable line is unusable
            yield from ((fault.line, fault) for fault in faults)
        elif isinstance(row, Quarantined):
            yield row.line, row
        elif [name.removeprefix("\ufeff") for name in row] == header:
            yield number, Quarantined(number, "the header again; were files joined?")
        elif len(row) != len(header):
            hint = "; a stray quote? (corpus.quoting = false)" if has_quotes and len(row) < len(header) else ""
            yield number, Quarantined(number, f"{len(row)} fields, expected {len(header)}{hint}")
        else:
            yield number, {name: value or None for name, value in zip(header, row, strict=True)}
    for fault in lines.faults:
        if header is not None:
            yield fault.line, fault
    if header is None:
        raise ConfigError(f"corpus.path {str(path)!r} has no header line; the first line must name the columns")


def _advice(reason: str) -> str:
    """Return what can be done about a header that cannot be read."""
    if reason.startswith("not "):
        return "Set corpus.encoding to the encoding of the file; it is often cp1252, latin-1 or gb18030"
    if "carriage return" in reason:
        return "If the lines of the file end in carriage returns, convert them to line feeds"
    return "Set corpus.quoting = false if quotes are part of the text"


class _Lines:
    """Lines for the csv reader, which can be read again from the second line of a record.

    An unreadable line is replaced by an empty one and added to `faults`. Raises csv.Error if a record has more than
    16 MiB. The reader then begins the next record.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self._lines = iter_lines(path, encoding)
        self._again: deque[tuple[int, str]] = deque()
        self._record: list[tuple[int, str]] = []
        self._n_chars = 0
        self.faults: list[Quarantined] = []

    @property
    def number(self) -> int:
        """Number of the last line."""
        return self._record[-1][0]

    def begin_record(self) -> None:
        """Forget the lines of the last record."""
        self._record, self._n_chars = [], 0

    def give_back(self) -> int:
        """Arrange for all lines of the record but its first to be read again. Return the number of the first."""
        self._again.extendleft(reversed(self._record[1:]))
        return self._record[0][0]

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._again:
            number, line = self._again.popleft()
        else:
            number, content = next(self._lines)
            if isinstance(content, Quarantined):
                self.faults.append(content)
                content = ""
            line = content + "\n"
        self._record.append((number, line))
        self._n_chars += len(line) + _LINE_OVERHEAD
        if self._n_chars > MAX_RECORD_BYTES:
            raise csv.Error("a quote is not closed within 16 MiB" if len(self._record) > 1 else TOO_LONG)
        return line


def _next_row(rows: Any, lines: _Lines) -> list[str] | Quarantined | None:
    """Return the next row that is not blank, the line that cannot be read, or None at the end."""
    limit = csv.field_size_limit(MAX_RECORD_BYTES)
    try:
        while True:
            lines.begin_record()
            row = next(rows, None)
            if row is None or row or lines.faults:
                return row
    except csv.Error as error:
        reason = next((reason for part, reason in _REASONS.items() if part in str(error)), str(error))
        return Quarantined(lines.give_back(), reason)
    finally:
        csv.field_size_limit(limit)


def read_numbers(number: int, row: dict[str, Any], fields: Collection[str]) -> dict[str, Any] | Quarantined:
    """Convert fields of a row to numbers."""
    for name in fields:
        value = row.get(name)
        if value is None:
            continue
        try:
            row[name] = int(value) if value.lstrip("+-").isdecimal() else float(value)
        except ValueError:
            return Quarantined(number, f"{name!r} is {value!r}, expected a number")
    return row
