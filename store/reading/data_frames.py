"""Examples and tokens of a store as pandas or polars frames, with their annotations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from ..errors import ConfigError
from ..schema.token_table import Column, TokenFlag, TokenTable

if TYPE_CHECKING:
    import polars as pl

    from .segment_index import SegmentIndex
from .segment import Segment

FrameLibrary = Literal["pandas", "polars"]
OWN_COLUMNS = ("text", "piece")
"""Columns that every token table has and that are no annotations."""


N_SHOWN = 10
"""Most rows of a result that its repr shows."""


def as_library(frame: pd.DataFrame, library: FrameLibrary) -> pd.DataFrame | pl.DataFrame:
    """Convert a frame to a polars frame, sharing numbers if possible, or return it unchanged for pandas.

    A named index becomes a column. Lone surrogates, which polars cannot represent, become U+FFFD.

    Raises
    ------
    ConfigError
        The library is unknown, or polars is not installed.
    """
    if library == "pandas":
        return frame
    if library != "polars":
        raise ConfigError(f"as_ is {library!r}; expected 'pandas' or 'polars'.")
    try:
        import polars as pl
    except ImportError:
        raise ConfigError("polars is not installed. Run: pip install 'headatlas[polars]'") from None
    flat = frame if frame.index.name is None else frame.reset_index()
    columns = {}
    for name in flat:
        values = flat[name].to_numpy()
        if values.dtype == object:
            columns[str(name)] = pl.Series(str(name), [valid_text(value) for value in values], dtype=pl.String)
        else:
            columns[str(name)] = pl.Series(str(name), values)
    return pl.DataFrame(columns)


def valid_text(text: object) -> str | None:
    """Return a text with lone surrogates as U+FFFD; None for anything else."""
    return None if not isinstance(text, str) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def examples_frame(store: SegmentIndex) -> pd.DataFrame:
    """Return a frame with one row per example, by number. An annotation with a taken name gets a prefix (``_text``)."""
    frames = [_segment_examples(segment) for segment in store.segments]
    columns = store.example_columns()
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"example": np.empty(0, np.int64)})
    for name in ("text_pair", "target_text"):
        if name in frame and bool(np.all(frame[name].isna())):
            frame = frame.drop(columns=name)
    frame = _add_annotations(frame, {name: values_of(column) for name, column in columns.items()})
    return frame.set_index("example")


def _segment_examples(segment: Segment) -> pd.DataFrame:
    first, n = segment.first_example, segment.n_examples
    data: dict[str, object] = {"example": np.arange(first, first + n), "id": segment.ids(), "text": segment.texts()}
    for name in ("text_pair", "target_text"):
        data[name] = pd.Series(segment.optional_texts(name), dtype=object)
    for sequence in segment.spec.sequences:
        name = "n_tokens" if sequence == "source" else f"n_{sequence}_tokens"
        data[name] = np.diff(segment.token_offset(sequence))
    return pd.DataFrame({**data, "segment": segment.index})


def tokens_frame(store: SegmentIndex, sequence: str = "source", examples: slice | None = None) -> pd.DataFrame:
    """Return a frame with one row per token, for the examples whose numbers are in a slice of step 1, in order.

    Raises
    ------
    ConfigError
        The slice has another step.
    NotFoundError
        There is no such sequence.
    """
    selection = slice(None) if examples is None else examples
    if selection.step not in (None, 1):
        raise ConfigError(f"examples is {selection!r}; expected a slice of step 1, such as slice(0, 100).")
    start, stop, _ = selection.indices(store.manifest.n_examples_planned)
    frames = []
    for segment in store.segments:
        low = max(start - segment.first_example, 0)
        high = min(stop - segment.first_example, segment.n_examples)
        if low < high:
            frames.append(table_frame(segment.tokens(sequence).examples(low, high), segment.first_example + low))
    return pd.concat(frames, ignore_index=True) if frames else table_frame(_no_tokens(), 0)


def table_frame(table: TokenTable, first_example: int) -> pd.DataFrame:
    """Return a frame with one row per token, for a table whose first example has this number."""
    example = np.repeat(np.arange(table.n_examples), table.n_tokens)
    data: dict[str, object] = {
        "example": example + first_example,
        "position": table.position,
        "id": table.id,
        **{name: values_of(table.columns[name]) for name in OWN_COLUMNS},
        "word": table.word,
        "char_start": table.char_start,
        "char_end": table.char_end,
        "special": table.special,
        "second": table.second,
        "continuation": (table.flags & TokenFlag.CONTINUATION) != 0,
        "generated": (table.flags & TokenFlag.GENERATED) != 0,
    }
    token_annotations = {name: values_of(column) for name, column in table.columns.items() if name not in OWN_COLUMNS}
    word_annotations = {n: _token_values(column, table.word_row) for n, column in table.word_columns.items()}
    return _add_annotations(_add_annotations(pd.DataFrame(data), token_annotations), word_annotations)


def _add_annotations(frame: pd.DataFrame, annotations: dict[str, np.ndarray | pd.Series]) -> pd.DataFrame:
    """Add annotations as columns. An annotation with the name of an existing column gets prefixes ``_``."""
    for name, values in annotations.items():
        while name in frame:
            name = f"_{name}"
        frame[name] = values
    return frame


def _token_values(column: Column, row: np.ndarray) -> np.ndarray | pd.Series:
    """Return the annotation of each token's word; missing (None, NaN, -1) for tokens without a word."""
    values = np.asarray(values_of(column))
    missing = None if column.is_text else column.missing
    result = np.full(len(row), missing, dtype=values.dtype)
    result[row >= 0] = values[row[row >= 0]]
    return pd.Series(result, dtype=object) if column.is_text else result


def values_of(column: Column) -> np.ndarray | pd.Series:
    """Return the rows of a column: text as objects (None if missing), numbers as stored."""
    return pd.Series(column.to_list(), dtype=object) if column.is_text else column.data


def _no_tokens() -> TokenTable:
    none = np.empty(0, np.int32)
    offset, nothing = np.zeros(1, np.int64), Column.of_text([])
    columns = {"text": nothing, "piece": nothing}
    return TokenTable(offset, none, none, none, none, np.empty(0, np.uint8), columns, offset, none, none)


class ShownAsTable(ABC):
    """Base of results that are shown as their table: the first rows as text, or as HTML in a notebook."""

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """Return the result as a table."""

    def __repr__(self) -> str:
        """Return the first rows of the table, and the number of rows that follow."""
        table = self._shown_table()
        text = table.head(N_SHOWN).to_string(index=False, float_format="{:.4g}".format, max_colwidth=40)
        return "\n".join([f"{type(self).__name__}", text, *self._more(len(table))])

    def _repr_html_(self) -> str:
        table = self._shown_table()
        lines = "".join(f"<p>{line}</p>" for line in self._more(len(table)))
        return table.head(N_SHOWN).to_html(index=False, float_format="{:.4g}".format) + lines

    def _shown_table(self) -> pd.DataFrame:
        return self.table()

    def _more(self, n: int) -> list[str]:
        return [f"{n - N_SHOWN:,} more rows: table()"] if n > N_SHOWN else []
