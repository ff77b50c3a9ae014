"""Rows of statistics come from the mask of the layer: a row without a visible target is no row. Sentences are trees."""

import dataclasses

import numpy as np
import pytest
from slow_search import visible
from traced_corpus import make_site, make_store
from treebank_store import tree_table, write_trees

from headatlas.store.schema.token_table import Column
from headatlas.store.schema.traces import Keep
from headatlas.store.statistics.corpus import corpus_summary, summary_frame
from headatlas.store.statistics.measurement import measured_statistics, statistic_rows
from headatlas.store.statistics.profiles import offset_profiles, token_pairs
from headatlas.store.statistics.published import published_table
from headatlas.store.statistics.sentence_pairs import sentence_of

LENGTHS = ((14, 9, 3), (1, 0, 17))


def targets(name, tokens, q, keys, counts):
    """Return the visible keys of a row that the statistic sums over."""
    ids = tokens.id.tolist()
    match name:
        case "induction":
            return [k for k in keys if 0 < k < q and ids[k - 1] == ids[q]]
        case "duplicate":
            return [k for k in keys if k < q and ids[k] == ids[q]]
        case "rare":
            others = [k for k in keys if not tokens.special[k]]
            return [k for k in others if counts[ids[k]] == min(counts[ids[j]] for j in others)]
        case "other_segment":
            return [
                k for k in keys if tokens.second[k] != tokens.second[q] and not (tokens.special[k] or tokens.special[q])
            ]
    return []


@pytest.fixture(scope="module", params=["sliding", "local"])
def windowed(request, tmp_path_factory):
    site = make_site("decoder", causal=request.param == "sliding", window=(2, None))
    keep = Keep(attention="float32", query_key=None, edges=3)
    return make_store(tmp_path_factory.mktemp("windowed") / "store", (site,), keep, LENGTHS)


@pytest.mark.parametrize("name", ["induction", "duplicate", "rare"])
def test_rows_are_those_that_see_a_target(windowed, name):
    store = windowed.store
    site = store.site()
    result = measured_statistics(store, [name], cache=False)[name]
    ids = np.concatenate([tokens.id for tokens in windowed.tokens["source"]])
    counts = dict(zip(*np.unique(ids, return_counts=True), strict=True))
    for layer in range(site.n_layers):
        for index, (maps, tokens) in enumerate(
            zip(windowed.attention["decoder"], windowed.tokens["source"], strict=True)
        ):
            masses = []
            for q in range(len(tokens)):
                keys = targets(name, tokens, q, visible(site, layer, len(tokens), q), counts)
                masses += [maps[layer, :, q, keys].sum(axis=0)] if keys else []
            n_rows = result.rows[layer, index] if result.rows.ndim == 2 else result.rows[index]
            assert n_rows == len(masses)
            expected = np.mean(masses, axis=0) if masses else np.full(site.n_heads, np.nan)
            np.testing.assert_allclose(result.values[layer, :, index], expected, atol=1e-6)
    np.testing.assert_array_equal(statistic_rows(store, site, name), result.rows)


def test_a_summary_has_the_rows_of_each_layer(windowed):
    store = windowed.store
    result = measured_statistics(store, ["induction"], cache=False)["induction"]
    summary = corpus_summary({"induction": result.values}, {"induction": result.rows}, layers=store.site().layers)
    assert summary["rows"].sel(statistic="induction").to_numpy().tolist() == result.rows.sum(axis=-1).tolist()
    frame = summary_frame(summary, "induction").set_index(["layer", "head"])
    assert frame.loc[(0, 0), "rows"] < frame.loc[(1, 0), "rows"]
    np.testing.assert_allclose(
        frame.loc[(0, 1), "mean"], np.average(np.nan_to_num(result.values[0, 1]), weights=result.rows[0]), rtol=1e-6
    )


def test_tables_of_other_tools_count_rows_that_see_a_target(windowed):
    store, site = windowed.store, windowed.store.site()
    table = published_table(store, "olsson")
    for layer in range(site.n_layers):
        masses = []
        for maps, tokens in zip(windowed.attention["decoder"], windowed.tokens["source"], strict=True):
            ids = tokens.id.tolist()
            for q in range(len(tokens)):
                keys = [k for k in visible(site, layer, len(tokens), q) if 0 < k <= q and ids[k - 1] == ids[q]]
                masses += [maps[layer, :, q, keys].sum(axis=0)] if keys else []
        of_layer = table[table["layer"] == layer]["prefix_matching"]
        np.testing.assert_allclose(of_layer, np.mean(masses, axis=0), atol=1e-6)


def test_offsets_and_token_pairs_count_visible_keys(windowed):
    store, site = windowed.store, windowed.store.site()
    profile = offset_profiles(store, reach=3)
    lengths = [len(tokens) for tokens in windowed.tokens["source"]]
    for layer, offset in ((0, -1), (0, -2), (1, -2), (1, 0)):
        rows = sum(q + offset in visible(site, layer, n, q) for n in lengths for q in range(n))
        assert int(profile["rows"].sel(layer=layer, offset=offset)) == rows
    assert np.isnan(profile["mass"].sel(layer=0, offset=-2)).all()  # the window of layer 0 hides them all
    n_visible = sum(len(visible(site, 0, n, q)) for n in lengths for q in range(n))
    assert token_pairs(store, 0, 0, n=10_000)["count"].sum() == n_visible


def test_the_sentences_of_a_treebank_are_its_trees(tmp_path):
    trees = [
        [(1, "nsubj"), (-1, "root"), (1, "punct"), (1, "obj")],  # the full stop inside ends no sentence
        [(-1, "root"), (0, "punct"), (-1, "root"), (2, "obj")],  # two trees
        [(-1, "_"), (-1, "_"), (-1, "_")],  # no tree: marks end sentences
        [(-1, "root")],
    ]

    def table_of(trees):
        table = tree_table(trees, special=False)
        text = [".", "a", ".", "b", "a", "b", "c", "d", "e", ".", "f", "g"]
        return dataclasses.replace(table, columns=table.columns | {"text": Column.of_text(text)})

    def numbers(sentence, start, stop):
        return np.unique(sentence[start:stop], return_inverse=True)[1].tolist()

    table = table_of(trees)
    sentence = sentence_of(table)
    assert numbers(sentence, 0, 4) == [0, 0, 0, 0]
    assert numbers(sentence, 4, 8) == [0, 0, 1, 1]
    assert numbers(sentence, 8, 11) == [0, 0, 1]
    store, examples = write_trees(
        tmp_path / "store", [trees], lambda tokens: np.full((2, 3, len(tokens), len(tokens)), 1 / len(tokens)),
        table_of, n_layers=2, n_heads=3,
    )  # fmt: skip
    values = measured_statistics(store, ["same_sentence"], cache=False)["same_sentence"].values[0, 0]
    np.testing.assert_allclose(values, [1, 0.5, 5 / 9, 1], atol=1e-6)
    assert len(examples) == 4
