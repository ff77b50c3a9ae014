"""Objects kept in a folder under their sha256: what is in it is right whatever store or server it came from.

Each object is hashed before it is used, once a process. Files are made whole by a rename, so processes may share the
folder. Beyond `max_bytes` those unused longest are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock

from ..hashed_files import ObjectDamageError, StoredObject

DISK_CACHE_BYTES = 16 << 30


class DiskCache:
    """A folder of objects by hash."""

    def __init__(self, folder: Path, max_bytes: int = DISK_CACHE_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._checked: set[str] = set()
        self._making: dict[str, Lock] = {}
        self._lock = Lock()

    def path_of(self, item: StoredObject, fetch: Callable[[], Iterator[bytes]]) -> str | None:
        """The file of an object, fetched now if it is not there; None for one that is larger than the cache.

        Raises
        ------
        ObjectDamageError
            What was fetched is not what is listed.
        """
        if item.bytes > self.max_bytes:
            return None
        place = self.folder / item.sha256[:2] / item.sha256
        with self._lock:
            making = self._making.setdefault(item.sha256, Lock())
        with making:
            if item.sha256 not in self._checked:
                if not _is_whole(place, item):
                    self._store(place, item, fetch())
                self._checked.add(item.sha256)
            with contextlib.suppress(OSError):
                os.utime(place)
            if not place.is_file():  # another process made room
                self._store(place, item, fetch())
        return str(place)

    def _store(self, place: Path, item: StoredObject, parts: Iterator[bytes]) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
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
            os.replace(draft, place)
        finally:
            draft.unlink(missing_ok=True)
        self._make_room()

    def _make_room(self) -> None:
        found = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def _is_whole(place: Path, item: StoredObject) -> bool:
    try:
        with open(place, "rb") as file:
            return (
                os.fstat(file.fileno()).st_size == item.bytes
                and hashlib.file_digest(file, "sha256").hexdigest() == item.sha256
            )
    except OSError:
        return False
