"""What every reader shares: lines with their numbers, quarantine, record ids, names of annotations.

Readers never stop at a bad record: they give a `Quarantined` with its line and reason and go on, and every record of a
file comes out as one example or one `Quarantined`. A file that cannot be read at all is a `ConfigError`.
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
MAX_COLUMNS = 64


@dataclass(frozen=True)
class Quarantined:
    """A record that was left out. `line` counts lines (rows, in a Parquet table) from 1."""

    line: int
    reason: str


def iter_lines(path: Path, encoding: str) -> Iterator[tuple[int, str | Quarantined]]:
    r"""Lines of a file with their numbers from 1, without line end; only ``\n`` and ``\r\n`` end a line.

    A byte order mark is dropped. A line that does not decode, or has more than 16 MiB, comes as `Quarantined`.
    """
    with open_bytes(path) as file:
        number = 0
        while raw := _read(path, file, MAX_RECORD_BYTES):
            number += 1
            size = len(raw)
            if size == MAX_RECORD_BYTES and not raw.endswith(b"\n"):
                while (more := _read(path, file, MAX_RECORD_BYTES)) and not more.endswith(b"\n"):
                    pass
                yield number, Quarantined(number, f"longer than {MAX_RECORD_BYTES} bytes")
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
        It is not there or may not be read.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"corpus.path {str(path)!r}: there is no such file; paths are relative to where you are")
        return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise ConfigError(f"corpus.path {str(path)!r} cannot be opened: {error}") from error


def corpus_files(path: Path) -> list[Path]:
    """The file itself, or the ``*.txt`` and ``*.txt.gz`` of a folder in the order of their names.

    Raises
    ------
    ConfigError
        The folder holds none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.name.removesuffix(".gz").endswith(".txt"))
    if not found:
        raise ConfigError(f"corpus.path {str(path)!r} is a folder without *.txt; expected a text file, or some of them")
    return found


def read_bytes(path: Path, file: io.BufferedIOBase) -> bytes | None:
    """The rest of a file; None if it has more than 16 MiB."""
    data = _reading(path, lambda: file.read(MAX_RECORD_BYTES + 1))
    return data if len(data) <= MAX_RECORD_BYTES else None


def _read(path: Path, file: io.BufferedIOBase, n_bytes: int) -> bytes:
    return _reading(path, lambda: file.readline(n_bytes))


def _reading(path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"corpus.path {str(path)!r} cannot be read to its end: {error}") from error


def check_text(text: str) -> str | None:
    """Why a text can be no example, or None."""
    if not text.strip():
        return "empty text"
    if not text.isascii():
        for i, char in enumerate(text):
            if "\ud800" <= char <= "\udfff":
                return f"a lone surrogate (U+{ord(char):04X}) at character {i}"
    return None


def file_stem(path: Path) -> str:
    """The file's name without its endings: what ids made from record numbers begin with."""
    name = path.name.removesuffix(".gz")
    return name.rsplit(".", 1)[0] or name


def default_id(path: Path, number: int) -> str:
    """The id of a record that brings none: ``<stem>-000123``, from its line or row number."""
    return f"{file_stem(path)}-{number:06d}"


class UniqueIds:
    """Makes repeated ids different: the second ``a`` becomes ``a#2``, whatever else is in the file before it."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """The id itself the first time, else with a number behind."""
        if name not in self._seen:
            self._seen[name] = 1
            return name
        while True:
            self._seen[name] += 1
            candidate = f"{name}#{self._seen[name]}"
            if candidate not in self._seen:
                self._seen[candidate] = 1
                return candidate


class ColumnNames:
    """Gives fields names that expressions and array paths can hold: letters, digits and ``_``, all different."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def __call__(self, field: str) -> str:
        """The annotation's name for a field, the same each time.

        Raises
        ------
        ConfigError
            The file has more than 64 different fields.
        """
        if field not in self._names:
            if len(self._names) >= MAX_COLUMNS:
                raise ConfigError(f"more than {MAX_COLUMNS} different fields; name those to keep in corpus.columns")
            plain = re.sub(r"[^0-9A-Za-z]+", "_", field).strip("_") or "column"
            if plain[0].isdigit():
                plain = f"column_{plain}"
            name, n = plain, 1
            while name in self._names.values():
                n += 1
                name = f"{plain}_{n}"
            self._names[field] = name
        return self._names[field]
