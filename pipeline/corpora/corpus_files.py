"""Files of a corpus: one file, a folder or a glob. Compression, encodings and numbered lines.

A path with ``*``, ``?`` or ``[`` is a glob. The files of a folder or glob are sorted by name, so records have the same
order and the same ids on every machine. Memory stays bounded for every file, whatever it expands to.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headatlas.store.errors import ConfigError
from headatlas.store.schema.omissions import LISTED_NAMES, Omission

from .records import MAX_RECORD_BYTES, TOO_LONG, Quarantined

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ENDINGS = {
    "text": (".txt",),
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "conllu": (".conllu",),
    "templates": (".grammar",),
}
"""Endings of the files of a folder that belong to a corpus of this kind."""
_BINARY = ("parquet", "arrow")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WIDE_ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
"""Encodings whose line end is not the byte 10. Their files are converted to UTF-8 while reading."""
_XZ_MEMORY = 256 << 20
"""Largest memory of an xz decoder; ``xz -9`` needs 65 MiB."""
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus. `name` is its path below the folder of the corpus, with forward slashes."""

    path: Path
    name: str


def corpus_files(path: Path, kind: str) -> list[CorpusFile]:
    """Return the files of a corpus of this kind, sorted by name.

    Raises
    ------
    ConfigError
        There is no such file, or the folder has no file of this kind.
    """
    if path.is_dir():
        folder_files = _folder_files(path, kind)
        if not folder_files:
            raise ConfigError(_no_files(path, kind))
        return [CorpusFile(file, file.name) for file in folder_files]
    if path.is_file():
        return [CorpusFile(path, path.name)]
    if not glob.has_magic(str(path)):
        raise ConfigError(_missing(path))
    paths = [Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match)]
    if not paths:
        raise ConfigError(f"corpus.path {str(path)!r} matches no file. Relative paths start at the current directory")
    folder = Path(os.path.commonpath([file.parent for file in paths]))
    return sorted((CorpusFile(file, file.relative_to(folder).as_posix()) for file in paths), key=lambda file: file.name)


def files_left_out(path: Path, kind: str) -> Iterator[Omission]:
    """Yield the files and folders of a folder that a corpus of this kind does not read. Hidden files are ignored."""
    if not path.is_dir():
        return
    included = set(_folder_files(path, kind))
    entries = sorted(entry for entry in path.iterdir() if entry not in included and not entry.name.startswith("."))
    other_kind = f"in the folder of the corpus, but not read by corpus.kind = {kind!r}"
    for what, reason, names in (
        ("files", other_kind, [entry.name for entry in entries if entry.is_file()]),
        ("folders", other_kind, [entry.name for entry in entries if entry.is_dir()]),
        (
            "files",
            "broken links or special files",
            [entry.name for entry in entries if not entry.exists() or not (entry.is_file() or entry.is_dir())],
        ),
    ):
        if names:
            yield Omission(what=what, n=len(names), reason=reason, names=tuple(names[:LISTED_NAMES]))


def is_empty(path: Path, kind: str) -> bool:
    """Return True for a file without content, compressed or not."""
    if kind in _BINARY or path.stat().st_size == 0:
        return path.stat().st_size == 0
    with open_bytes(path) as file:
        return not _reading(path, lambda: file.read(1))


def _folder_files(folder: Path, kind: str) -> list[Path]:
    endings = ENDINGS[kind]
    if kind not in _BINARY:
        endings += tuple(ending + compression for ending in endings for compression in COMPRESSIONS)
    files = (file for file in folder.iterdir() if file.name.lower().endswith(endings))
    return sorted(file for file in files if file.is_file() and not file.name.startswith("."))


def _no_files(folder: Path, kind: str) -> str:
    expected = " or ".join(f"*{ending}" for ending in ENDINGS[kind])
    message = f"corpus.path {str(folder)!r} is a folder without {expected}"
    if (folder / "state.json").is_file():
        return f'{message}, but it was written by save_to_disk of datasets. Set corpus.kind = "arrow"'
    others = [other for other in ENDINGS if other not in (kind, "templates") and _folder_files(folder, other)]
    if others:
        return f'{message}; it has files of corpus.kind = "{others[0]}"'
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if folders:
        shown = ", ".join(entry.name for entry in folders[:5])
        return (
            f"{message}. Name one of its folders ({shown}), or files of all folders with a glob: "
            f"{str(folder / '**' / ('*' + ENDINGS[kind][0]))!r}"
        )
    if kind == "templates":
        return f"{message}. Name a grammar file"
    return f"{message}. Check corpus.kind, or name the files with a glob: {str(folder / '*')!r}"


def _missing(path: Path) -> str:
    return f"corpus.path {str(path)!r}: there is no such file or folder. Relative paths start at the current directory"


def iter_lines(path: Path, encoding: str) -> Iterator[tuple[int, str | Quarantined]]:
    r"""Yield the lines of a file without their ends, numbered from 1. Only ``\n`` and ``\r\n`` end a line.

    A byte order mark is dropped. A line that does not decode or is longer than 16 MiB is yielded as `Quarantined`.

    Raises
    ------
    ConfigError
        The file cannot be opened or read to its end, or its bytes are UTF-16 without a byte order mark.
    """
    file, file_encoding = open_text(path, encoding)
    with file:
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
                raw = raw.removeprefix(codecs.BOM_UTF8)
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
            try:
                yield number, raw.decode("utf-8" if file_encoding in WIDE_ENCODINGS else file_encoding)
            except UnicodeDecodeError as error:
                reason = f"not {file_encoding}: byte 0x{raw[error.start]:02x} at byte {error.start}"
                if file_encoding in WIDE_ENCODINGS:  # the bytes of the message would not be those of the file
                    reason = f"not {file_encoding}: half of a surrogate pair"
                yield number, Quarantined(number, reason)


def open_text(path: Path, encoding: str) -> tuple[io.BufferedIOBase, str]:
    """Open a text file. Return it with the encoding of the file: that of its byte order mark, else `encoding`.

    Files in UTF-16 and UTF-32 are converted: the bytes that are read are UTF-8.
    """
    file = open_bytes(path)
    if codecs.lookup(encoding).name in ("utf-8", *WIDE_ENCODINGS):
        head = _reading(path, lambda: file.peek(1024))
        marked = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), None)
        encoding = marked or codecs.lookup(encoding).name
        if encoding == "utf-8" and (guess := _guess_wide(head[:1024])):
            file.close()
            raise ConfigError(
                f"corpus.path {str(path)!r} looks like {guess}, not utf-8: every second byte is 0. "
                f'Set corpus.encoding = "{guess}"'
            )
    if encoding in WIDE_ENCODINGS:
        return io.BufferedReader(_Recoded(file, encoding), _BLOCK_BYTES), encoding
    return file, encoding


def _guess_wide(head: bytes) -> str | None:
    """Return the UTF-16 encoding of bytes in which every second byte is 0, or None."""
    if len(head) < 32:
        return None
    n_even, n_odd = head[::2].count(0), head[1::2].count(0)
    if max(n_even, n_odd) < 0.35 * len(head) or min(n_even, n_odd) > 0.1 * len(head):
        return None
    return "utf-16-le" if n_odd > n_even else "utf-16-be"


class _Recoded(io.RawIOBase):
    """UTF-8 bytes of a file in UTF-16 or UTF-32. Half of a surrogate pair becomes bytes that are no UTF-8."""

    def __init__(self, file: io.BufferedIOBase, encoding: str) -> None:
        self._file, self._encoding = file, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._data = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        is_end = False
        while not self._data and not is_end:
            block = self._file.read(_BLOCK_BYTES)
            is_end = not block
            try:
                self._data = self._decoder.decode(block, final=is_end).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise OSError(f"not {self._encoding}: {error.reason}") from None
        size = min(len(buffer), len(self._data))
        buffer[:size], self._data = self._data[:size], self._data[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


class _XzFile(io.RawIOBase):
    """Unpacked bytes of an ``.xz`` file. Unlike `lzma.LZMAFile` it limits the memory that the file can ask for."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        self._block = b""
        self._has_begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decoder.eof:  # another stream may follow, after zeros
                self._block, self._has_begun = self._decoder.unused_data, False
                self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            if not self._block and self._decoder.needs_input:
                self._block = self._file.read(_BLOCK_BYTES)
                if not self._block:
                    if self._has_begun:
                        raise EOFError("the file ends inside its compressed data")
                    return 0
            block, self._block = self._block if self._has_begun else self._block.lstrip(b"\0"), b""
            self._has_begun |= bool(block)
            if self._has_begun and (data := self._decoder.decompress(block, len(buffer))):
                buffer[: len(data)] = data
                return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> Any:
    """Open a file for buffered reading, unpacking ``.gz``, ``.bz2``, ``.xz`` and ``.zst``.

    Raises
    ------
    ConfigError
        The file does not exist or cannot be opened.
    """
    try:
        if not path.is_file():
            kind = "is a folder or a special file; expected a file" if path.exists() else "there is no such file"
            raise ConfigError(f"corpus.path {str(path)!r}: {kind}. Relative paths start at the current directory")
        match path.suffix.lower():
            case ".gz":
                return gzip.GzipFile(path)
            case ".bz2":
                return bz2.BZ2File(path)
            case ".xz":
                return io.BufferedReader(_XzFile(path), _BLOCK_BYTES)
            case ".zst":
                import pyarrow as pa  # unlike zstandard it reports a file that ends too early

                return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), _BLOCK_BYTES)
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"corpus.path {str(path)!r} cannot be opened: {error.strerror or error}") from error


def read_bytes(path: Path, file: io.BufferedIOBase) -> bytes | None:
    """Read a file to its end; None if more than 16 MiB remain."""
    data = _reading(path, lambda: file.read(MAX_RECORD_BYTES + 1))
    return data if len(data) <= MAX_RECORD_BYTES else None


def _read(path: Path, file: io.BufferedIOBase, n_bytes: int) -> bytes:
    return _reading(path, lambda: file.readline(n_bytes))


def _reading(path: Path, operation: Callable[[], bytes]) -> bytes:
    try:
        return operation()
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise ConfigError(
            f"corpus.path {str(path)!r} cannot be read to its end: {error}. Is the file complete, and is it what its "
            "ending says?"
        ) from error


def file_stem(name: str) -> str:
    """Return a file's name without its suffixes. Ids that are built from record numbers begin with it."""
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.rsplit(".", 1)[0] or last)


def default_id(name: str, number: int) -> str:
    """Return the id of a record without one: ``<stem>-000123``, from its file's name and its line or row number."""
    return f"{file_stem(name)}-{number:06d}"
