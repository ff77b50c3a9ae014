"""Stars and notes on heads: a small JSON file beside the store, the only thing that the viewer ever writes.

    {"headatlas_notes": 1, "heads": {"encoder 5.8": {"star": true, "note": "looks at the verb"}}}

The file is written whole, to a temporary name that then takes its place, so that no reader sees half of it; before each
change it is read again, so that two viewers on one file lose nothing but changes to the same head. What stands in it may
come from a stranger: sizes are bounded, and texts are shown as text.
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
class Note:
    """What someone wrote about a head."""

    star: bool = False
    note: str = ""


def notes_path(store: Path) -> Path:
    """Where the notes of a store lie: beside it, because nothing in a store is ever changed."""
    return store.with_name(f"{store.name}.notes.json")


class Notes:
    """The notes of one store; safe from many threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._seen: tuple[int, int] | None = None
        self._notes: dict[str, Note] = {}
        self.all()  # a file that cannot be read is told at once

    @property
    def is_writable(self) -> bool:
        """Whether a note can be written."""
        return os.access(self.path if self.path.exists() else self.path.parent, os.W_OK)

    def all(self) -> dict[str, Note]:
        """Notes by site and head (``encoder 5.8``); read again where the file changed.

        Raises
        ------
        FormatError
            The file is none of ours.
        """
        with self._lock:
            return dict(self._read())

    def of(self, site: str, layer: int, head: int) -> Note:
        """The note on one head."""
        return self.all().get(_key(site, layer, head), Note())

    def heads(self, site: str) -> dict[str, Note]:
        """Notes by head (``5.8``) at one site."""
        return {key.removeprefix(f"{site} "): note for key, note in self.all().items() if key.startswith(f"{site} ")}

    def write(self, site: str, layer: int, head: int, note: Note) -> None:
        """Keep a note; one that says nothing is forgotten.

        Raises
        ------
        ConfigError
            The note is too long, or the file cannot be written.
        """
        if len(note.note) > MAX_NOTE:
            raise ConfigError(f"the note has {len(note.note)} characters; at most {MAX_NOTE} are kept.")
        with self._lock:
            notes = dict(self._read())
            notes.pop(_key(site, layer, head), None)
            if note != Note():
                notes[_key(site, layer, head)] = note
            self._replace(notes)

    def _read(self) -> dict[str, Note]:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._seen, self._notes = None, {}
            return self._notes
        seen = status.st_mtime_ns, status.st_size
        if seen != self._seen:
            if status.st_size > MAX_BYTES:
                raise BudgetError(f"the notes in {self.path.name} take {status.st_size} bytes; at most {MAX_BYTES}.")
            self._notes = parse_notes(self.path.read_bytes(), self.path.name)
            self._seen = seen
        return self._notes

    def _replace(self, notes: dict[str, Note]) -> None:
        heads = {key: {"star": note.star, "note": note.note} for key, note in sorted(notes.items())}
        text = json.dumps({"headatlas_notes": _VERSION, "heads": heads}, indent=1)  # ASCII: half of a pair survives
        try:
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    file.write(text + "\n")
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise ConfigError(
                f"notes cannot be written to {self.path.name}: {error.strerror}; name another file with --notes."
            ) from error
        self._notes, self._seen = notes, None


def parse_notes(data: bytes, name: str) -> dict[str, Note]:
    """Read the file's text.

    Raises
    ------
    FormatError
        It is no JSON, of a newer version, or holds something else than notes.
    """
    try:
        content: Any = json.loads(data)
        version, heads = content["headatlas_notes"], content["heads"]
        notes = {key: Note(_typed(bool, item["star"]), _typed(str, item["note"])) for key, item in heads.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{name} holds no notes of heads ({error}); move it away, or name another file.") from error
    if version != _VERSION or any(len(note.note) > MAX_NOTE for note in notes.values()):
        raise FormatError(f"{name} is of version {version!r} or holds too long a note; expected version {_VERSION}.")
    return notes


def _typed(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def _key(site: str, layer: int, head: int) -> str:
    return f"{site} {layer}.{head}"
