"""Word tables: the words of a token table in the form of a token table, so that patterns can be evaluated on words."""

from __future__ import annotations

import numpy as np

from ..schema.token_table import Column, TokenFlag, TokenTable
from .token_fields import Texts, TokenFields


def word_tokens(table: TokenTable, texts: Texts, word_ids: dict[tuple[int, ...], int]) -> TokenTable:
    """Return a table with one token for each word, without special tokens and without words that have no token.

    Parameters
    ----------
    word_ids
        Ids of words with several tokens: negative, and equal for equal tokens. This function adds to it. The two tables
        that a pattern is evaluated on share it.
    """
    example = np.repeat(np.arange(table.n_examples), table.n_tokens)
    token_rows = np.flatnonzero(table.word >= 0)
    token_rows = token_rows[np.argsort(table.word_row[token_rows], kind="stable")]
    word_row_of_token = table.word_row[token_rows]
    start = np.flatnonzero(np.diff(word_row_of_token, prepend=-1))
    first, length = token_rows[start], np.diff(np.append(start, len(token_rows)))
    ids = table.id[first].copy()
    piece = np.array(table.piece, dtype=object)
    pieces = piece[first]
    for index in np.flatnonzero(length > 1).tolist():
        tokens = token_rows[start[index] : start[index] + length[index]]
        key = tuple(table.id[tokens].tolist())
        ids[index] = word_ids.setdefault(key, -1 - len(word_ids))
        pieces[index] = "".join(piece[tokens].tolist())
    text = TokenFields(table, texts).values("word_text")
    columns = {name: column.take(first) for name, column in table.columns.items()}
    columns["text"] = Column(text.data[first].astype(np.int32), text.texts)
    columns["piece"] = Column.of_text(pieces.tolist())
    word_row = word_row_of_token[start]
    offset = np.concatenate([[0], np.cumsum(np.bincount(example[first], minlength=table.n_examples))])
    return TokenTable(
        token_offset=offset.astype(np.int64),
        id=ids,
        word=table.word[first],
        char_start=table.word_char_start[word_row],
        char_end=table.word_char_end[word_row],
        flags=table.flags[first] & np.uint8(~TokenFlag.CONTINUATION & 0xFF),
        columns=columns,
        word_offset=table.word_offset,
        word_char_start=table.word_char_start,
        word_char_end=table.word_char_end,
        word_columns=table.word_columns,
    )
