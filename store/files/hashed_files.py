"""Files of a store: written once, hashed on the way, fsynced; and checked before anything trusts them.

Paths inside a store are made of plain names only, so that no manifest can point outside it; symbolic links and
anything that is not a regular file are refused.
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
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import CorruptSegmentError, FormatError

_NAME = re.compile(r"[A-Za-z0-9_%~-][A-Za-z0-9._%~-]*")
_PATH_MAX = 512
_DIGEST = r"^[0-9a-f]{64}$"
Buffer = bytes | memoryview | np.ndarray  # arrays of uint8
_PORTION_BYTES = 4 << 20
_BLOCK_BYTES = 4096


def check_path(path: str) -> str:
    """`path` itself if it is relative and made of plain names; no `..`, no hidden file, no backslash.

    Raises
    ------
    FormatError
        Any other path.
    """
    if len(path) > _PATH_MAX or not all(_NAME.fullmatch(part) for part in path.split("/")):
        raise FormatError(
            f"object path {path[:80]!r} is not allowed; expected names of letters, digits and ._%~- joined by '/'. "
            "This store was not written by headatlas: do not trust it."
        )
    return path


class ObjectDamageError(CorruptSegmentError):
    """One object is damaged: items `start:stop` of the long axis of `array` are in it (None: not known)."""

    def __init__(
        self, message: str, *, object_path: str, array: str = "", start: int = 0, stop: int | None = None
    ) -> None:
        super().__init__(message)
        self.object_path, self.array, self.start, self.stop = object_path, array, start, stop


class StoredObject(BaseModel):
    """One file of a segment: its path below the segment's folder, size and hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str
    bytes: int = Field(ge=0, lt=2**53)
    sha256: str = Field(pattern=_DIGEST)

    @field_validator("path")
    @classmethod
    def _plain(cls, path: str) -> str:
        try:
            return check_path(path)
        except FormatError as error:  # pydantic reports ValueErrors
            raise ValueError(str(error)) from None

    def matches(self, data: bytes) -> bool:
        """Whether `data` is what was written."""
        return len(data) == self.bytes and hashlib.sha256(data).hexdigest() == self.sha256


class HashedFile:
    """A new file that is hashed while it is written and fsynced when its block ends without an error.

    The file must not exist. After the block `bytes` and `sha256` are final. What is handed over is copied to a portion
    of a few MB, hashed there while it is in the processor's cache, and written when the portion is full. From the first
    full one on, it goes past the system's cache where the file system allows that: copying there takes as much
    processor time as hashing, for bytes that are seldom read soon.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            self._portion = _spare.pop()
        except IndexError:
            self._portion = memoryview(mmap.mmap(-1, _PORTION_BYTES, mmap.MAP_PRIVATE))  # not a forked process's too
        self._n_waiting = 0
        self._direct = False
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.sha256 = ""

    def write(self, *buffers: Buffer) -> None:
        """Append flat buffers of bytes, in order."""
        for buffer in buffers:
            left = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
            self.bytes += len(left)
            while len(left) > _PORTION_BYTES - self._n_waiting:
                room = _PORTION_BYTES - self._n_waiting
                self._portion[self._n_waiting :] = left[:room]
                left = left[room:]
                self._set_direct(on=True)
                self._flush(_PORTION_BYTES)
            self._portion[self._n_waiting : self._n_waiting + len(left)] = left
            self._n_waiting += len(left)

    def _flush(self, n_bytes: int) -> None:
        """Hash and write what waits."""
        waiting = self._portion[:n_bytes]
        self._hash.update(waiting)
        while waiting:
            if self._direct and len(waiting) < _BLOCK_BYTES:
                self._set_direct(on=False)
            n_bytes = len(waiting) // _BLOCK_BYTES * _BLOCK_BYTES if self._direct else len(waiting)
            try:
                waiting = waiting[os.write(self._fd, waiting[:n_bytes]) :]  # a short write leaves the rest
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._set_direct(on=False)  # as after a short write that ended within a block
        self._n_waiting = 0

    def _set_direct(self, *, on: bool) -> None:
        """Whether writes go past the system's cache: whole blocks at whole blocks only."""
        if on == self._direct or not hasattr(os, "O_DIRECT"):
            return
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        with contextlib.suppress(OSError):  # a file system that cannot
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
            self._direct = on

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush(self._n_waiting)
                os.fsync(self._fd)  # an error here means the segment failed: never retried on the same descriptor
                self.sha256 = self._hash.hexdigest()
        finally:
            os.close(self._fd)
            _spare.append(self._portion)


_spare: list[memoryview] = []
"""Portions of files that were written, as many as ever were open at once: fresh memory costs more than filling it."""


def write_object(root: Path, path: str, *buffers: Buffer) -> StoredObject:
    """Write a small file below `root` (its folder exists) and describe it."""
    with HashedFile(root / path) as file:
        file.write(*buffers)
    return StoredObject(path=path, bytes=file.bytes, sha256=file.sha256)


def fsync_folder(path: Path) -> None:
    """Make the entries of a folder durable."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_objects(root: Path, objects: Iterable[StoredObject]) -> None:
    """Presence, kind and size of each object, by `lstat`; nothing is opened.

    Raises
    ------
    ObjectDamageError
        An object is missing or has another size.
    FormatError
        A symbolic link, or something else that is not a regular file, lies in the way.
    """
    seen: set[str] = set()
    for item in objects:
        folder = item.path.rpartition("/")[0]
        while folder and folder not in seen:
            seen.add(folder)
            if os.path.lexists(root / folder):  # else the object itself is reported
                check_folder(root / folder, folder)
            folder = folder.rpartition("/")[0]
        check_object(root, item)


def check_hashes(root: Path, objects: Iterable[StoredObject]) -> None:
    """`check_objects`, and that every byte has its hash.

    Raises
    ------
    ObjectDamageError
        An object is missing or was changed.
    FormatError
        A link or a special file lies in the way.
    """
    objects = tuple(objects)
    check_objects(root, objects)
    for item in objects:
        found = file_hash(root / item.path)
        if found != item.sha256:
            raise ObjectDamageError(
                f"object {item.path} was changed: its sha256 is {found[:16]}…; expected {item.sha256[:16]}….",
                object_path=item.path,
            )


def file_hash(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_object(root: Path, item: StoredObject) -> None:
    """`check_objects` for one object whose folders are known to be folders."""
    try:
        status = os.lstat(f"{root}/{item.path}")
    except (FileNotFoundError, NotADirectoryError):
        raise ObjectDamageError(
            f"object {item.path} is missing; expected {item.bytes} bytes. Restore it, or write the segment again.",
            object_path=item.path,
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(
            f"object {item.path} is a link or a special file; expected a regular file. Do not trust this store."
        )
    if status.st_size != item.bytes:
        raise ObjectDamageError(
            f"object {item.path} has {status.st_size} bytes; expected {item.bytes}. "
            "Restore it, or write the segment again.",
            object_path=item.path,
        )


def check_folder(path: Path, name: str) -> None:
    """A folder that is there and is not a link.

    Raises
    ------
    CorruptSegmentError
        It is missing.
    FormatError
        It is something else.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptSegmentError(
            f"folder {name} is missing; expected the objects below it. Restore it, or write the segment again."
        ) from None
    if not stat.S_ISDIR(mode):
        raise FormatError(f"{name} is a link or a file; expected a folder. Do not trust this store.")


def read_small(path: Path, name: str, limit_bytes: int) -> bytes:
    """The bytes of a regular file of at most `limit_bytes`.

    Raises
    ------
    CorruptSegmentError
        It is missing.
    FormatError
        It is larger, or a link, or not a regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptSegmentError(f"{name} is missing. Restore it, or write the segment again.") from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EACCES, errno.EPERM):
            raise  # the disk's fault or this process's, not the file's
        raise FormatError(f"{name} cannot be opened ({error.strerror}); expected a regular file.") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            raise FormatError(
                f"{name} has {status.st_size} bytes or is not a regular file; expected a regular file of at most "
                f"{limit_bytes} bytes."
            )
        parts = []
        while part := os.read(fd, 1 << 24):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
