"""Bookmarks: stars and notes on heads, in a small JSON file beside the store. The viewer writes no other file.

    {"headatlas_bookmarks": 1, "heads": {"encoder 5.8": {"star": true, "note": "looks at the verb"}}}

Each change writes a temporary file that then replaces the old one, so no reader sees half a file. The file is read
again before each change: two viewers of one file lose only changes to the same head. The content of the file is not
trusted: its size is limited, and its texts are shown as text.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from headatlas.store.errors import BudgetError, ConfigError, FormatError

MAX_NOTE = 2_000
MAX_BYTES = 8 << 20
_VERSION = 1


@dataclass(frozen=True)
class Bookmark:
    """Star and note of one head."""

    star: bool = False
    note: str = ""


def bookmarks_path(store: Path) -> Path:
    """Path of a store's bookmarks: beside the store, because nothing inside a store ever changes."""
    return store.with_name(f"{store.name}.bookmarks.json")


class Bookmarks:
    """Bookmarks of one store. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._signature: tuple[int, int] | None = None
        self._bookmarks: dict[str, Bookmark] = {}
        self.all()  # raises here if the file cannot be read

    @property
    def is_writable(self) -> bool:
        """True if the file is writable."""
        return os.access(self.path if self.path.exists() else self.path.parent, os.W_OK)

    def all(self) -> dict[str, Bookmark]:
        """Return bookmarks by site and head (``encoder 5.8``). Reads the file again if it changed.

        Raises
        ------
        FormatError
            The file does not hold bookmarks.
        """
        with self._lock:
            return dict(self._read())

    def of(self, site: str, layer: int, head: int) -> Bookmark:
        """Return the bookmark of one head."""
        return self.all().get(_key(site, layer, head), Bookmark())

    def heads(self, site: str) -> dict[str, Bookmark]:
        """Return the bookmarks of one site by head (``5.8``)."""
        prefix = f"{site} "
        return {key.removeprefix(prefix): item for key, item in self.all().items() if key.startswith(prefix)}

    def write(self, site: str, layer: int, head: int, bookmark: Bookmark) -> None:
        """Save the bookmark of one head. Removes the head from the file if the bookmark is empty.

        Raises
        ------
        ConfigError
            The note is too long, or the file cannot be written.
        """
        if len(bookmark.note) > MAX_NOTE:
            raise ConfigError(f"the note has {len(bookmark.note)} characters; at most {MAX_NOTE} are allowed.")
        with self._lock:
            bookmarks = dict(self._read())
            bookmarks.pop(_key(site, layer, head), None)
            if bookmark != Bookmark():
                bookmarks[_key(site, layer, head)] = bookmark
            self._replace(bookmarks)

    def _read(self) -> dict[str, Bookmark]:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._signature, self._bookmarks = None, {}
            return self._bookmarks
        signature = status.st_mtime_ns, status.st_size
        if signature != self._signature:
            if status.st_size > MAX_BYTES:
                raise BudgetError(
                    f"{self.path.name} has {status.st_size} bytes; a file of bookmarks has at most {MAX_BYTES}."
                )
            self._bookmarks = parse_bookmarks(self.path.read_bytes(), self.path.name)
            self._signature = signature
        return self._bookmarks

    def _replace(self, bookmarks: dict[str, Bookmark]) -> None:
        heads = {key: {"star": item.star, "note": item.note} for key, item in sorted(bookmarks.items())}
        text = json.dumps({"headatlas_bookmarks": _VERSION, "heads": heads}, indent=1)
        try:
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(handle, "w", encoding="ascii") as file:  # JSON escapes lone surrogates
                    file.write(text + "\n")
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise ConfigError(
                f"cannot write bookmarks to {self.path.name}: {error.strerror}. Name another file with --bookmarks."
            ) from error
        self._bookmarks, self._signature = bookmarks, None


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
        bookmarks = {
            key: Bookmark(_require_type(bool, item["star"]), _require_type(str, item["note"]))
            for key, item in heads.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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
