"""Minimal pairs compared with a loop over the pairs, and every reason to leave out a pair."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import typer
from treebank_store import CHAIN, chain_table, tree_table, write_trees
from typer.testing import CliRunner

from headatlas.store.commands.contrast import app
from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.queries.minimal_pairs import attention_contrast, contrast, minimal_pairs
from headatlas.store.queries.pattern_search import search

PATTERN = "key.position == query.position - 1 and query.position > 1"


@pytest.fixture(scope="module")
def pair_store(tmp_path_factory):
    """Twelve pairs: head 0.1 attends back more if the token is 2, head 0.0 is equal in both, the others are random."""
    rng = np.random.default_rng(2)
    state = {}

    def attention_of(tokens):
        n = len(tokens)
        second = bool((tokens.id == 2).any())
        weights = rng.random((2, 3, n, n)) + 0.1
        if not second:
            state["first"] = weights[0, 0].copy()
        weights[0, 0] = state["first"]
        weights /= weights.sum(axis=-1, keepdims=True)
        q = np.arange(1, n)
        weights[0, 1] = 0
        weights[0, 1, q, q - 1] = 0.5 + 0.3 * second + 0.02 * rng.random()
        return weights

    names = [f"p{i // 2}" for i in range(24)]
    variants = ["he", "she"] * 12
    path = tmp_path_factory.mktemp("pairs") / "store"
    columns = {"pair": names, "variant": variants}
    return write_trees(path, [[CHAIN] * 10, [CHAIN] * 14], attention_of, chain_table, columns=columns)


def test_differences_equal_a_loop_over_the_pairs(pair_store):
    store, examples = pair_store
    pairs = minimal_pairs(store)
    assert pairs.variants == ("he", "she")
    assert (pairs.first.tolist(), pairs.second.tolist()) == (list(range(0, 24, 2)), list(range(1, 24, 2)))
    assert pairs.refused == {}
    result = contrast(search(store, PATTERN), pairs)

    def mass(example):
        maps = examples[example][0].astype(float)
        rows = range(2, maps.shape[2])
        return np.mean([maps[:, :, q, q - 1] for q in rows], axis=0)

    expected = np.array([mass(2 * i + 1) - mass(2 * i) for i in range(12)])
    np.testing.assert_allclose(result.difference, np.moveaxis(expected, 0, -1), atol=1e-6)
    np.testing.assert_allclose(result.heads["difference"], expected.mean(axis=0), atol=1e-6)
    heads = result.heads
    signs = np.array(list(itertools.product((1, -1), repeat=12)))
    sums = np.einsum("sp,plh->slh", signs, expected)
    larger = [(sums >= sums[0] - 1e-9).mean(axis=0), (sums <= sums[0] + 1e-9).mean(axis=0)]
    p_value = np.minimum(2 * np.minimum(*larger), 1)
    p_value[0, 0] = np.nan  # no difference at all
    np.testing.assert_allclose(heads["p_value"], p_value, atol=1e-9)
    assert float(heads["q_value"][0, 1]) < 0.01
    assert float(heads["difference"][0, 0]) == 0
    best = result.table().iloc[0]
    assert (best["layer"], best["head"], best["pairs"]) == (0, 1, 12)
    assert best["low"] < best["difference"] < best["high"]
    name, first, second, difference = result.driving_pairs(0, 1)[0]
    assert difference == pytest.approx(expected[:, 0, 1].max(), abs=1e-6)
    assert (name, second) == (f"p{first // 2}", first + 1)


def test_pairs_of_a_unit_count_once_and_rounding_has_no_p_value(tmp_path):
    """Head 0.0 differs by 1e-8 in every pair, head 0.1 by a number of its template. The old p of both was below 0.02."""
    effect = dict(zip("abcdefgh", (0.2, 0.2, 0.2, 0.2, -0.1, -0.1, 0.1, -0.1), strict=True))
    rng, count = np.random.default_rng(0), iter(range(96))

    def attention_of(tokens):
        number = next(count)
        n = len(tokens)
        weights = np.full((1, 2, n, n), 0.01, np.float32)
        weights[:, :, np.arange(n), np.arange(n) - 1] = 0.25
        rows = np.arange(1, n)
        weights[0, 0, rows, rows - 1] += 6e-8 * (number % 2)
        weights[0, 1, rows, rows - 1] += effect["abcdefgh"[number // 12]] * (number % 2) + 0.001 * rng.random()
        return weights

    columns = {
        "pair": [f"p{i // 2}" for i in range(96)],
        "variant": ["he", "she"] * 48,
        "template": ["abcdefgh"[i // 12] for i in range(96)],
    }
    store, _ = write_trees(
        tmp_path / "store",
        [[CHAIN] * 96],
        attention_of,
        chain_table,
        columns=columns,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    searched, pairs = search(store, PATTERN), minimal_pairs(store)
    result = contrast(searched, pairs)
    assert (result.units.name, result.n_units, len(result.pair_index)) == ("template", 8, 48)
    assert np.isnan(result.heads["p_value"][0, 0])
    assert float(result.heads["difference"][0, 0]) > 0
    assert float(result.heads["p_value"][0, 1]) > 0.05
    alone = contrast(searched, pairs, unit="example")
    assert float(alone.heads["p_value"][0, 1]) < 0.02
    assert np.isnan(alone.heads["p_value"][0, 0])
    width, narrow = (float(r.heads["high"][0, 1] - r.heads["low"][0, 1]) for r in (result, alone))
    assert width > 1.5 * narrow
    with pytest.raises(NotFoundError, match="no annotation 'topic'"):
        contrast(searched, pairs, unit="topic")


def test_attention_itself_is_compared_row_by_row(pair_store):
    store, examples = pair_store
    result = attention_contrast(store, minimal_pairs(store))
    expected = np.zeros((2, 3, 12))
    for pair in range(12):
        first, second = (examples[number][0].astype(float) for number in (2 * pair, 2 * pair + 1))
        for layer, head in np.ndindex(2, 3):
            rows = [0.5 * sum(abs(a - b)) for a, b in zip(first[layer, head], second[layer, head], strict=True)]
            expected[layer, head, pair] = sum(rows) / len(rows)
    np.testing.assert_allclose(result.difference, expected, atol=1e-6)
    assert float(result.heads["difference"][0, 0]) == 0
    above = expected - expected.mean(axis=(0, 1))
    sums = above @ np.array(list(itertools.product((1, -1), repeat=12))).T
    np.testing.assert_allclose(result.heads["p_value"], (sums >= sums[..., :1] - 1e-9).mean(axis=-1), atol=1e-9)
    assert np.isnan(result.heads["mass_first"]).all()
    name, first, _, largest = result.driving_pairs(0, 1, 1)[0]
    assert (name, largest) == (f"p{first // 2}", pytest.approx(expected[0, 1].max(), abs=1e-6))
    alone = typer.Typer()
    alone.add_typer(app)
    alone.callback()(lambda: None)
    output = json.loads(CliRunner().invoke(alone, ["contrast", str(store.path), "--json"]).stdout)
    assert (output["contrast"]["pattern"], output["heads"][0]["mass_first"]) == (None, None)
    assert output["heads"][0]["difference"] == pytest.approx(expected.mean(axis=-1).max(), abs=1e-6)


def test_the_order_of_variants_changes_the_sign(pair_store):
    store, _ = pair_store
    result = search(store, PATTERN)
    ahead, back = (contrast(result, minimal_pairs(store, between=b)) for b in (("he", "she"), ("she", "he")))
    np.testing.assert_allclose(ahead.heads["difference"], -back.heads["difference"])
    np.testing.assert_allclose(ahead.heads["p_value"], back.heads["p_value"], atol=1e-12)


def test_pairs_that_do_not_align_are_left_out_and_counted(tmp_path):
    trees = [CHAIN, CHAIN, CHAIN, CHAIN[:3], CHAIN, CHAIN, CHAIN, CHAIN, CHAIN, CHAIN, CHAIN, CHAIN, CHAIN]
    names = ["good", "good", "short", "short", "same", "same", "two", "two", "alone", "many", "many", "many", None]
    variants = ["a", "b", "a", "b", "a", "b", "a", "b", "a", "a", "b", "b", "a"]

    def table(trees):
        tokens = tree_table(trees)
        ids = np.full(len(tokens), 9, np.int32)
        offset = tokens.token_offset
        ids[offset[1] + 2] = 5
        ids[offset[7] + 1 : offset[7] + 3] = 5
        return dataclasses.replace(tokens, id=ids)

    def uniform(tokens):
        return np.full((1, 1, len(tokens), len(tokens)), 1 / len(tokens))

    columns = {"pair": names, "variant": variants}
    store, _ = write_trees(
        tmp_path / "store", [trees], uniform, table, columns=columns, n_layers=1, n_heads=1, n_kv_heads=1
    )
    pairs = minimal_pairs(store)
    assert pairs.names == ["good"]
    assert pairs.refused == {
        "different numbers of tokens": 1,
        "no difference": 1,
        "more than one word differs": 1,
        "one member missing": 1,
        "several members of one variant": 1,
    }
    few = contrast(search(store, "previous_token"), pairs)
    assert np.isnan(few.heads["p_value"]).all()
    assert float(few.heads["difference"][0, 0]) == 0
    nothing = contrast(search(store, "query.position > 99"), pairs)
    assert len(nothing.pair_index) == 0
    assert np.isnan(nothing.heads["difference"]).all()
    assert nothing.driving_pairs(0, 0) == []
    with pytest.raises(ConfigError, match=r"'c'.*expected two different ones of 'a', 'b'"):
        minimal_pairs(store, between=("a", "c"))
    with pytest.raises(NotFoundError, match="no annotation 'gender'"):
        minimal_pairs(store, variant="gender")


def test_the_command(pair_store):
    store, _ = pair_store
    program = typer.Typer()
    program.add_typer(app)
    program.callback()(lambda: None)

    def run(*arguments):
        result = CliRunner().invoke(program, ["contrast", str(store.path), PATTERN, *arguments])
        assert result.exception is None, result.output
        return result.output

    output = json.loads(run("--json", "--examples", "2"))
    assert output["contrast"] | {"first": "he", "second": "she", "pairs": 12, "refused": {}} == output["contrast"]
    assert (output["heads"][0]["layer"], output["heads"][0]["head"], len(output["heads"])) == (0, 1, 6)
    assert (output["head"], len(output["pairs"])) == ("0.1", 12)  # every pair, whatever --examples is
    of_other = json.loads(run("--json", "--head", "1.0"))
    assert of_other["head"] == "1.0"
    result = store.contrast(PATTERN)
    assert [row["difference"] for row in of_other["pairs"]] == [row[3] for row in result.driving_pairs(1, 0, None)]
    assert sum(row["difference"] for row in of_other["pairs"]) / 12 == pytest.approx(
        float(result.heads["difference"][1, 0])
    )
    assert store.contrast(between=("she", "he")).heads.equals(store.contrast().heads)
    with pytest.raises(NotFoundError, match=r"no head 7\.0"):
        result.driving_pairs(7, 0)
    table = run("--top", "2", "--between", "she", "he")
    assert "12 pairs, mass in he minus mass in she" in table
    assert "Pairs with the largest differences of head 0.1" in table
    assert run("--csv").splitlines()[0] == "layer,head,difference,low,high,mass_first,mass_second,p_value,q_value,pairs"
