"""The evidence for a search compared with loops over the tokens, and held-out searches over two stores."""

import numpy as np
import pytest
from scipy import stats
from slow_search import CONDITIONS, SITES, slow_search, visible
from traced_corpus import make_site, make_store

from headatlas.store.commands.tables import null_text
from headatlas.store.errors import ConfigError
from headatlas.store.queries.evidence.baselines import MAX_OFFSET, OFFSETS
from headatlas.store.queries.evidence.resampling import random_half
from headatlas.store.queries.evidence.search_evidence import compute_evidence
from headatlas.store.queries.held_out import SplitSearch, check_same_heads
from headatlas.store.queries.pattern_search import search

LENGTHS = ((3, 7, 5, 9), (1, 0, 8, 6, 4), (6, 12))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return {
        kind: make_store(tmp_path_factory.mktemp(kind) / "store", (site,), lengths=LENGTHS)
        for kind, site in SITES.items()
    }


def slow_baselines(traced, site, holds):
    """Compute for each example, by layer: rows, {offset: matching rows}, uniform mass, and that without special keys."""
    sums = {}
    for index in range(len(traced.attention[site.name])):
        query, key = traced.tokens[site.query_sequence][index], traced.tokens[site.key_sequence][index]
        for q in range(len(query)):
            keys = {k for k in range(q + 1 if site.causal else len(key)) if holds(query, key, q, k)}
            if not keys:
                continue
            for layer in range(site.n_layers):
                visible_keys = visible(site, layer, len(key), q)
                if not keys & set(visible_keys):
                    continue
                rows, right, uniform, plain = sums.setdefault(
                    index, [np.zeros(site.n_layers, int), *(np.zeros((n, site.n_layers)) for n in (len(OFFSETS), 1, 1))]
                )
                rows[layer] += 1
                for number, offset in enumerate(OFFSETS):
                    right[number, layer] += q + offset in keys & set(visible_keys)
                uniform[0, layer] += len(keys & set(visible_keys)) / len(visible_keys)
                counted = [k for k in visible_keys if not key.special[k] or k in keys]
                plain[0, layer] += len(keys & set(visible_keys)) / len(counted)
    return sums


@pytest.mark.parametrize("text", CONDITIONS)
@pytest.mark.parametrize("kind", SITES)
def test_baselines_equal_the_slow_loop(stores, kind, text):
    site, traced = SITES[kind], stores[kind]
    slow = slow_baselines(traced, site, CONDITIONS[text])
    result = search(traced.store, text)
    baselines = result.baselines
    assert baselines.rows.T.tolist() == [slow[i][0].tolist() for i in sorted(slow)]
    for column, example in enumerate(sorted(slow)):
        offset_rows = [baselines.score(offset)[:, column] for offset in OFFSETS]
        np.testing.assert_array_equal(offset_rows, slow[example][1])
        np.testing.assert_allclose(baselines.uniform[:, column], slow[example][2][0], atol=1e-12)
        np.testing.assert_allclose(baselines.uniform_without_special[:, column], slow[example][3][0], atol=1e-12)


@pytest.mark.parametrize("kind", SITES)
def test_texts_that_are_too_long_for_a_null_are_compared_with_the_uniform_one(stores, kind, monkeypatch):
    result = search(stores[kind].store, "duplicate_token", words="mean")
    assert compute_evidence(result).null.name != "uniform"
    monkeypatch.setattr("headatlas.store.queries.evidence.search_evidence.MAX_WHOLE_PAIRS", 1)
    evidence = compute_evidence(result)
    assert (evidence.null.name, evidence.null.note) == ("uniform", "")
    (null,) = compute_evidence(result, nulls=("habit",)).nulls
    assert (null.n_examples, null.n_above) == (0, 0)
    assert null.note == "each text has more than 1 pairs of tokens"


@pytest.mark.parametrize("kind", SITES)
def test_the_offset_is_chosen_on_the_other_half(stores, kind):
    site, traced = SITES[kind], stores[kind]
    text = "duplicate_token"
    slow = slow_baselines(traced, site, CONDITIONS[text])
    examples = sorted(slow)
    half = random_half(len(examples))
    right, offsets = 0, set()
    for part in (True, False):
        totals = sum(slow[e][1].sum(axis=1) for e, h in zip(examples, half, strict=True) if h == part)
        best = max(range(len(OFFSETS)), key=lambda i: (totals[i], -abs(OFFSETS[i]), -OFFSETS[i]))
        offsets.add(OFFSETS[best])
        right += sum(slow[e][1][best] for e, h in zip(examples, half, strict=True) if h != part)
    evidence, rows = search(traced.store, text).evidence, sum(slow[e][0] for e in examples)
    assert set(evidence.offsets) == offsets
    assert evidence.offset_baseline == pytest.approx(right.sum() / rows.sum())
    np.testing.assert_allclose(evidence.heads["offset_baseline"][:, 0], right / rows)


def test_a_pattern_that_is_an_offset_is_not_compared_with_one(stores):
    """Head 0.0 attends to the previous token. Its q was 1: it cannot exceed the offset that it is."""
    result = search(stores["full"].store, "previous_token")
    evidence = result.evidence
    assert (evidence.offsets, evidence.offset_baseline, evidence.is_offset) == ((-1,), 1.0, True)
    assert np.isnan(evidence.heads["offset_lift"]).all()
    assert (evidence.kind, evidence.null.name) == ("position", "uniform")
    table = result.table()
    assert (table["layer"][0], table["head"][0]) == (0, 0)
    assert table["q_uniform"][0] < 0.05
    far = search(stores["full"].store, f"key.position == query.position - {MAX_OFFSET}")
    assert (far.evidence.offsets[0], far.evidence.offset_baseline) == (-MAX_OFFSET, 1.0)
    asked = compute_evidence(result, nulls=["offset"])
    assert "fixed offset itself" in asked.null.note
    assert np.isnan(asked.null.heads["p_value"]).all()


def test_only_a_head_that_follows_no_offset_is_significant(tmp_path, monkeypatch):
    """Head 0.1 attends to the copies of its token at any distance, head 0.0 to the previous token."""
    from traced_corpus import make_table, random_attention

    tables = []

    def table(lengths, rng):
        tables.append(make_table(lengths, rng))
        return tables[-1]

    count = iter(range(10_000))

    def attention(rng, site, n_queries, n_keys):
        maps = random_attention(rng, site, n_queries, n_keys)
        n_calls = next(count)
        tokens = tables[n_calls // 12].example(n_calls % 12)
        copies = (tokens.id[:, None] == tokens.id[None]) & (np.arange(n_queries)[:, None] > np.arange(n_keys))
        has_copy = copies.any(axis=1)
        maps[0, 1][has_copy] = copies[has_copy] / copies[has_copy].sum(axis=1, keepdims=True)
        return maps

    monkeypatch.setattr("traced_corpus.make_table", table)
    monkeypatch.setattr("traced_corpus.random_attention", attention)
    traced = make_store(tmp_path / "store", lengths=((14,) * 12,) * 3)
    result = search(traced.store, "duplicate_token")
    ranked = result.table()
    assert result.evidence.is_supported
    assert (ranked["layer"][0], ranked["head"][0], ranked["rank"][0]) == (0, 1, 1)
    assert ranked["mass"][0] == pytest.approx(1)
    assert ranked["offset_lift"][0] > 2
    assert ranked["q_habit"][0] < 1e-6
    assert (ranked["q_habit"][1:] > 0.05).all()
    every_null = ["uniform", "sink-free", "habit", "matched", "labels", "mismatched", "offset"]
    ranked = result.table(evidence=compute_evidence(result, nulls=every_null))
    for name in every_null:
        column = ranked[f"q_{name.replace('-', '_')}"]
        assert column[0] < 1e-3, name
        assert (column[1:] > 0.05).all(), name
    assert ((ranked["mass_low"] <= ranked["mass"]) & (ranked["mass"] <= ranked["mass_high"])).all()


def test_heads_that_are_not_above_are_explained_or_undecided(tmp_path):
    """The null explains heads that attend at random if there are many rows; with one row a text one is undecided."""
    store = make_store(tmp_path / "store", lengths=((12,) * 40,) * 5).store
    states = []
    for pattern in ("next_token", "next_token and query.position == 3"):
        result = search(store, pattern)
        null = compute_evidence(result, nulls=["uniform"], minimum_rows=5).null
        expected = result.baselines.uniform_without_special[:, None]
        differences = result.example_sums - expected
        total = expected.sum(axis=-1)
        high = stats.t.interval(0.95, 199, differences.mean(axis=-1), stats.sem(differences, axis=-1))[1]
        np.testing.assert_allclose(null.heads["above_high"], 1 + 200 * high / total, rtol=1e-6)
        assert (null.heads["above_high"] > null.heads["above"]).all()
        assert null.n_above + null.n_explained + null.n_undecided == null.heads["q_value"].size
        states.append((null.n_explained, null.n_undecided))
        assert f"It explains {null.n_explained} of the others" in null_text(null)
        assert f"{null.n_undecided} are undecided" in null_text(null)
    assert states[0] == (6, 0)
    assert states[1][1] > 0


def test_few_rows_are_reported_and_not_ranked(stores):
    result = search(stores["full"].store, "query.position == 1 and key.position == 0")
    assert result.rows < 30
    assert not result.evidence.is_supported
    table = result.table()
    assert table["rank"].isna().all()
    assert table["q_uniform"].isna().all()
    assert table["mass"].notna().all()
    assert compute_evidence(result, minimum_rows=5).is_supported


def test_a_stopped_search_has_evidence_for_the_searched_examples(stores):
    store = stores["full"].store
    done = []
    part = search(
        store,
        "key.special",
        workers=1,
        on_progress=lambda p: done.append(p.n_segments_done),
        stop=lambda: len(done) > 0,
    )
    assert not part.is_complete
    assert part.baselines.rows.shape[1] == part.n_examples


def test_choose_on_one_store_and_score_on_another(stores, tmp_path):
    other = make_store(tmp_path / "other", lengths=LENGTHS, seed=9)
    selection, evaluation = search(stores["full"].store, "key.special"), search(other.store, "key.special")
    split = SplitSearch(selection, evaluation)
    table = split.table()
    first, alone = selection.table(), evaluation.table().set_index(["layer", "head"])
    assert table["selected_mass"].tolist() == first["mass"].tolist()
    assert table[["layer", "head"]].to_numpy().tolist() == first[["layer", "head"]].to_numpy().tolist()
    for row in table.itertuples():
        assert row.mass == alone.loc[(row.layer, row.head), "mass"]
    assert split.evidence.offsets == (selection.baselines.best_offset,)
    right = evaluation.baselines.score(selection.baselines.best_offset)[0].sum()
    assert split.evidence.offset_baseline == pytest.approx(right / evaluation.rows)
    exact = np.mean([row for rows in slow_search(other, SITES["full"], CONDITIONS["key.special"])[0].values() for row in rows], axis=0)  # fmt: skip
    np.testing.assert_allclose(table.sort_values(["layer", "head"])["mass"], exact.ravel(), atol=1e-6)


def test_heads_of_different_models_are_not_mixed(stores, tmp_path):
    small = make_store(tmp_path / "small", (make_site(n_heads=2, n_kv_heads=2),)).store
    with pytest.raises(ConfigError, match=r"2 layers × 2 heads.*expected two traces of one model"):
        check_same_heads(stores["full"].store, small)
