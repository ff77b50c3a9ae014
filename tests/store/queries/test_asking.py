"""Searches: supported expressions, notes, progress, cancellation, clients, and errors."""

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from dask import distributed
from slow_search import stores_of
from traced_corpus import make_store

from headatlas.store import open_store
from headatlas.store.errors import ConfigError, CorruptSegmentError, FormatError, NotFoundError, PatternError
from headatlas.store.patterns import LIBRARY, Pattern
from headatlas.store.queries.pattern_search import search


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return stores_of(tmp_path_factory)


def test_expressions_can_use_annotations_and_the_example(tmp_path):
    store = make_store(tmp_path / "store", lengths=((5, 6, 7), (8, 9))).store
    assert search(store, 'example.id == "e3" and previous_token').example_mass["example"].to_numpy().tolist() == [3]
    assert search(store, "example.index >= 3 and first_token").example_mass["example"].to_numpy().tolist() == [3, 4]
    assert search(store, 'example.topic == "home" and first_token').example_mass["example"].to_numpy().tolist() == [2]
    assert search(store, 'key.word_text matches "^(te|t |xt)$"').rows > 0
    heads = search(store, "to_head")
    dependents = search(store, "key.word == query.head and query.upos != key.upos")
    assert heads.rows > dependents.rows > 0


def test_every_library_pattern_is_searched_or_names_the_missing_column(stores):
    store = stores("full").store
    n_searched = 0
    for name in LIBRARY:
        columns = ("deprel", "coref", "relation", "antecedent", "needle")
        if any(f".{column}" in LIBRARY[name].expression for column in columns):
            with pytest.raises(PatternError, match=rf"{name} .* does not fit this store: .*({'|'.join(columns)})"):
                search(store, name)
        else:
            search(store, name)
            n_searched += 1
    assert n_searched >= 10


def test_notes_name_texts_that_no_token_has(tmp_path):
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


def test_a_search_reports_progress_and_can_be_stopped(tmp_path):
    store = make_store(tmp_path / "store", lengths=((5, 6), (7,), (8, 9), (3,))).store
    reports = []
    search(store, "previous_token", on_progress=reports.append)
    assert [(p.n_segments_done, p.n_examples_done) for p in reports] == [(1, 2), (2, 3), (3, 5), (4, 6)]
    assert {(p.n_segments, p.n_examples) for p in reports} == {(4, 6)}
    stopped = threading.Event()
    partial = search(
        store, "previous_token", workers=1, on_progress=lambda progress: stopped.set(), stop=stopped.is_set
    )
    assert not partial.is_complete
    assert 0 < partial.n_examples_searched < 6
    assert partial.n_examples == partial.n_examples_searched
    nothing = search(store, "previous_token", stop=lambda: True)
    assert (nothing.is_complete, nothing.rows, nothing.n_examples_searched) == (False, 0, 0)


@pytest.fixture(params=["processes", "dask"])
def client(request):
    """A client that runs the tasks of a search."""
    if request.param == "processes":
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            yield pool
        return
    workers = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**workers) as cluster, distributed.Client(cluster) as connected:
        yield connected


def test_the_same_plan_on_other_workers_gives_the_same(tmp_path, client):
    store = make_store(tmp_path / "store", lengths=((5, 6), (7,), (8, 9), (3,))).store
    for basis in ("attention", "edges"):
        reports = []
        local = search(store, "induction", basis=basis)
        remote = search(store, "induction", basis=basis, workers=client, on_progress=reports.append)
        assert remote.heads.identical(local.heads)
        assert remote.example_mass.identical(local.example_mass)
        assert [p.n_segments_done for p in reports] == [1, 2, 3, 4]
    answers = iter([False, *[True] * 1000])
    stopped = search(store, "key.position >= 0", workers=client, stop=lambda: next(answers))
    assert stopped.n_examples_searched <= store.n_examples
    (tmp_path / "store" / "segments" / "000001" / "segment.zip").unlink()
    with pytest.raises(CorruptSegmentError, match="segment 1"):
        search(open_store(tmp_path / "store"), "first_token", workers=client)


def test_unknown_names_and_missing_data_are_errors(stores):
    store = stores("full").store
    with pytest.raises(PatternError, match="no field 'uppos'"):
        search(store, "key.uppos == 'NOUN'")
    with pytest.raises(NotFoundError, match="no site 'cross'"):
        search(store, "previous_token", "cross")
    bare = stores("full", attention=None, edges=None).store
    with pytest.raises(NotFoundError, match="the store has none of them"):
        search(bare, "previous_token")
    edges = stores("full", attention=None).store
    with pytest.raises(NotFoundError, match="attention was not kept"):
        search(edges, "previous_token", basis="attention")
    dense = stores("full", attention="sqrt8", edges=None).store
    with pytest.raises(NotFoundError, match="edge"):
        search(dense, "previous_token", basis="edges")


def test_an_unknown_basis_is_an_error(stores, without_shape_checks):
    store = stores("full").store
    with pytest.raises(ConfigError, match="'fast'"):
        search(store, "previous_token", basis="fast")


def test_an_edge_to_a_key_that_does_not_exist_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("traced_corpus.strongest", lambda maps, causal, k: (np.full((*maps.shape[:3], k), 99), np.zeros((*maps.shape[:3], k))))  # fmt: skip
    store = make_store(tmp_path / "store").store
    with pytest.raises(FormatError, match="a key_pos outside its row"):
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
def test_expensive_expressions_give_a_result(stores, text):
    traced = stores("full")
    result = search(traced.store, text)
    assert result.rows <= sum(len(tokens) for tokens in traced.tokens["source"])
    assert search(traced.store, str(result.pattern)).heads.equals(result.heads)
