"""Token labels show every character, contain no control character and can be encoded as UTF-8."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.store.schema.token_table import Column, TokenFlag, TokenTable
from headatlas.viewer.theme.token_labels import label, running_text, token_labels, visible

ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)


@given(ANY)
def test_visible_text_is_valid_utf_8_without_control_characters(text):
    shown = visible(text)
    shown.encode("utf-8")
    assert not set(shown) & set("\x00\n\t\r\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u200e\u200f\ufeff")
    assert bool(shown) == bool(text)


@given(ANY, ANY)
def test_different_characters_are_written_differently(first, second):
    if first != second and not set(first + second) & set("‹›↵⇥"):
        assert visible(first) != visible(second)


@pytest.mark.parametrize(
    ("text", "special", "continuation", "expected"),
    [
        ("[CLS]", True, False, "‹CLS›"),
        ("<|endoftext|>", True, False, "‹endoftext›"),
        ("uled", False, True, "+uled"),
        (" the", False, False, "the"),
        ("\n", False, False, "↵"),
        ("  ", False, False, "␣␣"),
        ("", False, False, "∅"),
        ("a\x00b", False, False, "a‹NUL›b"),
        ("\ud83d", False, False, "‹U+D83D›"),
        ("\u202ex", False, False, "‹RLO›x"),
        ("👩\u200d🚀", False, False, "👩\u200d🚀"),
        ("<b>", False, False, "<b>"),
    ],
)
def test_labels(text, special, continuation, expected):
    assert label(text, special=special, continuation=continuation) == expected


def make_table(spans, special, texts, second=None):
    n = len(spans)
    integers = lambda values: np.asarray(values, np.int32)  # noqa: E731
    flags = [TokenFlag.SPECIAL if s else TokenFlag(0) for s in special]
    flags = [f | (TokenFlag.SECOND if second and second[i] else 0) for i, f in enumerate(flags)]
    return TokenTable(
        np.array([0, n]), integers(range(n)), integers([-1 if s else i for i, s in enumerate(special)]), integers([a for a, _ in spans]), integers([b for _, b in spans]),
        np.asarray(flags, np.uint8), {"text": Column.of_text(texts), "piece": Column.of_text(texts)}, np.array([0, n]), integers([0] * n), integers([0] * n),
    )  # fmt: skip


def test_running_text_reads_as_the_text():
    table = make_table([(0, 0), (0, 3), (4, 6), (6, 7), (7, 7)], [1, 0, 0, 0, 1], ["[CLS]", "The", "ca", "t", "[SEP]"])
    assert running_text(table, "The cat") == [("‹CLS›", 0), ("The", 1), (" ", -1), ("ca", 2), ("t", 3), ("‹SEP›", 4)]
    assert token_labels(table) == ["‹CLS›", "The", "ca", "t", "‹SEP›"]


def test_running_text_of_a_pair_and_of_byte_pieces():
    table = make_table([(0, 2), (0, 1), (0, 1)], [0, 0, 0], ["ab", "é", "é"], second=[0, 1, 1])
    assert running_text(table, "ab", "é") == [("ab", 0), ("é", 1), ("·", 2)]


def test_tokens_without_characters_are_labelled_by_their_pieces():
    """A tokenizer without spans: byte-level pieces are read as text, and the running text is made of them."""
    pieces = ["<s>", "ĠcafÃ", "©", "Ġä", "½", "ł"]
    table = make_table([(0, 0)] * 6, [True] + [False] * 5, pieces)
    assert token_labels(table) == ["‹s›", "café", "+é", "你", "+你", "+你"]
    assert token_labels(table, slice(1, 3)) == ["café", "+é"]
    assert running_text(table, "café 你")[:4] == [("‹s›", 0), (" ", -1), ("café", 1), (" ", -1)]
    sign = make_table([(0, 0), (0, 4)], [False, False], ["▁", "café"])
    assert token_labels(sign) == ["␣", "café"]
