"""Files that annotate the examples of a store: JSON Lines, CSV, Parquet and CoNLL-U.

A row of a table annotates one example (columns ``id`` and the value). With a column ``word`` or ``token`` it annotates
that word or token of the example, counted from 0. JSON Lines and Parquet may also contain lists with one entry for
each word or token. From CoNLL-U, one column of the words is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from headatlas.store.errors import ConfigError
from headatlas.store.files.hashed_files import file_hash

from .arrow_tables import iter_parquet
from .conllu import read_conllu
from .corpus_files import COMPRESSIONS, CorpusFile
from .corpus_options import ConlluCorpus
from .delimited import iter_delimited
from .fields import Rows, check_unique
from .jsonl import iter_jsonl
from .records import Quarantined, Renaming

AnnotationKind = Literal["example", "word", "token"]
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".conllu": "conllu",
}
_ITEM_KINDS: tuple[Literal["word", "token"], ...] = ("word", "token")
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})")
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]+)?")


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
    file_format = _FORMATS.get(_suffix(path))
    if file_format is None:
        raise ConfigError(f"{path} ends in {_suffix(path)!r}; expected one of {', '.join(_FORMATS)}.")
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


def _suffix(path: Path) -> str:
    """Return the suffix that names the format; that of a compression is ignored."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix


def _conllu(path: Path, column: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for example in read_conllu(ConlluCorpus(path=path), CorpusFile(path, path.name)):
        if isinstance(example, Quarantined):
            raise ConfigError(f"{path}, line {example.line}: {example.reason}.")
        if isinstance(example, Renaming):
            continue
        if column not in example.word_columns:
            names = ", ".join(example.word_columns)
            raise ConfigError(f"{path}, {example.id}: no column {column!r}; expected one of {names}.")
        if example.id in values:
            raise ConfigError(f"{path} has the sentence {example.id!r} twice; expected it once.")
        values[example.id] = [None if item == -1 else item for item in example.word_columns[column]]
    return values


def _table(
    path: Path, file_format: str, column: str, kind: AnnotationKind | None
) -> tuple[AnnotationKind, dict[str, Any]]:
    rows = list(_rows(path, file_format, column))
    fields = {name for _, row in rows for name in row}
    for name in ("id", column):
        if name not in fields:
            raise ConfigError(f"{path} has no column {name!r}; it has {', '.join(sorted(fields))}.")
    ids = [_id(path, number, row.get("id")) for number, row in rows]
    cells = [row.get(column) for _, row in rows]
    cells = _typed(cells) if file_format == "csv" else [_plain(cell) for cell in cells]
    for item_kind in _ITEM_KINDS:
        if item_kind in fields and item_kind != column:
            if kind not in (None, item_kind):
                raise ConfigError(
                    f"--kind is {kind!r}, but {path} has a column {item_kind!r}, so its rows are {item_kind}s. "
                    f"Use --kind {item_kind}."
                )
            positions = [row.get(item_kind) for _, row in rows]
            return item_kind, _rows_by_example(path, list(zip(ids, cells, strict=True)), positions, item_kind)
    values: dict[str, Any] = {}
    for name, value in zip(ids, cells, strict=True):
        if name in values:
            raise ConfigError(f"{path} has example {name!r} twice; expected it once, or a column 'word' or 'token'.")
        values[name] = value
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


def _rows(path: Path, file_format: str, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the numbered rows of a table. Every row must be readable, because an annotation file is written for a store."""

    def check_header(
        header: list[str], nested: Mapping[str, str] | None = None, lists: Collection[str] = ()
    ) -> Collection[str]:
        check_unique(path, header)
        for name in ("id", column):
            if name not in header:
                raise ConfigError(f"{path} has no column {name!r}; it has {', '.join(header)}.")
        columns = [name for name in ("id", column, *_ITEM_KINDS) if name in header]
        for name in columns:
            if nested and name in nested and name not in lists:
                raise ConfigError(
                    f"{path}: column {name!r} is {nested[name]}; expected text, numbers or lists of them."
                )
        return columns

    separator = "\t" if _suffix(path) == ".tsv" else ","
    readers: dict[str, Callable[[], Rows]] = {
        "jsonl": lambda: iter_jsonl(path, "utf-8"),
        "parquet": lambda: iter_parquet(path, check_header),
        "csv": lambda: iter_delimited(path, "utf-8", check_header, separator),
    }
    for number, row in readers[file_format]():
        if isinstance(row, Quarantined):
            raise ConfigError(f"{path}, {'row' if file_format == 'parquet' else 'line'} {number}: {row.reason}.")
        yield number, row


def _id(path: Path, number: int, value: Any) -> str:
    """Return the id of a row as text. Whole numbers of a column with missing values are floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int) or value == "":
        raise ConfigError(f"{path}, row {number}: the id is {value!r}; expected text or a whole number.")
    return str(value)


def _typed(cells: list[str | None]) -> list[Any]:
    """Convert the fields of a CSV column: whole numbers or numbers or truth values if all of them are, else text."""
    values = [cell for cell in cells if cell is not None]
    conversions: tuple[tuple[Callable[[str], object], Callable[[str], Any]], ...] = (
        (_WHOLE.fullmatch, int),
        (lambda cell: _NUMBER.fullmatch(cell) and any(map(str.isdigit, cell)), float),
        (lambda cell: cell in ("true", "false", "True", "False"), lambda cell: cell[0] in "tT"),
    )
    for fits, convert in conversions:
        if values and all(map(fits, values)):
            return [None if cell is None else convert(cell) for cell in cells]
    return list(cells)


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
        items[index] = value
    for name, items in values.items():
        if sorted(items) != list(range(len(items))):
            raise ConfigError(
                f"{path}: example {name!r} lacks a {kind} between 0 and {max(items)}; expected each of them once."
            )
    return {name: [items[i] for i in range(len(items))] for name, items in values.items()}


def _plain(value: Any) -> Any:
    """Convert a cell to plain Python values; NaN becomes None."""
    if isinstance(value, Mapping):
        raise ConfigError(f"a value is an object ({value!r:.80}); expected text, a number or a list of them.")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
