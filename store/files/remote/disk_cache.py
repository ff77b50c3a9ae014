"""Disk cache of objects by their sha256. An object is valid no matter which store or server it came from.

Each process verifies the hash of an object once, before the first use. Files appear by an atomic rename, so processes
can share the folder. If the cache exceeds `max_bytes`, the least recently used files are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock

from ...errors import FormatError, HeadAtlasError
from ..hashed_files import ObjectDamageError, StoredObject, is_folder, open_regular

DISK_CACHE_BYTES = 16 << 30


class DiskCache:
    """Folder of objects, named by their hashes."""

    def __init__(self, folder: Path, max_bytes: int = DISK_CACHE_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._checked: set[str] = set()
        self._object_locks: dict[str, Lock] = {}
        self._lock = Lock()

    def cached_path(self, item: StoredObject, fetch: Callable[[], Iterator[bytes]]) -> str | None:
        """Return the file of an object, fetching it if it is missing or damaged.

        None if the object is larger than the cache, or if the folder cannot be written to.

        Raises
        ------
        ObjectDamageError
            The fetched bytes do not have the listed hash.
        """
        if item.bytes > self.max_bytes:
            return None
        path = self.folder / item.sha256[:2] / item.sha256
        with self._lock:
            object_lock = self._object_locks.setdefault(item.sha256, Lock())
        with object_lock:
            try:
                if item.sha256 not in self._checked:
                    if not _is_intact(path, item):
                        self._store(path, item, fetch())
                    self._checked.add(item.sha256)
                with contextlib.suppress(OSError):
                    os.utime(path)
                if not path.is_file():  # another process removed it
                    self._store(path, item, fetch())
            except HeadAtlasError:
                raise
            except OSError as error:
                if isinstance(error, FileNotFoundError) and error.filename is None:  # the server has no such object
                    raise
                return None
        return str(path)

    def _store(self, path: Path, item: StoredObject, parts: Iterator[bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        digest = hashlib.sha256()
        try:
            with open(draft, "xb") as file:
                for part in parts:
                    digest.update(part)
                    file.write(part)
            if digest.hexdigest() != item.sha256:
                raise ObjectDamageError(
                    f"object {item.path} was changed: its hash is not the listed one. Restore it.",
                    object_path=item.path,
                )
            if is_folder(path):
                shutil.rmtree(path)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        self._evict()

    def _evict(self) -> None:
        files = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def _is_intact(path: Path, item: StoredObject) -> bool:
    try:
        with os.fdopen(open_regular(path, path.name), "rb") as file:
            return (
                os.fstat(file.fileno()).st_size == item.bytes
                and hashlib.file_digest(file, "sha256").hexdigest() == item.sha256
            )
    except (OSError, FormatError):
        return False
