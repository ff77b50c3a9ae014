"""The command annotate: what it says about names that are taken and values that it cannot use."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from headatlas.pipeline.commands.annotate import app
from headatlas.pipeline.commands.run import app as pipeline_app
from headatlas.store.store import open_store


def test_annotate(tiny_folder: Path, tmp_path: Path) -> None:
    texts = ["the cat runs", "the cat runs and the dog sleeps", "we see it"]
    (tmp_path / "x.csv").write_text("id,text,label\n" + "".join(f"{i},{text},x\n" for i, text in enumerate(texts)))
    job, store = tmp_path / "job.toml", tmp_path / "store"
    job.write_text(
        f'[model]\nsource = "{tiny_folder}"\n[corpus]\nkind = "csv"\npath = "{tmp_path / "x.csv"}"\n'
        f'[tokens]\nmax_tokens = 6\ntoo_long = "whole"\n[store]\npath = "{store}"\n'
    )
    assert CliRunner().invoke(pipeline_app, ["run", str(job), "--quiet"]).exit_code == 0
    annotations = tmp_path / "labels.csv"
    annotations.write_text("id,topic\n0,a\n1,b\n2,c\n")

    result = CliRunner().invoke(app, [str(store), str(annotations), "--name", "topic"])
    assert "has topic (example) of 2 of 3 examples" in result.stdout
    assert "Left out: the values of 1 examples that the store lists as skipped or dropped." in result.stdout
    result = CliRunner().invoke(app, [str(store), str(annotations), "--name", "topic"])
    assert "replace the column: --replace on the command line" in str(result.exception)
    result = CliRunner().invoke(app, [str(store), str(annotations), "--name", "label", "--column", "topic"])
    assert "from its corpus or capture, which cannot be replaced. Choose another name" in str(result.exception)
    result = CliRunner().invoke(app, [str(store), str(annotations), "--name", "topic", "--replace", "--json"])
    assert json.loads(result.stdout)["n_skipped"] == 1

    composed, decomposed = "th\u00e9ma", "the\u0301ma"
    result = CliRunner().invoke(app, [str(store), str(annotations), "--name", decomposed, "--column", "topic"])
    assert result.exit_code == 0, result.output
    opened = open_store(store)
    for name in (composed, decomposed):
        assert opened.search(f'example.{name} == "a" and query.position == 1').n_examples == 1
