"""The commands `stats`, `search` and `patterns`: their tables, CSV and JSON."""

import csv
import io
import json

import numpy as np
import pytest
from traced_corpus import make_site, make_store
from typer.testing import CliRunner

from headatlas.store.commands import search as search_command
from headatlas.store.commands import stats as statistics
from headatlas.store.errors import ConfigError, NotFoundError, PatternError
from headatlas.store.patterns import LIBRARY
from headatlas.store.queries.pattern_search import search
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep
from headatlas.store.statistics.definitions import head_statistics
from headatlas.store.statistics.specialisation import specialised_heads, statistics_table


@pytest.fixture
def traced(tmp_path):
    return make_store(tmp_path / "store", lengths=((3, 7, 5), (1, 8, 6)))


def run(*arguments, width=100):
    app = statistics.app if arguments[0] == "stats" else search_command.app
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(width), "NO_COLOR": "1"})
    if result.exception:
        raise result.exception
    return result.stdout


def test_search_json_has_the_documented_shape(traced):
    output = json.loads(run("search", traced.store.path, "previous_token", "--json", "--examples", 2))
    assert len(output["heads"]) == 6
    keys = ["layer", "head", "mass", "hit_rate", "baseline", "lift", "rows", "examples"]
    keys += ["mass_low", "mass_high", "offset_baseline", "offset_lift", "expected_uniform", "above_uniform"]
    keys += ["above_high_uniform", "p_uniform", "q_uniform", "rank"]
    assert all(list(head) == keys for head in output["heads"])
    masses = [head["mass"] for head in output["heads"]]
    assert masses == sorted(masses, reverse=True)
    assert (output["heads"][0]["layer"], output["heads"][0]["head"]) == (0, 0)
    assert len(output["examples"]) == 2
    for example in output["examples"]:
        assert list(example) == ["example", "id", "layer", "head", "score", "edge"]
        assert list(example["edge"]) == ["query_pos", "key_pos", "weight"]
        assert example["edge"]["key_pos"] == example["edge"]["query_pos"] - 1
    assert output["search"]["basis"] == "attention"
    result = search(traced.store, "previous_token")
    assert masses == pytest.approx(np.sort(result.heads["mass"].to_numpy().ravel())[::-1].tolist())


def test_a_table_wider_than_the_terminal_keeps_its_columns(traced):
    wide = run("stats", traced.store.path, "--definition", "headvis", width=40).splitlines()[1]
    assert wide.split()[0] == "head"
    assert wide.split()[-1] == "induction_score"


def test_search_without_a_match_is_still_json(traced):
    output = json.loads(run("search", traced.store.path, 'query.text == "nobody"', "--json", "--top", 1))
    assert output["examples"] == []
    (head,) = output["heads"]
    assert {name for name, value in head.items() if value == 0} == {"layer", "head", "rows", "examples"}
    assert all(head[name] is None for name in ("mass", "hit_rate", "lift", "mass_low", "q_habit", "rank"))
    assert output["search"]["supported"] is False
    assert output["search"]["notes"][0].startswith("no token has text 'nobody'")


def test_search_csv_is_the_table_of_heads(traced):
    rows = list(csv.DictReader(io.StringIO(run("search", traced.store.path, "key.special", "--csv", "--by", "lift"))))
    assert len(rows) == 6
    lifts = [float(row["lift"]) for row in rows]
    assert lifts == sorted(lifts, reverse=True)


def test_search_marks_the_edge_and_names_the_basis(traced):
    output = run("search", traced.store.path, "previous_token", "--top", 2, "--examples", 1, "--head", "0.0")
    best = search(traced.store, "previous_token").top_examples(0, 0, 1)[0]
    assert f"[{best.query_text}]" in output
    assert f"«{best.key_text}»" in output
    assert "stored attention (float32)" in output
    assert "24 rows with a matching key in 5 of 6 examples" in output
    assert "not complete" not in output
    bounded = run("search", traced.store.path, "key.special", "--basis", "edges", "--top", 1)
    assert "mass is between the two numbers" in bounded


def test_stats_json_lists_every_head_with_every_statistic(traced):
    output = json.loads(run("stats", traced.store.path, "--json"))
    assert len(output["heads"]) == 6
    assert all({"layer", "head", *STATISTIC_NAMES} <= set(head) for head in output["heads"])
    assert output["heads"][0] | {"layer": 0, "head": 0, "behaviour": "previous"} == output["heads"][0]
    ranked = json.loads(run("stats", traced.store.path, "--json", "--statistic", "entropy", "--top", 3))["heads"]
    assert [list(head) for head in ranked] == [["layer", "head", "entropy", "entropy_low", "entropy_high"]] * 3
    assert [head["entropy"] for head in ranked] == sorted((h["entropy"] for h in output["heads"]), reverse=True)[:3]


def test_stats_prints_a_table(traced):
    output = run("stats", traced.store.path, "--top", 2)
    first = next(line for line in output.splitlines() if "0.0" in line)
    assert "previous" in first
    assert "×" in first
    assert "2 of 6 heads of encoder, over 6 examples, every token has the same weight." in output
    ranked = run("stats", traced.store.path, "--statistic", "distance", "--statistic", "first", "--average", "examples")
    assert "distance (tokens)" in ranked
    assert "every example has the same weight" in ranked
    columns = run("stats", traced.store.path, "--statistic", "first", "--csv").splitlines()[0]
    assert columns == "layer,head,first,first_low,first_high"


def test_patterns_lists_the_library():
    output = run("patterns")
    assert all(p.name in output and p.expression in output for p in LIBRARY.values())
    assert {p["name"] for p in json.loads(run("patterns", "--json"))["patterns"]} == set(LIBRARY)


def test_errors_reach_the_caller_with_their_position(traced):
    with pytest.raises(PatternError) as caught:
        run("search", traced.store.path, "key.uppos == 'NOUN'")
    assert caught.value.pointed().splitlines()[-1] == "  ^^^^^^^^^"
    with pytest.raises(ConfigError, match=r"LAYER\.HEAD"):
        run("search", traced.store.path, "previous_token", "--head", "seven")
    with pytest.raises(ConfigError, match="no statistic 'sharpness'"):
        run("stats", traced.store.path, "--statistic", "sharpness")
    keep = Keep(attention=None, query_key=None, edges=2, statistics=False)
    bare = make_store(traced.store.path.parent / "bare", keep=keep).store
    with pytest.raises(NotFoundError, match=r"keep\.statistics"):
        run("stats", bare.path)


def test_corpus_text_cannot_control_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr("traced_corpus.WORDS", ["\x1b]0;evil\x07", "[bold]x[/bold]", "a\nb"])
    store = make_store(tmp_path / "store").store
    output = run("search", store.path, "previous_token")
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "[bold]x[/bold]" in output


SITES = [make_site(), make_site("decoder", causal=True, window=(2, None)), make_site("cross", query_sequence="target")]


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
@pytest.mark.parametrize("average", ["rows", "examples"])
def test_uniform_heads_score_their_baselines(tmp_path, monkeypatch, site, average):
    """A model with uniform attention over its visible keys exceeds no baseline."""

    def uniform(rng, site, n_queries, n_keys):
        maps = np.zeros((site.n_layers, site.n_heads, n_queries, n_keys), np.float32)
        distance = np.arange(n_queries)[:, None] - np.arange(n_keys)[None, :]
        for layer, window in enumerate(site.window):
            visible = (distance >= 0) if site.causal else np.ones_like(distance, bool)
            visible &= distance < window if window is not None else visible
            maps[layer] = visible / np.maximum(visible.sum(axis=1, keepdims=True), 1)
        return maps

    monkeypatch.setattr("traced_corpus.random_attention", uniform)
    store = make_store(tmp_path / "store", (site,), lengths=((3, 7, 5), (4, 8))).store
    heads = specialised_heads(store, None, average)
    np.testing.assert_allclose(heads["value"], heads["baseline"], rtol=1e-5)
    np.testing.assert_allclose(heads["excess"], 0, atol=1e-6)


def test_row_averages_of_a_statistic_are_the_mass_of_its_pattern(traced):
    table = statistics_table(traced.store, ["previous", "self"])
    for name, pattern in (("previous", "previous_token"), ("self", "self_token")):
        np.testing.assert_allclose(
            table[name], search(traced.store, pattern).heads["mass"].to_numpy().ravel(), rtol=1e-6
        )


def test_the_statistics_table_is_the_mean_over_the_corpus(traced):
    table = statistics_table(traced.store, ["entropy"], average="examples")
    values = []
    for index, maps in enumerate(traced.attention["encoder"]):
        special = traced.tokens["source"][index].special
        values.append([head_statistics(layer, special, ["entropy"])[0] for layer in maps])
    np.testing.assert_allclose(table["entropy"], np.mean(values, axis=0).ravel(), rtol=1e-5)


def test_search_chooses_on_one_store_and_scores_on_another(traced, tmp_path):
    other = make_store(tmp_path / "other", lengths=((9, 7, 8), (6, 9, 4)), seed=5).store
    both = ("search", "--select", traced.store.path, "--score", other.path, "previous_token")
    output = json.loads(run(*both, "--json", "--top", 2))
    ranked = search(traced.store, "previous_token").table()
    assert [(h["layer"], h["head"], h["rank"]) for h in output["heads"]] == [
        (row.layer, row.head, None if not isinstance(row.rank, int) else row.rank)
        for row in ranked.head(2).itertuples()
    ]
    mass = search(other, "previous_token").heads["mass"]
    assert [h["mass"] for h in output["heads"]] == [float(mass[h["layer"], h["head"]]) for h in output["heads"]]
    assert "offset were chosen on" in run(*both, "--examples", 0)
    assert (
        json.loads(run("search", traced.store.path, "previous_token", "--score", other.path, "--json", "--top", 2))
        == output
    )
    for wrong in ((other.path,), ("--select", other.path, "induction"), (traced.store.path, "induction", *both[1:5])):
        with pytest.raises(ConfigError, match="expected"):
            run("search", *wrong)


def test_a_search_on_a_cluster_prints_the_same(traced):
    from distributed import LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    command = ("search", traced.store.path, "previous_token", "--csv")
    with LocalCluster(**options, protocol="tcp://", host="127.0.0.1") as cluster:
        assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
        assert run(*command, "--cluster", cluster.scheduler_address) == run(*command)
    with pytest.raises(ConfigError, match="add --insecure-cluster"):
        run(*command, "--cluster", "tcp://192.0.2.1:8786")
