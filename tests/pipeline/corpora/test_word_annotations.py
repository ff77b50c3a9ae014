"""Lists of words and spans of characters become annotations of words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .test_left_out import Reading, read_json


def words_of(reading: Reading) -> list[list[str]]:
    return [[e.text[word.char_start : word.char_end] for word in e.words] for e in reading.examples]


def test_lists_of_words(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"tokens": ["EU", "rejects", "it", "."], "ner": [3, 0, 0, 0], "pos": ["N", "V", None, "."], "tags": ["x"]},
        {"tokens": ["don't", "."], "text": "don't.", "ner": [0, -2], "p": [0.5, None], "pos": [True, "."]},
    ]
    reading = read_json(tmp_path, rows, words="tokens")
    assert [example.text for example in reading.examples] == ["EU rejects it .", "don't."]
    assert words_of(reading) == [["EU", "rejects", "it", "."], ["don't", "."]]
    first, second = (example.word_columns for example in reading.examples)
    assert first == {"ner": [3, 0, 0, 0], "pos": ["N", "V", None, "."]}
    assert second["ner"] == [0.0, -2.0]
    assert second["pos"] == ["true", "."]
    assert second["p"][0] == 0.5
    assert math.isnan(second["p"][1])  # pyright: ignore[reportArgumentType]
    assert list(reading.left_out.values()) == [(1, ("tags",), 1)]


def test_words_that_do_not_spell_the_text(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a b", "words": ["a", "c"]},
        {"text": "a b", "words": ["a"]},
        {"text": "a b", "words": ["a", "", "b"]},
        {"text": "a", "text_pair": "b", "words": ["a"]},
    ]
    reading = read_json(tmp_path, rows)
    assert [example.words for example in reading.examples] == [()] * 4
    assert {reason: n for (_, reason), (n, _, _) in reading.left_out.items()} == {
        "no words: they do not spell the text": 2,
        "no words: one of them is blank or has a lone surrogate": 1,
        "no words: the record is a pair of texts, and its words could belong to either": 1,
    }
    assert len(read_json(tmp_path, rows, words="words").faults) == 4


def test_governors_count_from_0_or_from_1(tmp_path: Path) -> None:
    words = ["the", "cat", "sleeps"]
    for head, governors in (
        ([1, 2, -1], [1, 2, -1]),
        ([2, 3, 0], [1, 2, -1]),
        ([2, 1, 0], None),
        ([1, 9, -1], None),
    ):
        reading = read_json(tmp_path, [{"words": words, "head": head}])
        assert reading.examples[0].word_columns.get("head") == governors
        assert len(reading.left_out) == (governors is None)


def test_spans(tmp_path: Path) -> None:
    text = "Ada Lovelace met Charles Babbage in London."
    spans: list[Any] = [
        {"start": 0, "end": 12, "label": "PER"},
        {"start": 17, "end": 32, "label": "PER", "score": 0.5},
        [36, 42, "LOC"],
        {"start": 0, "end": 3, "label": "FIRST"},
        {"start": 38, "end": 99, "label": "OUT"},
        {"start": 13, "end": 15, "label": "VERB"},
        {"start": 3, "end": 4, "label": "SPACE"},
        {"start": 5, "end": 4, "label": "X"},
        {"start": 42, "end": 43},
    ]
    reading = read_json(tmp_path, [{"text": text, "spans": spans}, {"text": "no span"}])
    example = reading.examples[0]
    assert words_of(reading)[0] == ["Ada", "Lovelace", "met", "Charles", "Babbage", "in", "London", "."]
    assert example.word_columns == {
        "spans": ["PER", "PER", "VERB", "PER", "PER", None, "LOC", None],
        "spans_number": [0, 0, 1, 2, 2, -1, 3, -1],
    }
    assert {reason: n for (_, reason), (n, _, _) in reading.left_out.items()} == {
        "no span: expected a start and an end in the text, and a label": 3,
        "more of a span than start, end and label": 1,
        "a span shares a word with a longer one": 1,
        "a span covers no word": 1,
        "the end of a span inside a word; the word has its label": 1,
    }


def test_a_list_with_the_name_of_the_numbers_of_spans_is_kept(tmp_path: Path) -> None:
    row = {"words": ["Ada", "met"], "spans": [[0, 3, "PER"]], "spans_number": ["one", "two"]}
    (example,) = read_json(tmp_path, [row]).examples
    assert example.word_columns == {"spans": ["PER", None], "spans_number": ["one", "two"], "spans_number_2": [0, -1]}


def test_words_and_spans_of_parquet(tmp_path: Path) -> None:
    table = {
        "words": pa.array([["Ada", "met", "him"], ["no"]]),
        "tag": pa.array([[1, 2, 3], [4]], pa.list_(pa.int8())),
        "entities": pa.array([[{"start": 0, "end": 3, "label": "PER"}], None]),
        "raw": pa.array([[b"x"], None]),
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    reading = Reading("parquet", tmp_path / "x.parquet", spans="entities")
    assert [example.text for example in reading.examples] == ["Ada met him", "no"]
    assert reading.examples[0].word_columns == {
        "tag": [1, 2, 3],
        "entities": ["PER", None, None],
        "entities_number": [0, -1, -1],
    }
    assert reading.examples[1].word_columns == {"tag": [4]}
    assert [(what, names) for (what, _), (_, names, _) in reading.left_out.items()] == [("columns", ("raw",))]


def test_spans_of_a_pair_label_the_first_text(tmp_path: Path) -> None:
    row = {"text": "Ada met", "text_pair": "Ada", "spans": [[0, 3, "PER"]]}
    (example,) = read_json(tmp_path, [row]).examples
    assert [word.second for word in example.words] == [False, False, True]
    assert example.word_columns["spans"] == ["PER", None, None]
