import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from headatlas.pipeline.corpora.corpus import describe_corpus, read_corpus
from headatlas.pipeline.corpora.corpus_options import CorpusConfig, JsonlCorpus, TextCorpus
from headatlas.pipeline.corpora.examples import CorpusExample
from headatlas.pipeline.corpora.records import MAX_COLUMNS, MAX_RECORD_BYTES, ColumnNames, Quarantined, UniqueIds
from headatlas.store.errors import ConfigError
from headatlas.store.schema.omissions import Omission
from headatlas.store.schema.text_tables import column_component


def write(folder: Path, content: bytes | str, name: str = "corpus.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def examples_of(options: Any) -> list[CorpusExample]:
    return [item for item in read_corpus(options) if isinstance(item, CorpusExample)]


def faults_of(options: Any) -> list[tuple[int, str]]:
    return [(item.line, item.reason) for item in read_corpus(options) if isinstance(item, Quarantined)]


def test_lines(tmp_path: Path):
    path = write(tmp_path, b"\xef\xbb\xbfFirst line.\r\nSecond \xe2\x80\xa8line\x0b.\n\n  \nlast, no end")
    options = TextCorpus(path=path)
    assert [(example.id, example.text) for example in examples_of(options)] == [
        ("corpus-000001", "First line."),
        ("corpus-000002", "Second \u2028line\x0b."),
        ("corpus-000005", "last, no end"),
    ]
    assert faults_of(options) == []


def test_blank_lines_are_no_records(tmp_path: Path):
    """They are skipped in files of one record a line, and are not left out of the store."""
    texts = TextCorpus(path=write(tmp_path, b"\n \t\nfirst\n\r\n\nlast\n\n", "blank.txt"))
    rows = JsonlCorpus(path=write(tmp_path, b'\n{"text": "first"}\n  \r\n{"text": "last"}\n\n', "blank.jsonl"))
    for options, numbers in ((texts, (3, 6)), (rows, (2, 4))):
        records = list(read_corpus(options))
        assert [record.text for record in records] == ["first", "last"]
        assert [record.id for record in records] == [f"blank-{number:06}" for number in numbers]
    with pytest.raises(ConfigError, match="expected one object in each line"):
        list(read_corpus(JsonlCorpus(path=write(tmp_path, b'\n\n[\n{"text": "a"}\n]', "list.jsonl"))))


def test_lines_that_cannot_be_read_are_quarantined(tmp_path: Path):
    long = b"x" * (MAX_RECORD_BYTES + 5)
    content = b"good\nbad \xff byte\n" + long + b"\n" + long[:MAX_RECORD_BYTES] + b"\nnul \x00 stays\n\xed\xa0\x80\n"
    options = TextCorpus(path=write(tmp_path, content))
    assert [example.text for example in examples_of(options)] == ["good", "nul \x00 stays"]
    faults = faults_of(options)
    assert [line for line, _ in faults] == [2, 3, 4, 6]
    assert "byte 0xff at byte 4" in faults[0][1]
    assert faults[1][1] == f"longer than {MAX_RECORD_BYTES} bytes"


def test_paragraphs(tmp_path: Path):
    text = "\n\nOne\n  goes on \n\n\t\nTwo\nbad \xff\nstill two\n\nThree"
    options = TextCorpus(path=write(tmp_path, text.encode("latin-1")), unit="paragraph")
    assert [(example.id, example.text) for example in examples_of(options)] == [
        ("corpus-000003", "One goes on"),
        ("corpus-000011", "Three"),
    ]
    assert [line for line, _ in faults_of(options)] == [8]
    latin = options.model_copy(update={"encoding": "latin-1"})
    assert examples_of(latin)[1].text == "Two bad \xff still two"


def test_packed_files_and_cut_ones(tmp_path: Path):
    packed = gzip.compress(b"one\ntwo\n")
    assert [e.id for e in examples_of(TextCorpus(path=write(tmp_path, packed, "a.txt.gz")))] == ["a-000001", "a-000002"]
    with pytest.raises(ConfigError, match="cannot be read to its end"):
        examples_of(TextCorpus(path=write(tmp_path, packed[:-9], "cut.txt.gz")))
    with pytest.raises(ConfigError, match="cannot be read to its end"):
        examples_of(TextCorpus(path=write(tmp_path, "plain", "plain.txt.gz")))
    with pytest.raises(ConfigError, match="no such file"):
        examples_of(TextCorpus(path=tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="no such file"):
        examples_of(TextCorpus(path=tmp_path / "none"))


@given(st.binary(max_size=200))
def test_every_line_that_is_not_blank_is_one_example_or_one_fault(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
):
    path = write(tmp_path_factory.mktemp("lines"), content)
    items = list(read_corpus(TextCorpus(path=path)))
    lines = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").split("\n")
    assert len(items) == sum(not line.isspace() and line != "" for line in lines)


def test_jsonl(tmp_path: Path):
    rows = [
        {"text": "one", "id": "a", "label": "x", "score": 0.5, "n": 3, "list": [1], "flag": True, "none": None},
        {"text": "two", "id": "a", "text_pair": "other", "target": "zwei", "odd name(1)": "v"},
        {"text": "three", "id": 7, "odd-name 1": "w", "score": float("nan")},
    ]
    options = JsonlCorpus(path=write(tmp_path, "\n".join(map(json.dumps, rows)), "rows.jsonl"))
    first, second, third = examples_of(options)
    assert first.columns == {"label": "x", "score": 0.5, "n": 3, "flag": "true", "none": None}
    assert (second.id, second.text_pair, second.target, second.columns) == ("a#2", "other", "zwei", {"odd_name_1": "v"})
    assert (third.id, third.columns) == ("7", {"odd_name_1_2": "w", "score": None})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[1]", "a JSON list, expected an object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' * 50_000, "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b'{"txt": "x"}', "no 'text'"),
        (b'{"text": 3}', "'text' is int, expected text"),
        (b'{"text": ""}', "empty text"),
        (b'{"text": "a\\ud800"}', "a lone surrogate (U+D800) at character 1"),
        (b'{"text": "a\xff"}', "not utf-8"),
    ],
)
def test_bad_json_lines_are_quarantined(tmp_path: Path, line: bytes, reason: str):
    path = write(tmp_path, b'{"text": "first"}\n' + line + b'\n{"text": "last"}\n', "x.jsonl")
    assert [example.text for example in examples_of(JsonlCorpus(path=path))] == ["first", "last"]
    ((number, message),) = faults_of(JsonlCorpus(path=path))
    assert number == 2
    assert message.startswith(reason)


def test_fields_by_name_and_columns_to_keep(tmp_path: Path):
    path = write(tmp_path, '{"premise": "a", "b": "c", "id": "1", "skip": 2}\n{"premise": "d"}\n', "x.jsonl")
    options = JsonlCorpus(path=path, text="premise", text_pair="b", columns=("id", "gone"))
    (example,) = examples_of(options)
    assert (example.id, example.text, example.text_pair, example.columns) == ("1", "a", "c", {"gone": None})
    assert faults_of(options) == [(2, "no 'b'")]


def test_too_many_fields_are_refused(tmp_path: Path):
    rows = "\n".join(json.dumps({"text": "x", f"field{i}": 1}) for i in range(MAX_COLUMNS + 1))
    with pytest.raises(ConfigError, match=r"corpus\.columns"):
        examples_of(JsonlCorpus(path=write(tmp_path, rows, "x.jsonl")))


@given(st.lists(st.sampled_from(["a", "a#2", "a#2#2", "b", "a#3"]), max_size=30))
def test_ids_become_unique_and_first_ones_stay(names: list[str]):
    unique = UniqueIds()
    ids = [unique(name) for name in names]
    assert len(set(ids)) == len(ids)
    assert all(new == name or new.startswith(f"{name}#") for name, new in zip(names, ids, strict=True))


@given(st.lists(st.text(max_size=6), max_size=20, unique=True))
def test_column_names_fit_paths_and_expressions(fields: list[str]):
    names = ColumnNames()
    column_names = [names(field) for field in fields]
    assert len(set(column_names)) == len(column_names)
    assert all(name.isidentifier() and len(column_component(name)) <= 240 for name in column_names)
    assert all(name == unicodedata.normalize("NFC", name) for name in column_names)
    assert [names(field) for field in fields] == column_names


def test_sampling(tmp_path: Path):
    path = write(tmp_path, b"".join(b"line %d\n" % i if i % 10 else b"\xff\n" for i in range(200)))
    corpus = examples_of(TextCorpus(path=path))
    options = TextCorpus(path=path, sample=20, seed=3)
    sample = examples_of(options)
    assert len(sample) == 20
    assert sample == [example for example in corpus if example in sample]  # file order, same ids
    assert sample == examples_of(options)
    assert sample != examples_of(options.model_copy(update={"seed": 4}))
    assert len(faults_of(options)) == 20
    assert examples_of(options.model_copy(update={"max_examples": 5})) == sample[:5]
    assert examples_of(TextCorpus(path=path, max_examples=7)) == corpus[:7]
    assert examples_of(TextCorpus(path=path, sample=1000)) == corpus


def test_samples_are_fair(tmp_path: Path):
    path = write(tmp_path, "".join(f"{i}\n" for i in range(8)))
    counts = dict.fromkeys(map(str, range(8)), 0)
    for seed in range(400):
        for example in examples_of(TextCorpus(path=path, sample=2, seed=seed)):
            counts[example.text] += 1
    assert all(60 <= count <= 140 for count in counts.values())  # 100 ± 4.6 standard deviations


def test_identity(tmp_path: Path):
    path = write(tmp_path, "a\n")
    first = describe_corpus(TextCorpus(path=path))
    assert first["name"] == "corpus.txt"
    assert str(tmp_path) not in json.dumps(first)
    assert describe_corpus(TextCorpus(path=path, unit="paragraph")) != first
    write(tmp_path, "b\n")
    assert describe_corpus(TextCorpus(path=path)) != first


def test_options_are_told_apart_by_kind():
    adapter = TypeAdapter(CorpusConfig)
    assert isinstance(adapter.validate_python({"kind": "jsonl", "path": "x"}), JsonlCorpus)
    for bad in ({"kind": "yaml", "path": "x"}, {"kind": "text", "path": "x", "colour": 1}, {"kind": "text"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)
    for encoding in ("cp037", "no-such", "base64"):
        with pytest.raises(ValidationError, match="encoding"):
            TextCorpus(path=Path("x"), encoding=encoding)


def test_files_of_a_folder_are_examples_as_they_are(tmp_path):
    write(tmp_path, b"one\n\ntwo\r\n", "b.txt")
    write(tmp_path, b"\xef\xbb\xbfthree", "a.txt")
    write(tmp_path, b"\xff", "c.txt")
    write(tmp_path, b"no text", "LICENSE.md")
    options = TextCorpus(path=tmp_path, unit="file")
    assert [(example.id, example.text) for example in examples_of(options)] == [("a", "three"), ("b", "one\n\ntwo\r\n")]
    (fault,) = (record for record in read_corpus(options) if isinstance(record, Quarantined))
    assert fault == Quarantined(1, "not utf-8: byte 0", "c.txt")
    (omission,) = (record for record in read_corpus(options) if isinstance(record, Omission))
    assert (omission.what, omission.n, omission.names) == ("files", 1, ("LICENSE.md",))
    description = describe_corpus(options)
    write(tmp_path, b"other", "a.txt")
    assert describe_corpus(options)["sha256"] != description["sha256"]
    (single,) = examples_of(TextCorpus(path=tmp_path / "b.txt", unit="file"))
    assert single.text == "one\n\ntwo\r\n"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"a folder without \*\.txt"):
        examples_of(TextCorpus(path=tmp_path / "empty", unit="file"))
