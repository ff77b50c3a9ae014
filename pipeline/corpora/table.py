"""Tables: text separated by commas, tabs or another character, and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from headatlas.store.errors import ConfigError

from .corpus_options import DelimitedCorpus, ParquetCorpus
from .examples import CorpusExample
from .fields import RecordReader
from .records import MAX_RECORD_BYTES, Quarantined, iter_lines

_BATCH_ROWS = 1024


def read_delimited(options: DelimitedCorpus) -> Iterator[CorpusExample | Quarantined]:
    """Yield the examples of a delimited table with a header. The number of a record is that of its last line.

    Raises
    ------
    ConfigError
        The header is missing, repeats a name, or lacks a column that the options name.
    """
    faults: list[Quarantined] = []
    rows = csv.reader(
        _feed_lines(options, faults),
        delimiter=options.delimiter or ("," if options.kind == "csv" else "\t"),
        quoting=csv.QUOTE_MINIMAL if options.quoting else csv.QUOTE_NONE,
    )
    reader = RecordReader(options)
    header: list[str] | None = None
    while True:
        outcome = _next_row(rows)
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


def _feed_lines(options: DelimitedCorpus, faults: list[Quarantined]) -> Iterator[str]:
    """Yield lines to the csv reader. An unreadable line is replaced by an empty one to keep its line count correct."""
    for _, line in iter_lines(options.path, options.encoding):
        if isinstance(line, Quarantined):
            faults.append(line)
            yield "\n"
        else:
            yield line + "\n"


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
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not options.path.is_file():
        raise ConfigError(
            f"corpus.path {str(options.path)!r}: there is no such file. Relative paths start at the current directory"
        )
    reader = RecordReader(options)
    number = 0
    try:
        with pq.ParquetFile(options.path) as file:
            reader.check_header(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=_readable_columns(file.schema_arrow)):
                for record in batch.to_pylist():
                    number += 1
                    yield reader.read(number, record)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"corpus.path {str(options.path)!r} cannot be read as Parquet after row {number}: {error}"
        ) from error


def _readable_columns(schema: Any) -> list[str]:
    import pyarrow as pa

    def is_plain(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_boolean)
        return any(check(kind) for check in checks) or pa.types.is_integer(kind) or pa.types.is_floating(kind)

    return [field.name for field in schema if is_plain(field.type)]
