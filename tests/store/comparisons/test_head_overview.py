"""The overview of heads: what they do apart from sinks, with evidence; and the decay of attention with distance."""

import json

import numpy as np
import pytest
from treebank_store import tree_table, write_trees
from typer.testing import CliRunner

from headatlas.store.commands.stats import app
from headatlas.store.comparisons.head_overview import head_overview
from headatlas.store.errors import ConfigError
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.statistics.definitions import head_statistics
from headatlas.store.statistics.profiles import offset_decay
from headatlas.store.statistics.specialisation import statistics_table, uniform_values

TREES = [[(-1, "root"), *[(0, "dep")] * (n - 1)] for n in (60, 50, 70, 40, 66, 58, 61)]


def attention_of(tokens):
    """Make causal maps: 0.0 first token and previous, 0.1 first token alone, 1.0 ∝ 1 / distance, 1.1 ∝ 1 / distance²."""
    n = len(tokens)
    query, key = np.indices((n, n))
    distance = np.maximum(query - key, 1)
    maps = np.zeros((2, 2, n, n))
    maps[0, 0] = np.where(key == query - 1, 1, 0)
    maps[0, 0, 0, 0] = 1
    maps[0, :, :, 0] += 9
    maps[0, 1] += 1e-9
    maps[1, 0], maps[1, 1] = distance**-1.0, distance**-2.0
    maps[1] *= key < query
    maps[1, :, 0, 0] = 1
    maps *= key <= query
    return maps / maps.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("overview") / "store"
    return write_trees(
        path, [TREES[:3], TREES[3:]], attention_of, lambda trees: tree_table(trees, special=False),
        name="decoder", causal=True, n_layers=2, n_heads=2, n_kv_heads=2,
    )[0]  # fmt: skip


def with_statistics(store):
    """Return the store with the statistic `first`, which captures store."""
    values = []
    for example in store.examples:
        maps = example.attention().to_numpy()
        values.append([head_statistics(layer, example.tokens().special, ["first"])[0] for layer in maps])
    return store.add_statistic("first", np.moveaxis(np.array(values), 0, -1), replace=True)


def test_what_a_head_does_apart_from_sinks_is_named_with_evidence(store):
    heads = head_overview(with_statistics(store)).set_index(["layer", "head"])
    assert heads["behaviour"].unique().tolist() == ["first"]
    previous = heads.loc[(0, 0)]
    assert previous["after_sinks"] == "previous"
    # Row 1 sees the sink and itself: without the sink nothing is left.
    n_rows = sum(len(tree) - 1 for tree in TREES)
    assert previous["after_value"] == pytest.approx(1 - len(TREES) / n_rows, abs=1e-5)
    assert previous["after_low"] <= previous["after_value"] <= previous["after_high"]
    expected = sum(1 / (q) for tree in TREES for q in range(2, len(tree))) / n_rows
    assert previous["after_baseline"] == pytest.approx(expected, abs=1e-5)
    assert previous["after_q"] < 0.05  # exact for so few examples
    assert heads.loc[(0, 1), "after_q"] > 0.5  # uniform apart from its sink
    output = CliRunner().invoke(app, ["stats", str(store.path)], env={"COLUMNS": "140", "NO_COLOR": "1"})
    assert output.exception is None, output.output
    assert "after sinks" in output.stdout
    assert "previous" in output.stdout


def test_uniform_values_are_those_of_a_uniform_map(store):
    site = store.site()
    uniform = uniform_values(store, site, [STATISTICS["previous"]])["previous"]
    for index, tree in enumerate(TREES):
        mean = np.mean([1 / (q + 1) for q in range(1, len(tree))])
        np.testing.assert_allclose(uniform.values[:, 0, index], mean, rtol=1e-6)
        assert uniform.rows[:, index].tolist() == [len(tree) - 1] * 2


def test_decay_is_the_slope_of_a_power_law(store):
    decay = offset_decay(store)
    # The sum of a row changes with its length, so the slopes are close to the exponents, not equal.
    np.testing.assert_allclose(decay["decay"][1], [-1, -2], atol=0.15)
    assert (decay["decay_fit"][1] > 0.98).all()
    assert np.isnan(decay["decay"][0, 0]) or decay["decay_fit"][0, 0] < 0.9
    table = statistics_table(store, ["decay", "decay_fit", "previous"])
    np.testing.assert_allclose(table["decay"], decay["decay"].ravel())

    def run(*arguments):
        result = CliRunner().invoke(app, ["stats", str(store.path), *arguments], env={"COLUMNS": "120"})
        if result.exception:
            raise result.exception
        return result.stdout

    heads = json.loads(run("--statistic", "decay", "--ascending", "--json"))["heads"]
    assert (heads[0]["layer"], heads[0]["head"]) == (1, 1)
    assert list(heads[0]) == ["layer", "head", "decay", "decay_fit"]
    values = [head["first"] for head in json.loads(run("--statistic", "first", "--json"))["heads"]]
    ascending = [head["first"] for head in json.loads(run("--statistic", "first", "--ascending", "--json"))["heads"]]
    assert ascending == values[::-1] or ascending == sorted(values)
    with pytest.raises(ConfigError, match="no value for each example"):
        run("--statistic", "decay", "--spread")
    with pytest.raises(ConfigError, match="--ascending needs"):
        run("--ascending")
