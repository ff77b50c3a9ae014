"""JSON Lines: one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headatlas.store.errors import ConfigError

from .corpus_files import iter_lines
from .fields import Rows
from .records import Quarantined


class _RepeatedFieldError(ValueError):
    """Raised for an object that has two fields of one name."""


def iter_jsonl(path: Path, encoding: str) -> Rows:
    """Yield the objects of a JSON Lines file with the numbers of their lines. Blank lines are skipped.

    Raises
    ------
    ConfigError
        The file is one JSON value over several lines, or a list.
    """
    is_first = True
    for number, line in iter_lines(path, encoding):
        if isinstance(line, str) and not line.strip():
            continue
        if is_first and isinstance(line, str) and (line.lstrip().startswith("[") or line.strip() == "{"):
            raise ConfigError(
                f"corpus.path {str(path)!r} is JSON, but not JSON Lines: expected one object in each line. Convert a list "
                f"with  jq -c '.[]' {path.name} > {path.stem}-lines.jsonl"
            )
        is_first = False
        yield number, line if isinstance(line, Quarantined) else _parse(number, line)


def _parse(number: int, line: str) -> dict[str, Any] | Quarantined:
    try:
        record = json.loads(line, object_pairs_hook=_unique)
    except _RepeatedFieldError as error:
        return Quarantined(number, str(error))
    except (ValueError, RecursionError) as error:
        return Quarantined(number, f"not JSON: {error}")
    if isinstance(record, dict):
        return record
    return Quarantined(number, f"a JSON {type(record).__name__}, expected an object")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedFieldError(f"the field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return fields
