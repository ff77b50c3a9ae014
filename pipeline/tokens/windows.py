"""Windows of a long document: examples of their own that know where they come from.

A window holds a stretch of the document's tokens as they were made of the whole, with special tokens around them. Its
text is cut at whole words, so that words keep their characters. The annotations `window_of` (id of the document),
`window` (from 0), `window_start` and `window_end` (characters of the document) say what it shows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Int32

from headatlas.store.schema.token_table import MISSING, TokenFlag

from ..corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word

WINDOW_COLUMNS = ("window_of", "window", "window_start", "window_end")


def cut_windows(example: CorpusExample, tokens: TokenSequence, size: int, stride: int) -> list[EncodedExample]:
    """Windows of at most `size` tokens of one document, `stride` tokens apart, the last where the document ends.

    A document that fits into one keeps its id and text. A word's head that lies outside its window becomes -1.
    """
    if len(tokens) <= size:
        columns = dict(zip(WINDOW_COLUMNS, (example.id, 0, 0, len(example.text)), strict=True))
        return [EncodedExample(replace(example, columns={**example.columns, **columns}), tokens)]
    own = np.flatnonzero((tokens.flags & TokenFlag.SPECIAL) == 0)
    before, after = np.arange(own[0]), np.arange(own[-1] + 1, len(tokens))
    room = size - len(before) - len(after)
    starts = range(0, max(1, len(own) - room + stride), stride)
    windows = (np.concatenate([before, own[start : start + room], after]) for start in starts)
    spans = np.array([(word.char_start, word.char_end) for word in example.words], np.int32).reshape(-1, 2)
    return [_cut(example, spans, number, tokens.take(rows)) for number, rows in enumerate(windows)]


def _cut(
    example: CorpusExample, spans: Int32[np.ndarray, "word 2"], number: int, sequence: TokenSequence
) -> EncodedExample:
    shown = (sequence.flags & TokenFlag.SPECIAL) == 0
    touched = spans[sequence.word[shown & (sequence.word != MISSING)]]
    start = int(min(sequence.char_start[shown].min(), touched[:, 0].min(initial=len(example.text))))
    stop = int(max(sequence.char_end[shown].max(), touched[:, 1].max(initial=0)))
    kept = np.flatnonzero((spans[:, 0] >= start) & (spans[:, 1] <= stop)).tolist()
    place = np.full(len(example.words) + 1, MISSING, np.int32)  # the last entry is that of "no word"
    place[kept] = np.arange(len(kept), dtype=np.int32)
    columns = dict(zip(WINDOW_COLUMNS, (example.id, number, start, stop), strict=True))
    cut = CorpusExample(
        id=f"{example.id}@{number}",
        text=example.text[start:stop],
        words=tuple(Word(word.char_start - start, word.char_end - start) for word in (example.words[i] for i in kept)),
        word_columns={name: _cut_column(name, rows, kept, place) for name, rows in example.word_columns.items()},
        columns={**example.columns, **columns},
    )
    moved = replace(
        sequence,
        word=place[sequence.word],
        char_start=np.where(shown, sequence.char_start - start, 0).astype(np.int32),
        char_end=np.where(shown, sequence.char_end - start, 0).astype(np.int32),
    )
    return EncodedExample(cut, moved)


def _cut_column(
    name: str, rows: list[str | None] | list[int], kept: list[int], place: np.ndarray
) -> list[str | None] | list[int]:
    if name == "head":
        heads = [rows[i] for i in kept]
        return [int(place[head]) if isinstance(head, int) and head >= 0 else MISSING for head in heads]
    return [rows[i] for i in kept]  # pyright: ignore[reportReturnType]
