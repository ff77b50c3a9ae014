"""Conversion of a segment's texts, annotations and token tables to arrays and back.

Text is stored as UTF-8 bytes with offsets, because the strings of array libraries drop trailing NULs. Lone surrogates
are allowed, because a tokenizer's pieces can contain them. A text column is stored as integer codes into such a list. A
column's name becomes one percent-encoded path component. The reader checks offsets and codes, so a damaged table cannot
refer to rows outside itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

import numpy as np
from jaxtyping import Int, Int64, Shaped, UInt8

from ..codecs.array_layout import ArrayLayout, SegmentArray
from ..errors import ConfigError, FormatError, ShapeError
from .table_layouts import NUMBER_DTYPES, TOKEN_FIELDS, WORD_FIELDS
from .token_table import MISSING, Column, TokenTable
from .traces import SequenceName

ReadWhole = Callable[[str], np.ndarray]
_N_WORDS = 256
"""Smallest bound of word numbers. Test stores of earlier releases hold numbers up to 99 for fewer words."""
MAX_NAME_CHARS = 64
MAX_COMPONENT_CHARS = 240
"""Longest path component of a column. File systems take 255 bytes."""
_TEXTS = ("text", "text_pair", "target_text")


@dataclass(frozen=True)
class SegmentTables:
    """Data of a segment's examples apart from the traces. All sequences have one entry per example."""

    ids: Sequence[str]
    texts: Sequence[str]
    text_pairs: Sequence[str | None]
    target_texts: Sequence[str | None]
    columns: dict[str, Column] = field(default_factory=dict)
    tokens: dict[SequenceName, TokenTable] = field(default_factory=dict)

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return len(self.ids)

    def check(self) -> None:
        """Check that all sequences have one entry per example.

        Raises
        ------
        ShapeError
            A sequence has more or fewer entries.
        """
        counts = {"texts": self.texts, "text_pairs": self.text_pairs, "target_texts": self.target_texts}
        lengths = {name: len(rows) for name, rows in counts.items()}
        lengths |= {f"column {name!r}": len(column) for name, column in self.columns.items()}
        lengths |= {f"the {name} token table": table.n_examples for name, table in self.tokens.items()}
        for name, length in lengths.items():
            if length != self.n_examples:
                raise ShapeError(f"{name} has {length} entries; expected {self.n_examples}, one for each id.")


def table_arrays(tables: SegmentTables) -> dict[str, SegmentArray]:
    """Return the arrays of a segment's tables, by path."""
    arrays: dict[str, SegmentArray] = {}

    def add(path: str, data: np.ndarray, axis: str) -> None:
        arrays.update([_flat_array(path, data, axis)])

    def add_text(path: str, rows: Iterable[str], axis: str) -> None:
        arrays.update(_text_arrays(path, rows, axis))

    def add_columns(path: str, columns: dict[str, Column], axis: str) -> None:
        for name, column in columns.items():
            arrays.update(column_arrays(f"{path}/{column_component(name)}", column, axis))

    add_text("example/id", tables.ids, "example")
    add_text("example/text", tables.texts, "example")
    for name, rows in (("text_pair", tables.text_pairs), ("target_text", tables.target_texts)):
        present = np.asarray([row is not None for row in rows], dtype=np.uint8)
        if present.any():  # without such texts the arrays are left out
            add_text(f"example/{name}", [row or "" for row in rows], "example")
            add(f"example/{name}_present", present, "example")
    add_columns("example/column", tables.columns, "example")
    for sequence, table in tables.tokens.items():
        add(f"{sequence}/token_offset", table.token_offset.astype(np.int64), "example_edge")
        for name, dtype in TOKEN_FIELDS.items():
            add(f"{sequence}/token/{name}", getattr(table, name).astype(dtype), "token")
        add_columns(f"{sequence}/token/column", table.columns, "token")
        add(f"{sequence}/word_offset", table.word_offset.astype(np.int64), "example_edge")
        for name, dtype in WORD_FIELDS.items():
            add(f"{sequence}/word/{name}", getattr(table, f"word_{name}").astype(dtype), "word")
        add_columns(f"{sequence}/word/column", table.word_columns, "word")
    return arrays


def column_arrays(path: str, column: Column, axis: str) -> dict[str, SegmentArray]:
    """Return the arrays of one column, below `path`."""
    if column.values is None:
        kind = column.data.dtype.name
        number = kind if kind in NUMBER_DTYPES else "float64" if kind.startswith("float") else "int64"
        return dict([_flat_array(f"{path}/number", column.data.astype(number), axis)])
    code = _flat_array(f"{path}/code", column.data.astype(np.int32), axis)
    return {code[0]: code[1], **_text_arrays(f"{path}/value", column.values, "value")}


def _text_arrays(path: str, rows: Iterable[str], axis: str) -> dict[str, SegmentArray]:
    data, offset = encode_text(rows)
    return dict([_flat_array(path, data, "byte"), _flat_array(f"{path}_offset", offset, f"{axis}_edge")])


def _flat_array(path: str, data: np.ndarray, axis: str) -> tuple[str, SegmentArray]:
    return path, SegmentArray(ArrayLayout(path, data.shape, data.dtype, (axis,)), data)


def read_token_table(read: ReadWhole, paths: Sequence[str], sequence: str) -> TokenTable:
    """Read the token table of one sequence.

    Word numbers are compared with the words of each example when they are used (`TokenTable.word_row`).

    Raises
    ------
    FormatError
        Offsets, codes or word numbers are outside their arrays.
    """
    tokens = {name: read(f"{sequence}/token/{name}") for name in TOKEN_FIELDS}
    words = {name: read(f"{sequence}/word/{name}") for name in WORD_FIELDS}
    columns = read_columns(read, paths, f"{sequence}/token/column")
    word_columns = read_columns(read, paths, f"{sequence}/word/column")
    for kind, fields, kind_columns in (("token", tokens, columns), ("word", words, word_columns)):
        lengths = {len(rows) for rows in (*fields.values(), *kind_columns.values())}
        if len(lengths) != 1:
            raise FormatError(
                f"the arrays of {sequence}/{kind} have {sorted(lengths)} entries; expected equal lengths."
            )
    if len(tokens["word"]) and not -1 <= tokens["word"].min() <= tokens["word"].max() < max(
        _N_WORDS, len(words["char_start"])
    ):
        raise FormatError(
            f"{sequence}/token/word holds numbers from {tokens['word'].min()} to {tokens['word'].max()}; expected -1 to "
            f"the number of words. Verify the store."
        )
    return TokenTable(
        token_offset=check_offset(read(f"{sequence}/token_offset"), len(tokens["id"]), f"{sequence}/token_offset"),
        **tokens,
        columns=columns,
        word_offset=check_offset(read(f"{sequence}/word_offset"), len(words["char_start"]), f"{sequence}/word_offset"),
        word_char_start=words["char_start"],
        word_char_end=words["char_end"],
        word_columns=word_columns,
    )


def read_columns(read: ReadWhole, paths: Sequence[str], folder: str) -> dict[str, Column]:
    """Read all columns below `folder`, in the order in which they were written."""
    names = dict.fromkeys(path[len(folder) + 1 :].split("/")[0] for path in paths if path.startswith(f"{folder}/"))
    columns: dict[str, Column] = {}
    for name in names:
        if f"{folder}/{name}/number" in paths:
            column = Column(read(f"{folder}/{name}/number"))
        else:
            code, values = read(f"{folder}/{name}/code"), tuple(read_text(read, f"{folder}/{name}/value"))
            if code.size and not (code.min() >= MISSING and code.max() < len(values)):
                raise FormatError(f"{folder}/{name}/code holds codes outside the {len(values)} values of its column.")
            column = Column(code, values)
        columns[unquote(name)] = column
    return columns


def read_optional_text(read: ReadWhole, paths: Sequence[str], name: str, n_examples: int) -> list[str | None]:
    """Read the texts of an optional kind; None for examples without such a text."""
    if f"example/{name}" not in paths:
        return [None] * n_examples
    rows = read_text(read, f"example/{name}")
    if f"example/{name}_present" not in paths:
        return list(rows)
    present = read(f"example/{name}_present").tolist()
    return [row if is_present else None for row, is_present in zip(rows, present, strict=True)]


def read_text(read: ReadWhole, path: str) -> list[str]:
    """Read the strings of a text array."""
    data = read(path)
    return decode_text(data, check_offset(read(f"{path}_offset"), len(data), f"{path}_offset"))


def encode_text(rows: Iterable[str]) -> tuple[UInt8[np.ndarray, "byte"], Int64[np.ndarray, "boundary"]]:
    """Encode rows as UTF-8 bytes with the offset of each row."""
    encoded = [row.encode("utf-8", "surrogatepass") for row in rows]
    offset = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in encoded], out=offset[1:])
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offset


def decode_text(data: UInt8[np.ndarray, "byte"], offset: Int64[np.ndarray, "boundary"]) -> list[str]:
    """Decode rows of UTF-8 bytes; the inverse of `encode_text`.

    Raises
    ------
    FormatError
        The bytes are not UTF-8.
    """
    text, boundaries = data.tobytes(), offset.tolist()
    try:
        return [text[a:b].decode("utf-8", "surrogatepass") for a, b in itertools.pairwise(boundaries)]
    except UnicodeDecodeError as error:
        raise FormatError(
            f"a text is not UTF-8 ({error.reason}): the offsets do not fit the bytes. Verify the store."
        ) from None


def check_offset(offset: Shaped[np.ndarray, "boundary"], length: int, path: str) -> Int64[np.ndarray, "boundary"]:
    """Check that offsets start at 0, never decrease and end at `length`, and return them.

    Raises
    ------
    FormatError
        The offsets do not.
    """
    if (
        offset.dtype != np.int64
        or not len(offset)
        or offset[0] != 0
        or offset[-1] != length
        or np.any(np.diff(offset) < 0)
    ):
        raise FormatError(f"{path} does not rise from 0 to {length}: the table is damaged. Verify the store.")
    return offset


def column_component(name: str) -> str:
    """Encode a column's name as one path component.

    Raises
    ------
    ConfigError
        The name is empty or longer than `has_path` allows.
    """
    if not has_path(name):
        raise ConfigError(
            f"column name {name[:80]!r} has {len(name)} characters; expected 1 to {MAX_NAME_CHARS}, and at most "
            f"{MAX_COMPONENT_CHARS} when characters beyond ASCII are percent-encoded. Rename the column."
        )
    return _component(name)


def has_path(name: str) -> bool:
    """Return True if a column may have this name: it has characters, and file systems take its path component."""
    return 0 < len(name) <= MAX_NAME_CHARS and len(_component(name)) <= MAX_COMPONENT_CHARS


def _component(name: str) -> str:
    encoded = quote(name.encode("utf-8", "surrogatepass"), safe="").replace(".", "%2E").replace("~", "%7E")
    return f"%5F{encoded[1:]}" if encoded.startswith("_") else encoded  # zarr reserves names with two underscores


def examples_of_rows(offset: Int[np.ndarray, "boundary"], start: int, stop: int) -> range:
    """Return the examples that contain any of the rows `start:stop`."""
    if stop <= start:
        return range(0)
    first = int(np.searchsorted(offset, start, side="right")) - 1
    return range(first, int(np.searchsorted(offset, stop, side="left")))
