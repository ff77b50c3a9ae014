"""Files of a store: written once, hashed on the way, fsynced; and checked before anything trusts them.

Paths inside a store are made of plain names only, so that no manifest can point outside it; symbolic links and
anything that is not a regular file are refused.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict, Field, field_validator

from .errors import CorruptSegmentError, FormatError

_NAME = re.compile(r"[A-Za-z0-9_%~-][A-Za-z0-9._%~-]*")
_PATH_MAX = 512
_DIGEST = r"^[0-9a-f]{64}$"
Buffer = bytes | memoryview
_PORTION_BYTES = 2 << 20  # written at once: half the processor time of chunk by chunk
_PORTION_BUFFERS = 512  # the system takes 1024


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

    The file must not exist. After the block `bytes` and `sha256` are final. What is handed over goes to the file in
    large portions, so it must not change before the block ends.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o644)
        self._hash = hashlib.sha256()
        self._waiting: list[Buffer] = []
        self._n_waiting = 0
        self.bytes = 0
        self.sha256 = ""

    def write(self, *buffers: Buffer) -> None:
        """Append flat buffers of bytes, in order."""
        for buffer in buffers:
            self._hash.update(buffer)
            self._n_waiting += len(buffer)
            self.bytes += len(buffer)
        self._waiting += buffers
        if self._n_waiting >= _PORTION_BYTES or len(self._waiting) >= _PORTION_BUFFERS:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting, self._n_waiting = self._waiting, [], 0
        while waiting:
            written = os.writev(self._fd, waiting)
            while waiting and written >= len(waiting[0]):  # a short write leaves the rest
                written -= len(waiting.pop(0))
            if waiting:
                waiting[0] = memoryview(waiting[0])[written:]

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                os.fsync(self._fd)  # an error here means the segment failed: never retried on the same descriptor
                self.sha256 = self._hash.hexdigest()
        finally:
            os.close(self._fd)


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
