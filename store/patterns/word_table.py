"""The words of a token table as a table of its own, on which patterns are evaluated like on any other."""

from __future__ import annotations

import numpy as np

from ..schema.token_table import Column, TokenFlag, TokenTable
from .token_fields import Texts, TokenFields


def word_tokens(table: TokenTable, texts: Texts, numbers: dict[tuple[int, ...], int]) -> TokenTable:
    """The words of a table as a table of their own: one token each, without special tokens and words without tokens.

    Parameters
    ----------
    numbers
        What stands for the id of a word of several tokens: below 0, the same for the same tokens. Filled here; the two
        tables that a pattern is evaluated on share it.
    """
    example = np.repeat(np.arange(table.n_examples), table.n_tokens)
    of_word = np.flatnonzero(table.word >= 0)
    of_word = of_word[np.argsort(table.word_offset[example[of_word]] + table.word[of_word], kind="stable")]
    number = table.word_offset[example[of_word]] + table.word[of_word]
    start = np.flatnonzero(np.diff(number, prepend=-1))
    first, length = of_word[start], np.diff(np.append(start, len(of_word)))
    ids = table.id[first].copy()
    piece = np.array(table.piece, dtype=object)
    pieces = piece[first]
    for at in np.flatnonzero(length > 1).tolist():
        tokens = of_word[start[at] : start[at] + length[at]]
        key = tuple(table.id[tokens].tolist())
        ids[at] = numbers.setdefault(key, -1 - len(numbers))
        pieces[at] = "".join(piece[tokens].tolist())
    text = TokenFields(table, texts).values("word_text")
    columns = {name: column.take(first) for name, column in table.columns.items()}
    columns["text"] = Column(text.data[first].astype(np.int32), text.texts)
    columns["piece"] = Column.of_text(pieces.tolist())
    place = number[start]
    offset = np.concatenate([[0], np.cumsum(np.bincount(example[first], minlength=table.n_examples))])
    return TokenTable(
        token_offset=offset.astype(np.int64),
        id=ids,
        word=table.word[first],
        char_start=table.word_char_start[place],
        char_end=table.word_char_end[place],
        flags=table.flags[first] & np.uint8(~TokenFlag.CONTINUATION & 0xFF),
        columns=columns,
        word_offset=table.word_offset,
        word_char_start=table.word_char_start,
        word_char_end=table.word_char_end,
        word_columns=table.word_columns,
    )
