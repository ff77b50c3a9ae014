"""Rows whose matching keys a window hides are left out of every answer, and counted.

Two stores hold the same attention. In one the first layer has a window. Its answers to a pattern are those of the other
store to the same pattern with the window as a condition; answers of the second layer are equal.
"""

import dataclasses
import json

import numpy as np
import pytest
from treebank_store import tree_table, write_trees
from typer.testing import CliRunner

from headatlas.store.commands.like import app as like_app
from headatlas.store.commands.search import app as search_app
from headatlas.store.comparisons.search_comparisons import correlate, split_by, versus
from headatlas.store.queries.minimal_pairs import contrast, minimal_pairs
from headatlas.store.queries.pattern_search import search
from headatlas.store.queries.query_by_example import like

N, WINDOW = 48, 3
PATTERN, OTHER = "key.position == 1 and query.position > 1", "key.position == query.position + 1"
NEAR = f"query.position - key.position < {WINDOW} and key.position - query.position < {WINDOW}"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store with a window in its first layer, and one without."""
    lengths = [3 + (i // 2) % 4 for i in range(N)]
    trees = [[(-1, "root"), *[(0, "dep")] * (n - 1)] for n in lengths]
    columns = {
        "genre": [("news", "blog")[i % 2] for i in range(N)],
        "document": [f"d{i // 4}" for i in range(N)],
        "pair": [f"p{i // 2}" for i in range(N)],
        "variant": ["ab"[i % 2] for i in range(N)],
    }

    def table(part):
        tokens = tree_table(part, special=False)
        ids = tokens.id.copy()
        ids[tokens.token_offset[:-1] + 1] = np.arange(len(part)) % 2  # the second word differs within a pair
        return dataclasses.replace(tokens, id=ids)

    result = []
    for name, window in (("windowed", (WINDOW, None)), ("full", (None, None))):
        rng = np.random.default_rng(3)

        def attention_of(tokens, rng=rng):
            n = len(tokens)
            weights = rng.random((2, 3, n, n)) + 0.5
            weights[0][:, np.abs(np.subtract.outer(np.arange(n), np.arange(n))) >= WINDOW] = 0
            return weights / weights.sum(axis=-1, keepdims=True)

        path = tmp_path_factory.mktemp(name) / "store"
        store, _ = write_trees(path, [trees[:20], trees[20:]], attention_of, table, columns=columns, window=window)
        result.append(store.annotate("share", {i: float(i % 7) for i in range(N)}))
    return result


def answers(ask, stores):
    """Ask both stores; return the answers of the first layer with the window, and of the second layer without."""
    windowed, full = stores
    answer, near, far = ask(windowed, ""), ask(full, f" and {NEAR}"), ask(full, "")
    return [(0, answer, near), (1, answer, far)]


def check(layer, heads, expected, names):
    for name in names:
        ours, theirs = (dataset[name].to_numpy()[layer] for dataset in (heads, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12, err_msg=f"{name} of layer {layer}")


@pytest.mark.parametrize("words", [None, "mean"])
def test_a_search_and_its_evidence(stores, words):
    def ask(store, condition):
        return search(store, PATTERN + condition, words=words)

    for layer, ours, theirs in answers(ask, stores):
        check(layer, ours.heads, theirs.heads, ("mass", "hit_rate"))
        np.testing.assert_array_equal(
            ours.table().groupby("layer")[["rows", "examples"]].first().loc[layer],
            theirs.table().groupby("layer")[["rows", "examples"]].first().loc[layer],
        )
        check(layer, ours.evidence.heads, theirs.evidence.heads, ("mass_low", "mass_high"))
    ours = search(stores[0], PATTERN, words=words)
    hidden = int(ours.example_rows[1].sum() - ours.example_rows[0].sum())
    assert hidden > 0
    noun = "rows" if words is None else "words"
    expected = f"{hidden} of {ours.rows} {noun} do not count in layer 0: a window of 3 hides their matching keys"
    assert expected in ours.notes


def test_a_layer_that_sees_no_match_has_no_number_and_no_rank(stores):
    result = search(stores[0], "key.position == query.position - 3")
    table = result.table()
    first = table[table["layer"] == 0]
    assert first["mass"].isna().all()
    assert first["rank"].isna().all()
    assert (first["rows"] == 0).all()
    assert sorted(table["rank"].dropna()) == [1, 2, 3]
    assert result.top_examples(0, 0) == []
    output = CliRunner().invoke(
        search_app, ["search", str(stores[0].path), "key.position == query.position - 3", "--json"]
    )
    answer = json.loads(output.output)
    assert answer["search"]["best"]["layer"] == 1
    assert any("do not count in layer 0" in note for note in answer["search"]["notes"])


def test_two_patterns(stores):
    def ask(store, condition):
        return versus(search(store, PATTERN + condition), [search(store, OTHER)])[0]

    for layer, ours, theirs in answers(ask, stores):
        check(
            layer, ours.heads, theirs.heads, ("mass", "mass_versus", "difference", "low", "high", "p_value", "examples")
        )
        np.testing.assert_allclose(ours.extreme_examples(layer, 1), theirs.extreme_examples(layer, 1))


def test_groups_and_numbers(stores):
    for compare in (lambda result: split_by(result, "genre"), lambda result: correlate(result, "share")):
        for layer, ours, theirs in answers(lambda store, more, f=compare: f(search(store, PATTERN + more)), stores):
            names = [name for name in ours.heads.data_vars if name != "q_value"]
            check(layer, ours.heads, theirs.heads, names)


def test_minimal_pairs(stores):
    """Members of a pair have the same shape; their second word differs."""
    windowed, _ = stores
    assert len(minimal_pairs(windowed).names) == N // 2

    def ask(store, condition):
        return contrast(search(store, PATTERN + condition), minimal_pairs(store))

    for layer, ours, theirs in answers(ask, stores):
        check(layer, ours.heads, theirs.heads, ("difference", "low", "high", "p_value"))
    hidden = contrast(search(windowed, "key.position == query.position - 3"), minimal_pairs(windowed))
    assert np.isnan(hidden.heads["difference"][0]).all()
    assert hidden.table().groupby("layer")["pairs"].first().to_list()[0] == 0
    assert hidden.driving_pairs(0, 0) == []


def test_marked_arcs(stores):
    """The first arc is hidden in layer 0: its attention there does not exist, and does not enter the mean."""
    windowed, _ = stores
    arcs = [(6, 4, 1), (7, 2, 1)]
    result = like(windowed, arcs)
    assert np.isnan(result.arc_attention.to_numpy()[0, :, 0]).all()
    shown = windowed.examples[7].attention(0).to_numpy()[:, 2, 1]
    np.testing.assert_allclose(result.candidates[0].arc_mean[0], shown, rtol=1e-6)
    assert result.hidden_arcs.tolist() == [1, 0]
    output = CliRunner().invoke(like_app, [str(windowed.path), "--numbers", "6:4>1 7:2>1"]).output
    assert "1 of 2 arcs do not count in layer 0: a window of 3 hides them" in output
