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
from headatlas.store.schema.token_table import MISSING, POINTER_COLUMNS, TokenFlag

from ..corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word, WordColumn

WordColumns = dict[str, WordColumn]
WINDOW_COLUMNS = ("window_of", "window", "window_start", "window_end")


def cut_windows(example: CorpusExample, tokens: TokenSequence, size: int, stride: int) -> list[EncodedExample]:
    """Cut one document into windows of at most `size` tokens that begin `stride` tokens apart.

    A document that fits into one window keeps its id and text. A pointer to a word outside of the window (governor,
    antecedent) becomes -1 and is counted.
    """
    if len(tokens) <= size:
        columns = dict(zip(WINDOW_COLUMNS, (example.id, 0, 0, len(example.text)), strict=True))
        return [EncodedExample(replace(example, columns={**example.columns, **columns}), tokens)]
    document_tokens = np.flatnonzero((tokens.flags & TokenFlag.SPECIAL) == 0)
    leading, trailing = np.arange(document_tokens[0]), np.arange(document_tokens[-1] + 1, len(tokens))
    room = size - len(leading) - len(trailing)
    starts = range(0, max(1, len(document_tokens) - room + stride), stride)
    windows = (np.concatenate([leading, document_tokens[start : start + room], trailing]) for start in starts)
    spans = np.array([(word.char_start, word.char_end) for word in example.words], np.int32).reshape(-1, 2)
    return [_cut(example, spans, number, tokens.take(rows)) for number, rows in enumerate(windows)]


def _cut(
    example: CorpusExample, spans: Int32[np.ndarray, "word 2"], number: int, sequence: TokenSequence
) -> EncodedExample:
    is_text = (sequence.flags & TokenFlag.SPECIAL) == 0
    token_spans = spans[sequence.word[is_text & (sequence.word != MISSING)]]
    start = int(min(sequence.char_start[is_text].min(), token_spans[:, 0].min(initial=len(example.text))))
    stop = int(max(sequence.char_end[is_text].max(), token_spans[:, 1].max(initial=0)))
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
        char_start=np.where(is_text, sequence.char_start - start, 0).astype(np.int32),
        char_end=np.where(is_text, sequence.char_end - start, 0).astype(np.int32),
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
