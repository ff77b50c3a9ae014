"""JSON Lines: one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .corpus_files import iter_lines
from .fields import Rows
from .records import Quarantined


def iter_jsonl(path: Path, encoding: str) -> Rows:
    """Yield the objects of a JSON Lines file with the numbers of their lines."""
    for number, line in iter_lines(path, encoding):
        yield number, line if isinstance(line, Quarantined) else _parse(number, line)


def _parse(number: int, line: str) -> dict[str, Any] | Quarantined:
    try:
        record = json.loads(line, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        return Quarantined(number, "empty line" if not line.strip() else f"not JSON: {error}")
    if isinstance(record, dict):
        return record
    return Quarantined(number, f"a JSON {type(record).__name__}, expected an object")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return fields
