"""Headers of the pages of a Parquet file: the sizes that its decoder allocates.

The footer of a file states sizes too, but the decoder does not rely on them, so a footer can say less than its pages
expand to. Only headers are read here, and nothing is decompressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import Any

_DELTA_TEXTS = {6, 7}
"""Encodings of texts by the differences of their lengths or beginnings."""
_MAX_DEPTH = 8


class DamagedPageError(ValueError):
    """Raised for bytes that are no page header."""


@dataclass
class ColumnPages:
    """Sums over the pages of one column in one row group."""

    stored_bytes: int = 0
    expanded_bytes: int = 0
    n_values: int = 0
    """Number of values, missing ones and those of lists included."""
    has_delta_texts: bool = False


def read_pages(file: mmap, start: int, n_bytes: int) -> ColumnPages:
    """Read the headers of the pages that lie in a range of a file.

    Raises
    ------
    DamagedPageError
        A page reaches beyond the range, or its header cannot be read.
    """
    pages, position, stop = ColumnPages(), start, start + n_bytes
    if not 0 <= start <= stop <= len(file):
        raise DamagedPageError("a column lies outside of the file")
    while position < stop:
        header, position = _Compact(file, position, stop).read_struct()
        expanded, stored = (_number(header, field) for field in (2, 3))
        position += stored
        if position > stop:
            raise DamagedPageError("a page is longer than its column")
        pages.stored_bytes += stored
        pages.expanded_bytes += expanded
        for field, encoding_field in ((5, 2), (8, 4)):  # data pages of version 1 and 2
            if isinstance(data_page := header.get(field), dict):
                pages.n_values += _number(data_page, 1)
                pages.has_delta_texts |= data_page.get(encoding_field) in _DELTA_TEXTS
    return pages


def _number(fields: dict[int, Any], field: int) -> int:
    value = fields.get(field)
    if not isinstance(value, int) or value < 0:
        raise DamagedPageError("a page header has no size")
    return value


class _Compact:
    """Reader of Thrift's compact protocol."""

    def __init__(self, data: mmap, position: int, stop: int) -> None:
        self._data, self._position, self._stop = data, position, stop

    def read_struct(self, depth: int = 0) -> tuple[dict[int, Any], int]:
        """Return the fields of a structure by their numbers, and the position after it."""
        return dict(self._fields(depth)), self._position

    def _fields(self, depth: int) -> Iterator[tuple[int, Any]]:
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            yield number, self._value(head & 15, depth)

    def _byte(self) -> int:
        if self._position >= self._stop:
            raise DamagedPageError("a page header is cut off")
        self._position += 1
        return self._data[self._position - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise DamagedPageError("a page header has a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)

    def _value(self, kind: int, depth: int) -> Any:
        """Read a value. Texts and lists are skipped."""
        if depth > _MAX_DEPTH:
            raise DamagedPageError("a page header is nested too deeply")
        match kind:
            case 1 | 2:
                return kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._signed()
            case 7:
                self._position += 8
            case 8:
                length = self._unsigned()
                self._position += length
            case 9 | 10:
                head = self._byte()
                item = 3 if head & 15 in (1, 2) else head & 15  # in lists a truth value takes a byte
                for _ in range(head >> 4 if head >> 4 < 15 else self._unsigned()):
                    self._value(item, depth + 1)
                    self._byte_left()
            case 12:
                return self.read_struct(depth + 1)[0]
            case _:
                raise DamagedPageError("a page header has a value of an unknown type")
        return None

    def _byte_left(self) -> None:
        if self._position > self._stop:
            raise DamagedPageError("a page header is cut off")
