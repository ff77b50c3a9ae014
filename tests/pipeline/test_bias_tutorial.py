"""The scripts of the tutorial on bias: pairs of Vig et al. 2020, those of the grammar without data, and the correlation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.store import open_store

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
LINK = 'query.role == "pronoun" and key.role == "occupation"'


def texts(data: Path, *arguments: str) -> tuple[list[dict], str]:
    environment = os.environ | {"HEADATLAS_DATA": str(data)}
    result = subprocess.run(
        [sys.executable, str(TUTORIALS / "bias_pairs.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def check_pairs(rows: list[dict]) -> None:
    """The texts of a pair follow each other, differ in the pronoun alone, and have the same columns otherwise."""
    assert len({row["id"] for row in rows}) == len(rows)
    for female, male in list(pairwise(rows))[::2]:
        assert (female["variant"], male["variant"]) == ("female", "male")
        different = [
            i for i, words in enumerate(zip(female["words"], male["words"], strict=True)) if len(set(words)) > 1
        ]
        assert [female["role"][i] for i in different] == ["pronoun"]
        assert "occupation" in female["role"]
        assert {k: v for k, v in female.items() if k not in ("id", "text", "words", "variant")} == {
            k: v for k, v in male.items() if k not in ("id", "text", "words", "variant")
        }


@pytest.mark.parametrize(("kind", "n"), [("links", 480), ("choices", 480)])
def test_without_data_the_pairs_come_from_the_grammar(tmp_path, kind, n):
    rows, message = texts(tmp_path, kind)
    assert "the pairs come from the demo's grammar" in message
    assert len(rows) == n
    check_pairs(rows)
    if kind == "choices":
        assert {row["first"].split()[0] for row in rows} == {"needed", "had"}
        assert all(row["text"].split()[-1] in ("she", "he") for row in rows)
    else:
        assert all(0 <= row["women"] <= 100 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "n_pairs"),
    [
        (["choices"], 160),
        (["choices", "--split", "test"], 130),
        (["choices", "--corpus", "winogender"], 44),
        (["links"], 240),
    ],
)
def test_the_pairs_are_those_of_the_paper(data_dir, arguments, n_pairs):
    """Vig et al. 2020 load 160 pairs of WinoBias dev, 130 of its test part, and 44 of Winogender."""
    rows, message = texts(data_dir, *arguments)
    assert "grammar" not in message
    assert len(rows) == 2 * n_pairs
    check_pairs(rows)


def test_the_move_of_the_link_is_correlated_over_occupations(tmp_path, folder_of):
    """The correlation of each head equals one that is computed pair by pair."""
    rows = []
    for i, noun in enumerate(("nurse", "doctor", "dog", "cat", "tree", "home")):
        for start in (["the"], ["the", "old"]):
            for variant, pronoun in (("female", "she"), ("male", "he")):
                words = [*start, noun, "said", "that", pronoun, "left"]
                roles = [{noun: "occupation", pronoun: "pronoun"}.get(word) for word in words]
                columns = {"pair": f"{noun}-{len(start)}", "variant": variant, "occupation": noun, "women": i * i}
                rows.append({"text": " ".join(words), "words": words, "role": roles, **columns})
    (tmp_path / "links.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = {
        "model": {"source": str(folder_of("gpt2"))},
        "corpus": {"kind": "jsonl", "path": str(tmp_path / "links.jsonl")},
        "store": {"path": str(tmp_path / "store")},
        "run": {"threads": 1},
    }
    run_job(parse_config(job))
    command = [sys.executable, "-m", "headatlas.store.commands.main", "contrast", str(tmp_path / "store"), LINK]
    command += ["--between", "male", "female", "--unit", "occupation", "--correlate", "women", "--json"]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (tmp_path / "occupations.json").write_text(json.dumps(answer), encoding="utf-8")
    script = [sys.executable, str(TUTORIALS / "bias_occupations.py")]
    subprocess.run([*script, str(tmp_path / "occupations.json"), str(tmp_path / "map.svg")], check=True)
    masses = open_store(tmp_path / "store").search(LINK).example_mass
    by_occupation: dict[str, list[int]] = {}
    for i in range(0, len(rows), 2):
        by_occupation.setdefault(rows[i]["occupation"], []).append(i)
    women = [rows[indices[0]]["women"] for indices in by_occupation.values()]
    assert (tmp_path / "map.svg").read_text(encoding="utf-8").count("<circle") == len(by_occupation)
    for head in answer["heads"]:
        mass = masses.sel(layer=head["layer"], head=head["head"]).to_numpy()
        moves = [np.mean([mass[i] - mass[i + 1] for i in indices]) for indices in by_occupation.values()]
        assert head["rho"] == pytest.approx(np.corrcoef(rankdata(women), rankdata(moves))[0, 1], abs=1e-6)
        assert head["low"] < head["rho"] < head["high"]
