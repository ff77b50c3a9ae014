import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.pipeline.corpora.word_split import split_words

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


def words_of(text: str) -> list[str]:
    return [text[word.char_start : word.char_end] for word in split_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\n", []),
        ("Hello, world!", ["Hello", ",", "world", "!"]),
        ("don't O\u2019Neil 'quoted'", ["don't", "O\u2019Neil", "'", "quoted", "'"]),
        ("3.14 1,000 end. a.b", ["3.14", "1,000", "end", ".", "a", ".", "b"]),
        ("well-known snake_case", ["well", "-", "known", "snake_case"]),
        ("cafe\u0301 nai\u0308ve", ["cafe\u0301", "nai\u0308ve"]),
        ("\u0915\u094d\u0937\u092e\u093e", ["\u0915\u094d\u0937\u092e\u093e"]),  # Devanagari: vowel signs are marks
        ("\u4e2d\u6587\u5b57", ["\u4e2d", "\u6587", "\u5b57"]),
        ("\u30ab\u30bf\u30ab\u30ca\u3068", ["\u30ab\u30bf\u30ab\u30ca", "\u3068"]),
        ("\U0001f469\u200d\U0001f52c!", ["\U0001f469\u200d\U0001f52c", "!"]),  # woman scientist
        ("\U0001f44d\U0001f3fd\U0001f44d", ["\U0001f44d\U0001f3fd", "\U0001f44d"]),
        ("\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea", ["\U0001f1eb\U0001f1f7", "\U0001f1e9\U0001f1ea"]),  # flags
        ("a\u200bb\u202ec\x00d", ["a", "b", "c", "d"]),  # invisible characters separate
        ("so\u00adft", ["so\u00adft"]),
        ("...", [".", ".", "."]),
    ],
)
def test_words(text: str, expected: list[str]):
    assert words_of(text) == expected


@given(TEXT)
def test_words_are_ordered_and_cover_what_is_visible(text: str):
    words = split_words(text)
    characters = set[int]()
    last_end = 0
    for word in words:
        assert last_end <= word.char_start < word.char_end <= len(text)
        last_end = word.char_end
        characters.update(range(word.char_start, word.char_end))
    for i, char in enumerate(text):
        if unicodedata.category(char)[0] in "LMNPS":
            assert i in characters
        if char.isspace():
            assert i not in characters


@pytest.mark.parametrize(
    ("unit", "n_words"),
    [
        ("a'", 2),  # the last apostrophe is not part of the word
        ("1.", 2),
        ("\U0001f469\u200d", 1),
        ("\u0301", 1),
        ("a\u0301", 1),
        (".,", 20_000),
        ("\u200d", 0),
    ],
)
def test_long_texts_of_one_kind(unit: str, n_words: int):
    assert len(split_words(unit * 10_000)) == n_words


def test_words_of_a_second_text_say_so():
    assert all(word.second for word in split_words("a b", second=True))
