"""Bookmarks: stars and notes on heads and examples, in a small JSON file beside the store. The viewer writes no other file.

    {"headatlas_bookmarks": 1, "heads": {"encoder 5.8": {"star": true, "note": "looks at the verb"}},
     "examples": {"doc-17": {"star": true, "note": ""}}}

The names of `examples` are ids of examples. A file without them has none.

Each change replaces the whole file by renaming, so no reader sees half a file. A writer locks the file (flock), reads
it again and changes one star or one note. So several viewers of one file lose nothing, unless they change the
same note. The system releases the lock when a process dies. The content of the file is not trusted: its size is
limited, and its texts are shown as text.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from headatlas.store.errors import BudgetError, ConfigError, FormatError
from headatlas.store.files.drafts import replace_file

MAX_NOTE = 2_000
MAX_BYTES = 8 << 20
LOCK_S = 5.0
"""Longest wait in seconds for another viewer that is writing the same file."""
EXAMPLE = "example "
"""Begin of the key of an example's bookmark. No site of a model has this name."""
_VERSION = 1


@dataclass(frozen=True)
class Bookmark:
    """Star and note of one head or example."""

    star: bool = False
    note: str = ""


def bookmarks_path(store: Path) -> Path:
    """Path of a store's bookmarks: beside the store, because nothing inside a store ever changes."""
    return store.with_name(f"{store.name}.bookmarks.json")


class Bookmarks:
    """Bookmarks of one store. Safe to use from several threads, and beside other processes that use the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._signature: tuple[int, int, int] | None = None
        self._bookmarks: dict[str, Bookmark] = {}
        self.all()  # raises here if the file cannot be read

    @property
    def is_writable(self) -> bool:
        """True if the file can be written."""
        target = Path(os.path.realpath(self.path))
        return (
            target.parent.is_dir()
            and os.access(target.parent, os.W_OK)
            and (not target.exists() or os.access(target, os.W_OK))
        )

    def all(self) -> dict[str, Bookmark]:
        """Return bookmarks by site and head (``encoder 5.8``), or example and id (``example doc-17``).

        Reads the file again if it changed.

        Raises
        ------
        FormatError
            The file does not hold bookmarks.
        """
        with self._lock:
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError):
                self._signature, self._bookmarks = None, {}
                return {}
            except OSError as error:
                raise FormatError(f"{self.path.name} cannot be read: {error.strerror}.") from error
            try:
                self._read(fd)
            finally:
                os.close(fd)
            return dict(self._bookmarks)

    def of(self, site: str, layer: int, head: int) -> Bookmark:
        """Return the bookmark of one head."""
        return self.all().get(_key(site, layer, head), Bookmark())

    def heads(self, site: str) -> dict[str, Bookmark]:
        """Return the bookmarks of one site by head (``5.8``)."""
        prefix = f"{site} "
        return {key.removeprefix(prefix): item for key, item in self.all().items() if key.startswith(prefix)}

    def examples(self) -> dict[str, Bookmark]:
        """Return the bookmarks of examples by id."""
        return {key.removeprefix(EXAMPLE): item for key, item in self.all().items() if key.startswith(EXAMPLE)}

    def write(self, site: str, layer: int, head: int, bookmark: Bookmark) -> None:
        """Save star and note of one head, as `update` does."""
        self.update(site, layer, head, star=bookmark.star, note=bookmark.note)

    def update(self, site: str, layer: int, head: int, *, star: bool | None = None, note: str | None = None) -> None:
        """Save the star, the note or both of one head. None keeps what the file has.

        Removes the head from the file if its bookmark becomes empty.

        Raises
        ------
        ConfigError
            The note is too long, or the file cannot be written.
        """
        self._update(_key(site, layer, head), star, note)

    def update_example(self, name: str, *, star: bool | None = None, note: str | None = None) -> None:
        """Save the star, the note or both of the examples with an id, as `update` does for a head."""
        self._update(EXAMPLE + name, star, note)

    def _update(self, key: str, star: bool | None, note: str | None) -> None:
        if note is not None and len(note) > MAX_NOTE:
            raise ConfigError(f"the note has {len(note)} characters; at most {MAX_NOTE} are allowed.")
        changes = {name: value for name, value in (("star", star), ("note", note)) if value is not None}
        try:
            fd = self._lock_file()  # it may wait, so readers are not locked out yet
            try:
                with self._lock:
                    self._signature = None  # within one tick of the clock, two files can have the same signature
                    self._read(fd)
                    bookmark = replace(self._bookmarks.get(key, Bookmark()), **changes)
                    bookmarks = {**self._bookmarks, key: bookmark}
                    if bookmark == Bookmark():
                        del bookmarks[key]
                    replace_file(self.path, _format(bookmarks))
            finally:
                os.close(fd)
        except OSError as error:
            raise ConfigError(
                f"cannot write bookmarks to {self.path.name}: {error.strerror or error}. "
                "Name another file with --bookmarks."
            ) from error

    def _lock_file(self) -> int:
        """Open the file, which is empty if it is new, and lock it until the returned descriptor is closed."""
        deadline = time.monotonic() + LOCK_S
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
            is_ours = False
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_ours = os.path.samestat(os.fstat(fd), os.stat(self.path))  # else another writer replaced the file
            except (BlockingIOError, FileNotFoundError):
                time.sleep(0.002)
            finally:
                if not is_ours:
                    os.close(fd)
            if is_ours:
                return fd
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"another viewer has locked it for {LOCK_S:g} s")

    def _read(self, fd: int) -> None:
        """Read the open file unless it is unchanged. An empty file has no bookmarks."""
        status = os.fstat(fd)
        signature = status.st_ino, status.st_mtime_ns, status.st_size
        if signature == self._signature:
            return
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{self.path.name} is not a file. Name another file with --bookmarks.")
        if status.st_size > MAX_BYTES:
            raise BudgetError(
                f"{self.path.name} has {status.st_size} bytes; a file of bookmarks has at most {MAX_BYTES}."
            )
        data = os.pread(fd, MAX_BYTES, 0)
        self._bookmarks = parse_bookmarks(data, self.path.name) if data else {}
        self._signature = signature


def _format(bookmarks: dict[str, Bookmark]) -> bytes:
    entries = {key: {"star": item.star, "note": item.note} for key, item in sorted(bookmarks.items())}
    examples = {key.removeprefix(EXAMPLE): entry for key, entry in entries.items() if key.startswith(EXAMPLE)}
    heads = {key: entry for key, entry in entries.items() if not key.startswith(EXAMPLE)}
    content = {"headatlas_bookmarks": _VERSION, "heads": heads} | ({"examples": examples} if examples else {})
    document = json.dumps(content, indent=1)
    return f"{document}\n".encode("ascii")  # JSON escapes lone surrogates


def parse_bookmarks(data: bytes, name: str) -> dict[str, Bookmark]:
    """Parse the content of a bookmark file.

    Raises
    ------
    FormatError
        The text is not JSON, has a newer version, or does not hold bookmarks.
    """
    try:
        content: Any = json.loads(data)
        version, heads = content["headatlas_bookmarks"], content["heads"]
        examples = {EXAMPLE + name: item for name, item in content.get("examples", {}).items()}
        bookmarks = {
            key: Bookmark(_require_type(bool, item["star"]), _require_type(str, item["note"]))
            for key, item in (heads | examples).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{name} does not hold bookmarks ({error}). Move it away, or name another file with --bookmarks."
        ) from error
    if version != _VERSION or any(len(item.note) > MAX_NOTE for item in bookmarks.values()):
        raise FormatError(
            f"{name} has version {version!r}, or a note is too long. "
            f"Expected version {_VERSION} and notes of at most {MAX_NOTE} characters."
        )
    return bookmarks


def _require_type(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _key(site: str, layer: int, head: int) -> str:
    return f"{site} {layer}.{head}"
