"""Numbered lines, quarantine, record ids and annotation names: the part that all corpus readers share.

A reader never stops at a bad record. It yields a `Quarantined` with the line and the reason, and continues. Every
record of a file becomes one example or one `Quarantined`. An unreadable file raises `ConfigError`.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from headatlas.store.errors import ConfigError

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


def iter_lines(path: Path, encoding: str) -> Iterator[tuple[int, str | Quarantined]]:
    r"""Yield the lines of a file without their ends, numbered from 1. Only ``\n`` and ``\r\n`` end a line.

    A byte order mark is dropped. A line that does not decode or is longer than 16 MiB is yielded as `Quarantined`.
    """
    with open_bytes(path) as file:
        number = 0
        while raw := _read(path, file, MAX_RECORD_BYTES):
            number += 1
            size = len(raw)
            if size == MAX_RECORD_BYTES and not raw.endswith(b"\n"):
                while (more := _read(path, file, MAX_RECORD_BYTES)) and not more.endswith(b"\n"):
                    pass
                yield number, Quarantined(number, TOO_LONG)
                continue
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
            try:
                yield number, raw.decode(encoding)
            except UnicodeDecodeError as error:
                yield (
                    number,
                    Quarantined(number, f"not {encoding}: byte 0x{raw[error.start]:02x} at byte {error.start}"),
                )


def open_bytes(path: Path) -> io.BufferedIOBase:
    """Open a file for reading, unpacking ``.gz``.

    Raises
    ------
    ConfigError
        The file does not exist or cannot be opened.
    """
    try:
        if not path.is_file():
            raise ConfigError(
                f"corpus.path {str(path)!r}: there is no such file. Relative paths start at the current directory"
            )
        return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise ConfigError(f"corpus.path {str(path)!r} cannot be opened: {error}") from error


def corpus_files(path: Path) -> list[Path]:
    """Return the file itself, or the ``*.txt`` and ``*.txt.gz`` files of a folder, sorted by name.

    Raises
    ------
    ConfigError
        The folder contains no such file.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.removesuffix(".gz").endswith(".txt"))
    if not files:
        raise ConfigError(
            f"corpus.path {str(path)!r} is a folder without *.txt; expected a text file, or a folder of text files"
        )
    return files


def read_bytes(path: Path, file: io.BufferedIOBase) -> bytes | None:
    """Read a file to its end; None if more than 16 MiB remain."""
    data = _reading(path, lambda: file.read(MAX_RECORD_BYTES + 1))
    return data if len(data) <= MAX_RECORD_BYTES else None


def _read(path: Path, file: io.BufferedIOBase, n_bytes: int) -> bytes:
    return _reading(path, lambda: file.readline(n_bytes))


def _reading(path: Path, operation: Callable[[], bytes]) -> bytes:
    try:
        return operation()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"corpus.path {str(path)!r} cannot be read to its end: {error}") from error


def check_text(text: str) -> str | None:
    """Return the reason why a text cannot be an example, or None if it can."""
    if not text.strip():
        return "empty text"
    if not text.isascii():
        for i, char in enumerate(text):
            if "\ud800" <= char <= "\udfff":
                return f"a lone surrogate (U+{ord(char):04X}) at character {i}"
    return None


def file_stem(path: Path) -> str:
    """Return the file name without its suffixes. Ids that are built from record numbers begin with it."""
    name = path.name.removesuffix(".gz")
    return name.rsplit(".", 1)[0] or name


def default_id(path: Path, number: int) -> str:
    """Return the id of a record without one: ``<stem>-000123``, from its line or row number."""
    return f"{file_stem(path)}-{number:06d}"


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
    """Converts field names to names that are valid in expressions and array paths: letters, digits, ``_``, unique."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def __call__(self, field: str) -> str:
        """Return the annotation name of a field, the same at every call.

        Raises
        ------
        ConfigError
            The file has more than 64 different fields.
        """
        if field not in self._names:
            if len(self._names) >= MAX_COLUMNS:
                raise ConfigError(
                    f"more than {MAX_COLUMNS} different fields. Name the fields to keep in corpus.columns"
                )
            plain = re.sub(r"[^0-9A-Za-z]+", "_", field).strip("_") or "column"
            if plain[0].isdigit():
                plain = f"column_{plain}"
            name, n = plain, 1
            while name in self._names.values():
                n += 1
                name = f"{plain}_{n}"
            self._names[field] = name
        return self._names[field]
