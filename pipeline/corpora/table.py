"""Tables: text separated by commas, tabs or another character, and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from headatlas.store.errors import BudgetError, ConfigError

from .corpus_options import DelimitedCorpus, ParquetCorpus
from .examples import CorpusExample
from .fields import RecordReader
from .records import MAX_RECORD_BYTES, TOO_LONG, Quarantined, iter_lines

_BATCH_ROWS = 1024


def read_delimited(options: DelimitedCorpus) -> Iterator[CorpusExample | Quarantined]:
    """Yield the examples of a delimited table with a header. The number of a record is that of its last line.

    Raises
    ------
    ConfigError
        The header is missing, repeats a name, or lacks a column that the options name.
    """
    faults: list[Quarantined] = []
    lines = _Lines(options, faults)
    rows = csv.reader(
        lines,
        delimiter=options.delimiter or ("," if options.kind == "csv" else "\t"),
        quoting=csv.QUOTE_MINIMAL if options.quoting else csv.QUOTE_NONE,
    )
    reader = RecordReader(options)
    header: list[str] | None = None
    while True:
        outcome = _next_row(rows)
        lines.n_chars = 0
        yield from faults
        faults.clear()
        if outcome is None:
            break
        number = rows.line_num
        if header is None:
            header = _check_header(options, outcome)
            reader.check_header(header)
        elif isinstance(outcome, str):
            yield Quarantined(number, outcome)
        elif len(outcome) != len(header):
            hint = "" if options.quoting is False else "; a stray quote? (corpus.quoting = false)"
            yield Quarantined(
                number, f"{len(outcome)} fields, expected {len(header)}{hint if len(outcome) < len(header) else ''}"
            )
        else:
            yield _read_row(options, reader, number, dict(zip(header, outcome, strict=True)))
    if header is None:
        raise ConfigError(f"corpus.path {str(options.path)!r} has no header line; the first line must name the columns")


class _Lines:
    """Lines for the csv reader. An unreadable line is replaced by an empty one to keep the reader's line count correct.

    Raises csv.Error if a record has more than 16 MiB. The reader then begins the next record.
    """

    def __init__(self, options: DelimitedCorpus, faults: list[Quarantined]) -> None:
        self._lines, self._faults = iter_lines(options.path, options.encoding), faults
        self.n_chars = 0
        """Characters since the last record ended."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        _, line = next(self._lines)
        if isinstance(line, Quarantined):
            self._faults.append(line)
            return "\n"
        self.n_chars += len(line) + 1
        if self.n_chars > MAX_RECORD_BYTES:
            raise csv.Error(TOO_LONG)
        return line + "\n"


def _next_row(rows: Any) -> list[str] | str | None:
    """Return the next row that is not blank, the reason why it cannot be read, or None at the end."""
    limit = csv.field_size_limit(MAX_RECORD_BYTES)
    try:
        return next((row for row in rows if row), None)
    except csv.Error as error:
        return str(error)
    finally:
        csv.field_size_limit(limit)


def _check_header(options: DelimitedCorpus, row: list[str] | str) -> list[str]:
    if isinstance(row, str):
        raise ConfigError(f"corpus.path {str(options.path)!r}: the header line cannot be read: {row}")
    if len(set(row)) != len(row):
        repeated = sorted({name for name in row if row.count(name) > 1})
        raise ConfigError(
            f"corpus.path {str(options.path)!r}: the header repeats {', '.join(map(repr, repeated))}; rename these columns"
        )
    return row


def _read_row(
    options: DelimitedCorpus, reader: RecordReader, number: int, fields: dict[str, str]
) -> CorpusExample | Quarantined:
    # An empty field of a table is a missing value.
    record: dict[str, Any] = {name: value or None for name, value in fields.items() if value or name != options.text}
    for name in options.numbers:
        if record.get(name) is None:
            continue
        try:
            record[name] = int(fields[name]) if fields[name].lstrip("+-").isdecimal() else float(fields[name])
        except ValueError:
            return Quarantined(number, f"{name!r} is {fields[name]!r}, expected a number")
    return reader.read(number, record)


def read_parquet(options: ParquetCorpus) -> Iterator[CorpusExample | Quarantined]:
    """Yield the examples of a Parquet table. Records are numbered by row, from 1.

    Raises
    ------
    ConfigError
        The file is not Parquet, or lacks a column that the options name.
    BudgetError
        The file expands to much more than its size.
    """
    reader = RecordReader(options)
    for number, record in iter_parquet(options.path, reader.check_header):
        yield record if isinstance(record, Quarantined) else reader.read(number, record)


def iter_parquet(
    path: Path, check_header: Callable[[list[str]], None], names: Collection[str] | None = None
) -> Iterator[tuple[int, dict[str, Any] | Quarantined]]:
    """Yield the rows of a Parquet file, numbered from 1. A row of more than 16 MiB is yielded as `Quarantined`.

    Rows are decoded in batches that take little memory, whatever the file expands to: values of a dictionary stay
    references until a row is read, and so do not multiply. `check_header` receives the column names. `names` selects
    columns, which may be lists; by default all columns of single values are read.

    Raises
    ------
    ConfigError
        The file is missing or is not Parquet.
    BudgetError
        A row group would take more than `MAX_GROUP_BYTES`, and more than `MAX_EXPANSION` times its bytes in the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ConfigError(
            f"corpus.path {str(path)!r}: there is no such file. Relative paths start at the current directory"
        )
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            check_header(schema.names)
            columns = _readable_columns(schema) if names is None else [n for n in schema.names if n in names]
        leaves = [
            metadata.schema.column(i).path
            for i in range(metadata.num_columns)
            if metadata.schema.column(i).path.split(".")[0] in columns
        ]
        dictionaries, delta = _check_groups(path, metadata, leaves)
        # texts in delta encoding share their beginnings with the text before, so one row at a time is decoded
        batch_rows = 1 if delta else _BATCH_ROWS
        with pq.ParquetFile(path, read_dictionary=sorted(dictionaries - delta), pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=batch_rows, columns=columns, use_threads=False):
                for record in _iter_records(batch):
                    number += 1
                    yield number, record if isinstance(record, dict) else Quarantined(number, record)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"corpus.path {str(path)!r} cannot be read as Parquet after row {number}: {error}") from error


MAX_GROUP_BYTES = 256 << 20
MAX_EXPANSION = 200
"""Compression that no corpus reaches: text compresses to a tenth, logs to a hundredth."""


def _check_groups(path: Path, metadata: Any, leaves: Collection[str]) -> tuple[set[str], set[str]]:
    """Compare the size that row groups expand to with their bytes in the file.

    Returns
    -------
    The columns of texts, and those of them in a delta encoding.
    """
    texts, delta = set[str](), set[str]()
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        stored = expanded = 0
        for column in (group.column(i) for i in range(group.num_columns)):
            if column.path_in_schema not in leaves:
                continue
            stored += column.total_compressed_size
            # lists and runs of equal numbers take few bytes in a page and eight for each value in memory
            n_in_memory = 8 * column.num_values if "." in column.path_in_schema else 0
            expanded += max(column.total_uncompressed_size, n_in_memory)
            if column.physical_type == "BYTE_ARRAY":
                texts.add(column.path_in_schema)
                if not {"DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"}.isdisjoint(column.encodings):
                    delta.add(column.path_in_schema)
        if expanded > MAX_GROUP_BYTES and expanded > MAX_EXPANSION * stored:
            raise BudgetError(
                f"corpus.path {str(path)!r}: a row group of {stored} bytes expands to {expanded}; expected at most "
                f"{MAX_EXPANSION} times its size. If you trust the file, write it again with smaller row groups."
            )
    return texts, delta


def _iter_records(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a batch, or the reason why a row cannot be used. At most 64 MiB become objects at a time."""
    sizes = np.zeros(len(batch), np.int64)
    for column in batch.columns:
        sizes += _value_bytes(column)
    ends = np.cumsum(sizes)
    start = 0
    while start < len(batch):
        if sizes[start] > MAX_RECORD_BYTES:
            yield TOO_LONG
            start += 1
            continue
        limit = ends[start] - sizes[start] + 4 * MAX_RECORD_BYTES
        stop = min(int(np.searchsorted(ends, limit, side="right")), len(batch))
        too_long = np.flatnonzero(sizes[start:stop] > MAX_RECORD_BYTES)
        stop = start + int(too_long[0]) if len(too_long) else stop
        yield from batch.slice(start, stop - start).to_pylist()
        start = stop


def _value_bytes(column: Any) -> np.ndarray:
    """Return the bytes of each value of an Arrow array as an object, without creating it."""
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made when it is imported
    if pa.types.is_dictionary(column.type):
        lengths = np.append(_value_bytes(column.dictionary), 0)  # the last entry is for missing values
        return lengths[pc.fill_null(column.indices.cast("int64"), -1).to_numpy(zero_copy_only=False)]
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        ends = np.append(0, np.cumsum(_value_bytes(column.flatten())))
        stops = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False))
        return np.diff(ends[np.append(0, stops)])
    if pa.types.is_struct(column.type):
        return sum((_value_bytes(field) for field in column.flatten()), np.zeros(len(column), np.int64))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.full(len(column), 8, np.int64)


def _readable_columns(schema: Any) -> list[str]:
    import pyarrow as pa

    def is_plain(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
            return {"role", "content"} <= {kind.value_type.field(i).name for i in range(kind.value_type.num_fields)}
        checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_boolean)
        return any(check(kind) for check in checks) or pa.types.is_integer(kind) or pa.types.is_floating(kind)

    return [field.name for field in schema if is_plain(field.type)]
