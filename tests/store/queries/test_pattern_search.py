"""Searches compared with a loop over the original float32 attention, one pair of tokens at a time."""

import numpy as np
import pytest
from slow_search import CONDITIONS, SITES, mean_of, rows_of, slow_search, stores_of
from traced_corpus import make_store

from headatlas.store import open_store
from headatlas.store.codecs.attention_codecs import attention_codec
from headatlas.store.errors import ConfigError, CorruptSegmentError, NotFoundError
from headatlas.store.files.containers import shard_writer as shard
from headatlas.store.queries import edge_scan
from headatlas.store.queries import segment_scan as scan
from headatlas.store.queries.pattern_search import RANKINGS, search
from headatlas.store.reading.committed_segment import CommittedSegment
from headatlas.store.schema.traces import Keep
from headatlas.store.writing.convert import convert_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return stores_of(tmp_path_factory)


@pytest.mark.parametrize("text", CONDITIONS)
@pytest.mark.parametrize("kind", SITES)
def test_search_equals_the_slow_loop(stores, kind, text):
    site, traced = SITES[kind], stores(kind)
    mass, hits, uniform = slow_search(traced, site, CONDITIONS[text])
    rows, n_rows = rows_of(mass)
    result = search(traced.store, text)
    assert (result.basis, result.is_complete, result.n_examples_searched) == ("attention", True, 7)
    assert (result.rows, result.n_examples) == (n_rows.max(initial=0), len(mass))
    assert result.example_mass["example"].to_numpy().tolist() == sorted(mass)
    if not len(rows):
        assert np.isnan(result.heads["mass"]).all()
        assert np.isnan(result.heads["lift"]).all()
        assert result.table()["rows"].tolist() == [0] * 6
        return
    with np.errstate(invalid="ignore"):  # 0 / 0: a window hides every matching key of a layer
        baseline = np.repeat((uniform / n_rows)[:, None], site.n_heads, axis=1)
        np.testing.assert_allclose(result.heads["hit_rate"], hits / n_rows[:, None], atol=1e-12)
    np.testing.assert_allclose(result.heads["mass"], mean_of(rows), atol=1e-6)
    np.testing.assert_allclose(result.heads["baseline"], baseline, atol=1e-12)
    np.testing.assert_allclose(result.heads["lift"], mean_of(rows) / baseline, rtol=1e-5)
    for example, of_example in mass.items():
        example_mass = result.example_mass.sel(example=example)
        np.testing.assert_allclose(example_mass, mean_of(of_example), atol=1e-6)
        assert example_mass["rows"].to_numpy().tolist() == np.isfinite(of_example)[..., 0].sum(axis=0).tolist()
    if len(set(n_rows.tolist())) > 1:
        assert any("a window of 2 hides their matching keys" in note for note in result.notes)


@pytest.mark.parametrize("text", CONDITIONS)
@pytest.mark.parametrize("kind", SITES)
def test_search_rebuilds_missing_attention(stores, kind, text, monkeypatch):
    exact = search(stores(kind).store, text)
    rebuilt = stores(kind, attention=None, edges=3, query_key="float32").store
    assert search(rebuilt, text).basis == "edges"
    for block in (1, scan.BLOCK_WEIGHTS):
        monkeypatch.setattr(scan, "BLOCK_WEIGHTS", block)
        result = search(rebuilt, text, basis="exact")
        assert (result.basis, result.rows) == ("rebuilt", exact.rows)
        for name in ("mass", "hit_rate", "baseline"):
            np.testing.assert_allclose(result.heads[name], exact.heads[name], atol=1e-6)
        np.testing.assert_allclose(result.example_mass, exact.example_mass, atol=1e-6)
    assert "mass_upper" not in result.heads
    if exact.rows:
        for hit, expected in zip(result.top_examples(1, 2), exact.top_examples(1, 2), strict=True):
            assert (hit.example, hit.query_pos, hit.key_pos) == (
                expected.example,
                expected.query_pos,
                expected.key_pos,
            )
            assert abs(hit.weight - expected.weight) < 1e-6
    alone = stores(kind, attention=None, edges=None, query_key="float32").store
    assert search(alone, text).basis == "rebuilt"


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("text", CONDITIONS)
def test_edges_alone_bound_the_mass_and_give_exact_hit_rates(stores, kind, text):
    site, traced = SITES[kind], stores(kind, attention=None)
    mass, hits, _ = slow_search(traced, site, CONDITIONS[text])
    rows, n_rows = rows_of(mass)
    result = search(traced.store, text)
    assert result.basis == "edges"
    if len(rows):
        exact, seen = mean_of(rows), n_rows > 0
        assert (result.heads["mass"] <= exact + 1e-3)[seen].all()
        assert (result.heads["mass_upper"] >= exact - 1e-3)[seen].all()
        np.testing.assert_allclose(result.heads["hit_rate"][seen], hits[seen] / n_rows[seen, None], atol=1e-12)
        assert np.isnan(result.heads["mass_upper"][~seen]).all()


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
@pytest.mark.parametrize("text", ["previous_token", "key.special"])
def test_edges_are_exact_where_every_key_has_one(stores, tmp_path, text, container):
    traced = stores("full", edges=8)
    convert_store(traced.store.path, tmp_path / "store", container=container)
    exact = search(traced.store, text)
    for edges_bytes in (0, 1 << 20):  # without and with a cache of decoded edges
        store = open_store(tmp_path / "store", edges_bytes=edges_bytes)
        for _ in range(2):
            bound = search(store, text, basis="approximate")
            assert bound.basis == "edges"
            np.testing.assert_allclose(bound.heads["mass"], exact.heads["mass"], atol=5e-4)
            np.testing.assert_allclose(bound.heads["mass_upper"], bound.heads["mass"], atol=1e-6)
            np.testing.assert_array_equal(bound.heads["hit_rate"], exact.heads["hit_rate"])


def test_edges_are_decoded_once(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", lengths=((9, 9), (9, 9)), keep=Keep(query_key=None, edges=8)).store
    search(store, "previous_token", basis="edges")
    monkeypatch.setattr(CommittedSegment, "read_block", lambda self, path, index: pytest.fail(f"{path} is not cached"))
    assert search(store, "next_token", basis="edges").rows == 32


def test_only_chunks_of_attention_with_a_match_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "CHUNK_PAIRS", 200)
    monkeypatch.setattr(scan, "CHUNK_PAIRS", 200)
    traced = make_store(tmp_path / "store", lengths=((20,) * 30,), keep=Keep(attention="float32", query_key=None))
    read = []
    block = CommittedSegment.read_block

    def record(self, path, index):
        read.append((path, index[2].stop - index[2].start))
        return block(self, path, index)

    monkeypatch.setattr(CommittedSegment, "read_block", record)
    few = search(traced.store, "example.index in {3, 20} and previous_token")
    assert sum(n for path, n in read if path.endswith("attention")) == 2 * 2 * 380  # layers, examples, 19 rows of 20
    assert sum(n for path, n in read if path.endswith("edge_key")) == 2 * 2 * 19
    every = search(traced.store, "previous_token")
    assert few.example_mass["example"].to_numpy().tolist() == [3, 20]
    np.testing.assert_array_equal(few.example_mass, every.example_mass.sel(example=[3, 20]))


@pytest.mark.parametrize("codec", ["sqrt8", "float16", "float32"])
def test_without_edges_the_strongest_key_comes_from_the_stored_weights(stores, codec):
    traced = stores("full", attention=codec, edges=None)
    store, site = traced.store, traced.store.site()
    for text in ("previous_token", "key.special and query.position != 2", "duplicate_token"):
        # The first of the largest stored weights, from a loop over the decoded maps.
        stored = [store.examples[i].attention().to_numpy() for i in range(store.n_examples)]
        decoded = type(traced)(store, {"encoder": stored}, traced.tokens)
        holds = CONDITIONS.get(text, lambda a, b, q, k: b.special[k] and q != 2)
        mass, hits, _ = slow_search(decoded, site, holds)
        result = search(store, text)
        np.testing.assert_allclose(result.heads["hit_rate"], hits / len(rows_of(mass)[0]), atol=1e-12)
        exact = mean_of(rows_of(slow_search(traced, site, holds)[0])[0])
        bound = attention_codec(codec).bound.absolute * 2  # at most two matching keys in each row
        np.testing.assert_allclose(result.heads["mass"], exact, atol=bound + 1e-6)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kind", SITES)
def test_codes_are_summed_and_the_strongest_key_is_that_of_the_edges(stores, kind, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(edge_scan, "installed", lambda: None)
    site, traced = SITES[kind], stores(kind, attention="sqrt7", edges=3)
    store = traced.store
    stored = [store.examples[i].attention(site=site.name).to_numpy() for i in range(store.n_examples)]
    decoded = type(traced)(store, {site.name: stored}, traced.tokens)
    for text in ("duplicate_token", "key.special"):
        mass, _, _ = slow_search(decoded, site, CONDITIONS[text])
        _, hits, _ = slow_search(traced, site, CONDITIONS[text])
        result = search(store, text)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(result.heads["hit_rate"], hits / rows_of(mass)[1][:, None], atol=1e-12)
        for example, rows in mass.items():
            np.testing.assert_allclose(result.example_mass.sel(example=example), mean_of(rows), atol=1e-6)
    read = scan.read_pairs
    monkeypatch.setattr(scan, "read_pairs", lambda *arguments: read(*arguments) | 128)
    with pytest.raises(
        CorruptSegmentError, match=r"segment 0, layer 0: attention holds the code \d+; sqrt7 ends at 127"
    ):
        search(store, "key.special")


@pytest.mark.parametrize("codec", ["top_k:2/float32", "threshold:0.4/float32"])
@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_sparse_attention_bounds_the_mass_and_gives_exact_hit_rates(stores, kind, codec):
    traced = stores(kind, attention=codec, edges=None, query_key="float32")
    site = traced.store.site()
    for text in ("previous_token", "key.special", "duplicate_token"):
        mass, hits, _ = slow_search(traced, site, CONDITIONS[text])
        rows, n_rows = rows_of(mass)
        result, exact, seen = search(traced.store, text), mean_of(rows), n_rows > 0
        assert result.basis == "attention"
        assert (result.heads["mass"] <= exact + 1e-5)[seen].all()
        assert (result.heads["mass_upper"] >= exact - 1e-5)[seen].all()
        np.testing.assert_allclose(result.heads["hit_rate"][seen], hits[seen] / n_rows[seen, None], atol=1e-12)
        rebuilt = search(traced.store, text, basis="exact")  # sparse attention is not exact
        assert rebuilt.basis == "rebuilt"
        assert "mass_upper" not in rebuilt.heads
        np.testing.assert_allclose(rebuilt.heads["mass"], exact, atol=1e-4)


def test_examples_are_ranked_and_show_their_strongest_matching_edge(tmp_path):
    traced = make_store(tmp_path / "store", lengths=((3, 7, 5), (1, 0, 8)))
    for basis in ("attention", "edges"):
        result = search(traced.store, "key.special and query.position > 0", basis=basis)
        hits = result.top_examples(1, 2, 3)
        scores = result.example_mass.sel(layer=1, head=2)
        assert [hit.example for hit in hits] == scores["example"].to_numpy()[np.argsort(-scores.to_numpy())][
            :3
        ].tolist()
        assert result.top_examples(1, 2, 1, start=2) == hits[2:3]
        for hit in hits:
            maps = traced.attention["encoder"][hit.example][1, 2]
            tokens = traced.tokens["source"][hit.example]
            keys = np.flatnonzero(tokens.special)
            block = maps[1:, keys]
            q, k = np.unravel_index(block.argmax(), block.shape)
            if basis == "attention" or hit.weight > 0:
                assert (hit.query_pos, hit.key_pos) == (q + 1, keys[k])
                assert hit.weight == pytest.approx(float(block.max()), abs=1e-3)
            assert hit.id == f"e{hit.example}"
            assert (hit.query_text, hit.key_text) == (tokens.text[hit.query_pos], tokens.text[hit.key_pos])
            assert hit.score == pytest.approx(float(scores.sel(example=hit.example)))
        query_pos, key_pos = result.matches(2)
        assert set(zip(query_pos.tolist(), key_pos.tolist(), strict=True)) == {
            (q, k) for q in range(1, 5) for k in (0, 4)
        }


def test_rows_of_one_matched_example_are_summed_over_blocks(tmp_path, monkeypatch):
    traced = make_store(tmp_path / "store", lengths=((30, 2, 25),))
    one_block = search(traced.store, "key.position <= query.position")
    monkeypatch.setattr("headatlas.store.queries.segment_scan.BLOCK_WEIGHTS", 200)
    many_blocks = search(traced.store, "key.position <= query.position")
    np.testing.assert_allclose(many_blocks.heads.to_array(), one_block.heads.to_array(), rtol=1e-12)
    np.testing.assert_allclose(many_blocks.example_mass, one_block.example_mass, rtol=1e-6)


def test_table_ranks_heads(stores):
    for by in RANKINGS:
        values = search(stores("full").store, "duplicate_token").table(by)[by].to_numpy()
        assert (np.diff(values) <= 0).all()
    result = search(stores("full").store, "previous_token")
    table = result.table()
    assert list(table.columns)[:8] == ["layer", "head", "mass", "hit_rate", "baseline", "lift", "rows", "examples"]
    assert (table["layer"][0], table["head"][0]) == (0, 0)
    with pytest.raises(ConfigError, match="'size'"):
        result.table("size")
    with pytest.raises(NotFoundError, match="no head 2"):
        result.top_examples(2, 0)
