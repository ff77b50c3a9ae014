"""Meanings of a text in the search box, patterns that a store can answer, and tokens that are hidden, without a browser."""

from __future__ import annotations

import numpy as np
import pytest

from headatlas.store.queries.pattern_search import search
from headatlas.store.store import open_store
from headatlas.viewer.components.search_cards import KwicFrame
from headatlas.viewer.data.example_reader import reader_of
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.pages.find_text import suggestions
from headatlas.viewer.pages.quoted_examples import kwic_frame
from headatlas.viewer.pages.session import Session
from headatlas.viewer.state.reader_state import ViewState

from ..conftest import SITE

THANKS = ["Thank you"] * 12 + ["The nurse told the patient that she would call ."] * 4


@pytest.fixture(scope="module")
def data(viewer_store, tmp_path_factory):
    path = viewer_store(tmp_path_factory.mktemp("find") / "encoder", rows=THANKS, n_segments=1)
    return DataSource(open_store(path))


@pytest.fixture(scope="module")
def causal(viewer_store, tmp_path_factory):
    site = SITE.model_copy(update={"causal": True, "name": "decoder"})
    path = viewer_store(tmp_path_factory.mktemp("find") / "causal", rows=THANKS, n_segments=1, site=site)
    return DataSource(open_store(path))


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        ("L2H3", "head", {"layer": 2, "head": 3}),
        ("layer 2 head 3", "head", {"layer": 2, "head": 3}),
        ("2.3", "head", {"layer": 2, "head": 3}),
        ("previous token heads", "pattern", "key.position == query.position - 1"),
        ("copies", "pattern", None),
        ("which heads attend to 'you'", "text", None),
        ("'you'", "token", 'key.text == "you"'),
        ("thank", "token", 'key.text == "Thank"'),
        ("Thank you", "text", {"page": "examples", "text": "Thank you"}),
        ("key.special", "pattern", "key.special"),
    ],
)
def test_a_text_has_meanings(data, text, kind, detail):
    items = suggestions(data, ViewState(data.bounds), text)
    assert items[0].kind == kind
    assert items[-1].kind == "text"
    if isinstance(detail, dict):
        assert detail.items() <= items[0].patch.items()
    elif detail is not None:
        assert items[0].pattern == detail


def test_words_in_the_pattern_box_are_understood(data):
    session = Session(data)
    session.receive({"run": "L2H3"})
    assert (session.state.layer, session.state.head) == (2, 3)
    session.receive({"run": "indukshun"})  # neither a token nor a name: the mistake is shown
    assert session.state.pattern == "indukshun"


def test_the_library_has_only_what_the_site_can_answer(data, causal):
    assert "next_token" in data.library("")
    assert not {"next_token", "other_segment", "to_head"} & causal.library("").keys()


@pytest.mark.parametrize("heads", [(0, 0), (2, 3)])
def test_renormalised_rows_add_up_to_one_over_what_is_shown(causal, heads):
    stored, scaled = (reader_of(causal, 12, "", renormalise=on) for on in (False, True))
    raw, map_ = stored.maps([heads])[0], scaled.maps([heads])[0]
    special = causal.example(12).tokens().special
    assert np.all(map_[:, special] == 0)
    expected = np.where(special, 0, raw)
    total = expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(map_, np.divide(expected, total, out=np.zeros_like(raw), where=total > 0), atol=1e-6)
    part = scaled.maps([heads], query=slice(3, 6), key=slice(2, 5))[0]
    np.testing.assert_allclose(part, map_[3:6, 2:5], atol=1e-6)


def test_quotes_avoid_special_tokens_and_fold(data):
    state = ViewState(data.bounds, layer=0, head=1)
    result = search(data.store, "previous_token")

    def frame(**fields: str) -> KwicFrame:
        state.apply(fields)
        return kwic_frame(data, state, result, stale=False)

    rows = frame(specials="hide")["rows"]
    assert sorted(row["count"] for row in rows) == [4, 12]
    for row in rows:
        query, key = map(int, row["patch"]["pin"][1:].split("k"))
        special = data.example(row["patch"]["example"]).tokens().special
        assert not special[[query, key]].any()
    hits = data.hits_of(result, 0, 1, prefer_plain=False)
    assert any(data.example(hit.example).tokens().special[[hit.query_pos, hit.key_pos]].any() for hit in hits)
    only_special = search(data.store, "key.special")  # asked for: there is nothing else
    assert kwic_frame(data, state, only_special, stale=False)["rows"]
