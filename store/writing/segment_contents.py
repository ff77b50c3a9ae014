"""Contents of a segment to be written: tables and traces as arrays, checked against the specification."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..codecs.array_layout import SegmentArray
from ..errors import FormatError, ShapeError
from ..schema.table_layouts import check_table_layouts
from ..schema.text_tables import SegmentTables, check_offset, table_arrays
from ..schema.traces import TraceSpec, count_entries, segment_layout
from .array_attributes import array_attributes


def segment_contents(
    spec: TraceSpec, tables: SegmentTables, arrays: Mapping[str, np.ndarray]
) -> dict[str, SegmentArray]:
    """Return all arrays of a segment by path: its tables, then the traces `arrays`.

    Raises
    ------
    ShapeError
        An array is missing, unknown, or has another shape or type; tables disagree in length.
    """
    tables.check()
    if set(tables.tokens) != set(spec.sequences):
        raise ShapeError(f"token tables of {sorted(tables.tokens)}; expected those of {sorted(spec.sequences)}.")
    lengths = {name: tokens.n_tokens for name, tokens in tables.tokens.items()}
    contents = table_arrays(tables)
    n_tokens = {str(name): len(tokens) for name, tokens in tables.tokens.items()}
    check_table_layouts({path: item.layout for path, item in contents.items()}, tables.n_examples, n_tokens)
    try:
        for name, tokens in tables.tokens.items():
            check_offset(tokens.token_offset, len(tokens), f"{name}/token_offset")
            check_offset(tokens.word_offset, len(tokens.word_char_start), f"{name}/word_offset")
            _ = tokens.word_row
    except FormatError as error:
        raise ShapeError(str(error)) from None
    return contents | trace_contents(spec, lengths, arrays)


def trace_contents(
    spec: TraceSpec, lengths: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]
) -> dict[str, SegmentArray]:
    """Return the traces of examples with these lengths, by path, after checking them.

    Raises
    ------
    ShapeError
        An array is missing, unknown, or has another shape or type.
    """
    n_entries = count_entries(spec, lengths, {path: data.shape for path, data in arrays.items()})
    layouts = segment_layout(spec, lengths, n_entries)
    if set(arrays) != set(layouts):
        odd = sorted(set(arrays) ^ set(layouts))
        raise ShapeError(f"arrays {', '.join(odd)} are missing or unknown; expected {', '.join(layouts)}.")
    for path, layout in layouts.items():
        data = arrays[path]
        if data.shape != layout.shape or data.dtype != layout.dtype:
            raise ShapeError(f"{path} is {data.dtype} {data.shape}; expected {layout.dtype} {layout.shape}.")
    return {path: SegmentArray(layout, arrays[path], array_attributes(spec, path)) for path, layout in layouts.items()}
