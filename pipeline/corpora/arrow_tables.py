"""Tables in Apache Parquet and in Arrow's stream format, the files of ``save_to_disk`` of Hugging Face datasets.

Files of strangers may be a few kilobytes that expand to gigabytes. Sizes are checked before anything is decoded, and
values become Python objects in batches that take little memory.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headatlas.store.errors import BudgetError, ConfigError

from .corpus_files import CorpusFile
from .fields import Rows
from .parquet_pages import DamagedPageError, read_pages
from .records import MAX_RECORD_BYTES, TOO_LONG, Quarantined

_BATCH_ROWS = 1024
_CONTINUATION = b"\xff\xff\xff\xff"
"""Begin of a message of Arrow's stream format. The last message has 4 zeros after it."""
CheckHeader = Callable[[list[str], Mapping[str, str], Collection[str]], Collection[str]]
"""Function of the column names, the types of the columns that have no single values, and those of them that are lists.

It returns the columns to read.
"""


def iter_parquet(path: Path, check_header: CheckHeader) -> Rows:
    """Yield the rows of a Parquet file, numbered from 1. A row of more than 16 MiB is yielded as `Quarantined`.

    Rows are decoded in batches that take little memory, whatever the file expands to: values of a dictionary stay
    references until a row is read, and so do not multiply.

    Raises
    ------
    ConfigError
        The file is not Parquet.
    BudgetError
        A row group would take more than `MAX_GROUP_BYTES`, and more than `MAX_EXPANSION` times its bytes in the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            columns = check_header(schema.names, *_nested_columns(schema))
        leaves = [
            metadata.schema.column(i).path
            for i in range(metadata.num_columns)
            if any(f"{metadata.schema.column(i).path}.".startswith(f"{name}.") for name in columns)
        ]
        dictionaries, delta = _check_groups(path, metadata, leaves)
        # texts in delta encoding share their beginnings with the text before, so one row at a time is decoded
        batch_rows = 1 if delta else _BATCH_ROWS
        names = [name for name in schema.names if name in columns]
        with pq.ParquetFile(path, read_dictionary=sorted(dictionaries - delta), pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=batch_rows, columns=names, use_threads=False):
                for record in _iter_records(batch):
                    number += 1
                    yield number, record if isinstance(record, dict) else Quarantined(number, record)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"corpus.path {str(path)!r} cannot be read as Parquet after row {number}: {error}. "
            "Check corpus.kind; Parquet files are read as they are, without another compression"
        ) from error


def saved_files(path: Path) -> list[CorpusFile] | None:
    """Return the Arrow files of a folder that ``save_to_disk`` wrote; None for another folder or a file.

    Raises
    ------
    ConfigError
        The folder has several splits, or its list of files cannot be used.
    """
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(entry.parent.name for entry in path.glob("*/state.json")))
        raise ConfigError(
            f"corpus.path {str(path)!r} has several splits ({splits}); name one of them, as in {str(path / 'train')!r}"
        )
    if not (path / "state.json").is_file():
        return None
    try:
        with (path / "state.json").open("rb") as file:
            state = json.loads(file.read(1 << 20))
        names = [entry["filename"] for entry in state["_data_files"]]
        if state.get("_indices_data_files"):
            raise ConfigError(
                f"corpus.path {str(path)!r} is a selection of rows that are stored elsewhere. Write it again with "
                "dataset.flatten_indices().save_to_disk(FOLDER)"
            )
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"corpus.path {str(path)!r}: state.json does not list the files of a dataset ({error!r:.200}); name the "
            f"files instead, as in {str(path / '*.arrow')!r}"
        ) from None
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ConfigError(
            f"corpus.path {str(path)!r}: state.json names files outside its folder; do not trust this dataset"
        )
    return [CorpusFile(path / name, name) for name in names]


def iter_arrow(path: Path, check_header: CheckHeader) -> Rows:
    """Yield the rows of a file in Arrow's stream or file format, numbered from 1.

    The file is mapped into memory. Its values are validated, because their offsets could point anywhere. Compressed
    buffers are decompressed one batch at a time.

    Raises
    ------
    ConfigError
        The file is no Arrow file, or is damaged.
    BudgetError
        The compressed buffers of a batch, or of all dictionaries, expand to more than `MAX_GROUP_BYTES`.
    """
    import pyarrow as pa

    number = 0
    try:
        with pa.memory_map(str(path)) as source:
            head = source.read(6)
            start = 8 if head == b"ARROW1" else 0
            source.seek(max(0, source.size() - 8))
            tail = source.read(8)
            if (start and tail[2:] != head) or (head[:4] == _CONTINUATION and tail != _CONTINUATION + bytes(4)):
                raise ConfigError(f"corpus.path {str(path)!r} is no complete Arrow file: its end is missing")
            source.seek(start)
            _check_messages(path, pa.ipc.MessageReader.open_stream(source))
            source.seek(start)
            reader = pa.ipc.open_stream(source)
            columns = check_header(reader.schema.names, *_nested_columns(reader.schema))
            names = [name for name in reader.schema.names if name in columns]
            for batch in reader:
                selection = batch.select(names)
                selection.validate(full=True)
                for first in range(0, len(selection), _BATCH_ROWS):
                    for record in _iter_records(selection.slice(first, _BATCH_ROWS)):
                        number += 1
                        yield number, record if isinstance(record, dict) else Quarantined(number, record)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"corpus.path {str(path)!r} cannot be read as Arrow after row {number}: {error}. Check corpus.kind"
        ) from error


def _check_messages(path: Path, messages: Iterable[Any]) -> None:
    """Check what the compressed buffers of a file expand to, before any of them is decompressed."""
    n_dictionary_bytes = 0
    for message in messages:
        try:
            is_dictionary, n_bytes = _expanded_bytes(message.metadata.to_pybytes(), memoryview(message.body or b""))
        except (struct.error, IndexError, KeyError):
            raise ConfigError(
                f"corpus.path {str(path)!r} has a damaged message of Arrow's format. Write the file again"
            ) from None
        n_dictionary_bytes += n_bytes if is_dictionary else 0
        if max(n_bytes, n_dictionary_bytes) > MAX_GROUP_BYTES:
            kind = "its dictionaries expand" if is_dictionary else "a batch expands"
            raise BudgetError(
                f"corpus.path {str(path)!r}: {kind} to {max(n_bytes, n_dictionary_bytes)} bytes; at most "
                f"{MAX_GROUP_BYTES} are read. Write the file again with smaller batches, or as Parquet."
            )


def _expanded_bytes(metadata: bytes, body: memoryview) -> tuple[bool, int]:
    """Return True for a dictionary, and the bytes that the compressed buffers of a message expand to.

    The metadata is a flatbuffer: a table whose field 2 is a record batch or a dictionary, which has its batch as field
    1. Field 2 of a record batch lists its buffers by offset and length, and field 3 is its compression. A compressed
    buffer begins with the length that it expands to, or −1 if it is stored as it is.
    """
    message = _table(metadata, 0)
    kind = metadata[message[1]] if 1 in message else 0
    if kind not in (2, 3):
        return False, 0
    batch = _table(metadata, message[2])
    if kind == 2:
        batch = _table(metadata, batch[1])
    if 3 not in batch or 2 not in batch:
        return kind == 2, 0
    vector = batch[2] + struct.unpack_from("<I", metadata, batch[2])[0]
    total = 0
    for i in range(struct.unpack_from("<I", metadata, vector)[0]):
        offset, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * i)
        if length > 0:
            total += max(length, struct.unpack_from("<q", body, offset)[0]) if offset >= 0 else 1 << 62
    return kind == 2, total


def _table(data: bytes, offset: int) -> dict[int, int]:
    """Return the positions of the fields of the table that the reference at `offset` points to."""
    table = offset + struct.unpack_from("<I", data, offset)[0]
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    entries = struct.unpack_from(f"<{size // 2 - 2}H", data, vtable + 4)
    return {i: table + entry for i, entry in enumerate(entries) if entry}


MAX_GROUP_BYTES = 256 << 20
MAX_EXPANSION = 200
"""Compression that no corpus reaches: text compresses to a tenth, logs to a hundredth."""


def _check_groups(path: Path, metadata: Any, leaves: Collection[str]) -> tuple[set[str], set[str]]:
    """Compare the size that row groups expand to with their bytes in the file, by the headers of their pages.

    Returns
    -------
    The columns of texts, and those of them in a delta encoding.
    """
    texts, delta = set[str](), set[str]()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
                stored = expanded = 0
                for column in (group.column(i) for i in range(group.num_columns)):
                    name = column.path_in_schema
                    if name not in leaves or (group.num_rows == column.num_values == column.data_page_offset == 0):
                        continue  # not read, or without a page, which no row needs
                    pages = read_pages(data, _first_page(column), column.total_compressed_size)
                    stored += pages.stored_bytes
                    # lists and runs of equal numbers take few bytes in a page and eight for each value in memory
                    expanded += max(pages.expanded_bytes, 8 * pages.n_values if "." in name else 0)
                    if column.physical_type == "BYTE_ARRAY":
                        texts.add(name)
                        if pages.has_delta_texts:
                            delta.add(name)
                if expanded > MAX_GROUP_BYTES and expanded > MAX_EXPANSION * stored:
                    raise BudgetError(
                        f"corpus.path {str(path)!r}: a row group of {stored} bytes expands to {expanded}; expected at "
                        f"most {MAX_EXPANSION} times its size. If you trust the file, write it again with smaller row "
                        "groups."
                    )
        except DamagedPageError as error:
            raise ConfigError(f"corpus.path {str(path)!r} is damaged: {error}. Copy or write the file again") from None
    return texts, delta


def _first_page(column: Any) -> int:
    """Return the position of the first page of a column, where the decoder begins."""
    start, dictionary = column.data_page_offset, column.dictionary_page_offset
    return dictionary if column.has_dictionary_page and dictionary and 0 < dictionary < start else start


def _iter_records(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a batch, or the reason why a row cannot be used. At most 64 MiB become objects at a time."""
    import pyarrow as pa

    batch = pa.record_batch([_as_text(column) for column in batch.columns], batch.schema.names)
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


def _as_text(column: Any) -> Any:
    """Return a column whose values Python can have: dates and decimals as text, half-precision numbers as float32."""
    import pyarrow as pa
    import pyarrow.compute

    types, kind, pc = pa.types, column.type, pyarrow.compute
    if types.is_float16(kind):
        return column.cast(pa.float32())
    if types.is_timestamp(kind) and kind.tz is not None:
        return pc.binary_join_element_wise(column.cast(pa.timestamp(kind.unit)).cast(pa.string()), "Z", "")
    checks = types.is_date, types.is_time, types.is_timestamp, types.is_decimal
    return column.cast(pa.string()) if any(check(kind) for check in checks) else column


def _value_bytes(column: Any) -> np.ndarray:
    """Return the bytes of each value of an Arrow array as an object, without creating it."""
    import pyarrow as pa
    import pyarrow.compute

    types, kind = pa.types, column.type
    pc: Any = pyarrow.compute  # its functions are made when it is imported
    if types.is_dictionary(kind):
        lengths = np.append(_value_bytes(column.dictionary), 0)  # the last entry is for missing values
        return lengths[pc.fill_null(column.indices.cast("int64"), -1).to_numpy(zero_copy_only=False)]
    if types.is_struct(kind):
        return np.sum([_value_bytes(child) for child in column.flatten()], axis=0) + 8
    if types.is_list(kind) or types.is_large_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        if lengths.sum() > MAX_RECORD_BYTES:  # sizes of so many values are not computed at once
            if len(column) == 1:
                return 8 * lengths
            half = len(column) // 2
            return np.concatenate([_value_bytes(column.slice(0, half)), _value_bytes(column.slice(half))])
        ends = np.append(0, np.cumsum(_value_bytes(column.flatten())))
        return np.diff(ends[np.append(0, np.cumsum(lengths))])
    if types.is_string_view(kind):  # the first 4 of the 16 bytes of a view are the length of its text
        views = np.frombuffer(column.buffers()[1], np.int32)[4 * column.offset : 4 * (column.offset + len(column)) : 4]
        return np.where(column.is_valid().to_numpy(zero_copy_only=False), views, 0).astype(np.int64)
    if types.is_string(kind) or types.is_large_string(kind):
        return pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.full(len(column), 8, np.int64)


def _nested_columns(schema: Any) -> tuple[dict[str, str], set[str]]:
    """Return the types of the columns without single values, and those of them that are readable lists."""
    import pyarrow as pa

    types = pa.types
    dates = types.is_date, types.is_time, types.is_timestamp, types.is_decimal
    nested = {
        field.name: str(field.type)
        for field in schema
        if not _is_plain(field.type) and not any(check(field.type) for check in dates)
    }
    lists = {field.name for field in schema if _is_readable_list(field.type) or _is_conversation(field.type)}
    return nested, lists & nested.keys()


def _is_plain(kind: Any) -> bool:
    """Return True for a type whose values are text, numbers or truth values."""
    import pyarrow as pa

    types = pa.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    checks = (
        *(types.is_string, types.is_large_string, types.is_string_view),
        *(types.is_boolean, types.is_integer, types.is_floating, types.is_null),
    )
    return any(check(kind) for check in checks)


def _is_readable_list(kind: Any) -> bool:
    """Return True for a list of plain values, or of structures of them."""
    import pyarrow as pa

    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    item = kind.value_type
    fields = [item.field(i).type for i in range(item.num_fields)] if pa.types.is_struct(item) else [item]
    return bool(fields) and all(map(_is_plain, fields))


def _is_conversation(kind: Any) -> bool:
    """Return True for a list of structures with a role and a content, whose other fields are of known size."""
    import pyarrow as pa

    types = pa.types
    item = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else None
    if item is None or not types.is_struct(item):
        return False
    return {"role", "content"} <= {field.name for field in item} and _has_plain_leaves(item)


def _has_plain_leaves(kind: Any) -> bool:
    """Return True for plain values, and for lists and structures of them."""
    import pyarrow as pa

    types = pa.types
    if types.is_struct(kind):
        return all(_has_plain_leaves(field.type) for field in kind)
    return _has_plain_leaves(kind.value_type) if types.is_list(kind) or types.is_large_list(kind) else _is_plain(kind)
