"""A corpus with one of everything that a store cannot hold: plan, run, info and the viewer say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from typer.testing import CliRunner

from headatlas.pipeline.commands.run import app as pipeline_app
from headatlas.store.commands.info import app as info_app
from headatlas.store.schema.omissions import Omission
from headatlas.store.store import open_store
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.data.store_facts import facts_frame

Rows = list[tuple[str, int, tuple[str, ...]]]
"""Kind, number and names of what is left out."""
LONG = "the cat runs and the dog sleeps while a fox eats fish near the old house and we see it"


def jsonl(folder: Path) -> Rows:
    records: list[Any] = [
        {"text": "the cat runs", "id": "a", "类别": "新闻", "odd name(1)": 1, "target": 3},
        {"text": "the dog sleeps", "id": None, "类别": "体育", "tags": ["x", "y"]},
        {"text": "a fox eats", "id": [1], "meta": {"k": 1}, "tags": ["z"], "words": ["a", "dog"]},
        {"text": "we see it", "id": "a", "spans": [[0, 2, "PRON"], [0, 1, "SUB"]], "score": float("inf")},
        {"text": LONG, "text_pair": "\ud800"},
    ]
    lines = [json.dumps(record) for record in records]
    (folder / "a.jsonl").write_text("\n".join([lines[0], "{broken", lines[1], '{"text": ""}', '{"x": 1}']) + "\n")
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines[2:]).encode()))
    (folder / "README.md").write_text("a corpus")
    (folder / "old").mkdir()
    return [
        ("files", 1, ("README.md",)),
        ("folders", 1, ("old",)),
        ("records", 1, ("a.jsonl line 2",)),
        ("records", 1, ("a.jsonl line 4",)),
        ("records", 1, ("a.jsonl line 5",)),
        ("values", 2, ("tags",)),
        ("values", 1, ("words",)),
        ("values", 1, ("id",)),
        ("values", 1, ("meta",)),
        ("values", 1, ("spans",)),
        ("values", 1, ("score",)),
        ("values", 1, ("text_pair",)),
        ("words", 8, ()),
    ]


def csv(folder: Path) -> Rows:
    content = 'id,text,label\n1,the cat runs,x\n2,"the dog\n3,a fox eats,y\n4,we see it\n,the old house,z\n'
    (folder / "table.csv").write_bytes(content.encode("utf-16"))
    return [("records", 1, ("line 3",)), ("records", 1, ("line 5",))]


def parquet(folder: Path) -> Rows:
    table = {
        "text": ["the cat runs", "the dog sleeps", None],
        "id": pa.array([1.0, None, 3.0]),
        "raw": [b"x", b"y", b"z"],
        "list": [[1], [2], []],
        "meta": [{"k": 1}, {"k": 2}, None],
    }
    for i in range(2):
        pq.write_table(pa.table(table), folder / f"train-{i}.parquet")
    names = [("raw",), ("list",), ("meta",)]
    return [("records", 2, ("train-0.parquet line 3", "train-1.parquet line 3")), *[("columns", 1, n) for n in names]]


def conllu(folder: Path) -> Rows:
    (folder / "x.conllu").write_text(
        "# speaker = B\n1\tthe\t_\t_\t_\t_\t2\tdet\t_\tGloss=x\n1.1\tgap\t_\t_\t_\t_\t_\t_\t_\t_\n"
        "2\tcat\t_\t_\t_\t_\t0\troot\t0:root|1:x\t_\n\n1\tdog\t_\n\n"
    )
    return [
        ("comments", 1, ("speaker",)),
        ("values", 1, ("Gloss",)),
        ("nodes", 1, ("1.1",)),
        ("values", 1, ("enhanced dependencies",)),
        ("records", 1, ("line 6",)),
    ]


def rows_of(left_out: list[dict[str, Any]]) -> Rows:
    return sorted((row["what"], row["n"], tuple(row.get("names", ()))) for row in left_out)


@pytest.mark.parametrize("write", [jsonl, csv, parquet, conllu])
def test_everything_that_is_left_out_is_named(
    write: Callable[[Path], Rows], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    folder, store = tmp_path / "corpus", tmp_path / "store"
    folder.mkdir()
    expected = sorted(write(folder))
    job = tmp_path / "job.toml"
    job.write_text(
        f'[model]\nsource = "{tiny_folder}"\n[corpus]\nkind = "{write.__name__}"\npath = "{folder}"\n'
        f'[tokens]\nmax_tokens = 14\n[store]\npath = "{store}"\n[run]\nthreads = 1\n'
    )
    invoke = CliRunner().invoke
    plan = json.loads(invoke(pipeline_app, ["plan", str(job), "--json", "--untimed", "--measure", "0"]).stdout)
    assert rows_of(plan["left_out"]) == expected
    lines = [str(Omission.model_validate(row)) for row in plan["left_out"]]
    text = invoke(pipeline_app, ["plan", str(job), "--untimed", "--measure", "0"]).stdout
    assert not [line for line in lines if line not in text]

    run = invoke(pipeline_app, ["run", str(job), "--json", "--strict"])
    assert run.exit_code == 1, run.output
    assert json.loads(run.stdout)["left_out"] == plan["left_out"]
    assert not [line for line in lines if line not in run.stderr]
    assert run.stderr.count("headatlas: --strict: ") == len(lines)

    info = invoke(info_app, [str(store)]).stdout
    assert not [line for line in lines if line not in info]
    assert json.loads(invoke(info_app, [str(store), "--json"]).stdout)["left_out"] == plan["left_out"]
    assert not [part for part in ("{", "sha256", "null") if part in info.replace("{broken", "")]
    opened = open_store(store)
    shown = facts_frame(DataSource(opened))["left_out"]
    assert shown[: len(lines)] == lines
    if write is jsonl:
        renamed = ["'odd name(1)' as odd_name_1", "1 ids occur before and have a number added: 'a' as 'a#2'"]
        assert not [line for line in renamed if line not in "\n".join(shown)]
        assert not [line for line in renamed if line not in run.stderr or line not in info or line not in text]
        assert "example columns  类别 (text), odd_name_1 (number), target (number)" in info
        assert "word columns" in info
        assert opened.search('example.类别 == "新闻" and query.position == 1').n_examples == 1


def test_strict_ends_with_0_if_nothing_is_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("the cat runs\n")
    job = tmp_path / "job.toml"
    job.write_text(
        f'[model]\nsource = "{tiny_folder}"\n[corpus]\nkind = "text"\npath = "{tmp_path / "x.txt"}"\n'
        f'[store]\npath = "{tmp_path / "store"}"\n'
    )
    result = CliRunner().invoke(pipeline_app, ["run", str(job), "--quiet", "--strict"])
    assert result.exit_code == 0, result.output
