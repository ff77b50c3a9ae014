"""Heads that are known beforehand are found: set by hand, and SmolLM2's on repeats of random tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from headatlas.pipeline.config import load_config, parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.store import open_store
from headatlas.store.queries.vector_dimensions import neurons
from headatlas.store.statistics.definitions import aggregate
from headatlas.store.statistics.measurement import measured_statistics
from headatlas.store.statistics.published import published_table
from headatlas.viewer.pages.search_page import heads_frame
from headatlas.viewer.state.reader_state import ViewState
from tools.handmade_gpt2 import INDUCTION, N_TOKENS, PREVIOUS, repeated_tokens, save_handmade_gpt2


def traced(model: Path, texts: list[str], folder: Path):
    corpus = folder / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    document = {
        "model": {"source": str(model), "local_only": True},
        "corpus": {"kind": "jsonl", "path": str(corpus)},
        "store": {"path": str(folder / "store")},
    }
    run_job(parse_config(document))
    return open_store(folder / "store")


def first(table):
    return int(table["layer"].iloc[0]), int(table["head"].iloc[0])


def test_heads_set_by_hand_are_ranked_first_with_mass_1(tmp_path):
    save_handmade_gpt2(tmp_path / "model")
    texts = [" ".join(f"w{i}" for i in ids) for ids in repeated_tokens(12, np.arange(1, N_TOKENS))]
    store = traced(tmp_path / "model", texts, tmp_path)
    for pattern, column, head in (
        ("previous_token", "previous_token_head", PREVIOUS),
        ("induction", "induction_head", INDUCTION),
    ):
        result = store.search(pattern)
        best = result.table().iloc[0]
        assert first(result.table()) == first(result.table("lift")) == head
        assert best["mass"] == best["hit_rate"] == 1
        assert best["lift"] > 20
        assert result.table()["mass"].iloc[1] < 0.2  # the others are random
        assert first(published_table(store, "transformerlens").sort_values(column, ascending=False)) == head
    induction = store.search("induction").table().iloc[0]
    assert induction["offset_lift"] > 5  # copies come back after many different distances
    assert induction["q_habit"] < 0.01  # 12 texts: the smallest p is 1 / 4096
    # The induction head compares tokens by their id, the other positions: each in a dimension of its own.
    repeated = next(ids for ids in repeated_tokens(1, np.arange(1, N_TOKENS)))
    token = next(i for i in repeated if repeated.count(i) == 2)
    for pattern, head, dimension in (
        (f'induction and query.text == "w{token}"', INDUCTION, token),
        ("previous_token and query.position == 7", PREVIOUS, 7),
    ):
        carried = neurons(store, pattern, *head).table().iloc[0]
        assert carried["dimension"] == dimension
        assert carried["share"] > 0.95
    for name, head in (("previous", PREVIOUS), ("induction", INDUCTION)):
        statistic = measured_statistics(store, [name], cache=False)[name]
        mean = aggregate(statistic.values, statistic.rows)
        assert np.unravel_index(mean.argmax(), mean.shape) == head
        assert mean[head] == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_smollm2_shows_its_induction_and_previous_token_heads(smollm2_gguf, tmp_path):
    """On random tokens only a head that finds copies can score; published work on Llamas has both kinds in the middle."""
    from transformers import AutoTokenizer

    from headatlas.pipeline.models.sources import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(str(smollm2_gguf)).path)
    ids = np.array(sorted(i for piece, i in tokenizer.get_vocab().items() if re.fullmatch("Ġ[a-z]{3,}", piece)))
    tokens = repeated_tokens(32, ids, length=128)
    texts = [tokenizer.decode(row) for row in tokens]
    assert [tokenizer(text)["input_ids"] for text in texts] == tokens
    store = traced(smollm2_gguf, texts, tmp_path)
    induction = store.search("induction")
    best = induction.table().iloc[0]
    assert first(induction.table()) == (18, 6)
    assert best["mass"] > 0.8
    assert best["lift"] > 20
    assert best["offset_lift"] > 20  # no fixed offset explains it
    previous = store.search("previous_token").table()
    assert first(previous) == (11, 1)
    assert previous["mass"].iloc[0] > 0.9
    published = published_table(store, "transformerlens")
    for column, ranking in (("induction_head", induction.table()), ("previous_token_head", previous)):
        theirs = published.sort_values(column, ascending=False).head(5)
        assert set(zip(theirs["layer"], theirs["head"], strict=True)) == set(
            zip(ranking["layer"].head(5), ranking["head"].head(5), strict=True)
        )


def test_the_first_queries_of_the_readme_are_above_their_nulls(minilm_dir, tmp_path):
    """Previous token and objects of verbs on the demo's sentences: found, and not drawn grey by the viewer."""
    options = [f"model.source={minilm_dir}", "corpus.examples=256", "keep.query_key=none"]
    config = load_config("demo", options)
    run_job(config.model_copy(update={"store": config.store.model_copy(update={"path": tmp_path / "store"})}))
    store = open_store(tmp_path / "store")
    for pattern, null, head, least in (
        ("previous_token", "uniform", (0, 2), 0.99),
        ("object_of", "habit", (2, 0), 0.25),
    ):
        result = store.search(pattern)
        table = result.table()
        assert (first(table), result.evidence.null.name) == (head, null)
        assert table["mass"].iloc[0] > least
        assert table[f"q_{null}"].iloc[0] < 0.001
        rows = heads_frame(result, ViewState(), stale=False)["rows"]
        assert (rows[0]["head"], rows[0]["q"] < 0.05) == (".".join(map(str, head)), True)
    # Two heads that look at many matches are grey, and rightly: they look as much at other keys at the same places.
    for pattern, head in (('dependent_of(relation="aux")', "4.9"), ('dependents_of(relation="amod")', "2.0")):
        result = store.search(pattern)
        row = next(row for row in heads_frame(result, ViewState(), stale=False)["rows"] if row["head"] == head)
        assert row["mass"] > 1.5 * row["baseline"]
        assert (row["q"] >= 0.05, row["is_explained"]) == (True, True)
