"""The provenance of a store and its columns as lines for people. Programs read ``headatlas info --json``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from ..store import Store

_HASH = re.compile(r"[0-9a-f]{64}")
_OWN_LINES = frozenset({"left_out", "renamed", "quarantined"})
"""Entries that ``info`` shows in lines of their own."""
_UNNAMED = frozenset({"name", "class", "kind", "architecture"})
"""Keys that go without saying."""
_MAX_DEPTH = 4
_MAX_CHARS = 400
_EVERY_TOKEN = frozenset({"text", "piece"})


def provenance_rows(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name of each entry and its text. Hashes, empty values and files are not part of the text."""
    for name, value in provenance.items():
        text = ", ".join(_parts(value, 0))
        if name not in _OWN_LINES and text:
            yield name, text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]} …"


def _parts(value: Any, depth: int) -> Iterator[str]:
    """Yield the parts of the text of a JSON value."""
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        for name, item in value.items():
            if name == "files" and isinstance(item, Mapping):
                yield f"{len(item):,} file{'s' if len(item) != 1 else ''}"
            elif isinstance(item, Mapping):
                yield from _parts(item, depth + 1)
            elif text := ", ".join(_parts(item, depth + 1)):
                yield text if name in _UNNAMED else f"{name} {text}"
    elif isinstance(value, list) and depth < _MAX_DEPTH:
        for item in value:
            yield from _parts(item, depth + 1)
    elif isinstance(value, bool):
        yield "yes" if value else "no"
    elif isinstance(value, int | float):
        yield f"{value:,}" if abs(value) < 1e15 else str(value)
    elif isinstance(value, str) and value and not _HASH.fullmatch(value):
        yield value


def corpus_columns(store: Store) -> dict[str, list[str]]:
    """Return the columns that the corpus has, as ``label (text)``, by their kind: example, word, token.

    Only listings of segments are read. Columns that were added later are not part of them.
    """
    columns: dict[str, dict[str, str]] = {"example": {}, "word": {}, "token": {}}
    for segment in store.segments:
        for entry in segment.listing.arrays:
            owner, _, rest = entry.path.partition("/column/")
            name, _, part = rest.partition("/")
            kind = owner.rpartition("/")[2]
            if part in ("number", "code") and not (kind == "token" and name in _EVERY_TOKEN):
                value = "number" if part == "number" else "text"
                columns[kind].setdefault(unquote(name), value)
    return {kind: [f"{name} ({value})" for name, value in names.items()] for kind, names in columns.items() if names}
