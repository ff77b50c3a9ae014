"""Columns whose names a token field has: each column has a field of its own in expressions and in data frames."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.store.patterns.token_fields import TOKEN_FIELDS, word_field_names
from headatlas.store.reading.data_frames import table_frame
from headatlas.store.schema.token_table import Column, TokenTable

NAMES = ["upos", "position", "text", "word", *(f"word_{name}" for name in ("position", "text", "text_2", "word"))]


@given(st.lists(st.sampled_from([*NAMES, *TOKEN_FIELDS]), unique=True))
def test_every_column_has_a_field_of_its_own(names):
    fields = word_field_names({name: Column.of_text([]) for name in names})
    expected = {name for name in names if name not in TOKEN_FIELDS}
    assert sorted(fields.values()) == sorted(names)
    assert all(fields[name] == name for name in expected)
    assert not fields.keys() & TOKEN_FIELDS.keys()


@pytest.mark.parametrize(("name", "field"), [("position", "word_position"), ("text", "word_text_2")])
def test_a_column_with_the_name_of_a_token_field_has_a_prefix(name, field):
    assert word_field_names({name: Column.of_text([])}) == {field: name}


def test_a_data_frame_has_every_column():
    one = np.zeros(1, np.int32)
    columns = {"text": Column.of_text(["a"]), "piece": Column.of_text(["a"])}
    words = {name: Column.of_text([f"my {name}"]) for name in ("_text", "text", "__text")}
    table = TokenTable(
        np.array([0, 1]), one, one, one, one + 1, np.zeros(1, np.uint8), columns, np.array([0, 1]), one, one + 1, words
    )
    frame = table_frame(table, 0)
    assert frame["text"].tolist() == ["a"]
    assert {f"my {name}" for name in words} <= set(frame.iloc[0])
