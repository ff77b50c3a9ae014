"""Cut long documents into windows. Each window is an example that refers to its document.

The document is tokenized as a whole. A window contains consecutive tokens of it, between the special tokens. Its text
is cut at word boundaries, so words keep all their characters. The annotations `window_of` (id of the document),
`window` (from 0), `window_start` and `window_end` (characters of the document) record its origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int32

from headatlas.store.schema.omissions import Omission
from headatlas.store.schema.token_table import MISSING, POINTER_COLUMNS

from ..corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word, WordColumn

WordColumns = dict[str, WordColumn]
WINDOW_COLUMNS = ("window_of", "window", "window_start", "window_end")


def cut_windows(document: EncodedExample, size: int, stride: int) -> list[EncodedExample] | str:
    """Cut one document into windows of at most `size` tokens that begin `stride` tokens apart.

    A document that fits into one window keeps its id and text. A pointer to a word outside of the window (governor,
    antecedent) becomes -1 and is counted. The first window has the document's `written_special` and `left_out`. If the
    text of a window is not certain, return the reason.
    """
    example, tokens = document.example, document.source
    if len(tokens) <= size:
        columns = dict(zip(WINDOW_COLUMNS, (example.id, 0, 0, len(example.text)), strict=True))
        return [replace(document, example=replace(example, columns={**example.columns, **columns}))]
    document_tokens = np.flatnonzero(~tokens.is_added)
    leading, trailing = np.arange(document_tokens[0]), np.arange(document_tokens[-1] + 1, len(tokens))
    room = size - len(leading) - len(trailing)
    starts = range(0, max(1, len(document_tokens) - room + stride), stride)
    windows = [tokens.take(np.concatenate([leading, document_tokens[i : i + room], trailing])) for i in starts]
    if any(not np.any(~window.is_added & (window.char_start >= 0)) for window in windows):
        return "it cannot be cut into windows, because the characters of its tokens are not certain"
    spans = np.array([(word.char_start, word.char_end) for word in example.words], np.int32).reshape(-1, 2)
    first, *others = (_cut(example, spans, number, window) for number, window in enumerate(windows))
    left_out = (*document.left_out, *first.left_out)
    return [replace(first, written_special=document.written_special, left_out=left_out), *others]


def _cut(
    example: CorpusExample, spans: Int32[np.ndarray, "word 2"], number: int, sequence: TokenSequence
) -> EncodedExample:
    has_span = ~sequence.is_added & (sequence.char_start >= 0)
    token_spans = spans[sequence.word[sequence.word != MISSING]]
    start = int(min(sequence.char_start[has_span].min(), token_spans[:, 0].min(initial=len(example.text))))
    stop = int(max(sequence.char_end[has_span].max(), token_spans[:, 1].max(initial=0)))
    word_indices = np.flatnonzero((spans[:, 0] >= start) & (spans[:, 1] <= stop)).tolist()
    new_index = np.full(len(example.words) + 1, MISSING, np.int32)  # the last entry is for tokens without a word (-1)
    new_index[word_indices] = np.arange(len(word_indices), dtype=np.int32)
    columns = dict(zip(WINDOW_COLUMNS, (example.id, number, start, stop), strict=True))
    word_columns = {
        name: _cut_column(name, rows, word_indices, new_index) for name, rows in example.word_columns.items()
    }
    example_of_window = CorpusExample(
        id=f"{example.id}@{number}",
        text=example.text[start:stop],
        words=tuple(
            Word(word.char_start - start, word.char_end - start) for word in (example.words[i] for i in word_indices)
        ),
        word_columns=word_columns,
        columns={**example.columns, **columns},
    )
    tokens = replace(
        sequence,
        word=new_index[sequence.word],
        char_start=np.where(has_span, sequence.char_start - start, sequence.char_start).astype(np.int32),
        char_end=np.where(has_span, sequence.char_end - start, sequence.char_end).astype(np.int32),
    )
    left_out = [
        Omission(what=f"values of {name!r}", n=n, reason="they point outside of their window", n_examples=1)
        for name in POINTER_COLUMNS
        if (n := _n_pointers(example.word_columns, name, word_indices) - _n_pointers(word_columns, name))
    ]
    return EncodedExample(example_of_window, tokens, left_out=tuple(left_out))


def _n_pointers(columns: WordColumns, name: str, rows: Sequence[int] | None = None) -> int:
    """Count the words that a column of pointers has a word for."""
    column = columns.get(name, [])
    values = column if rows is None else [column[i] for i in rows if column]
    return sum(isinstance(value, int) and value >= 0 for value in values)


def _cut_column(name: str, rows: WordColumn, word_indices: list[int], new_index: np.ndarray) -> WordColumn:
    if name in POINTER_COLUMNS:
        governors = [rows[i] for i in word_indices]
        return [
            int(new_index[governor]) if isinstance(governor, int) and governor >= 0 else MISSING
            for governor in governors
        ]
    return [rows[i] for i in word_indices]  # pyright: ignore[reportReturnType]
