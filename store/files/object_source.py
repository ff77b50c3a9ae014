"""Access to the files of a store, in a folder of this machine or over a network (`remote/`).

All readers of a store use an `ObjectSource`. File names are relative to the store and consist of plain components
(`hashed_files.check_path`). Stores are written to folders only: writers take a path from `local_folder`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from .hashed_files import (
    HashedFile,
    ObjectDamageError,
    StoredObject,
    check_folder,
    check_objects,
    check_regular,
    fsync_folder,
    open_regular,
    read_small,
)
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
        """Check the presence and size of one object, even if that needs a request."""
        ...

    def open(self, folder: str, item: StoredObject) -> ObjectFile:
        """Open an object below a folder.

        Raises
        ------
        OSError
            The object cannot be opened. Over a network the error may come with the first read.
        """
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

    __slots__ = ("_fd", "size")

    def __init__(self, path: str, name: str = "") -> None:
        self._fd = open_regular(path, name or path)
        self.size = os.fstat(self._fd).st_size

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """See `ObjectFile.read_at`."""
        return os.pread(self._fd, n_bytes, offset)

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """See `ObjectFile.read_ranges`."""
        return (os.pread(self._fd, n_bytes, offset) for offset, n_bytes in ranges)

    def read_into(self, offset: int, parts: Sequence[memoryview | bytearray]) -> int:
        """Fill buffers one after the other, starting at `offset`, without the copy of `read_at`.

        Return the number of bytes read.
        """
        return os.preadv(self._fd, parts, offset)

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
        return LocalFile(f"{self.location}/{folder}/{item.path}", f"object {item.path}")

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


def object_parts(source: ObjectSource, folder: str, item: StoredObject) -> Iterator[bytes]:
    """Read an object in parts of a few MiB.

    Raises
    ------
    OSError
        The object cannot be opened.
    """
    with source.open(folder, item) as file:
        for start in range(0, item.bytes, PART_BYTES):
            yield file.read_at(start, min(PART_BYTES, item.bytes - start))


def copy_objects(source: ObjectSource, folder: str, target: Path, objects: Iterable[StoredObject]) -> None:
    """Copy files of a store into a new folder, compare each with its size and hash, and fsync them.

    Raises
    ------
    ObjectDamageError
        A file does not have the listed size and hash.
    """
    folders = {target: None}
    target.mkdir()
    for item in objects:
        path = target / item.path
        for parent in reversed(path.relative_to(target).parents):
            if target / parent not in folders:
                (target / parent).mkdir()
                folders[target / parent] = None
        source.check_object(folder, item)
        with HashedFile(path) as copy:
            for part in object_parts(source, folder, item):
                copy.write(part)
        if (copy.bytes, copy.sha256) != (item.bytes, item.sha256):
            raise ObjectDamageError(
                f"object {item.path} was changed: its hash is not the listed one. Restore it, or drop its segment.",
                object_path=item.path,
            )
    for created in reversed(folders):
        fsync_folder(created)
