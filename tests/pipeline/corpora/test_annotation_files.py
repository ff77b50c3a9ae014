"""Annotation files: ids and values keep their types, and an unreadable row is an error with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headatlas.pipeline.corpora.annotation_files import read_annotation_file
from headatlas.store.errors import ConfigError


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, "utf-8")
    return path


def test_whole_numbers_beside_missing_values(tmp_path: Path) -> None:
    large = 2**60 + 1
    rows = [{"id": 1, "n": large}, {"id": "2", "n": None}, {"id": 3, "n": 4}]
    expected: dict[str, Any] = {"1": large, "2": None, "3": 4}
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode() + b"\n"))
    pq.write_table(pa.table({"id": [1.0, 2.0, 3.0], "n": pa.array([large, None, 4])}), tmp_path / "a.parquet")
    for path in (
        write(tmp_path, "a.jsonl", lines),
        tmp_path / "a.jsonl.gz",
        tmp_path / "a.parquet",
        write(tmp_path, "a.csv", f"id,n\n1,{large}\n2,\n3,4\n"),
        write(tmp_path, "a.tsv", f"id\tn\n1\t{large}\n2\t\n3\t4\n"),
    ):
        kind, values = read_annotation_file(path, "n")
        assert (kind, values) == ("example", expected), path.name
        assert isinstance(values["3"], int)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "2"], [1, 2]),
        (["1", "2.5"], [1.0, 2.5]),
        (["1", "x"], ["1", "x"]),
        (["007", "010"], ["007", "010"]),
        (["nan", "inf"], ["nan", "inf"]),
        (["True", "false"], [True, False]),
        ([".", "-"], [".", "-"]),
        (["类", ""], ["类", None]),
    ],
)
def test_types_of_a_csv_column(cells: list[str], values: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,v\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    assert list(read_annotation_file(path, "v")[1].values()) == values


def test_words_tokens_and_lists(tmp_path: Path) -> None:
    rows = "id,word,tag\na,1,Y\na,0,X\nb,0,Z\n"
    assert read_annotation_file(write(tmp_path, "a.csv", rows), "tag") == ("word", {"a": ["X", "Y"], "b": ["Z"]})
    lists = write(tmp_path, "a.jsonl", '{"id": "a", "tag": ["X", null]}\n')
    assert read_annotation_file(lists, "tag", "token") == ("token", {"a": ["X", None]})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,v\n1,x\n,y\n", r"row 3: the id is None"),
        ("a.csv", "id,v\n1\n", r"line 2: 1 fields, expected 2"),
        ("a.csv", 'id,v\n1,"x\n2,y\n', r"line 2: a quote is opened here and never closed"),
        ("a.csv", "id,v,v\n1,x,y\n", r"the header repeats 'v'"),
        ("a.csv", "id,w\n1,x\n", r"no column 'v'; it has id, w"),
        ("a.jsonl", '{"id": 1.5, "v": 1}\n', r"row 1: the id is 1.5"),
        ("a.jsonl", '{"id": 1, "v": 1, "v": 2}\n', r"line 1: the field 'v' occurs twice"),
        ("a.jsonl", '{"id": 1, "v": {"a": 1}}\n', r"is an object"),
        ("a.jsonl", '{"id": 1, "v": 1}\n{"id": "1", "v": 2}\n', r"example '1' twice"),
        ("a.txt", "", r"ends in '\.txt'"),
        ("a.txt.gz", "", r"ends in '\.txt'"),
    ],
)
def test_files_that_cannot_be_used(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_annotation_file(write(tmp_path, name, content), "v")


def test_bytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "v": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="column 'v' is binary"):
        read_annotation_file(tmp_path / "a.parquet", "v")
