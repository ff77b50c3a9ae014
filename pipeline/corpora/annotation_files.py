"""Files that annotate the examples of a store: JSON Lines, CSV, Parquet and CoNLL-U.

A row of a table annotates one example (columns ``id`` and the value). With a column ``word`` or ``token`` it annotates
that word or token of the example, counted from 0. JSON Lines and Parquet may also contain lists with one entry for
each word or token. From CoNLL-U, one column of the words is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headatlas.store.errors import ConfigError
from headatlas.store.files.hashed_files import file_hash

from .corpus import read_corpus
from .corpus_options import ConlluCorpus
from .records import Quarantined, iter_lines
from .table import iter_parquet

if TYPE_CHECKING:
    import pandas as pd

AnnotationKind = Literal["example", "word", "token"]
_FORMATS = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".conllu": "conllu"}


def read_annotation_file(
    path: Path, column: str, kind: AnnotationKind | None = None
) -> tuple[AnnotationKind, dict[str, Any]]:
    """Read an annotation file: its kind (example, word or token) and the values by example id.

    Parameters
    ----------
    path
        The file. Its suffix selects the format.
    column
        The field, or the column of CoNLL-U (``upos``, ``deprel``, ``head`` ...), that contains the values.
    kind
        The items that lists annotate; words by default.

    Raises
    ------
    ConfigError
        The file cannot be read, lacks the column, or contains an example twice.
    """
    file_format = _FORMATS.get(path.suffix)
    if file_format is None:
        raise ConfigError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(_FORMATS)}.")
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file. Relative paths start at the current directory.")
    if file_format == "conllu":
        if kind not in (None, "word"):
            raise ConfigError(f"--kind is {kind!r}; expected 'word', because CoNLL-U annotates words.")
        return "word", _conllu(path, column)
    return _table(path, file_format, column, kind)


def describe_annotation_file(path: Path, column: str) -> dict[str, Any]:
    """Describe the file for the provenance in the store: name, SHA-256 and column."""
    return {"name": path.name, "sha256": file_hash(path), "column": column}


def _conllu(path: Path, column: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for example in read_corpus(ConlluCorpus(path=path)):
        if isinstance(example, Quarantined):
            raise ConfigError(f"{path}, line {example.line}: {example.reason}.")
        if column not in example.word_columns:
            names = ", ".join(example.word_columns)
            raise ConfigError(f"{path}, {example.id}: no column {column!r}; expected one of {names}.")
        values[example.id] = [None if item == -1 else item for item in example.word_columns[column]]
    return values


def _table(
    path: Path, file_format: str, column: str, kind: AnnotationKind | None
) -> tuple[AnnotationKind, dict[str, Any]]:
    import pandas as pd

    try:
        if file_format == "jsonl":
            frame = pd.DataFrame(_records(path))
        elif file_format == "parquet":
            frame = _parquet_frame(path, column)
        else:
            separator = "\t" if path.suffix == ".tsv" else ","
            frame = pd.read_csv(path, sep=separator, dtype={"id": str}, keep_default_na=False, na_values=[""])
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read ({str(error)[:200]}); expected {file_format}.") from None
    for name in ("id", column):
        if name not in frame:
            raise ConfigError(f"{path} has no column {name!r}; it has {', '.join(map(str, frame))}.")
    rows = zip(frame["id"].astype(str).tolist(), frame[column].tolist(), strict=True)
    item_kinds: tuple[Literal["word", "token"], ...] = ("word", "token")
    for item_kind in item_kinds:
        if item_kind in frame and item_kind != column:
            if kind not in (None, item_kind):
                raise ConfigError(
                    f"--kind is {kind!r}, but {path} has a column {item_kind!r}, so its rows are {item_kind}s. "
                    f"Use --kind {item_kind}."
                )
            return item_kind, _rows_by_example(path, list(rows), frame[item_kind].tolist(), item_kind)
    values: dict[str, Any] = {}
    for name, value in rows:
        if name in values:
            raise ConfigError(f"{path} has example {name!r} twice; expected it once, or a column 'word' or 'token'.")
        values[name] = _plain(value)
    with_lists = sum(isinstance(value, list) for value in values.values())
    if with_lists not in (0, len(values)) or (kind is not None and (kind == "example") == bool(with_lists)):
        expected = (
            f"{'single values' if kind == 'example' else 'lists'} for --kind {kind}" if kind else "only one of the two"
        )
        raise ConfigError(
            f"{path}: {column!r} has {with_lists} lists and {len(values) - with_lists} single values; "
            f"expected {expected}."
        )
    return (kind or "word") if with_lists else "example", values


def _parquet_frame(path: Path, column: str) -> pd.DataFrame:
    import pandas as pd

    header: list[str] = []
    rows = []
    for number, row in iter_parquet(path, header.extend, {"id", column, "word", "token"}):
        if isinstance(row, Quarantined):
            raise ConfigError(f"{path}, row {number}: {row.reason}.")
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame if "id" in frame and column in frame else pd.DataFrame(columns=pd.Index(header))


def _records(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in iter_lines(path, "utf-8"):
        if isinstance(line, Quarantined):
            raise ConfigError(f"{path}, line {number}: {line.reason}.")
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path}, line {number}: not JSON: {error}.") from None
            if not isinstance(record, dict):
                raise ConfigError(f"{path}, line {number}: a JSON {type(record).__name__}; expected an object.")
            records.append(record)
    return records


def _rows_by_example(
    path: Path, rows: list[tuple[str, Any]], positions: list[Any], kind: Literal["word", "token"]
) -> dict[str, list[Any]]:
    """Collect rows that annotate one word or token each. An example must have a row for each of them."""
    values: dict[str, dict[int, Any]] = {}
    for (name, value), position in zip(rows, positions, strict=True):
        items = values.setdefault(name, {})
        try:
            index = int(position)
        except (ValueError, TypeError):
            raise ConfigError(
                f"{path}: {kind} is {position!r} in a row of example {name!r}; expected a number from 0."
            ) from None
        if index in items:
            raise ConfigError(f"{path} has {kind} {index} of example {name!r} twice; expected it once.")
        items[index] = _plain(value)
    for name, items in values.items():
        if sorted(items) != list(range(len(items))):
            raise ConfigError(
                f"{path}: example {name!r} lacks a {kind} between 0 and {max(items)}; expected each of them once."
            )
    return {name: [items[i] for i in range(len(items))] for name, items in values.items()}


def _plain(value: Any) -> Any:
    """Convert a cell to plain Python values; missing values become None."""
    if isinstance(value, Mapping):
        raise ConfigError(f"a value is an object ({value!r:.80}); expected text, a number or a list of them.")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if value is None or value != value else value
