"""The relation atlas from a store, against a slow loop over transformers' own eager attention.

The loop is written from the description of Clark et al. 2019 and knows nothing of headatlas: it reads the treebank
itself, finds words by the tokenizer's offsets, merges, zeroes the diagonal and takes the strongest word.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from headatlas.pipeline.commands.run import app as capture_commands
from headatlas.store.commands.relations import app as relation_commands


def read_treebank(path: Path, n: int) -> list[tuple[str, list[tuple[int, int]], list[int], list[str]]]:
    """Text, character spans of words, heads (-1: root) and relations of the first `n` sentences."""
    sentences = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n")[:n]:
        lines = block.split("\n")
        text = next(line[len("# text = ") :] for line in lines if line.startswith("# text = "))
        rows = [line.split("\t") for line in lines if not line.startswith("#")]
        spans, position = [], 0
        for row in rows:  # the parts of a contraction ("do", "n't") are spelled as in the text
            if row[0].isdecimal():
                start = text.index(row[1], position)
                spans.append((start, start + len(row[1])))
                position = start + len(row[1])
        words = [row for row in rows if row[0].isdecimal()]
        relations = [row[7].split(":")[0] for row in words]
        sentences.append((text, spans, [int(row[6]) - 1 for row in words], relations))
    return sentences


def slow_atlas(model_folder: Path, sentences) -> dict[tuple[str, int, int, str], list[int]]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModel.from_pretrained(model_folder, attn_implementation="eager").eval()
    counts: dict[tuple[str, int, int, str], list[int]] = {}
    for text, spans, heads, relations in sentences:
        encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            maps = torch.stack(model(**encoded, output_attentions=True).attentions)[:, 0].double().numpy()
        pieces = [[t for t, (a, b) in enumerate(offsets) if a < b and start <= a < stop] for start, stop in spans]
        n = len(spans)
        words = np.zeros((*maps.shape[:2], n, n))
        for i in range(n):
            for j in range(n):
                block = maps[:, :, pieces[i]][:, :, :, pieces[j]]
                if i != j and pieces[i]:  # "cannot" is one piece of its first word; the second has none
                    words[:, :, i, j] = block.sum(axis=-1).mean(axis=-1)
        for i, (head, relation) in enumerate(zip(heads, relations, strict=True)):
            is_counted = head >= 0 and pieces[i] and pieces[head]  # "not" of "cannot" is neither a dependent nor a key
            for layer, of_model in np.ndindex(maps.shape[:2]) if is_counted else ():
                row, column = words[layer, of_model, i], words[layer, of_model, :, i]
                for direction, weights in (("to_head", row), ("to_dependent", column)):
                    count = counts.setdefault((relation, layer, of_model, direction), [0, 0])
                    count[0] += int(weights.argmax()) == head
                    count[1] += 1
    return counts


N_SENTENCES = 30


@pytest.fixture(scope="module")
def treebank(data_dir: Path) -> Path:
    return data_dir / "ud-english-ewt" / "en_ewt-ud-dev.conllu"


@pytest.fixture(scope="module")
def expected(treebank: Path, minilm_dir: Path) -> dict[tuple[str, int, int, str], list[int]]:
    """The atlas of the slow loop: of each relation, head and direction how many are right, and of how many."""
    return slow_atlas(minilm_dir, read_treebank(treebank, N_SENTENCES))


@pytest.mark.parametrize(("codec", "flips"), [("float32", 0.0), ("sqrt8", 0.001)])
def test_relations_of_minilm_equal_an_independent_loop(
    codec: str, flips: float, treebank: Path, expected: dict[tuple[str, int, int, str], list[int]], tmp_path: Path
) -> None:
    """Every relation × head × direction; quantised attention may move at most 0.1 % of all decisions."""
    store = tmp_path / "ewt"

    def run(app: Typer, *arguments: object) -> str:
        done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    run(
        capture_commands,
        *("run", "demo", "--set", "corpus.kind=conllu", "--set", f"corpus.path={treebank}", "--out", store),
        *("--set", f"keep.attention={codec}", "--max-examples", N_SENTENCES, "--set", "run.threads=1", "--quiet"),
    )
    rows = json.loads(run(relation_commands, store, "--every-head", "--json"))["relations"]
    assert {(row["relation"], row["layer"], row["head"], row["direction"]) for row in rows} == set(expected)
    differ = total = 0
    for row in rows:
        right, n_dependents = expected[row["relation"], row["layer"], row["head"], row["direction"]]
        assert row["n"] == n_dependents
        differ += abs(round(row["accuracy"] * n_dependents) - right)
        total += n_dependents
    assert differ <= flips * total
