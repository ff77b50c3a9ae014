"""Files that annotate the examples of a store: JSON lines, CSV, Parquet and CoNLL-U.

In a table each row is one example (``id`` and the value), or one word or token of it, where a column ``word`` or
``token`` says which, from 0. JSON lines and Parquet may hold lists, one entry a word or token. Of CoNLL-U a column of
the words is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from headatlas.store.errors import ConfigError
from headatlas.store.files.hashed_files import file_hash

from .corpus import read_corpus
from .corpus_options import ConlluCorpus
from .records import Quarantined, iter_lines

Level = Literal["example", "word", "token"]
_ENDINGS = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".conllu": "conllu"}


def read_annotation_file(path: Path, column: str, level: Level | None = None) -> tuple[Level, dict[str, Any]]:
    """What a file says of each example, by id, and on which level.

    Parameters
    ----------
    path
        A file whose ending says what it is.
    column
        The field, or the column of CoNLL-U (``upos``, ``deprel``, ``head`` ...), that holds the values.
    level
        What lists are about; lists are of words if it is not given.

    Raises
    ------
    ConfigError
        The file cannot be read, or has no such column; an example is in it twice.
    """
    kind = _ENDINGS.get(path.suffix)
    if kind is None:
        raise ConfigError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(_ENDINGS)}.")
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; paths are relative to where you are.")
    if kind == "conllu":
        if level not in (None, "word"):
            raise ConfigError(f"level {level!r}; expected 'word': CoNLL-U annotates words.")
        return "word", _conllu(path, column)
    return _table(path, kind, column, level)


def describe_annotation_file(path: Path, column: str) -> dict[str, Any]:
    """What identifies the file, for the store to note."""
    return {"name": path.name, "sha256": file_hash(path), "column": column}


def _conllu(path: Path, column: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for example in read_corpus(ConlluCorpus(path=path)):
        if isinstance(example, Quarantined):
            raise ConfigError(f"{path}, line {example.line}: {example.reason}.")
        if column not in example.word_columns:
            known = ", ".join(example.word_columns)
            raise ConfigError(f"{path}, {example.id}: no column {column!r}; expected one of {known}.")
        own = example.word_columns[column]
        values[example.id] = [None if item == -1 else item for item in own]
    return values


def _table(path: Path, kind: str, column: str, level: Level | None) -> tuple[Level, dict[str, Any]]:
    import pandas as pd

    try:
        if kind == "jsonl":
            frame = pd.DataFrame(_records(path))
        elif kind == "parquet":
            frame = pd.read_parquet(path)
        else:
            separator = "\t" if path.suffix == ".tsv" else ","
            frame = pd.read_csv(path, sep=separator, dtype={"id": str}, keep_default_na=False, na_values=[""])
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read ({str(error)[:200]}); expected {kind}.") from None
    for needed in ("id", column):
        if needed not in frame:
            raise ConfigError(f"{path} has no column {needed!r}; it has {', '.join(map(str, frame))}.")
    rows = zip(frame["id"].astype(str).tolist(), frame[column].tolist(), strict=True)
    places: tuple[Literal["word", "token"], ...] = ("word", "token")
    for place in places:
        if place in frame and place != column:
            if level not in (None, place):
                raise ConfigError(
                    f"{path} has a column {place!r}, so its rows are {place}s; expected no level {level!r}."
                )
            return place, _rows_by_example(path, list(rows), frame[place].tolist(), place)
    values: dict[str, Any] = {}
    for name, value in rows:
        if name in values:
            raise ConfigError(f"{path} has example {name!r} twice; expected it once, or a column 'word' or 'token'.")
        values[name] = _plain(value)
    with_lists = sum(isinstance(value, list) for value in values.values())
    if with_lists not in (0, len(values)) or (level is not None and (level == "example") == bool(with_lists)):
        wanted = (
            f"{'single values' if level == 'example' else 'lists'} for level {level!r}" if level else "only one kind"
        )
        raise ConfigError(
            f"{path}: {column!r} holds {with_lists} lists and {len(values) - with_lists} single values; expected {wanted}."
        )
    return (level or "word") if with_lists else "example", values


def _records(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in iter_lines(path, "utf-8"):
        if isinstance(line, Quarantined):
            raise ConfigError(f"{path}, line {number}: {line.reason}.")
        if line.strip():
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ConfigError(f"{path}, line {number}: a JSON {type(record).__name__}; expected an object.")
            records.append(record)
    return records


def _rows_by_example(
    path: Path, rows: list[tuple[str, Any]], places: list[Any], level: Literal["word", "token"]
) -> dict[str, list[Any]]:
    """Rows that each say something of one word or token; every one of an example must be there."""
    found: dict[str, dict[int, Any]] = {}
    for (name, value), place in zip(rows, places, strict=True):
        own = found.setdefault(name, {})
        try:
            at = int(place)
        except (ValueError, TypeError):
            raise ConfigError(
                f"{path}: {level} is {place!r} in a row of example {name!r}; expected a number from 0."
            ) from None
        if at in own:
            raise ConfigError(f"{path} has {level} {at} of example {name!r} twice; expected it once.")
        own[at] = _plain(value)
    for name, own in found.items():
        if sorted(own) != list(range(len(own))):
            raise ConfigError(
                f"{path}: example {name!r} has not every {level} from 0 to {max(own)}; expected each once."
            )
    return {name: [own[i] for i in range(len(own))] for name, own in found.items()}


def _plain(value: Any) -> Any:
    """A cell as plain values; what is missing is None."""
    if isinstance(value, Mapping):
        raise ConfigError(f"a value is an object ({value!r:.80}); expected text, a number or a list of them.")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if value is None or value != value else value
