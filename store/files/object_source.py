"""Where the files of a store lie: a folder here, or an address that is read over a network (`remote/`).

Everything that reads a store reads it through an `ObjectSource`. Names are relative to the store, made of plain
components (`objects.check_path`). Only folders are written to: writers take a path, by `local_folder`.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import unquote

from ..errors import ConfigError
from .cache_folder import url_cache_folder
from .hashed_files import (
    HashedFile,
    ObjectDamageError,
    StoredObject,
    check_folder,
    check_objects,
    fsync_folder,
    read_small,
)
from .manifest_names import numbers_of

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/{1,3}|:)")
CACHE_BYTES = 256 << 20
"""What is kept in memory of what came over a network."""
PART_BYTES = 4 << 20
Range = tuple[int, int]
"""Offset and number of bytes."""


class ObjectFile(Protocol):
    """One object, open for reading. Safe from many threads."""

    size: int
    """Bytes that the object has, or must have."""

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Bytes of the object; fewer where it ends before."""
        ...

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """What `read_at` gives for each range, in order; as few requests as can be."""
        ...

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """Ranges that will be read next, as they are here: over a network they are fetched at once."""
        ...

    def __enter__(self) -> ObjectFile: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ObjectSource(Protocol):
    """Reads the files of one store. Safe from many threads; errors name the file, not the store."""

    location: str
    """For messages, and to open it again: an absolute path or a URL without secrets."""
    folder: Path | None
    """The folder, where it is on this machine."""
    bytes_fetched: int
    """Bytes of objects that came over a network."""
    n_requests: int

    def manifest_numbers(self) -> list[int]:
        """The numbers of the manifests that can be found, ascending; the last is the newest. Empty: no store."""
        ...

    def read_small(self, path: str, limit_bytes: int, item: StoredObject | None = None) -> bytes:
        """The bytes of a file of at most `limit_bytes`; `item` says what they must be, where that is known.

        Raises
        ------
        CorruptSegmentError
            It is missing.
        FormatError
            It is larger, or not a regular file.
        """
        ...

    def check_segment(self, folder: str, objects: Iterable[StoredObject]) -> None:
        """Presence and size of all objects below a folder, where that costs little; else reading tells.

        Raises
        ------
        ObjectDamageError
            An object is missing or has another size.
        """
        ...

    def check_object(self, folder: str, item: StoredObject) -> None:
        """Presence and size of one object, whatever it costs."""
        ...

    def open(self, folder: str, item: StoredObject) -> ObjectFile:
        """An object below a folder.

        Raises
        ------
        OSError
            It cannot be opened. Over a network that may also come with the first read.
        """
        ...

    def open_seekable(self, folder: str, item: StoredObject, head_bytes: int) -> str | io.BufferedReader:
        """What a library that opens files itself is given: a path, or an object with read and seek.

        It will want the first `head_bytes`: over a network they come at once.
        """
        ...

    def prefetch(self, folder: str, items: Sequence[StoredObject]) -> None:
        """Whole objects that will be read next: over a network they are fetched at once."""
        ...


class LocalFile:
    """A file of this machine, read with `pread`."""

    __slots__ = ("_fd", "size")

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._fd).st_size

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """See `ObjectFile.read_at`."""
        return os.pread(self._fd, n_bytes, offset)

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """See `ObjectFile.read_ranges`."""
        return (os.pread(self._fd, n_bytes, offset) for offset, n_bytes in ranges)

    def read_into(self, offset: int, parts: Sequence[memoryview | bytearray]) -> int:
        """Fill buffers, one after the other, from `offset` on: how many bytes there were. Saves the copy of `read_at`."""
        return os.preadv(self._fd, parts, offset)

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """See `ObjectFile.prefetch`: the system does."""

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


class LocalSource:
    """A store in a folder of this machine. No link is followed."""

    bytes_fetched = n_requests = 0

    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = folder.absolute()
        self._root = self.folder
        self.location = str(self.folder)

    def manifest_numbers(self) -> list[int]:
        """See `ObjectSource.manifest_numbers`: all that are there."""
        try:
            return numbers_of(os.listdir(self._root))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read_small(self, path: str, limit_bytes: int, item: StoredObject | None = None) -> bytes:
        """See `ObjectSource.read_small`; every folder on the way is checked."""
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
        return LocalFile(f"{self.location}/{folder}/{item.path}")

    def open_seekable(self, folder: str, item: StoredObject, head_bytes: int) -> str | io.BufferedReader:
        """See `ObjectSource.open_seekable`: the path."""
        return f"{self.location}/{folder}/{item.path}"

    def prefetch(self, folder: str, items: Sequence[StoredObject]) -> None:
        """See `ObjectSource.prefetch`: the system does."""


def open_source(
    location: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    cache_bytes: int = CACHE_BYTES,
    cache_dir: str | None = None,
) -> ObjectSource:
    """The source of a folder or a URL; nothing is read yet. See `open_store` for the arguments.

    Raises
    ------
    ConfigError
        A URL of an unknown protocol, or a package for it is missing.
    """
    text = os.fspath(location)
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    if not _is_url(text):
        return LocalSource(Path(text))
    if "://" not in text and "::" not in text:
        raise ConfigError(f"{text} is a URL that lost a slash; expected text such as 's3://bucket/traces', no Path.")
    from .remote.remote_source import RemoteSource  # brings fsspec

    object_folder = Path(cache_dir) if cache_dir else url_cache_folder()
    return RemoteSource(text, options or {}, cache_bytes=cache_bytes, cache_dir=object_folder)


def _is_url(text: str) -> bool:
    """Whether a location names a protocol, and no folder is called like it."""
    return _URL.match(text) is not None and not Path(text.split("/", 1)[0]).is_dir()


def local_folder(location: str | os.PathLike[str]) -> Path:
    """A folder of this machine, to write to.

    Raises
    ------
    ConfigError
        A URL: stores are read from there, not written.
    """
    text = os.fspath(location)
    if _is_url(text):
        raise ConfigError(
            f"{text} is a URL; expected a folder: stores are read from URLs, and written to folders only. Write to a "
            "folder, and copy the store from there (manifests last)."
        )
    return Path(location)


def source_of(location: Path | ObjectSource) -> ObjectSource:
    """A source as it is, or that of a folder."""
    return LocalSource(location) if isinstance(location, Path) else location


def object_parts(source: ObjectSource, folder: str, item: StoredObject) -> Iterator[bytes]:
    """The bytes of an object, some MiB at a time.

    Raises
    ------
    OSError
        It cannot be opened.
    """
    with source.open(folder, item) as file:
        for start in range(0, item.bytes, PART_BYTES):
            yield file.read_at(start, min(PART_BYTES, item.bytes - start))


def copy_objects(source: ObjectSource, folder: str, target: Path, objects: Iterable[StoredObject]) -> None:
    """Copy files of a folder of a store into a new folder, fsynced, each against its size and hash.

    Raises
    ------
    ObjectDamageError
        A file is not what is listed.
    """
    folders = {target: None}
    target.mkdir()
    for item in objects:
        place = target / item.path
        for parent in reversed(place.relative_to(target).parents):
            if target / parent not in folders:
                (target / parent).mkdir()
                folders[target / parent] = None
        source.check_object(folder, item)
        with HashedFile(place) as copy:
            for part in object_parts(source, folder, item):
                copy.write(part)
        if (copy.bytes, copy.sha256) != (item.bytes, item.sha256):
            raise ObjectDamageError(
                f"object {item.path} was changed: its hash is not the listed one. Restore it, or drop its segment.",
                object_path=item.path,
            )
    for made in reversed(folders):
        fsync_folder(made)
