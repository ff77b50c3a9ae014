"""The path from a job file to ranked heads, by commands, compared with the eager attention of transformers.

The loop below knows nothing of headatlas but the store's order of examples: one sentence at a time, no padding, no
batches, no store.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PREVIOUS = "key.position == query.position - 1"
CODEC_BOUND = 0.004  # of square-root companding to 255 levels


@pytest.fixture(scope="module")
def run_command(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run `headatlas ...` in a folder of its own; returns its standard output."""
    folder = tmp_path_factory.mktemp("commands")

    def run(*arguments: object) -> str:
        command = [sys.executable, "-m", "headatlas.store.commands.main", *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=3000, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def eager_previous_mass(model_folder: Path, texts: list[str]) -> tuple[np.ndarray, int]:
    """Mean attention to the previous token over all rows that have one, ``[layer, head]``, and how many rows."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModel.from_pretrained(model_folder, attn_implementation="eager").eval()
    total, rows = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            maps = torch.stack(model(**tokenizer(text, return_tensors="pt"), output_attentions=True).attentions)[:, 0]
            total = total + maps.diagonal(offset=-1, dim1=-2, dim2=-1).double().sum(-1).numpy()
            rows += maps.shape[-1] - 1
    return total / rows, rows


def check_search(answer: dict[str, Any], expected: np.ndarray, rows: int) -> None:
    heads = answer["heads"]
    assert len(heads) == expected.size
    assert [head["mass"] for head in heads] == sorted((head["mass"] for head in heads), reverse=True)
    for head in heads:
        assert head["rows"] == rows
        assert head["mass"] == pytest.approx(expected[head["layer"], head["head"]], abs=CODEC_BOUND)
    best = answer["examples"][0]
    assert best["edge"]["key_pos"] == best["edge"]["query_pos"] - 1


def sentences(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line.removeprefix("# text = ") for line in lines if line.startswith("# text = ")]


@pytest.mark.parametrize("n_examples", [120, pytest.param(2001, marks=pytest.mark.slow)])
def test_treebank_through_minilm(
    n_examples: int, run_command: Callable[..., str], data_dir: Path, minilm_dir: Path, tmp_path: Path
) -> None:
    treebank = data_dir / "ud-english-ewt" / "en_ewt-ud-dev.conllu"
    store = tmp_path / "ewt"
    report = json.loads(
        run_command(
            *("run", "demo", "--set", "corpus.kind=conllu", "--set", f"corpus.path={treebank}", "--out", store),
            *("--max-examples", n_examples, "--json"),
        )
    )
    assert report["n_examples"] == n_examples
    heads = json.loads(run_command("stats", store, "--json"))["heads"]
    assert {(head["layer"], head["head"]) for head in heads} == {(i, j) for i in range(6) for j in range(12)}
    assert all(np.isfinite(head["entropy"]) for head in heads)
    expected, rows = eager_previous_mass(minilm_dir, sentences(treebank)[:n_examples])
    check_search(json.loads(run_command("search", store, PREVIOUS, "--json")), expected, rows)
    assert "sound" in run_command("verify", store, "--full")


@pytest.mark.slow
def test_treebank_through_smollm2(
    run_command: Callable[..., str], data_dir: Path, smollm2_gguf: Path, tmp_path: Path
) -> None:
    from headatlas.pipeline.models.sources import resolve_model

    treebank = data_dir / "ud-english-ewt" / "en_ewt-ud-dev.conllu"
    store = tmp_path / "ewt"
    run_command(
        "run", "smollm2", "--set", "corpus.kind=conllu", "--set", f"corpus.path={treebank}", "--out", store, "--quiet"
    )
    heads = json.loads(run_command("stats", store, "--json"))["heads"]
    assert {(head["layer"], head["head"]) for head in heads} == {(i, j) for i in range(30) for j in range(9)}
    folder = resolve_model(str(smollm2_gguf)).path
    expected, rows = eager_previous_mass(folder, sentences(treebank))
    check_search(json.loads(run_command("search", store, PREVIOUS, "--json")), expected, rows)
