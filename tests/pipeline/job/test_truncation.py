"""Cut texts and words without a token are named by `plan`, `run`, `info`, and by the store that a job wrote."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from headatlas.pipeline.commands.run import app
from headatlas.store.commands.info import app as info_app
from headatlas.store.schema.words_without_tokens import CUT, words_left_out
from headatlas.store.store import open_store

from ..commands.test_run import job_file as job_file


def test_a_job_says_how_many_texts_were_cut_and_how_many_words_lost(job_file, tiny_job, tmp_path):
    lines = Path(tiny_job["corpus"]["path"]).read_text(encoding="utf-8").splitlines()
    lost = [max(0, len(line.split()) - 4) for line in lines]  # two of six tokens are special
    expected = {"what": "words", "n": sum(lost), "reason": CUT, "n_examples": sum(n > 0 for n in lost)}
    sentence = f"{sum(lost)} words of {expected['n_examples']} examples left out: {CUT}"
    options = ["--set", "tokens.max_tokens=6", "--out", str(tmp_path / "out")]
    planned = CliRunner().invoke(app, ["plan", str(job_file), *options, "--json", "--untimed", "--measure", "0"])
    assert json.loads(planned.stdout)["left_out"] == [expected]
    run = CliRunner().invoke(app, ["run", str(job_file), *options, "--strict"])
    assert run.exit_code == 1
    assert sentence in " ".join(run.stderr.split())
    info = CliRunner().invoke(info_app, [str(tmp_path / "out")], env={"COLUMNS": "200"})
    assert sentence in " ".join(info.stdout.split())
    store = open_store(tmp_path / "out")
    (of_store,) = words_left_out(segment.tokens() for segment in store.segments)
    assert of_store.model_dump(exclude_defaults=True) == expected
