"""Two patterns, groups of examples and correlations, compared with loops over the examples."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats
from treebank_store import write_trees
from typer.testing import CliRunner

from headatlas.store.commands.search import app
from headatlas.store.comparisons.search_comparisons import correlate, split_by, versus
from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.queries.pattern_search import search

N = 40
LENGTHS = [3 + i % 4 for i in range(N)]
SHARES = [None if i == 7 else (i % 10) / 10 for i in range(N)]
GENRES = [None if i == 3 else ("news", "blog")[i % 2] for i in range(N)]
DOCUMENTS = [i // 4 for i in range(N)]
PATTERN, OTHER = "key.position == query.position - 1 and query.position > 1", "key.position == query.position + 1"


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Head 0.0 looks back more if the share is large; head 1.2 looks ahead, in blogs more than in news."""
    rng = np.random.default_rng(5)
    state = {"number": 0}

    def attention_of(tokens):
        number, n = state["number"], len(tokens)
        state["number"] += 1
        weights = rng.random((2, 3, n, n)) + 0.5
        weights[0, 0] += 3 * (SHARES[number] or 0) * np.eye(n, k=-1) * n
        weights[1, 2] += (1 + 3 * (GENRES[number] == "blog")) * np.eye(n, k=1) * n
        return weights / weights.sum(axis=-1, keepdims=True)

    trees = [[(-1, "root"), *[(0, "dep")] * (n - 1)] for n in LENGTHS]
    path = tmp_path_factory.mktemp("compared") / "store"
    store, examples = write_trees(path, [trees[:15], trees[15:]], attention_of, columns={"genre": GENRES})
    store = store.annotate("share", {i: share for i, share in enumerate(SHARES) if share is not None})
    store = store.annotate("block", dict(enumerate(DOCUMENTS)))
    return store.annotate("share_class", {i: int(10 * (share or 0)) for i, share in enumerate(SHARES)}), examples


def masses(examples, offset, first):
    """Return the mass at an offset of each example, over query positions from `first`, and the number of rows."""
    means, rows = [], []
    for maps, _ in examples:
        n = maps.shape[-1]
        queries = [q for q in range(first, n) if 0 <= q + offset < n]
        means.append(np.mean([maps[:, :, q, q + offset].astype(float) for q in queries], axis=0))
        rows.append(len(queries))
    return np.array(means), np.array(rows)


def test_two_patterns_are_compared_in_pairs(traced):
    store, examples = traced
    result, others = search(store, PATTERN), [search(store, OTHER), search(store, PATTERN)]
    ahead, itself = versus(result, others)
    expected = masses(examples, -1, 2)[0] - masses(examples, 1, 0)[0]
    np.testing.assert_allclose(np.moveaxis(ahead.difference, -1, 0), expected, atol=1e-6)
    np.testing.assert_allclose(ahead.heads["difference"], expected.mean(axis=0), atol=1e-6)
    p = stats.ttest_1samp(expected, 0).pvalue
    np.testing.assert_allclose(ahead.heads["p_value"], p, rtol=1e-3)
    q = stats.false_discovery_control(np.concatenate([p.ravel(), np.ones(6)]))[:6].reshape(2, 3)
    np.testing.assert_allclose(ahead.heads["q_value"], q, rtol=1e-3)  # over the heads of both patterns
    assert (itself.heads["p_value"] == 1).all()
    assert (itself.heads["difference"] == 0).all()
    best = ahead.table().iloc[0]
    assert (best["layer"], best["head"]) in {(0, 0), (1, 2)}
    number, difference = ahead.extreme_examples(1, 2, 1)[0]
    assert difference == pytest.approx(expected[:, 1, 2].min(), abs=1e-6)
    assert expected[number, 1, 2] == pytest.approx(difference, abs=1e-6)
    coarse = versus(result, others[:1], unit="block")[0]
    by_document = expected.reshape(10, 4, 2, 3).mean(axis=1)
    signs = np.array(list(itertools.product((1, -1), repeat=10)))  # exact for so few units
    p = (np.abs(np.tensordot(signs, by_document, 1)) >= np.abs(by_document.sum(axis=0)) - 1e-9).mean(axis=0)
    np.testing.assert_allclose(coarse.heads["p_value"], p)


def test_examples_in_which_one_pattern_has_no_match_take_no_part(traced):
    store, _ = traced
    long = f"{PATTERN} and query.position == 6"  # texts of five words and more
    comparison = versus(search(store, long), [search(store, OTHER)])[0]
    assert comparison.example.tolist() == [i for i in range(N) if LENGTHS[i] + 2 > 6]
    nothing = versus(search(store, "key.position > 99"), [search(store, OTHER)])[0]
    assert len(nothing.example) == 0
    assert np.isnan(nothing.heads["q_value"]).all()


def test_groups_have_their_own_masses_and_a_test_between_them(traced):
    store, examples = traced
    split = split_by(search(store, OTHER), "genre")
    means, rows = masses(examples, 1, 0)
    assert (split.labels, split.left_out) == (("news", "blog"), 1)
    assert split.examples == (20, 19)
    for index, label in enumerate(split.labels):
        group = np.array([genre == label for genre in GENRES])
        expected = np.average(means[group], axis=0, weights=rows[group])
        np.testing.assert_allclose(split.groups["mass"][index], expected, atol=1e-6)
        assert (split.groups["low"][index] <= expected).all()
    table = split.table()
    assert (table["layer"][0], table["head"][0]) == (1, 2)
    assert table["q_value"][0] < 1e-6
    assert table["mass_blog"][0] > table["mass_news"][0]
    assert table["p_value"].drop(0).min() > 0.001  # the other heads do not differ
    assert split_by(search(store, OTHER), "genre", ["blog", "news"]).labels == ("blog", "news")
    with pytest.raises(NotFoundError, match="no example with a match has genre 'poem'"):
        split_by(search(store, OTHER), "genre", ["news", "poem"])
    with pytest.raises(NotFoundError, match="no annotation 'gender'"):
        split_by(search(store, OTHER), "gender")
    assert split_by(search(store, OTHER), "genre", ["blog", "news", "blog"]).labels == ("blog", "news")
    with pytest.raises(ConfigError, match="genre has only the value 'news' in the 20 examples"):
        split_by(search(store, f"{OTHER} and example.genre == 'news'"), "genre")


def test_the_mass_of_examples_is_correlated_with_their_number(traced):
    store, examples = traced
    correlated = correlate(search(store, PATTERN), "share")
    means, _ = masses(examples, -1, 2)
    has_share = np.array([share is not None for share in SHARES])
    shares = np.array([share for share in SHARES if share is not None])
    for layer, head in np.ndindex(2, 3):
        expected = stats.spearmanr(means[has_share, layer, head], shares)
        assert float(correlated.heads["rho"][layer, head]) == pytest.approx(expected.statistic, abs=1e-6)
        assert float(correlated.heads["p_value"][layer, head]) == pytest.approx(expected.pvalue, rel=1e-3)
    best = correlated.table().iloc[0]
    assert (best["layer"], best["head"]) == (0, 0)
    assert 0.9 < best["low"] < best["rho"] < best["high"]
    assert (correlated.left_out, len(correlated.scatter(0, 0))) == (1, 39)
    np.testing.assert_allclose(correlated.scatter(0, 0)["mass"], means[has_share, 0, 0], atol=1e-6)
    by_share = correlate(search(store, PATTERN), "share", unit="share_class")
    assert by_share.n_units == 10
    with pytest.raises(ConfigError, match="genre is text; expected numbers"):
        correlate(search(store, PATTERN), "genre")


@pytest.mark.parametrize(
    ("condition", "unit", "message"),
    [
        ("query.position > 99", None, "share has no number in the 0 examples"),
        ("example.share == 0.5", None, "share has the same value, 0.5, in the 4 examples"),
        ("example.block == 1 and example.genre == 'blog'", None, "share has one number in the 2 examples"),
        ("query.position > 0", "half", "share has the same mean in each of the 2 sampling units"),
    ],
)
def test_numbers_that_cannot_be_correlated_are_refused_with_the_reason(traced, condition, unit, message):
    store, _ = traced
    if unit:  # both units have the shares 0.1, 0.1 and 0.3, 0.3
        units = {i: i // 10 for i, share in enumerate(SHARES) if i // 10 in (1, 2)}
        store = store.annotate("half", units)
        condition += " and (example.half == 1 or example.half == 2)"
    with pytest.raises(ConfigError, match=message):
        correlate(search(store, f"{PATTERN} and {condition}"), "share", unit)


def test_groups_that_are_too_small_for_a_test_are_named(traced):
    store, _ = traced
    rare = store.annotate("rare", {i: "few" if i < 4 else "many" for i in range(N)})
    split = split_by(search(rare, OTHER), "rare")
    assert split.few == ("few",)
    assert np.isnan(split.heads["p_value"]).all()
    result = CliRunner().invoke(app, ["search", str(store.path), OTHER, "--split", "rare"], env={"COLUMNS": "140"})
    assert "No test: fewer than 5 sampling units have the value few." in result.output
    assert "No test" not in CliRunner().invoke(app, ["search", str(store.path), OTHER, "--split", "genre"]).output


def test_the_command_prints_every_comparison(traced):
    store, _ = traced

    def run(*arguments):
        result = CliRunner().invoke(
            app, ["search", str(store.path), PATTERN, *arguments], env={"COLUMNS": "140", "NO_COLOR": "1"}
        )
        if result.exception:
            raise result.exception
        return result.stdout

    text = run("--versus", OTHER, "--top", "2", "--examples", "1")
    assert "means of 40 examples in which both match" in text
    output = json.loads(run("--versus", OTHER, "--versus", "self_token", "--json", "--head", "0.1"))
    assert [c["versus"] for c in output["comparisons"]] == [OTHER, "self_token"]
    assert output["comparisons"][0]["head"] == "0.1"
    assert len(output["comparisons"][0]["differences"]) == 40
    assert len(run("--versus", OTHER, "--csv").splitlines()) == 7
    assert "blog" in run("--split", "genre")
    assert json.loads(run("--split", "genre", "--json"))["groups"][0] == {"label": "news", "examples": 20, "rows": 80}
    assert run("--split", "genre", "--csv").startswith("layer,head,spread,p_value,q_value,mass_news")
    text = run("--correlate", "share")
    assert "Mass of head 0.0 by share" in text
    assert "+0.9" in text
    output = json.loads(run("--correlate", "share", "--json", "--top", "1"))
    assert (output["head"], len(output["points"]), len(output["heads"])) == ("0.0", 39, 1)
    with pytest.raises(ConfigError, match="expected one of them"):
        run("--split", "genre", "--correlate", "share")
