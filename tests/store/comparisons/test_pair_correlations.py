"""Correlations of pair differences with a number: compared with scipy over units, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from treebank_store import CHAIN, chain_table, write_trees
from typer.testing import CliRunner

from headatlas.store.commands.contrast import app
from headatlas.store.comparisons.pair_correlations import correlate_pairs
from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.queries.minimal_pairs import attention_contrast, contrast, minimal_pairs
from headatlas.store.queries.pattern_search import search

PATTERN = "key.position == query.position - 1 and query.position > 1"
N_PAIRS = 26
SHARES = [(7 * i) % 24 for i in range(24)]


@pytest.fixture(scope="module")
def share_store(tmp_path_factory):
    """26 pairs of 13 jobs. Head 0.1 moves with the share of the pair, 0.0 not at all, and 0.2 at random.

    The first pair has no share, and the members of the second one have different shares.
    """
    rng, numbers = np.random.default_rng(4), iter(range(2 * N_PAIRS))

    def attention_of(tokens):
        number = next(numbers)
        pair, is_second, n = number // 2, number % 2, len(tokens)
        share = SHARES[pair - 2] if pair >= 2 else 0
        weights = np.full((1, 3, n, n), 0.05)
        rows = np.arange(1, n)
        weights[0, 0, rows, rows - 1] = 0.3
        weights[0, 1, rows, rows - 1] = 0.4 + is_second * (0.01 * share - 0.1 + 0.02 * rng.random())
        weights[0, 2, rows, rows - 1] = 0.2 + 0.3 * rng.random()
        return weights

    shares = [3, 4, *(share for share in SHARES for _ in range(2))]
    columns = {
        "pair": [f"p{i // 2}" for i in range(2 * N_PAIRS)],
        "variant": ["he", "she"] * N_PAIRS,
        "job": [f"j{i // 4}" for i in range(2 * N_PAIRS)],
    }
    path = tmp_path_factory.mktemp("shares") / "store"
    store, _ = write_trees(path, [[CHAIN] * (2 * N_PAIRS)], attention_of, chain_table, columns=columns, n_layers=1)
    store.annotate("share", dict(enumerate(shares, 2)))
    return store.refresh()


@pytest.mark.parametrize("unit", ["pair", "job"])
def test_the_correlation_is_that_of_the_means_of_units(share_store, unit):
    result = contrast(search(share_store, PATTERN), minimal_pairs(share_store), unit=unit)
    correlated = correlate_pairs(share_store, result, "share")
    assert correlated.left_out == {"without a number in both members": 1, "with different numbers in its members": 1}
    size = 1 if unit == "pair" else 2
    shares = np.array(SHARES, float).reshape(-1, size).mean(axis=1)
    assert correlated.n_units == len(shares)
    for head in (1, 2):
        moves = result.difference[0, head, 2:].reshape(-1, size).mean(axis=1)
        expected = spearmanr(moves, shares)
        assert float(correlated.heads["rho"][0, head]) == pytest.approx(expected.statistic, abs=1e-9)
        assert float(correlated.heads["p_value"][0, head]) == pytest.approx(expected.pvalue, rel=1e-3)
        assert float(correlated.heads["difference"][0, head]) == pytest.approx(result.difference[0, head, 2:].mean())
    assert np.isnan(correlated.heads["rho"][0, 0])  # its differences are rounding
    best = correlated.table().iloc[0]
    assert (best["head"], best["pairs"], best["units"]) == (1, 24, len(shares))
    assert best["q_value"] < 0.01
    assert best["low"] < best["rho"] <= best["high"]
    scatter = correlated.scatter(0, 1)
    assert scatter["pair"].tolist() == [f"p{i}" for i in range(2, N_PAIRS)]
    np.testing.assert_allclose(scatter["difference"], result.difference[0, 1, 2:])


def test_attention_itself_correlates_too(share_store):
    result = attention_contrast(share_store, minimal_pairs(share_store))
    correlated = correlate_pairs(share_store, result, "share")
    expected = spearmanr(result.difference[0, 1, 2:], SHARES).statistic
    assert float(correlated.heads["rho"][0, 1]) == pytest.approx(expected, abs=1e-9)


def test_columns_that_cannot_be_correlated_are_refused(share_store):
    result = contrast(search(share_store, PATTERN), minimal_pairs(share_store))
    with pytest.raises(ConfigError, match="job is text; expected numbers"):
        correlate_pairs(share_store, result, "job")
    with pytest.raises(NotFoundError, match="no annotation 'women'"):
        correlate_pairs(share_store, result, "women")
    numbers = share_store.example_numbers().tolist()
    for name, values, message in (
        ("none", {numbers[0]: 1.0}, "none has no number in the [0-9]+ compared pairs"),
        ("equal", dict.fromkeys(numbers, 0.5), "equal has the same value, 0.5, in the [0-9]+ compared pairs"),
    ):
        with pytest.raises(ConfigError, match=message):
            correlate_pairs(share_store.annotate(name, values), result, name)
    with pytest.raises(NotFoundError, match=r"no head 0\.7"):
        correlate_pairs(share_store, result, "share").scatter(0, 7)


def test_the_command(share_store):
    arguments = [str(share_store.path), PATTERN, "--correlate", "share", "--unit", "job"]
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert (document["pairs"], document["units"], document["unit"], document["head"]) == (24, 12, "job", "0.1")
    assert document["heads"][0]["rho"] > 0.9
    assert len(document["points"]) == 24
    assert sorted({point["unit"] for point in document["points"]}) == list(range(12))
    assert document["heads_below_05"] == sum((row["q_value"] or 1) < 0.05 for row in document["heads"])
    shown = CliRunner().invoke(app, [*arguments, "--top", "2"], catch_exceptions=False).stdout
    assert "Spearman's ρ of the mass of" in shown
    assert "in she minus that in he" in shown
    assert "1 with different numbers in its members" in shown
    assert "Difference of head 0.1 by share" in shown
    rows = CliRunner().invoke(app, [*arguments, "--csv"], catch_exceptions=False).stdout.splitlines()
    assert rows[0].startswith("layer,head,rho,low,high,p_value")
    assert len(rows) == 4
    whole = CliRunner().invoke(app, [str(share_store.path), "--correlate", "share"], catch_exceptions=False).stdout
    assert "distance between the attention in she and in he" in whole
