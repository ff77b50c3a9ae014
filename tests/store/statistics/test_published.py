"""Statistics from stored attention and other tools' definitions, compared with slow loops written from the formulas.

The loops are those of `make check-definitions`. Here they run over small random stores with special tokens, pairs of
texts, several sentences, words of several tokens, texts of zero, one and two tokens, and missing governors.
"""

from __future__ import annotations

import json
import pickle

import dask
import numpy as np
import pytest
from traced_corpus import make_site, make_store
from typer.testing import CliRunner

from headatlas.store.commands.stats import app
from headatlas.store.errors import ConfigError, FormatError, NotFoundError, ShapeError
from headatlas.store.schema.traces import Keep
from headatlas.store.statistics import measurement
from headatlas.store.statistics.corpus import QUANTILES, corpus_summary
from headatlas.store.statistics.definitions import head_statistics, known_names
from headatlas.store.statistics.headvis import (
    METRICS,
    compare_headvis,
    export_headvis,
    rank_correlation,
    read_headvis,
)
from headatlas.store.statistics.measurement import corpus_means, measured_statistics, statistic_rows
from headatlas.store.statistics.profiles import offset_profiles, token_pairs
from headatlas.store.statistics.published import published_table
from tools.check_definitions import definition_lines, loop_over, statistic_lines

LENGTHS = ((3, 14, 9, 12), (1, 0, 2, 17))


def keep(codec):
    return Keep(attention=codec, query_key=None, edges=3)


@pytest.fixture
def traced(tmp_path):
    return make_store(tmp_path / "store", lengths=LENGTHS)


def test_a_store_without_a_segment_has_its_own_statistics(traced, tmp_path, monkeypatch):
    """Cached statistics, dask arrays and pickles of a part are not used for the whole store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = traced.store
    first_part = store.without({1})
    part_means, store_means = (corpus_means(s, ["entropy"])["entropy"] for s in (first_part, store))
    exact = [head_statistics(m, t.special, ["entropy"], cross=False)[0] for m, t in zip([a[0] for a in traced.attention["encoder"]], traced.tokens["source"], strict=True) if len(t)]  # fmt: skip
    lengths = [len(table) for table in traced.tokens["source"] if len(table)]
    np.testing.assert_allclose(store_means[0], np.average(exact, axis=0, weights=lengths), rtol=1e-5)
    np.testing.assert_allclose(part_means[0], np.average(exact[:4], axis=0, weights=lengths[:4]), rtol=1e-5)
    again = pickle.loads(pickle.dumps(first_part))
    assert [s.index for s in again.segments] == [0]
    assert (again.n_examples, again.n_tokens, again.is_complete) == (4, {"source": sum(LENGTHS[0])}, False)
    assert again.bytes_on_disk < store.bytes_on_disk
    last, both = dask.compute(store.without({0}).attention().data, store.attention().data)  # one graph
    assert np.array_equal(last, both[:, :, -last.shape[2] :])
    assert store.without({0}).without({1}).n_examples == 0
    assert first_part.refresh().n_examples == 8


def test_a_store_that_is_still_empty(traced):
    """A store without examples raises an error that says so."""
    store = traced.store.without({0, 1})
    with pytest.raises(NotFoundError, match="no example yet"):
        published_table(store, "headvis")


@pytest.mark.parametrize("causal", [False, True])
def test_every_statistic_equals_its_slow_loop(causal, tmp_path):
    site = make_site("decoder" if causal else "encoder", causal=causal)
    stores = [make_store(tmp_path / codec, (site,), keep(codec), LENGTHS).store for codec in ("float32", "sqrt8")]
    sums = loop_over(stores[0], scores=False)
    lines = [*statistic_lines(sums, *stores), *definition_lines(sums, *stores)]
    assert sum(line.n > 0 for line in lines) >= len(known_names()) + 20
    flips = ("voita: rare", "voita: positional", "voita: offset")  # shares of very few rows
    wrong = [line for line in lines if not line.holds and not (line.name in flips and line.exact <= 1e-5)]
    assert not wrong


def test_rows_and_values_do_not_depend_on_where_blocks_end(traced, monkeypatch):
    one_block = measured_statistics(traced.store, known_names(), cache=False)
    monkeypatch.setattr("headatlas.store.statistics.blocks.BLOCK_WEIGHTS", 300)
    many_blocks = measured_statistics(traced.store, known_names(), cache=False)
    for name in known_names():
        np.testing.assert_array_equal(one_block[name].rows, many_blocks[name].rows)
        np.testing.assert_allclose(one_block[name].values, many_blocks[name].values, rtol=1e-5, atol=1e-6)
        if not name.startswith(measurement.VARIABILITY):
            np.testing.assert_array_equal(
                statistic_rows(traced.store, traced.store.site(), name), many_blocks[name].rows
            )


def test_computed_statistics_are_cached_for_this_snapshot_alone(traced, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = measured_statistics(traced.store, ["induction"])["induction"]
    monkeypatch.setattr(measurement, "_compute", lambda *arguments: pytest.fail("the cache was not used"))
    again = measured_statistics(traced.store, ["induction"])["induction"]
    np.testing.assert_array_equal(first.values, again.values)
    (cache_file,) = (tmp_path / "cache" / "headatlas" / "statistics").iterdir()
    cache_file.write_bytes(b"PK not a file of numpy")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.testing.assert_array_equal(measured_statistics(traced.store, ["induction"])["induction"].values, first.values)
    other = make_store(tmp_path / "other", lengths=LENGTHS, seed=1).store
    assert not np.array_equal(measured_statistics(other, ["induction"])["induction"].values, first.values)


def test_a_summary_describes_the_examples(traced):
    statistic = measured_statistics(traced.store, ["top5"], cache=False)["top5"]
    summary = corpus_summary({"top5": statistic.values}, {"top5": statistic.rows}, bins=5).sel(
        statistic="top5", layer=1, head=2
    )
    values = statistic.values[1, 2][np.isfinite(statistic.values[1, 2])].astype(float)
    assert float(summary["mean"]) == pytest.approx(
        np.nansum(statistic.values[1, 2] * statistic.rows) / statistic.rows.sum()
    )
    assert float(summary["deviation"]) == pytest.approx(values.std())
    np.testing.assert_allclose(summary["quantile_value"], np.quantile(values, QUANTILES))
    assert summary["histogram"].to_numpy().tolist() == np.histogram(values, np.linspace(0, 1, 6))[0].tolist()
    assert int(summary["examples"]) == len(values) == 7


def test_offsets_and_token_pairs_carry_the_whole_weight(traced):
    store, maps = traced.store, traced.attention["encoder"]
    profile = offset_profiles(store, reach=4)
    total = profile["share"].sum("offset") + profile["beyond"]
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    expected = np.concatenate([np.diagonal(m[0, 0], -2) for m in maps])
    cell = profile.sel(layer=0, head=0, offset=-2)
    assert float(cell["mass"]) == pytest.approx(expected.mean())
    assert int(cell["rows"]) == len(expected)
    pairs = token_pairs(store, 0, 0, n=10_000)
    assert pairs["share"].sum() == pytest.approx(1)
    counts = {}
    for m, tokens in zip(maps, traced.tokens["source"], strict=True):
        for q, k in np.ndindex(*m.shape[2:]):
            name = tuple((tokens.text[i], bool(tokens.special[i])) for i in (q, k))
            before = counts.get(name, (0.0, 0))
            counts[name] = before[0] + float(m[0, 0, q, k]), before[1] + 1
    best = max(counts, key=lambda name: counts[name][0])
    assert (pairs["query"][0], pairs["key"][0]) == (best[0][0], best[1][0])
    assert pairs["weight"][0] == pytest.approx(counts[best][0])
    assert pairs["count"][0] == counts[best][1]
    assert len(token_pairs(store, 0, 0, n=10_000, special=False)) < len(pairs)
    with pytest.raises(NotFoundError, match=r"no head 9\.0"):
        token_pairs(store, 9, 0)


def test_headvis_files_agree_with_the_store(traced, tmp_path):
    out = tmp_path / "headvis"
    assert export_headvis(traced.store, out) == 6
    config = json.loads((out / "config.json").read_text())
    assert config["heads"] == [[layer, head] for layer in range(2) for head in range(3)]
    assert tuple(config["metrics"]) == METRICS
    page = json.loads((out / "heads" / config["head_data_pattern"].format(layer=1, head=2)).read_text())
    text = page["sequences"][0]
    maps = traced.attention["encoder"][text["sequence_id"]][1, 2]
    n = text["seq_len"]
    assert len(text["tokens"]) == n == len(maps)
    for index, value in zip(text["attention_indices"], text["attention_values"], strict=True):
        assert value == pytest.approx(maps[index // n, index % n], abs=1e-4)
    assert text["max_activation"] == pytest.approx(maps[1:, 1:].max(), abs=1e-4)
    assert sum(page["histogram"]["bin_values"]) == 6  # texts of two tokens or more
    compared = compare_headvis(traced.store, read_headvis(out))
    assert compared.metrics["metric"].tolist() == list(METRICS)
    np.testing.assert_allclose(compared.metrics["rank_correlation"], 1)
    assert compared.metrics["largest_difference"].max() < 1e-4
    with pytest.raises(ConfigError, match="already exists"):
        export_headvis(traced.store, out)


def test_a_reference_names_the_heads_that_differ(traced, tmp_path):
    table = published_table(traced.store, "headvis")
    grids = {name: table[name].to_numpy().reshape(2, 3).copy() for name in METRICS}
    grids["induction_score"][1, 0] += 0.25
    reference = tmp_path / "reference.json"
    metrics = {name: grid.tolist() for name, grid in grids.items()}
    reference.write_text(json.dumps({"config": {}, "metrics": {**metrics, "counts": {"attention_positions": [1.0]}}}))
    result = CliRunner().invoke(app, ["compare", str(traced.store.path), str(reference), "--json", "--top", "1"])
    heads = {row["metric"]: row for row in json.loads(result.stdout)["heads"]}
    assert (heads["induction_score"]["layer"], heads["induction_score"]["head"]) == (1, 0)
    assert heads["induction_score"]["difference"] == pytest.approx(-0.25)
    reference.write_text(json.dumps({"config": {}, "metrics": {"qk_distance": [[1.0, 2.0]]}}))
    with pytest.raises(ShapeError, match="same model"):
        compare_headvis(traced.store, read_headvis(reference))
    for wrong in ("[]", "{", '{"metrics": {"a": [[1], [1, 2]]}}', '[{"layer": 7, "head": 0}]', "[" * 100_000):
        reference.write_text(wrong)
        with pytest.raises(FormatError):
            read_headvis(reference)
    assert rank_correlation(np.array([1.0, 2, 2, 9]), np.array([5.0, 7, 7, 8])) == pytest.approx(1)


def test_commands_print_tables_and_json(traced):
    def run(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120", "NO_COLOR": "1"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    path = traced.store.path
    summaries = json.loads(run("stats", path, "--statistic", "induction,rare_sink_free", "--spread", "--json"))[
        "statistics"
    ]
    assert [summary["statistic"] for summary in summaries] == ["induction", "rare_sink_free"]
    assert sum(summaries[1]["heads"][0]["histogram"]) == summaries[1]["heads"][0]["examples"]
    assert "as defined by HeadVis (Neuronpedia): every token has the same weight" in run(
        "stats", path, "--definition", "headvis"
    )
    assert json.loads(run("stats", path, "--definition", "olsson", "--json"))["heads"][0].keys() >= {"prefix_matching"}
    assert json.loads(run("head", path, "0.1", "--json"))["pairs"]
    assert "share of all" in run("head", path, "0.1")
    with pytest.raises(ConfigError, match="Did you mean induction"):
        run("stats", path, "--statistic", "inductoin")
    with pytest.raises(ConfigError, match="expected one of clark"):
        run("stats", path, "--definition", "clarke")


def test_an_export_that_fails_is_not_in_the_way_of_the_next(traced, tmp_path):
    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    (tmp_path / "headvis").mkdir()
    with pytest.raises(KeyboardInterrupt):
        export_headvis(traced.store, tmp_path / "headvis", on_progress=interrupt)
    assert list((tmp_path / "headvis").iterdir()) == []
    assert export_headvis(traced.store, tmp_path / "headvis") == 6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
