"""Words without a token in the viewer: they are no units, and the example and the corpus page count them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from headatlas.store.schema.token_table import Column, TokenFlag
from headatlas.store.schema.words_without_tokens import CUT
from headatlas.store.store import open_store
from headatlas.viewer.data.example_reader import reader_of
from headatlas.viewer.data.key_weights import unit_row
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.data.store_facts import facts_frame
from headatlas.viewer.frames.picture_units import merged
from headatlas.viewer.pages.search_page import summary_frame
from headatlas.viewer.pages.views_page import text_frame

from ..conftest import token_table, write_store

TOKENS = "Dámelo ahora . Otra"
TEXT = f"{TOKENS} frase . Y otra ."


def table_of(rows, second):
    """Tokens of the beginning of each text. The first word is three words of a treebank; the text was cut."""
    table = token_table([TOKENS] * len(rows))
    n, n_new = len(rows), 2
    starts = [0, 0, 0, 7, 13, 15, 20, 26, 28, 30, 35]
    ends = [6, 6, 6, 12, 14, 19, 25, 27, 29, 34, 36]
    flags = table.flags.copy()
    flags[table.token_offset[1:] - 2] |= int(TokenFlag.CUT)
    return dataclasses.replace(
        table,
        word=np.where(table.word > 0, table.word + n_new, table.word).astype(np.int32),
        flags=flags,
        word_offset=np.arange(n + 1) * len(starts),
        word_char_start=np.tile(np.array(starts, np.int32), n),
        word_char_end=np.tile(np.array(ends, np.int32), n),
        word_columns={"upos": Column.of_text(["NOUN"] * len(starts) * n)},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    left_out = [
        {"what": "words", "n": 20, "reason": CUT, "n_examples": 4},
        {"what": "columns", "n": 1, "reason": "a list", "names": ["tags"]},
    ]
    return DataSource(
        open_store(write_store(folder / "s", rows=[TEXT] * 4, table_of=table_of, provenance={"left_out": [*left_out]}))
    )


@pytest.mark.parametrize(
    ("unit", "labels"),
    [("word", ["Dámelo", "ahora", ".", "Otra"]), ("sentence", ["Dámelo ahora .", "Otra"])],
)
def test_only_words_with_tokens_are_units(data, unit, labels):
    reader = reader_of(data, 0, "")
    queries, keys = reader.units(unit)
    assert queries.frame["labels"] == labels
    assert queries.first_token.tolist() == [1, 2, 3, 4][:: 1 if unit == "word" else 3]
    maps = reader.maps([(1, 2)])
    by_unit = merged(maps, queries, keys)[0]
    expected = np.array(
        [[maps[0][q][:, keys.of_token == k].sum(axis=1).mean() for k in range(len(labels))]
         for q in (queries.of_token == n for n in range(len(labels)))]
    )  # fmt: skip
    np.testing.assert_allclose(by_unit, expected, atol=1e-6)
    for position in range(len(labels)):
        tokens = np.flatnonzero(queries.of_token == position).tolist()
        row = unit_row(reader, "q", tokens, (queries, keys), lambda: None)
        np.testing.assert_allclose(row[1, 2], expected[position], atol=0.01)
    assert not queries.are_tokens
    assert reader.units("token")[0].are_tokens


def test_the_example_says_what_was_cut_and_what_has_no_token(data):
    assert text_frame(data, 0, "")["tags"][-3:] == ["6 tokens", "text cut: 5 words lost", "2 words without a token"]


def test_the_corpus_page_and_a_search_say_what_was_left_out(data):
    frame = facts_frame(data)
    assert {label: value for value, label in frame["facts"]}["Cut off in 4 examples"] == "20 words"
    assert frame["left_out"] == [f"20 words of 4 examples left out: {CUT}", "1 column left out: a list (tags)"]
    result = data.store.search("key.word == 3")
    assert f"20 words of 4 examples left out: {CUT}" in summary_frame(result, data, 0.1, False)["right"]
    assert "8 words of 4 examples left out: without a token of their own" in result.notes
    assert dict(data.field_values("")["upos"]) == {"NOUN": 16}  # for completion: words with tokens
