"""Windows of long documents: tokens, whole words, and the reference to the document."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample, Word
from headatlas.pipeline.tokens.tokenizer import Skipped, encode
from headatlas.store.errors import ConfigError
from headatlas.store.schema.token_table import TokenFlag

PARTS = [
    "the nurse",
    "pilots'",
    "cafe\u0301s",
    "\U0001f469\u200d\U0001f52c",
    "\u4e2d\u6587",
    "repairing",
    "  \n",
    "3.14",
]
TEXT = "The nurse who helped the pilot repaired an old museum clock."


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level", "unigram", "byte_fallback"])
@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=12), size=st.integers(4, 30), data=st.data())
def test_windows_hold_the_tokens_of_the_document(tokenizers, kind, parts, size, data):
    tokenizer, text = tokenizers[kind], " ".join(parts)
    room = size - tokenizer.num_special_tokens_to_add(pair=False)
    stride = data.draw(st.none() | st.integers(1, room))
    document = CorpusExample("doc", text, columns={"genre": "letter"})
    (full,) = encode([document], tokenizer, max_tokens=4096)
    windows = encode([document], tokenizer, max_tokens=size, on_too_long="windows", stride=stride)
    if isinstance(full, Skipped):
        assert windows == [full]
        return
    rows = [i for i, flags in enumerate(full.source.flags) if not flags & TokenFlag.SPECIAL]
    if len(rows) <= room:
        assert [window.example.id for window in windows] == ["doc"]
    first = 0
    for number, window in enumerate(windows):
        assert isinstance(window, EncodedExample)
        about = window.example.columns
        start = about["window_start"]
        assert (about["window_of"], about["window"], about["genre"]) == ("doc", number, "letter")
        assert window.example.text == text[start : about["window_end"]]
        window_tokens = window.source
        positions = [i for i, flags in enumerate(window_tokens.flags) if not flags & TokenFlag.SPECIAL]
        assert len(positions) <= room
        assert len(window_tokens) - len(positions) == len(full.source) - len(rows)
        for i, k in zip(positions, rows[first:], strict=False):
            assert window_tokens.id[i] == full.source.id[k]
            assert window_tokens.text[i] == full.source.text[k]
            assert window_tokens.char_start[i] + start == full.source.char_start[k]
            assert window_tokens.char_end[i] + start == full.source.char_end[k]
            assert (window_tokens.word[i] < 0) == (full.source.word[k] < 0)
            if window_tokens.word[i] >= 0:
                word, other = window.example.words[window_tokens.word[i]], full.example.words[full.source.word[k]]
                assert (word.char_start + start, word.char_end + start) == (other.char_start, other.char_end)
        last = first + len(positions)
        first += stride or room
    assert last == len(rows)


def test_a_window_that_begins_inside_a_word_says_so(tokenizers):
    windows = encode(
        [CorpusExample("x", "repaired clocks")], tokenizers["wordpiece"], max_tokens=3, on_too_long="windows"
    )
    assert [window.source.piece[1] for window in windows] == ["repair", "##ed", "clock", "##s"]
    assert [window.example.text for window in windows] == ["repaired", "repaired", "clocks", "clocks"]
    assert [window.source.text[1] for window in windows] == ["repair", "ed", "clock", "s"]
    assert [bool(window.source.flags[1] & TokenFlag.CONTINUATION) for window in windows] == [False, True, False, True]
    assert [window.example.id for window in windows] == ["x@0", "x@1", "x@2", "x@3"]


def test_annotated_words_go_with_their_window(tokenizers):
    spans = [(0, 3), (4, 9), (10, 13), (14, 19), (19, 20)]
    example = CorpusExample(
        "x",
        "the nurse the clock!",
        words=tuple(Word(*span) for span in spans),
        word_columns={"head": [1, -1, 3, 1, 1], "upos": ["DET", "NOUN", "DET", "NOUN", None]},
    )
    first, second, third = encode([example], tokenizers["byte_level"], max_tokens=2, on_too_long="windows")
    assert (first.example.word_columns, third.example.word_columns) == (
        {"head": [1, -1], "upos": ["DET", "NOUN"]},
        {"head": [-1], "upos": [None]},
    )
    assert second.example.text == "the clock"
    assert second.example.word_columns == {"head": [1, -1], "upos": ["DET", "NOUN"]}  # its head "nurse" is not here


def test_what_windows_are_not_made_of(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    pair = CorpusExample("x", TEXT, text_pair="the clock")
    (skipped,) = encode([pair], tokenizer, max_tokens=9, on_too_long="windows")
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "27 tokens, at most 9 are allowed; windows are made of single texts only"
    (fits,) = encode([pair], tokenizer, max_tokens=90, on_too_long="windows")
    assert isinstance(fits, EncodedExample)
    for stride in (0, 8):
        with pytest.raises(ConfigError, match=f"tokens.stride is {stride}, .* left out; expected 1 to 7"):
            encode([pair], tokenizer, max_tokens=9, on_too_long="windows", stride=stride)
