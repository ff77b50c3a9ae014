"""Everything that a corpus holds and its examples do not is counted and named; no optional field costs a record."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from headatlas.pipeline.corpora.corpus import read_corpus
from headatlas.pipeline.corpora.corpus_options import CorpusConfig
from headatlas.pipeline.corpora.examples import CorpusExample
from headatlas.pipeline.corpora.records import Quarantined, Renaming
from headatlas.store.errors import ConfigError
from headatlas.store.schema.omissions import Omission, Omissions


class Reading:
    """The records of a corpus by kind."""

    def __init__(self, kind: str, path: Path, **options: Any) -> None:
        config = TypeAdapter(CorpusConfig).validate_python({"kind": kind, "path": path} | options)
        self.examples, self.faults = list[CorpusExample](), list[tuple[int, str]]()
        self.renamed, omissions = dict[str, str](), Omissions()
        for record in read_corpus(config):
            match record:
                case CorpusExample():
                    self.examples.append(record)
                    for omission in record.left_out:
                        omissions.add(omission)
                case Quarantined(line=line, reason=reason):
                    self.faults.append((line, reason))
                case Renaming(old=old, new=new):
                    self.renamed[old] = new
                case Omission():
                    omissions.add(record)
        self.left_out = {(row.what, row.reason): (row.n, row.names, row.n_examples) for row in omissions}

    @property
    def columns(self) -> list[dict[str, Any]]:
        return [example.columns for example in self.examples]

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]


def read_json(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Reading:
    path = folder / "x.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return Reading("jsonl", path, **options)


def read_parquet(folder: Path, table: dict[str, Any], **options: Any) -> Reading:
    pq.write_table(pa.table(table), folder / "x.parquet")
    return Reading("parquet", folder / "x.parquet", **options)


LIST = "an annotation of an example is a single value, not a list"
OBJECT = "an annotation of an example is a single value, not an object"


def test_optional_fields_never_cost_a_record(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "id": 1, "target": 3, "text_pair": ""},
        {"text": "b", "id": None, "target": "zwei", "words": "b"},
        {"text": "c", "id": 2.0, "spans": [], "text_pair": 0.5},
        {"text": "d", "id": [1], "target": True, "text_pair": "\ud800"},
        {"text": "e", "id": "", "words": []},
        {"text": "f", "id": "\udfff"},
    ]
    reading = read_json(tmp_path, rows)
    assert reading.faults == []
    assert reading.ids == ["1", "x-000002", "2", "x-000004", "x-000005", "x-000006"]
    assert [e.target for e in reading.examples] == [None, "zwei", None, None, None, None]
    assert reading.columns == [{"target": 3}, {"words": "b"}, {"text_pair": 0.5}, {"target": "true"}, {}, {}]
    assert reading.left_out == {
        ("values", "no id: expected text or a number"): (2, ("id",), 2),
        ("values", "no text_pair: a lone surrogate"): (1, ("text_pair",), 1),
    }
    for name, n_faults in (("id", 4), ("target", 5), ("text_pair", 6), ("words", 1)):
        assert len(read_json(tmp_path, rows, **{name: name}).faults) == n_faults, name


@pytest.mark.parametrize("ids", [pa.array([1, None, 3]), pa.array([1.0, None, 3.0]), pa.array(["1", None, "3"])])
def test_missing_ids_in_parquet(ids: pa.Array, tmp_path: Path) -> None:
    reading = read_parquet(tmp_path, {"id": ids, "text": ["a", "b", "c"]})
    assert (reading.ids, reading.faults, reading.left_out) == (["1", "x-000002", "3"], [], {})


def test_values_that_no_annotation_can_hold(tmp_path: Path) -> None:
    reading = read_json(
        tmp_path,
        [
            {"text": "a", "tags": ["x", "y"], "more": [1], "meta": {"k": 1}, "empty": [], "score": float("inf")},
            {"text": "b", "tags": [], "meta": {"k": 2}, "note": "\ud800!", "score": 1},
            {"text": "c", "tags": ["z"], "score": float("nan")},
        ],
    )
    assert reading.columns == [{"score": None}, {"note": "?!", "score": 1}, {"score": None}]
    assert reading.left_out == {
        ("values", LIST): (3, ("tags", "more"), 2),
        ("values", OBJECT): (2, ("meta",), 2),
        ("values", "infinite numbers, which are stored as missing"): (1, ("score",), 1),
        ("values", "lone surrogates, which are stored as ?"): (1, ("note",), 1),
    }


def test_a_field_that_occurs_twice(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": 1, "label": 2}\n')
    assert Reading("jsonl", tmp_path / "x.jsonl").faults == [(2, "the field 'label' occurs twice")]
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], ["text", "n", "n"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="the header repeats 'n'"):
        Reading("parquet", tmp_path / "x.parquet")


def test_every_type_of_parquet(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 2, 29, 12, 30)
    table = {
        "text": pa.array(["a"]),
        "date": pa.array([day.date()]),
        "time": pa.array([day.time()]),
        "moment": pa.array([day]),
        "zoned": pa.array([day], pa.timestamp("us", tz="Nowhere/Land")),
        "far": pa.array([2**55], pa.timestamp("ms")),
        "price": pa.array([decimal.Decimal("1.50")]),
        "half": pa.array(np.array([0.5], np.float16)),
        "large": pa.array([2**63], pa.uint64()),
        "category": pa.array(["x"]).dictionary_encode(),
        "flag": pa.array([True]),
        "nothing": pa.nulls(1),
        "raw": pa.array([b"x"]),
        "other": pa.array([b"y"]),
        "list": pa.array([[1]]),
        "map": pa.array([{"a": 1}], pa.map_(pa.string(), pa.int64())),
        "struct": pa.array([{"a": 1}]),
        "period": pa.array([datetime.timedelta(1)]),
    }
    reading = read_parquet(tmp_path, table)
    far = reading.columns[0].pop("far")
    assert reading.columns == [
        {
            "date": "2024-02-29",
            "time": "12:30:00.000000",
            "moment": "2024-02-29 12:30:00.000000",
            "zoned": "2024-02-29 12:30:00.000000Z",
            "price": "1.50",
            "half": 0.5,
            "large": 2**63,
            "category": "x",
            "flag": "true",
            "nothing": None,
        }
    ]
    assert isinstance(far, str)
    types = {names: reason.partition(", not ")[2] for (_, reason), (_, names, _) in reading.left_out.items()}
    assert set(types) == {("raw", "other"), ("list",), ("map",), ("struct",), ("period",)}
    assert types["raw", "other"] == "binary"
    assert types["struct",] == "struct<a: int64>"
    assert sum(n for n, _, _ in reading.left_out.values()) == 6
    assert read_parquet(tmp_path, table, columns=("date", "list")).left_out.keys() == {
        ("columns", "annotations are texts, numbers, truth values or dates, not list<element: int64>")
    }
    with pytest.raises(ConfigError, match=r"corpus.text: column 'raw' is binary"):
        read_parquet(tmp_path, table, text="raw")


def test_column_names(tmp_path: Path) -> None:
    long = "问题" * 40
    names = [
        "类别",
        "größe",
        "odd name(1)",
        "odd-name 1",
        "9lives",
        "",
        "index",
        "e\u0301t",
        "_x",
        long,
        "日付/時刻",
        "in",
    ]
    reading = read_json(tmp_path, [{"text": "a", **dict.fromkeys(names, 1)}])
    assert list(reading.columns[0]) == [
        *("类别", "größe", "odd_name_1", "odd_name_1_2", "column_9lives", "column", "index_2", "ét", "_x"),
        *(long[:26], "日付_時刻", "in"),
    ]
    assert reading.renamed == {
        "odd name(1)": "odd_name_1",
        "odd-name 1": "odd_name_1_2",
        "9lives": "column_9lives",
        "": "column",
        "index": "index_2",
        long: long[:26],
        "日付/時刻": "日付_時刻",
    }


def test_repeated_ids_are_said(tmp_path: Path) -> None:
    reading = read_json(tmp_path, [{"text": "a", "id": "x"}, {"text": "b", "id": "x"}])
    assert (reading.ids, reading.renamed) == (["x", "x#2"], {"x": "x#2"})


def read_csv(folder: Path, content: str, **options: Any) -> Reading:
    (folder / "x.csv").write_text(content)
    return Reading("csv", folder / "x.csv", **options)


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        ("", "a quote is opened here and never closed"),
        ('7,"the dog, asleep"\n', "text follows a closing quote"),
        ('7,the "dog"\n', "text follows a closing quote"),
        ('7,"the\ndog"\n', "text follows a closing quote"),
    ],
)
def test_a_quote_that_is_not_closed_costs_one_row(later: str, reason: str, tmp_path: Path) -> None:
    rows = [f"{i},{chr(34) * (i == 500)}the cat runs {i}\n" for i in range(1000)]
    reading = read_csv(tmp_path, "id,text\n" + "".join(rows[:800]) + later + "".join(rows[800:]))
    assert reading.faults == [(502, reason)]
    assert len(reading.examples) == 999 + bool(later)
    assert max(len(example.text) for example in reading.examples) < 30
    assert len(read_csv(tmp_path, "id,text\n" + "".join(rows), quoting=False).examples) == 1000


def test_other_faults_of_quotes(tmp_path: Path) -> None:
    content = 'id,text\n1,"a" b\n2,ok\n3,"x\ny"\n4,a\rb\n5,"never\nclosed\n6,ok\n'
    reading = read_csv(tmp_path, content)
    assert [example.text for example in reading.examples] == ["ok", "x\ny", "ok"]
    assert reading.faults == [
        (2, "text follows a closing quote"),
        (6, "a carriage return outside quotes"),
        (7, "a quote is opened here and never closed"),
        (8, "1 fields, expected 2; a stray quote? (corpus.quoting = false)"),
    ]


def test_many_open_quotes_take_linear_time(tmp_path: Path) -> None:
    """Every second line opens a quote that the next one closes wrongly. The number of lines read again stays small."""
    content = "id,text\n" + '1,"a\n2,"b\n' * 20_000
    reading = read_csv(tmp_path, content)
    assert len(reading.faults) + len(reading.examples) == 40_000


def test_the_separator_is_guessed_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is ';' the separator\? \(corpus\.delimiter\)"):
        read_csv(tmp_path, "id;text\n1;a\n")


def test_a_treebank_names_what_is_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "x.conllu"
    path.write_text(
        "# global.columns = ID\n# sent_id = a\n# speaker = B\n# checked by hand\n"
        "1\tthe\t_\t_\t_\t_\t2\tdet\t2:det\tGloss=x|SpaceAfter=No\n"
        "1.1\tgap\t_\t_\t_\t_\t_\t_\t_\t_\n"
        "2\tcat\t_\t_\t_\t_\t0\troot\t0:root|1:x\t_\n\n"
    )
    reading = Reading("conllu", path)
    assert reading.left_out == {
        ("comments", "not named in corpus.metadata"): (2, ("global.columns", "speaker"), 1),
        ("comments", "not of the form # name = value"): (1, ("checked by hand",), 1),
        ("values", "the column MISC of CoNLL-U is not stored"): (1, ("Gloss",), 1),
        ("values", "the column DEPS of CoNLL-U is not stored"): (1, ("enhanced dependencies",), 1),
        ("nodes", "empty nodes of CoNLL-U are not part of the text"): (1, ("1.1",), 1),
    }
    stored = Reading("conllu", path, metadata=("speaker", "global.columns"))
    assert ("comments", "not named in corpus.metadata") not in stored.left_out
    assert stored.columns == [{"speaker": "B", "global_columns": "ID"}]


def test_a_treebank_names_annotations_of_multiword_tokens_and_repeated_comments(tmp_path: Path) -> None:
    path = tmp_path / "x.conllu"
    path.write_text(
        "# sent_id = a\n# genre = x\n# genre = x\n# genre = y\n# text = al\n# text = zum\n"
        "1-2\tal\t_\t_\tPR\tTypo=Yes\t_\t_\t_\t_\n"
        "1\ta\t_\t_\t_\t_\t2\tcase\t_\t_\n2\tel\t_\t_\t_\t_\t0\troot\t_\t_\n\n"
    )
    reading = Reading("conllu", path, metadata=("genre",))
    assert (reading.examples[0].text, reading.columns) == ("al", [{"genre": "x"}])
    assert reading.left_out == {
        ("comments", "a comment of the same name came before"): (2, ("genre", "text"), 1),
        ("values", "a multiword token has only its form; its words have annotations"): (2, ("XPOS", "FEATS"), 1),
    }


FILES_BY_KIND = {
    "csv": (".csv", b"id,text\n1,a\n"),
    "csv packed": (".csv.gz", gzip.compress(b"id,text\n1,a\n")),
    "text": (".txt", b"a\n"),
    "jsonl": (".jsonl", b'{"text": "a"}\n'),
    "conllu": (".conllu", b"1\ta\t_\t_\t_\t_\t0\troot\t_\t_\n\n"),
    "parquet": (".parquet", None),
}


@pytest.mark.parametrize("kind", FILES_BY_KIND)
@pytest.mark.parametrize("is_glob", [False, True])
def test_files_of_a_folder_that_hold_nothing(kind: str, is_glob: bool, tmp_path: Path) -> None:
    """Empty files cost nothing but themselves, and nothing in a folder is passed over in silence."""
    ending, content = FILES_BY_KIND[kind]
    if content is None:
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / f"a{ending}")
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / f"no-rows{ending}")
    else:
        (tmp_path / f"a{ending}").write_bytes(content)
    (tmp_path / f"b{ending}").write_bytes(b"")
    names = [f"b{ending}"]
    if ending.endswith(".gz"):
        (tmp_path / f"c{ending}").write_bytes(gzip.compress(b""))
        names.append(f"c{ending}")
    (tmp_path / f"d{ending}").symlink_to("nowhere")
    os.mkfifo(tmp_path / f"e{ending}")
    path = Path(f"{tmp_path}/*{ending}") if is_glob else tmp_path
    reading = Reading(kind.partition(" ")[0], path)
    assert [example.text for example in reading.examples] == ["a"]
    assert reading.faults == []
    left_out = {("files", "empty"): (len(names), tuple(names), None)}
    if not is_glob:
        left_out["files", "broken links or special files"] = (2, (f"d{ending}", f"e{ending}"), None)
    assert reading.left_out == left_out


def test_the_header_of_a_joined_file_is_no_example(tmp_path: Path) -> None:
    reading = read_csv(tmp_path, "\ufeffid,text\n1,a\n\ufeffid,text\n2,b\nid,text\n3,c\n")
    assert reading.ids == ["1", "2", "3"]
    assert reading.faults == [(line, "the header again; were files joined?") for line in (3, 5)]


def test_columns_that_no_record_has(tmp_path: Path) -> None:
    """A misspelt name in corpus.columns is said, and so are columns of tables if only some examples are read."""
    rows = [{"text": "a", "topic": 1}, {"text": "b", "year": 2}]
    absent = {("columns", "named in corpus.columns, but no record has them"): (1, ("topicc",), None)}
    assert read_json(tmp_path, rows, columns=("topicc", "topic", "year", "text")).left_out == absent
    assert read_json(tmp_path, rows, columns=("topicc", "topic"), max_examples=1).left_out == absent
    table = {"text": ["a", "b"], "raw": [b"x", b"y"]}
    left_out = read_parquet(tmp_path, table).left_out
    assert len(left_out) == 1
    for selection in ({"max_examples": 1}, {"sample": 1}, {"skip": 1, "max_examples": 1}):
        assert read_parquet(tmp_path, table, **selection).left_out == left_out


def test_a_label_called_target(tmp_path: Path) -> None:
    """By its name alone the field is a text for a decoder. corpus.columns makes it an annotation."""
    rows = [{"text": "a", "target": "positive", "text_pair": "b", "n": 1}]
    (example,) = read_json(tmp_path, rows).examples
    assert (example.target, example.text_pair, example.columns) == ("positive", "b", {"n": 1})
    (example,) = read_json(tmp_path, rows, columns=("target", "text_pair")).examples
    assert (example.target, example.text_pair) == (None, None)
    assert example.columns == {"target": "positive", "text_pair": "b"}
    (example,) = read_json(tmp_path, rows, columns=("target",), target="target").examples
    assert (example.target, example.columns) == ("positive", {})


def test_texts_as_views(tmp_path: Path) -> None:
    """Arrow files of polars have this type of text. Long texts lie in another buffer than short ones."""
    texts = ["x" * 40, None, "", "short", "y" * 17_000_000]
    views = pa.array(["cut off", *texts], pa.string_view())[1:]
    table = pa.table({"text": ["a"] * 5, "note": views, "tags": pa.array([["b"]] * 5, pa.list_(pa.string_view()))})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    reading = Reading("arrow", tmp_path / "x.arrow")
    assert [row["note"] for row in reading.columns] == texts[:4]
    assert reading.faults == [(5, "longer than 16777216 bytes")]


def test_the_line_for_excel_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the first line is for Excel: delete it"):
        read_csv(tmp_path, "sep=;\nid;text\n1;a\n", delimiter=";")


def test_one_thing_is_written_in_the_singular() -> None:
    lines = [str(Omission(what=what, n=1, reason="r")) for what in ("files", "parts of messages", "target words")]
    assert lines == ["1 file left out: r", "1 part of messages left out: r", "1 target word left out: r"]


def test_images_name_what_is_not_read(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    frames = [image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "labels.csv").write_text("a,1\n")
    reading = Reading("images", tmp_path)
    assert reading.ids == ["a"]
    assert [(what, n, names) for (what, _), (n, names, _) in reading.left_out.items()] == [
        ("files", 1, ("labels.csv",)),
        ("frames", 2, ("a.gif frame 1", "a.gif frame 2")),
    ]
    assert Reading("images", tmp_path / "a.gif").ids == ["a"]


@pytest.mark.parametrize(
    "content", ['[\n {"text": "a"},\n {"text": "b"}\n]\n', '[{"text": "a"}]', '{\n "text": "a"\n}\n']
)
def test_json_that_is_not_json_lines_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ConfigError, match="is JSON, but not JSON Lines: expected one object in each line"):
        Reading("jsonl", tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "id,text\r1,a\r",
            "a carriage return outside quotes. If the lines of the file end in carriage returns, convert",
        ),
        ('id,"text\n1,a\n', "a quote is opened here and never closed. Set corpus.quoting = false"),
    ],
)
def test_advice_for_headers_that_cannot_be_read(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_csv(tmp_path, content)
