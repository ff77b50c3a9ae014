"""The same heads in two stores, compared with a loop over rows; examples that are left out; a series of stores."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats
from treebank_store import tree_table, write_trees
from typer.testing import CliRunner

from headatlas.store.commands.diff import app
from headatlas.store.comparisons.store_differences import diff
from headatlas.store.errors import ConfigError, NotFoundError

TREES = [[(-1, "root"), *[(0, "dep")] * (n - 1)] for n in (3, 5, 4, 1, 6, 2, 7, 3)]


def attention_of(seed, moved=0.0):
    """Random maps of one seed. `moved` is the share of head 1.2 that goes to the first token instead."""
    rng = np.random.default_rng(seed)

    def maps(tokens):
        n = len(tokens)
        weights = rng.random((2, 3, n, n)) ** 2 + 0.01
        weights /= weights.sum(axis=-1, keepdims=True)
        weights[1, 2] *= 1 - moved
        weights[1, 2, :, 0] += moved
        return weights

    return maps


def added(store, examples):
    """Return the store with the statistic `first` of every head."""
    values = [maps[..., 0].mean(axis=2) for maps, _ in examples]
    return store.add_statistic("first", np.moveaxis(np.array(values), 0, -1).astype(np.float32))


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    steps = [
        write_trees(folder / f"step{i}", [TREES[:cut], TREES[cut:]], attention_of(1, moved), n_layers=2, n_heads=3)
        for i, (cut, moved) in enumerate(((3, 0.0), (5, 0.25), (3, 0.75)))
    ]
    return [(added(store, examples), examples) for store, examples in steps]


def slow(first, second):
    """Return mean divergence and mean share moved of each example and head, and the row that differs most."""
    divergence, moved, changed = [], [], []
    for (a, _), (b, _) in zip(first, second, strict=True):
        result = np.zeros((2, *a.shape[:3]))
        for layer, head, q in np.ndindex(*a.shape[:3]):
            p, r = (maps[layer, head, q].astype(float).tolist() for maps in (a, b))
            result[1, layer, head, q] = sum(abs(x - y) for x, y in zip(p, r, strict=True)) / 2
            for x, y in zip(p, r, strict=True):
                m = (x + y) / 2
                result[0, layer, head, q] += sum(0.5 * w * math.log2(w / m) for w in (x, y) if w > 0)
        divergence.append(result[0].mean(axis=2))
        moved.append(result[1].mean(axis=2))
        changed.append(result[0].argmax(axis=2))
    return np.moveaxis(divergence, 0, -1), np.moveaxis(moved, 0, -1), np.moveaxis(changed, 0, -1)


def test_divergence_and_share_moved_equal_the_loop(series):
    (a, examples_a), (b, examples_b), _ = series
    step = diff([a, b])[0]
    divergence, moved, changed = slow(examples_a, examples_b)
    np.testing.assert_allclose(step.divergence, divergence, atol=2e-6)
    np.testing.assert_allclose(step.moved, moved, atol=1e-6)
    assert (step.changed_row[1, 2] == changed[1, 2]).all()
    rows = np.array([maps.shape[-1] for maps, _ in examples_a])
    np.testing.assert_allclose(step.heads["divergence"], np.average(divergence, axis=2, weights=rows), atol=2e-6)
    best = step.table().iloc[0]
    assert (best["layer"], best["head"]) == (1, 2)
    assert best["divergence_low"] < best["divergence"] < best["divergence_high"]
    assert step.heads["divergence"].to_numpy()[0].max() < 1e-6  # the other heads did not change
    row = step.changed_rows(1, 2, 1)[0]
    number = int(divergence[1, 2].argmax())
    assert (row.example, row.query_pos) == (number, int(changed[1, 2, number]))
    weights = [maps[1, 2, row.query_pos].max() for maps, _ in (examples_a[number], examples_b[number])]
    assert row.weights == pytest.approx(weights, abs=1e-6)
    assert (step.refused, step.n_shared, step.rounding, step.is_complete) == ({}, 8, (0.0, 0.0), True)


def test_statistics_are_compared_in_pairs_with_one_rate_over_the_series(series):
    stores = [store for store, _ in series]
    steps = diff(stores)
    firsts = [np.array([maps[..., 0].mean(axis=2) for maps, _ in examples]) for _, examples in series]
    rows = np.array([maps.shape[-1] for maps, _ in series[0][1]])[:, None, None]
    expected = []
    for step, before, after in zip(steps, firsts, firsts[1:], strict=False):
        assert step.statistics["statistic"].to_numpy().tolist() == ["first"]
        change = (after - before) * rows
        difference = step.statistics["difference"].to_numpy()[0]
        np.testing.assert_allclose(difference, change.sum(axis=0) / rows.sum(), atol=1e-6)
        signs = np.array(list(itertools.product((1, -1), repeat=len(change))))  # exact for so few examples
        p = np.mean(np.abs(signs @ change[:, 1, 2]) >= abs(change[:, 1, 2].sum()) - 1e-9)
        assert step.statistics["p_value"].to_numpy()[0, 1, 2] == pytest.approx(p)
        assert (np.delete(step.statistics["p_value"].to_numpy().ravel(), 5) == 1).all()  # equal within rounding
        expected.append(step.statistics["p_value"].to_numpy().ravel())
    q = stats.false_discovery_control(np.concatenate(expected))
    np.testing.assert_allclose(
        np.concatenate([s.statistics["q_value"].to_numpy().ravel() for s in steps]), q, rtol=1e-6
    )
    blocks = stores[0].annotate(
        "block", {number: i // 2 for i, number in enumerate(stores[0].example_numbers().tolist())}
    )
    assert np.isnan(diff([blocks, stores[1]], unit="block")[0].heads["divergence_low"]).all()  # four units


def test_examples_with_other_tokens_are_left_out_and_other_heads_refused(series, tmp_path):
    (a, _), _, _ = series

    def other_ids(trees):
        table = tree_table(trees)
        return dataclasses.replace(table, id=np.where(np.arange(len(table)) < 5, 7, table.id).astype(np.int32))

    other, _ = write_trees(tmp_path / "other", [TREES[:4]], attention_of(2), other_ids, n_layers=2, n_heads=3)
    step = diff([a, other], statistics=[])[0]
    assert (step.n_shared, step.refused) == (3, {"with different tokens": 1, "in one store only": 4})
    assert step.example.tolist() == [1, 2, 3]
    wide, _ = write_trees(tmp_path / "wide", [TREES[:4]], attention_of(2), n_layers=2, n_heads=3, name="decoder")
    with pytest.raises((ConfigError, NotFoundError), match="decoder"):
        diff([a, wide])
    with pytest.raises(ConfigError, match="two or more"):
        diff([a])
    empty, _ = write_trees(
        tmp_path / "empty", [TREES[:1]], attention_of(2), lambda trees: dataclasses.replace(
            tree_table(trees), id=np.full(5, 9, np.int32)
        ), n_layers=2, n_heads=3,
    )  # fmt: skip
    with pytest.raises(NotFoundError, match="Trace the same corpus"):
        diff([a, empty])


def test_a_comparison_is_stopped_between_examples(series):
    stores, calls = [store for store, _ in series], []
    steps = diff(stores, threads=1, on_progress=lambda *n: calls.append(n), stop=lambda: len(calls) >= 3)
    assert calls == [(1, 16), (2, 16), (3, 16)]
    assert [len(step.example) for step in steps] == [3, 0]
    assert [step.is_complete for step in steps] == [False, False]


def test_the_command_prints_every_step(series):
    paths = [str(store.path) for store, _ in series]

    def run(*arguments):
        result = CliRunner().invoke(app, [*paths, *arguments], env={"COLUMNS": "120", "NO_COLOR": "1"})
        if result.exception:
            raise result.exception
        return result.stdout

    text = run("--top", "2", "--examples", "1")
    assert "step0 → step1" in text
    assert "step1 → step2" in text
    assert "divergence by layer and head" in text
    output = json.loads(run("--json", "--head", "0.1"))["steps"]
    assert [len(step["heads"]) for step in output] == [6, 6]
    assert output[0]["head"] == "0.1"
    assert len(output[0]["statistics"]) == 6
    assert len(run("--csv").splitlines()) == 13
