"""Access to the files of a store, in a folder of this machine or over a network (`remote/`).

All readers of a store use an `ObjectSource`. File names are relative to the store and consist of plain components
(`hashed_files.check_path`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from .hashed_files import StoredObject, check_folder, check_objects, check_regular, open_regular, read_small
from .manifest_names import parse_manifest_names

CACHE_BYTES = 256 << 20
"""Default size of the memory cache for bytes that came over a network."""
PART_BYTES = 4 << 20
Range = tuple[int, int]
"""Offset and number of bytes of a range."""


class ObjectFile(Protocol):
    """One object, open for reading. Safe from many threads."""

    size: int
    """Size of the object in bytes, or its listed size if it was not opened yet."""

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Read a range of the object. The result is shorter if the object ends before."""
        ...

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Read several ranges in order, with as few requests as possible. Each result is that of `read_at`."""
        ...

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """Prepare for reading exactly these ranges next. Over a network they are fetched together."""
        ...

    def __enter__(self) -> ObjectFile: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ObjectSource(Protocol):
    """Reader of the files of one store. It is thread-safe. Errors name the file, not the store."""

    location: str
    """Absolute path, or URL without secrets; for messages, and to open the source again."""
    folder: Path | None
    """Folder of the store, or None if it is not on this machine."""
    bytes_fetched: int
    """Bytes of objects that were fetched over a network."""
    n_requests: int

    def manifest_numbers(self, first: int = 0) -> list[int]:
        """Return the numbers of the store's manifests, ascending; the last is the newest. Empty without a store.

        `first` is the number in `latest.json`. A server that cannot list its files is asked for the numbers from there.
        """
        ...

    def read_small(self, path: str, limit_bytes: int, item: StoredObject | None = None) -> bytes:
        """Read a file of at most `limit_bytes`. `item` is its expected size and hash, if known.

        Raises
        ------
        CorruptSegmentError
            The file is missing.
        FormatError
            The file is larger, or not a regular file.
        """
        ...

    def check_segment(self, folder: str, objects: Iterable[StoredObject]) -> None:
        """Check the presence and size of all objects below a folder if that is cheap. Otherwise reading detects damage.

        Raises
        ------
        ObjectDamageError
            An object is missing or has another size.
        """
        ...

    def check_object(self, folder: str, item: StoredObject) -> None:
        """Check the presence and size of one file, even if that needs a request."""
        ...

    def open(self, folder: str, item: StoredObject) -> ObjectFile:
        """Open an object below a folder.

        Raises
        ------
        OSError
            The object cannot be opened. Over a network the error may come with the first read.
        """
        ...

    def open_file(self, folder: str, path: str, n_bytes: int) -> ObjectFile:
        """Open a file of `n_bytes` below a folder, past the disk cache. Raises as `open`."""
        ...

    def open_seekable(self, folder: str, item: StoredObject, head_bytes: int) -> str | io.BufferedReader:
        """Open an object for a library that takes a path or a seekable file.

        The library will read the first `head_bytes`. Over a network they are fetched together.
        """
        ...

    def prefetch(self, folder: str, items: Sequence[StoredObject]) -> None:
        """Prepare for reading these objects next. Over a network they are fetched together."""
        ...


class LocalFile:
    """File of this machine, read with `pread`."""

    __slots__ = ("_fd", "_start", "size")

    def __init__(self, path: str, name: str = "", part: Range | None = None) -> None:
        """Open a file, or the `part` of it that holds an object."""
        self._fd = open_regular(path, name or path)
        self._start, self.size = part or (0, os.fstat(self._fd).st_size)

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """See `ObjectFile.read_at`."""
        return os.pread(self._fd, max(0, min(n_bytes, self.size - offset)), self._start + offset)

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """See `ObjectFile.read_ranges`."""
        return (self.read_at(offset, n_bytes) for offset, n_bytes in ranges)

    def read_into(self, offset: int, parts: Sequence[memoryview | bytearray]) -> int:
        """Fill buffers one after the other, starting at `offset`, without the copy of `read_at`.

        Return the number of bytes read. The range must end inside the object.
        """
        return os.preadv(self._fd, parts, self._start + offset)

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """See `ObjectFile.prefetch`. The page cache makes it unnecessary here."""

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


class LocalSource:
    """Source of a store in a folder of this machine. It does not follow links."""

    bytes_fetched = n_requests = 0

    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = folder.absolute()
        self._root = self.folder
        self.location = str(self.folder)

    def manifest_numbers(self, first: int = 0) -> list[int]:
        """See `ObjectSource.manifest_numbers`."""
        try:
            return parse_manifest_names(os.listdir(self._root))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read_small(self, path: str, limit_bytes: int, item: StoredObject | None = None) -> bytes:
        """See `ObjectSource.read_small`. The folders of the path are checked too."""
        folder = path.rpartition("/")[0]
        for end in (i for i, letter in enumerate(folder + "/") if letter == "/" and folder):
            check_folder(self._root / folder[:end], folder[:end])
        return read_small(self._root / path, path, limit_bytes)

    def check_segment(self, folder: str, objects: Iterable[StoredObject]) -> None:
        """See `ObjectSource.check_segment`."""
        check_objects(self._root / folder, objects)

    def check_object(self, folder: str, item: StoredObject) -> None:
        """See `ObjectSource.check_object`."""
        check_objects(self._root / folder, [item])

    def open(self, folder: str, item: StoredObject) -> LocalFile:
        """See `ObjectSource.open`."""
        part = None if item.offset is None else (item.offset, item.bytes)
        return LocalFile(f"{self.location}/{folder}/{item.file_path}", f"object {item.path}", part)

    def open_file(self, folder: str, path: str, n_bytes: int) -> LocalFile:
        """See `ObjectSource.open_file`."""
        return LocalFile(f"{self.location}/{folder}/{path}", f"object {path}")

    def open_seekable(self, folder: str, item: StoredObject, head_bytes: int) -> str | io.BufferedReader:
        """See `ObjectSource.open_seekable`. Returns the path."""
        path = f"{self.location}/{folder}/{item.path}"
        check_regular(path, f"object {item.path}")
        return path

    def prefetch(self, folder: str, items: Sequence[StoredObject]) -> None:
        """See `ObjectSource.prefetch`. The page cache makes it unnecessary here."""


def as_source(location: Path | ObjectSource) -> ObjectSource:
    """Return the source of a folder. A source is returned unchanged."""
    return LocalSource(location) if isinstance(location, Path) else location
