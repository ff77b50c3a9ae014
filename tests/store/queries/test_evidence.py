"""The proof beside a search's scores, against loops over the tokens; and choosing on one store, scoring on another."""

import numpy as np
import pytest
from slow_search import CONDITIONS, SITES, slow_search, visible
from traced_corpus import make_site, make_store

from headatlas.store.errors import ConfigError
from headatlas.store.queries.evidence import MAX_OFFSET, OFFSETS, evidence_of
from headatlas.store.queries.held_out import SplitSearch, check_same_heads
from headatlas.store.queries.pattern_search import search
from headatlas.store.queries.resampling import random_half

LENGTHS = ((3, 7, 5, 9), (1, 0, 8, 6, 4), (6, 12))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return {
        kind: make_store(tmp_path_factory.mktemp(kind) / "store", (site,), lengths=LENGTHS)
        for kind, site in SITES.items()
    }


def slow_chance(traced, site, holds):
    """By example, pair by pair: rows, {offset: rows right}, uniform mass by layer."""
    found = {}
    for index in range(len(traced.attention[site.name])):
        query, key = traced.tokens[site.query_sequence][index], traced.tokens[site.key_sequence][index]
        for q in range(len(query)):
            keys = {k for k in range(q + 1 if site.causal else len(key)) if holds(query, key, q, k)}
            if not keys:
                continue
            rows, right, uniform = found.setdefault(index, [0, dict.fromkeys(OFFSETS, 0), np.zeros(site.n_layers)])
            found[index][0] = rows + 1
            for offset in OFFSETS:
                right[offset] += q + offset in keys
            for layer in range(site.n_layers):
                seen = visible(site, layer, len(key), q)
                uniform[layer] += len(keys & set(seen)) / len(seen) if seen else 0
    return found


@pytest.mark.parametrize("text", CONDITIONS)
@pytest.mark.parametrize("kind", SITES)
def test_chance_equals_the_slow_loop(stores, kind, text):
    site, traced = SITES[kind], stores[kind]
    slow = slow_chance(traced, site, CONDITIONS[text])
    result = search(traced.store, text)
    chance = result.chance
    assert chance.rows.tolist() == [slow[i][0] for i in sorted(slow)]
    for column, example in enumerate(sorted(slow)):
        assert dict(zip(OFFSETS, chance.at_offset[:, column].tolist(), strict=True)) == slow[example][1]
        np.testing.assert_allclose(chance.uniform[:, column], slow[example][2], atol=1e-12)


@pytest.mark.parametrize("kind", SITES)
def test_the_offset_is_chosen_on_the_other_half(stores, kind):
    site, traced = SITES[kind], stores[kind]
    text = "duplicate_token"
    slow = slow_chance(traced, site, CONDITIONS[text])
    examples = sorted(slow)
    half = random_half(len(examples))
    right, chosen = 0, set()
    for part in (True, False):
        totals = {o: sum(slow[e][1][o] for e, h in zip(examples, half, strict=True) if h == part) for o in OFFSETS}
        best = max(totals, key=lambda o: (totals[o], -abs(o), -o))
        chosen.add(best)
        right += sum(slow[e][1][best] for e, h in zip(examples, half, strict=True) if h != part)
    proof = search(traced.store, text).evidence
    assert set(proof.offsets) == chosen
    assert proof.offset_baseline == pytest.approx(right / sum(slow[e][0] for e in examples))


def test_a_pattern_that_is_an_offset_has_the_baseline_one(stores):
    result = search(stores["full"].store, "previous_token")
    assert (result.evidence.offsets, result.evidence.offset_baseline) == ((-1,), 1.0)
    far = search(stores["full"].store, f"key.position == query.position - {MAX_OFFSET}")
    assert (far.evidence.offsets[0], far.evidence.offset_baseline) == (-MAX_OFFSET, 1.0)
    np.testing.assert_allclose(result.evidence.heads["offset_lift"], result.heads["mass"])
    assert (result.evidence.heads["p_value"] > 0.5).all()


def test_a_head_that_follows_no_offset_is_proved_and_the_others_are_not(tmp_path, monkeypatch):
    """Head 0.1 looks at the copies of its token, wherever they are; head 0.0 at the previous token."""
    from traced_corpus import make_table, random_attention

    made = []

    def table(lengths, rng):
        made.append(make_table(lengths, rng))
        return made[-1]

    count = iter(range(10_000))

    def attention(rng, site, n_queries, n_keys):
        maps = random_attention(rng, site, n_queries, n_keys)
        at = next(count)
        tokens = made[at // 12].example(at % 12)
        copies = (tokens.id[:, None] == tokens.id[None]) & (np.arange(n_queries)[:, None] > np.arange(n_keys))
        some = copies.any(axis=1)
        maps[0, 1][some] = copies[some] / copies[some].sum(axis=1, keepdims=True)
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
    assert ranked["q_value"][0] < 1e-6
    assert (ranked["q_value"][1:] > 0.05).all()
    assert ((ranked["mass_low"] <= ranked["mass"]) & (ranked["mass"] <= ranked["mass_high"])).all()


def test_few_rows_are_reported_and_not_ranked(stores):
    result = search(stores["full"].store, "query.position == 1 and key.position == 0")
    assert result.rows < 30
    assert not result.evidence.is_supported
    table = result.table()
    assert table["rank"].isna().all()
    assert table["q_value"].isna().all()
    assert table["mass"].notna().all()
    assert evidence_of(result, minimum_rows=5).is_supported


def test_a_stopped_search_has_the_proof_of_what_it_searched(stores):
    store = stores["full"].store
    done = []
    part = search(
        store,
        "key.special",
        threads=1,
        on_progress=lambda p: done.append(p.n_segments_done),
        stop=lambda: len(done) > 0,
    )
    assert not part.is_complete
    assert len(part.chance.rows) == part.n_examples


def test_choose_on_one_store_and_score_on_another(stores, tmp_path):
    other = make_store(tmp_path / "other", lengths=LENGTHS, seed=9)
    selected, scored = search(stores["full"].store, "key.special"), search(other.store, "key.special")
    split = SplitSearch(selected, scored)
    table = split.table()
    first, alone = selected.table(), scored.table().set_index(["layer", "head"])
    assert table["selected_mass"].tolist() == first["mass"].tolist()
    assert table[["layer", "head"]].to_numpy().tolist() == first[["layer", "head"]].to_numpy().tolist()
    for row in table.itertuples():
        assert row.mass == alone.loc[(row.layer, row.head), "mass"]
    assert split.evidence.offsets == (selected.chance.best_offset,)
    right = scored.chance.scored(selected.chance.best_offset).sum()
    assert split.evidence.offset_baseline == pytest.approx(right / scored.rows)
    exact = np.mean([row for rows in slow_search(other, SITES["full"], CONDITIONS["key.special"])[0].values() for row in rows], axis=0)  # fmt: skip
    np.testing.assert_allclose(table.sort_values(["layer", "head"])["mass"], exact.ravel(), atol=1e-6)


def test_heads_of_different_models_are_not_mixed(stores, tmp_path):
    small = make_store(tmp_path / "small", (make_site(n_heads=2, n_kv_heads=2),)).store
    with pytest.raises(ConfigError, match=r"2 layers × 2 heads.*expected two traces of one model"):
        check_same_heads(stores["full"].store, small)
