"""The corpora of the tutorial on bias: the pairs of Vig et al. 2020, and those of the grammar without data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "bias_pairs.py"


def texts(data: Path, *arguments: str) -> tuple[list[dict], str]:
    environment = os.environ | {"HEADATLAS_DATA": str(data)}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=True
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
