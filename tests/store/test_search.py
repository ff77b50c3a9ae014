"""Searches against a loop over the original float32 attention, one pair of tokens at a time."""

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from traced_corpus import make_site, make_store

from headatlas.store import open_store
from headatlas.store.codecs import attention_codec
from headatlas.store.containers import shard
from headatlas.store.errors import ConfigError, CorruptSegmentError, FormatError, NotFoundError, PatternError
from headatlas.store.life.convert import convert_store
from headatlas.store.patterns import LIBRARY, Pattern
from headatlas.store.reading.committed import CommittedSegment
from headatlas.store.schema import Keep
from headatlas.store.search import scan
from headatlas.store.search.search import RANKINGS, search

# The same condition in the pattern language and in Python over (query table, key table, q, k).
CONDITIONS = {
    "previous_token": lambda a, b, q, k: k == q - 1,
    "key.special": lambda a, b, q, k: b.special[k],
    "duplicate_token": lambda a, b, q, k: b.id[k] == a.id[q] and k < q,
    'query.text in {"the", "she"} or key.position == 0': lambda a, b, q, k: a.text[q] in ("the", "she") or k == 0,
    "query.position - key.position >= 2 and query.id < 3": lambda a, b, q, k: q - k >= 2 and a.id[q] < 3,
    'query.text == "nobody"': lambda a, b, q, k: False,
}
SITES = {
    "full": make_site(),
    "causal": make_site("decoder", causal=True),
    "sliding": make_site("decoder", causal=True, window=(2, None)),
    "local": make_site("encoder", window=(2, None)),
    "cross": make_site("cross", query_sequence="target"),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Stores by site and what they keep, made once."""
    made = {}

    def store_of(kind, **keep):
        key = kind, tuple(keep.items())
        if key not in made:
            kept = Keep(**({"query_key": None, "attention": "float32", "edges": 3} | keep))
            path = tmp_path_factory.mktemp("store") / "store"
            made[key] = make_store(path, (SITES[kind],), kept, lengths=((3, 7, 5), (1, 0, 8), (6,)))
        return made[key]

    return store_of


def visible(site, layer, n_keys, q):
    keys = range(q + 1) if site.causal else range(n_keys)
    window = site.window[layer]
    return [k for k in keys if window is None or abs(q - k) < window]


def slow_search(traced, site, holds):
    """Per head: masses of rows (by example), hits, uniform masses, counted pair by pair."""
    examples = traced.attention[site.name]
    mass, hits, uniform = {}, np.zeros((site.n_layers, site.n_heads)), np.zeros(site.n_layers)
    for index, maps in enumerate(examples):
        query, key = traced.tokens[site.query_sequence][index], traced.tokens[site.key_sequence][index]
        for q in range(len(query)):
            keys = [k for k in range(q + 1 if site.causal else len(key)) if holds(query, key, q, k)]
            if not keys:
                continue
            row = np.zeros((site.n_layers, site.n_heads))
            for layer in range(site.n_layers):
                seen = visible(site, layer, len(key), q)
                uniform[layer] += len(set(keys) & set(seen)) / len(seen) if seen else 0
                for head in range(site.n_heads):
                    weights = maps[layer, head, q].tolist()
                    row[layer, head] = sum(weights[k] for k in keys)
                    hits[layer, head] += weights.index(max(weights)) in keys
            mass.setdefault(index, []).append(row)
    return mass, hits, uniform


@pytest.mark.parametrize("text", CONDITIONS)
@pytest.mark.parametrize("kind", SITES)
def test_search_equals_the_slow_loop(stores, kind, text):
    site, traced = SITES[kind], stores(kind)
    mass, hits, uniform = slow_search(traced, site, CONDITIONS[text])
    rows = [row for of_example in mass.values() for row in of_example]
    result = search(traced.store, text)
    assert (result.level, result.is_complete, result.n_examples_searched) == ("attention", True, 7)
    assert (result.rows, result.n_examples) == (len(rows), len(mass))
    assert result.example_mass["example"].to_numpy().tolist() == sorted(mass)
    if not rows:
        assert np.isnan(result.heads["mass"]).all()
        assert np.isnan(result.heads["lift"]).all()
        assert result.table()["rows"].tolist() == [0] * 6
        return
    baseline = np.repeat(uniform[:, None] / len(rows), site.n_heads, axis=1)
    np.testing.assert_allclose(result.heads["mass"], np.mean(rows, axis=0), atol=1e-6)
    np.testing.assert_allclose(result.heads["hit_rate"], hits / len(rows), atol=1e-12)
    np.testing.assert_allclose(result.heads["baseline"], baseline, atol=1e-12)
    with np.errstate(invalid="ignore"):  # 0 / 0: a window hides every matching key
        np.testing.assert_allclose(result.heads["lift"], np.mean(rows, axis=0) / baseline, rtol=1e-5)
    for example, of_example in mass.items():
        got = result.example_mass.sel(example=example)
        np.testing.assert_allclose(got, np.mean(of_example, axis=0), atol=1e-6)
        assert int(got["rows"]) == len(of_example)


@pytest.mark.parametrize("text", CONDITIONS)
@pytest.mark.parametrize("kind", SITES)
def test_search_rebuilds_attention_that_was_not_kept(stores, kind, text, monkeypatch):
    exact = search(stores(kind).store, text)
    rebuilt = stores(kind, attention=None, edges=3, query_key="float32").store
    assert search(rebuilt, text).level == "edges"
    for block in (1, scan.BLOCK_WEIGHTS):
        monkeypatch.setattr(scan, "BLOCK_WEIGHTS", block)
        result = search(rebuilt, text, level="exact")
        assert (result.level, result.rows) == ("rebuilt", exact.rows)
        for name in ("mass", "hit_rate", "baseline"):
            np.testing.assert_allclose(result.heads[name], exact.heads[name], atol=1e-6)
        np.testing.assert_allclose(result.example_mass, exact.example_mass, atol=1e-6)
    assert "mass_upper" not in result.heads
    if exact.rows:
        for found, expected in zip(result.top_examples(1, 2), exact.top_examples(1, 2), strict=True):
            assert (found.example, found.query_pos, found.key_pos) == (
                expected.example,
                expected.query_pos,
                expected.key_pos,
            )
            assert abs(found.weight - expected.weight) < 1e-6
    alone = stores(kind, attention=None, edges=None, query_key="float32").store
    assert search(alone, text).level == "rebuilt"


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("text", CONDITIONS)
def test_edges_alone_bound_the_mass_and_give_exact_hit_rates(stores, kind, text):
    site, traced = SITES[kind], stores(kind, attention=None)
    mass, hits, _ = slow_search(traced, site, CONDITIONS[text])
    rows = [row for of_example in mass.values() for row in of_example]
    result = search(traced.store, text)
    assert result.level == "edges"
    if rows:
        exact = np.mean(rows, axis=0)
        assert (result.heads["mass"] <= exact + 1e-3).all()
        assert (result.heads["mass_upper"] >= exact - 1e-3).all()
        np.testing.assert_allclose(result.heads["hit_rate"], hits / len(rows), atol=1e-12)


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
@pytest.mark.parametrize("text", ["previous_token", "key.special"])
def test_edges_are_exact_where_every_key_has_one(stores, tmp_path, text, container):
    traced = stores("full", edges=8)
    convert_store(traced.store.path, tmp_path / "store", container=container)
    exact = search(traced.store, text)
    for edges_bytes in (0, 1 << 20):  # decoded edges not kept, kept
        store = open_store(tmp_path / "store", edges_bytes=edges_bytes)
        for _ in range(2):
            bound = search(store, text, level="approximate")
            assert bound.level == "edges"
            np.testing.assert_allclose(bound.heads["mass"], exact.heads["mass"], atol=5e-4)
            np.testing.assert_allclose(bound.heads["mass_upper"], bound.heads["mass"], atol=1e-6)
            np.testing.assert_array_equal(bound.heads["hit_rate"], exact.heads["hit_rate"])


def test_edges_are_decoded_once(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", lengths=((9, 9), (9, 9)), keep=Keep(query_key=None, edges=8)).store
    search(store, "previous_token", level="edges")
    monkeypatch.setattr(CommittedSegment, "read_block", lambda self, path, where: pytest.fail(f"{path} was kept"))
    assert search(store, "next_token", level="edges").rows == 32


def test_of_attention_only_chunks_with_a_match_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "CHUNK_PAIRS", 200)
    monkeypatch.setattr(scan, "CHUNK_PAIRS", 200)
    traced = make_store(tmp_path / "store", lengths=((20,) * 30,), keep=Keep(attention="float32", query_key=None))
    read = []
    block = CommittedSegment.read_block

    def noted(self, path, where):
        read.append((path, where[2].stop - where[2].start))
        return block(self, path, where)

    monkeypatch.setattr(CommittedSegment, "read_block", noted)
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
        # The first of the largest stored weights, in an own loop over the decoded maps.
        stored = [store.examples[i].attention().to_numpy() for i in range(store.n_examples)]
        decoded = type(traced)(store, {"encoder": stored}, traced.tokens)
        holds = CONDITIONS.get(text, lambda a, b, q, k: b.special[k] and q != 2)
        mass, hits, _ = slow_search(decoded, site, holds)
        rows = [row for of_example in mass.values() for row in of_example]
        result = search(store, text)
        np.testing.assert_allclose(result.heads["hit_rate"], hits / len(rows), atol=1e-12)
        exact = np.mean([r for m in slow_search(traced, site, holds)[0].values() for r in m], axis=0)
        bound = attention_codec(codec).bound.absolute * 2  # at most two matching keys a row
        np.testing.assert_allclose(result.heads["mass"], exact, atol=bound + 1e-6)


@pytest.mark.parametrize("codec", ["top_k:2/float32", "threshold:0.4/float32"])
@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_sparse_attention_bounds_the_mass_and_gives_exact_hit_rates(stores, kind, codec):
    traced = stores(kind, attention=codec, edges=None, query_key="float32")
    site = traced.store.site()
    for text in ("previous_token", "key.special", "duplicate_token"):
        mass, hits, _ = slow_search(traced, site, CONDITIONS[text])
        rows = [row for of_example in mass.values() for row in of_example]
        result, exact = search(traced.store, text), np.mean(rows, axis=0)
        assert result.level == "attention"
        assert (result.heads["mass"] <= exact + 1e-5).all()
        assert (result.heads["mass_upper"] >= exact - 1e-5).all()
        np.testing.assert_allclose(result.heads["hit_rate"], hits / len(rows), atol=1e-12)
        whole = search(traced.store, text, level="exact")  # never from weights of which some are missing
        assert whole.level == "rebuilt"
        assert "mass_upper" not in whole.heads
        np.testing.assert_allclose(whole.heads["mass"], exact, atol=1e-4)


def test_examples_are_ranked_and_show_their_strongest_matching_edge(tmp_path):
    traced = make_store(tmp_path / "store", lengths=((3, 7, 5), (1, 0, 8)))
    for level in ("attention", "edges"):
        result = search(traced.store, "key.special and query.position > 0", level=level)
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
            if level == "attention" or hit.weight > 0:
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
    whole = search(traced.store, "key.position <= query.position")
    monkeypatch.setattr("headatlas.store.search.scan.BLOCK_WEIGHTS", 200)
    cut = search(traced.store, "key.position <= query.position")
    np.testing.assert_allclose(cut.heads.to_array(), whole.heads.to_array(), rtol=1e-12)
    np.testing.assert_allclose(cut.example_mass, whole.example_mass, rtol=1e-6)


def test_table_ranks_heads(stores):
    result = search(stores("full").store, "previous_token")
    for by in RANKINGS:
        values = result.table(by)[by].to_numpy()
        assert (np.diff(values) <= 0).all()
    table = result.table()
    assert list(table.columns)[:8] == ["layer", "head", "mass", "hit_rate", "baseline", "lift", "rows", "examples"]
    assert (table["layer"][0], table["head"][0]) == (0, 0)
    with pytest.raises(ConfigError, match="'size'"):
        result.table("size")
    with pytest.raises(NotFoundError, match="no head 2"):
        result.top_examples(2, 0)


def test_annotations_and_the_example_itself_can_be_asked_about(tmp_path):
    store = make_store(tmp_path / "store", lengths=((5, 6, 7), (8, 9))).store
    assert search(store, 'example.id == "e3" and previous_token').example_mass["example"].to_numpy().tolist() == [3]
    assert search(store, "example.index >= 3 and first_token").example_mass["example"].to_numpy().tolist() == [3, 4]
    assert search(store, 'example.topic == "home" and first_token').example_mass["example"].to_numpy().tolist() == [2]
    assert search(store, 'key.word_text matches "^(te|t |xt)$"').rows > 0
    heads = search(store, "to_head")
    dependents = search(store, "key.word == query.head and query.upos != key.upos")
    assert heads.rows > dependents.rows > 0


def test_every_library_pattern_can_be_asked_or_says_what_is_missing(stores):
    store = stores("full").store
    asked = 0
    for name in LIBRARY:
        columns = ("deprel", "coref", "relation", "antecedent", "needle")
        if any(f".{column}" in LIBRARY[name].expression for column in columns):
            with pytest.raises(
                PatternError, match=rf"{name} .* cannot be asked of this store: .*({'|'.join(columns)})"
            ):
                search(store, name)
        else:
            search(store, name)
            asked += 1
    assert asked >= 10


def test_texts_that_no_token_has_are_noted(tmp_path):
    store = make_store(tmp_path / "store", lengths=((9, 9), (9, 9))).store
    count = sum(text == "nurse" for i in range(4) for text in store.examples[i].tokens().text)
    note = search(store, 'query.text == "nurze" and key.lower in {"the", "STRASSE"}').notes
    assert note == (
        "no token has lower 'STRASSE'; nearest: 'strasse' (2)".replace("(2)", f"({_count(store, 'Straße')})"),
        f"no token has text 'nurze'; nearest: 'nurse' ({count})",
    )
    assert (
        search(store, 'example.topic == "wurk" and first_token')
        .notes[0]
        .startswith("no example has topic 'wurk'; nearest: 'work'")
    )
    assert search(store, "previous_token").notes == ()


def _count(store, text):
    return sum(t == text for i in range(store.n_examples) for t in store.examples[i].tokens().text)


def test_progress_is_told_and_a_search_can_be_stopped(tmp_path):
    store = make_store(tmp_path / "store", lengths=((5, 6), (7,), (8, 9), (3,))).store
    seen = []
    search(store, "previous_token", on_progress=seen.append)
    assert [(p.n_segments_done, p.n_examples_done) for p in seen] == [(1, 2), (2, 3), (3, 5), (4, 6)]
    assert {(p.n_segments, p.n_examples) for p in seen} == {(4, 6)}
    stopped = threading.Event()
    partial = search(
        store, "previous_token", threads=1, on_progress=lambda progress: stopped.set(), stop=stopped.is_set
    )
    assert not partial.is_complete
    assert 0 < partial.n_examples_searched < 6
    assert partial.n_examples == partial.n_examples_searched
    nothing = search(store, "previous_token", stop=lambda: True)
    assert (nothing.is_complete, nothing.rows, nothing.n_examples_searched) == (False, 0, 0)


@pytest.fixture(params=["processes", "dask"])
def client(request):
    """Somebody else who does the tasks of a search."""
    if request.param == "processes":
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            yield pool
        return
    distributed = pytest.importorskip("dask.distributed")
    workers = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**workers) as cluster, distributed.Client(cluster) as connected:
        yield connected


def test_the_same_plan_on_other_workers_gives_the_same(tmp_path, client):
    store = make_store(tmp_path / "store", lengths=((5, 6), (7,), (8, 9), (3,))).store
    for level in ("attention", "edges"):
        seen = []
        here, there = search(store, "induction", level=level), search(store, "induction", level=level, client=client, on_progress=seen.append)  # fmt: skip
        assert there.heads.identical(here.heads)
        assert there.example_mass.identical(here.example_mass)
        assert [p.n_segments_done for p in seen] == [1, 2, 3, 4]
    answers = iter([False, *[True] * 1000])
    stopped = search(store, "key.position >= 0", client=client, stop=lambda: next(answers))
    assert stopped.n_examples_searched <= store.n_examples
    (tmp_path / "store" / "segments" / "000001" / "encoder" / "attention" / "zarr.json").unlink()
    with pytest.raises(CorruptSegmentError, match="segment 1"):
        search(open_store(tmp_path / "store"), "first_token", client=client)


def test_what_cannot_be_asked_is_an_error(stores):
    store = stores("full").store
    with pytest.raises(PatternError, match="no field 'uppos'"):
        search(store, "key.uppos == 'NOUN'")
    with pytest.raises(NotFoundError, match="no site 'cross'"):
        search(store, "previous_token", "cross")
    bare = stores("full", attention=None, edges=None).store
    with pytest.raises(NotFoundError, match="none was kept"):
        search(bare, "previous_token")
    edges = stores("full", attention=None).store
    with pytest.raises(NotFoundError, match="attention was not kept"):
        search(edges, "previous_token", level="attention")
    dense = stores("full", attention="sqrt8", edges=None).store
    with pytest.raises(NotFoundError, match="edge"):
        search(dense, "previous_token", level="edges")


def test_an_unknown_level_is_an_error(stores, without_shape_checks):
    store = stores("full").store
    with pytest.raises(ConfigError, match="'fast'"):
        search(store, "previous_token", level="fast")


def test_an_edge_to_a_key_that_does_not_exist_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("traced_corpus.strongest", lambda maps, causal, k: (np.full((*maps.shape[:3], k), 99), np.zeros((*maps.shape[:3], k))))  # fmt: skip
    store = make_store(tmp_path / "store").store
    with pytest.raises(FormatError, match="a key_pos that its row does not have"):
        search(store, "previous_token")


def test_patterns_compose_in_searches(stores):
    store = stores("full").store
    either = search(store, Pattern.parse("previous_token") | Pattern.parse("next_token"))
    neither = search(store, ~either.pattern)
    np.testing.assert_allclose(
        either.heads["mass"] * either.rows + neither.heads["mass"] * neither.rows, np.full((2, 3), 30), atol=1e-4
    )


@pytest.mark.parametrize(
    "text",
    [
        'key.text matches "(a*)*(a|aa)+$" or key.text matches "^(([a-z])+.)+[A-Z]([a-z])+$"',
        "key.id in {" + ", ".join(map(str, range(700))) + "}",
        " or ".join(f"query.position - key.position == {n}" for n in range(120)),
        " and ".join(f"query.id != {n + 100}" for n in range(200)),
        "key" + ".previous.next" * 20 + ".id == key.id",
        "query.id * 99999 * 99999 * 999 > key.id",
        "not " * 30 + "(query.special == key.special)",
        'key.text == "\\u202e\\ud800\\u0000"',
    ],
)
def test_expensive_expressions_are_answered(stores, text):
    traced = stores("full")
    result = search(traced.store, text)
    assert result.rows <= sum(len(tokens) for tokens in traced.tokens["source"])
    assert search(traced.store, str(result.pattern)).heads.equals(result.heads)
