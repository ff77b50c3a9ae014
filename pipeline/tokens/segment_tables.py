"""Conversion of encoded examples to the flat columns of a segment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import numpy as np

from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.token_table import MISSING, Column, TokenTable
from headatlas.store.schema.traces import SequenceName

from ..corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word
from ..corpora.word_split import split_words

_INT32 = np.iinfo(np.int32)
_EXACT_FLOAT = 2**53


def segment_tables(encoded: Sequence[EncodedExample], sequences: Sequence[SequenceName]) -> SegmentTables:
    """Build the tables of a segment: ids, texts, annotations and tokens."""
    examples = [item.example for item in encoded]
    return SegmentTables(
        ids=[example.id for example in examples],
        texts=[example.text for example in examples],
        text_pairs=[example.text_pair for example in examples],
        target_texts=[example.target for example in examples],
        columns=build_example_columns(examples),
        tokens={sequence: build_token_table(encoded, sequence) for sequence in sequences},
    )


def build_token_table(examples: Sequence[EncodedExample], sequence: SequenceName = "source") -> TokenTable:
    """Concatenate the tokens and words of one sequence of many examples.

    Word annotations that only some examples have are missing (None, -1) in the others. Words of the target sequence
    have no annotations.
    """
    sequences = [_sequence_of(example, sequence) for example in examples]
    words: list[tuple[Word, ...]] = [
        example.example.words if sequence == "source" else split_words(example.example.target or "")
        for example in examples
    ]
    extra_names = dict.fromkeys(name for s in sequences for name in s.columns)
    flat_words = [word for of_example in words for word in of_example]
    word_columns: dict[str, Column] = {}
    if sequence == "source":
        names = dict.fromkeys(name for example in examples for name in example.example.word_columns)
        word_columns = {name: _word_column(name, [example.example for example in examples]) for name in names}
    return TokenTable(
        token_offset=_offsets(sequences),
        id=_join([s.id for s in sequences], np.int32),
        word=_join([s.word for s in sequences], np.int32),
        # a token whose characters are not certain is stored without characters
        char_start=np.maximum(_join([s.char_start for s in sequences], np.int32), 0),
        char_end=np.maximum(_join([s.char_end for s in sequences], np.int32), 0),
        flags=_join([s.flags for s in sequences], np.uint8),
        columns={
            "text": Column.of_text(text for s in sequences for text in s.text),
            "piece": Column.of_text(piece for s in sequences for piece in s.piece),
            **{name: Column(_join([_numeric_column(s, name) for s in sequences], np.int32)) for name in extra_names},
        },
        word_offset=_offsets(words),
        word_char_start=np.asarray([word.char_start for word in flat_words], np.int32),
        word_char_end=np.asarray([word.char_end for word in flat_words], np.int32),
        word_columns=word_columns,
    )


def build_example_columns(examples: Sequence[CorpusExample]) -> dict[str, Column]:
    """Convert the annotations of examples to columns.

    A column of whole numbers is int32. It is float64 if values are missing (NaN), negative (-1 means missing in int32)
    or beyond int32, and text beyond 2**53. A column with other numbers is float64. Any other column is text, and its
    numbers are written out.
    """
    names = dict.fromkeys(name for example in examples for name in example.columns)
    return {name: _example_column([example.columns.get(name) for example in examples]) for name in names}


def _sequence_of(example: EncodedExample, sequence: SequenceName) -> TokenSequence:
    if sequence == "source":
        return example.source
    assert example.target is not None, "the example was encoded without has_target"
    return example.target


def _numeric_column(sequence: TokenSequence, name: str) -> np.ndarray:
    """Return a numeric column of one sequence; all missing (-1) if the sequence does not have it."""
    return sequence.columns.get(name, np.full(len(sequence), MISSING, np.int32))


def _offsets(rows: Sequence[TokenSequence] | Sequence[tuple[Word, ...]]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum([len(row) for row in rows], dtype=np.int64)])


def _join(parts: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts])


def _word_column(name: str, examples: Sequence[CorpusExample]) -> Column:
    rows = [example.word_columns.get(name) or [None] * len(example.words) for example in examples]
    flat = list(itertools.chain.from_iterable(rows))
    kinds = set(map(type, flat))
    if str in kinds or kinds <= {type(None)}:
        mixed = not kinds <= {str, type(None)}
        texts = [value if value is None else str(value) for value in flat] if mixed else flat
        return Column.of_text(cast("list[str | None]", texts))
    is_whole = float not in kinds
    missing = MISSING if is_whole else np.nan
    numbers = [missing if value is None else value for value in flat]
    return Column(np.asarray(numbers, np.int32 if is_whole else np.float64))


def _example_column(values: list[str | int | float | None]) -> Column:
    numbers = [value for value in values if isinstance(value, (int, float))]
    n_present = sum(value is not None for value in values)
    if not numbers or len(numbers) < n_present:
        return Column.of_text(None if value is None else str(value) for value in values)
    if all(isinstance(value, int) for value in numbers):
        if n_present == len(values) and min(numbers) >= 0 and max(numbers) <= _INT32.max:  # -1 would mean missing
            return Column(np.asarray(numbers, np.int32))
        if max(map(abs, numbers)) > _EXACT_FLOAT:  # float64 would round it
            return Column.of_text(None if value is None else str(value) for value in values)
    return Column(np.asarray([np.nan if value is None else value for value in values], np.float64))
