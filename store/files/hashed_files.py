"""Files of a store. They are written once, hashed while they are written, fsynced, and checked before use.

Paths inside a store consist of plain names, so a manifest cannot refer to files outside it. Symbolic links and other
files that are not regular are refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import re
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import CorruptSegmentError, FormatError

ARCHIVE_NAME = "segment.zip"
"""Name of the file that holds all files of a segment as a ZIP archive without compression."""
_NAME = re.compile(r"[A-Za-z0-9_%~-][A-Za-z0-9._%~-]*")
_PATH_MAX = 512
_DIGEST = r"^[0-9a-f]{64}$"
Buffer = bytes | memoryview | np.ndarray  # arrays of uint8
_BUFFER_BYTES = 4 << 20
_BLOCK_BYTES = 4096


_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO, errno.EBADMSG)


def is_damage(error: OSError) -> bool:
    """Return True if an error of the system says that a file is missing, of another kind, or unreadable on its disk.

    Other errors say that this process lacks something (permission, memory, file descriptors), so the file may be intact.
    """
    return error.errno in _DAMAGE


def check_path(path: str) -> str:
    """Check that `path` is relative and consists of plain names: no `..`, no hidden file, no backslash. Return it.

    Raises
    ------
    FormatError
        The path is not allowed.
    """
    if len(path) > _PATH_MAX or not all(_NAME.fullmatch(part) for part in path.split("/")):
        raise FormatError(
            f"object path {path[:80]!r} is not allowed; expected names of letters, digits and ._%~- joined by '/'. "
            "This store was not written by headatlas: do not trust it."
        )
    return path


class UnexpectedFileError(FormatError):
    """File of a store that is no regular file, or larger than any file of its kind."""


class ObjectDamageError(CorruptSegmentError):
    """Damage of one object, which holds items `start:stop` of the long axis of `array`. Unknown bounds are None."""

    def __init__(
        self, message: str, *, object_path: str, array: str = "", start: int = 0, stop: int | None = None
    ) -> None:
        super().__init__(message)
        self.object_path, self.array, self.start, self.stop = object_path, array, start, stop


class StoredObject(BaseModel):
    """One file of a segment: its path below the segment's folder, size and hash.

    `offset` is the position of its bytes in the segment's archive, or None for a file of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str
    bytes: int = Field(ge=0, lt=2**53)
    sha256: str = Field(pattern=_DIGEST)
    offset: int | None = Field(default=None, ge=0, lt=2**53)

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: str) -> str:
        try:
            return check_path(path)
        except FormatError as error:  # pydantic reports ValueErrors
            raise ValueError(str(error)) from None

    @property
    def file_path(self) -> str:
        """Path of the file on disk that holds the object."""
        return self.path if self.offset is None else ARCHIVE_NAME

    def matches(self, data: bytes) -> bool:
        """True if `data` has the size and hash of the object."""
        return len(data) == self.bytes and hashlib.sha256(data).hexdigest() == self.sha256


class HashedFile:
    """A new file that is hashed while it is written, and fsynced when its block ends without an error.

    The file must not exist. After the block `bytes` and `sha256` are final. Data is copied to a buffer of a few MB,
    hashed there while it is in the processor's cache, and written when the buffer is full. Once a buffer was full, the
    file bypasses the page cache (O_DIRECT) if the file system supports it. Copying into the page cache takes as much
    processor time as hashing, and these bytes are seldom read soon.

    With `offset` the data is written into an existing file from that position. `crc32` is then the checksum that ZIP
    uses, and the caller flushes the file.
    """

    def __init__(self, path: Path, offset: int | None = None) -> None:
        flags = os.O_WRONLY | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(path, flags | (os.O_CREAT | os.O_EXCL if offset is None else 0), 0o644)
        if offset is not None:
            os.lseek(self._fd, offset, os.SEEK_SET)
        self._is_part = offset is not None
        try:
            self._buffer = _free_buffers.pop()
        except IndexError:
            self._buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES, mmap.MAP_PRIVATE))  # not shared with forks
        self._n_buffered = 0
        self._direct = False
        self._hash = hashlib.sha256()
        self.bytes = self.crc32 = 0
        self.sha256 = ""

    def write(self, *buffers: Buffer) -> None:
        """Append flat arrays of bytes, in order."""
        for buffer in buffers:
            data = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
            self.bytes += len(data)
            while len(data) > _BUFFER_BYTES - self._n_buffered:
                n_free = _BUFFER_BYTES - self._n_buffered
                self._buffer[self._n_buffered :] = data[:n_free]
                data = data[n_free:]
                self._set_direct(on=True)
                self._flush(_BUFFER_BYTES)
            self._buffer[self._n_buffered : self._n_buffered + len(data)] = data
            self._n_buffered += len(data)

    def _flush(self, n_bytes: int) -> None:
        """Hash and write the first `n_bytes` of the buffer."""
        data = self._buffer[:n_bytes]
        self._hash.update(data)
        if self._is_part:
            self.crc32 = zlib.crc32(data, self.crc32)
        while data:
            if self._direct and len(data) < _BLOCK_BYTES:
                self._set_direct(on=False)
            n_bytes = len(data) // _BLOCK_BYTES * _BLOCK_BYTES if self._direct else len(data)
            try:
                data = data[os.write(self._fd, data[:n_bytes]) :]  # a write can be short
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._set_direct(on=False)  # the file offset is inside a block after a short write
        self._n_buffered = 0

    def _set_direct(self, *, on: bool) -> None:
        """Turn direct I/O on or off. Direct writes need whole blocks at block-aligned offsets."""
        if on == self._direct or not hasattr(os, "O_DIRECT"):
            return
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        with contextlib.suppress(OSError):  # not supported by the file system
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
            self._direct = on

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush(self._n_buffered)
                if not self._is_part:
                    os.fsync(
                        self._fd
                    )  # must not be retried on this descriptor after an error, because the data is lost
                self.sha256 = self._hash.hexdigest()
        finally:
            os.close(self._fd)
            _free_buffers.append(self._buffer)


_free_buffers: list[memoryview] = []
"""Buffers for reuse, because allocating memory costs more than filling it. There are as many as files open at once."""


def write_object(root: Path, path: str, *buffers: Buffer) -> StoredObject:
    """Write a small file below `root` and describe it. Its folder must exist."""
    with HashedFile(root / path) as file:
        file.write(*buffers)
    return StoredObject(path=path, bytes=file.bytes, sha256=file.sha256)


def fsync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_objects(root: Path, objects: Iterable[StoredObject]) -> None:
    """Check the presence, kind and size of each object with `lstat`, without opening it.

    Raises
    ------
    ObjectDamageError
        An object is missing or has another size.
    FormatError
        An object is not a regular file, or one of its folders is a symbolic link.
    """
    checked: set[str] = set()
    for item in objects:
        folder = item.path.rpartition("/")[0]
        while folder and folder not in checked:
            checked.add(folder)
            if os.path.lexists(root / folder):  # else `check_object` reports the object
                check_folder(root / folder, folder)
            folder = folder.rpartition("/")[0]
        check_object(root, item)


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_object(root: Path, item: StoredObject) -> None:
    """Check the presence, kind and size of one object, whose folders were checked before."""
    try:
        status = os.lstat(f"{root}/{item.path}")
    except (FileNotFoundError, NotADirectoryError):
        raise ObjectDamageError(
            f"object {item.path} is missing; expected {item.bytes} bytes. Restore it, or write the segment again (headatlas run JOB --repair).",
            object_path=item.path,
        ) from None
    _check_regular(status.st_mode, f"object {item.path}")
    if status.st_size != item.bytes:
        raise ObjectDamageError(
            f"object {item.path} has {status.st_size} bytes; expected {item.bytes}. "
            "Restore it, or write the segment again (headatlas run JOB --repair).",
            object_path=item.path,
        )


def check_folder(path: Path, name: str) -> None:
    """Check that a folder exists and is not a link.

    Raises
    ------
    CorruptSegmentError
        The folder is missing.
    FormatError
        The path is a link or a file.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptSegmentError(
            f"folder {name} is missing; expected the objects below it. Restore it, or write the segment again (headatlas run JOB --repair)."
        ) from None
    if not stat.S_ISDIR(mode):
        raise FormatError(f"{name} is a link or a file; expected a folder. Do not trust this store.")


def is_folder(path: Path) -> bool:
    """Return True if a path is a folder and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def check_regular(path: str | Path, name: str) -> None:
    """Check with `lstat` that a path is a regular file. Opening a pipe could wait, and opening a device could act.

    Raises
    ------
    FormatError
        It is a link, a folder, a pipe, a device or a socket.
    OSError
        There is no such file, or it cannot be examined.
    """
    _check_regular(os.lstat(path).st_mode, name)


def _check_regular(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode):
        raise UnexpectedFileError(
            f"{name} cannot be opened: it is a link or a special file; expected a regular file. Do not trust this store."
        )


def open_regular(path: str | Path, name: str) -> int:
    """Open a regular file for reading and return its descriptor. Errors as in `check_regular`."""
    check_regular(path, name)
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, os.O_RDONLY | flags)


def read_small(path: Path, name: str, limit_bytes: int) -> bytes:
    """Read a regular file of at most `limit_bytes`.

    Raises
    ------
    CorruptSegmentError
        The file is missing.
    FormatError
        The file is larger, or is a link or a special file.
    OSError
        This process cannot open or read the file.
    """
    try:
        fd = open_regular(path, name)
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptSegmentError(
            f"{name} is missing. Restore it, or write the segment again (headatlas run JOB --repair)."
        ) from None
    try:
        if (n_bytes := os.fstat(fd).st_size) > limit_bytes:
            raise UnexpectedFileError(f"{name} has {n_bytes} bytes; expected at most {limit_bytes} bytes.")
        parts = []
        while part := os.read(fd, 1 << 24):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
