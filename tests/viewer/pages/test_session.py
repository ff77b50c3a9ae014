"""A session without a browser: effects of messages on the state, and frames of the cards."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

from headatlas.viewer.components import bars, card, corpus_cards, example_cards, search_cards
from headatlas.viewer.data.bookmarks import Bookmark, Bookmarks
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.pages.find_text import is_expression
from headatlas.viewer.pages.session import Session, duration_text

PREVIOUS = "key.position == query.position - 1"


@pytest.fixture(scope="module")
def data(store):
    return DataSource(store)


@pytest.fixture
def session(data):
    return Session(data)


def test_a_click_on_a_head_sends_no_values_again(session):
    page = session.pages["corpus"]
    before = page.map.frame
    session.receive({"go": {"layer": 2, "head": 3}})
    assert page.map.frame is before
    assert (page.map.selected, page.inspector.frame["head"]) == ("2.3", "2.3")
    assert not any(
        isinstance(value, np.ndarray) for row in page.inspector.frame["statistics"] for value in row.values()
    )


def test_the_head_map_holds_the_corpus_means(session, data):
    frame = session.pages["corpus"].map.frame
    np.testing.assert_array_equal(frame["values"], data.head_values("", "previous").values.ravel())
    assert frame["choice"] == "previous"
    assert ["previous", "Previous token"] in frame["options"]


def test_choices_push_and_pictures_replace(session):
    session.receive({"go": {"layer": 1}})
    pushes = session.router.frame["pushes"]
    assert (pushes, session.router.frame["query"]) == (1, "layer=1")
    session.receive({"go": {"statistic": "first"}})
    assert session.router.frame["pushes"] == pushes
    assert "statistic=first" in session.router.frame["query"]


def test_going_back_is_no_new_entry(session):
    session.receive({"go": {"layer": 1}})
    session.receive({"travel": "", "step": 1})
    assert session.state.layer == 0
    assert session.router.frame["heard"] == 1
    assert session.router.frame["query"] == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.3", {"layer": 2, "head": 3}),
        ("ex-011", {"page": "views", "example": 11}),
        (PREVIOUS, {"page": "search", "pattern": PREVIOUS}),
        ("first_token", {"page": "search", "pattern": "key.position == 0"}),
        ("the nurse", {"page": "examples", "text": "the nurse"}),
    ],
)
def test_the_search_box_understands(session, text, expected):
    session.receive({"find": text})
    assert {name: getattr(session.state, name) for name in expected} == expected
    assert session.problems == []


def test_a_search_text_of_any_length_takes_little_time(session):
    """A pattern of `re` takes time that grows with the square of the text, on the server's event loop."""
    start = time.process_time()
    for text in ("not " * 7_900, "not in " * 4_500, "query " * 5_000):
        session.receive({"find": text})
        (problem,) = session.notice.frame["problems"]
        assert problem["reason"] == f"{len(text):,} characters; at most 2,000 are allowed"
    session.receive({"find": "not " * 500})
    assert session.state.text == ("not " * 500).strip()
    assert time.process_time() - start < 0.5


def test_what_is_not_there_is_named_and_put_away(session):
    session.receive({"find": "99.0"})
    assert [p["field"] for p in session.notice.frame["problems"]] == ["layer"]
    assert session.notice.visible
    session.receive({"dismiss": True})
    assert session.notice.frame["problems"] == []
    assert not session.notice.visible


@pytest.mark.parametrize(
    "message", [{}, {"go": 3}, {"travel": None}, {"run": []}, {"x": 1}, {"go": {"layer": {"a": 1}}}]
)
def test_messages_of_another_shape_do_nothing(session, message):
    before = session.state.to_query()
    session.receive(message)
    assert session.state.to_query() == before


def test_a_search_chooses_its_strongest_head_only_if_none_was_named(data):
    session = Session(data, "page=search&pattern=self_token")
    assert (session.state.layer, session.state.head) == (1, 2)
    session = Session(data, "page=search&pattern=self_token&layer=2&head=0")
    assert (session.state.layer, session.state.head) == (2, 0)


def test_the_ranked_examples_are_those_of_the_search(data):
    session = Session(data, f"page=search&pattern={PREVIOUS.replace('=', '%3D')}&layer=0&head=1")
    page = session.pages["search"]
    rows = page.examples.frame["rows"]
    assert [r["patch"]["example"] for r in rows] == [
        hit.example for hit in data.hits_of(data.search(PREVIOUS, ""), 0, 1)
    ]
    assert page.heads.frame["rows"][0]["head"] == "0.1"
    assert page.heads.frame["rows"][0]["mass"] == pytest.approx(float(data.search(PREVIOUS, "").heads["mass"][0, 1]))


def test_a_mistake_keeps_the_last_answer_dimmed(data):
    session = Session(data, "page=search&pattern=self_token")
    session.receive({"run": "key.positon == 0"})
    page = session.pages["search"]
    assert page.box.frame["error"]["start"] == 0
    assert page.heads.frame["stale"]
    assert page.summary.frame["stale"] == "of the last valid pattern"


def test_the_example_list_filters_and_orders_all_examples(data):
    session = Session(data, "page=examples&text=nurse&order=strongest&statistic=entropy&layer=1&head=1")
    frame = session.pages["examples"].list.frame
    values = [row["value"] for row in frame["rows"]]
    assert frame["n_found"] == len(frame["rows"]) == 17
    assert values == sorted(values, reverse=True)
    session.receive({"go": {"text": "", "row": 44}})
    frame = session.pages["examples"].list.frame
    assert (frame["start"], len(frame["rows"]), frame["n_found"]) == (44, 16, 60)


COMPONENTS = [
    kind
    for module in (bars, corpus_cards, example_cards, search_cards)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, card.Card) and kind is not card.Card
]


@pytest.mark.parametrize("kind", COMPONENTS, ids=lambda kind: kind.__name__)
def test_no_rule_of_a_component_is_called_like_it(kind):
    """Panel sets the lower-case name of the class as CSS class of the component's element."""
    folder = Path(card.__file__).parent
    files = [kind._bundle, "style.js", "shell.js"]
    rules = {
        rule
        for file in files
        for rule in re.findall(r"\.([a-z][a-z0-9]*)\b(?=[^`;(){}]*\{ )", (folder / file).read_text("utf-8"))
    }
    assert {"btn", "card"} <= rules
    assert kind.__name__.lower() not in rules


def test_small_words():
    assert (duration_text(0.0042), duration_text(1.23)) == ("4 ms", "1.2 s")
    assert is_expression("key.special", {})
    assert is_expression("key.speciall == 1", {})
    assert not is_expression("the key to the door", {})


def test_a_second_session_sees_bookmarks_and_writes_no_old_state_back(store, tmp_path):
    data = DataSource(store, bookmarks=Bookmarks(tmp_path / "heads.json"))
    first, second = Session(data, "layer=0&head=1"), Session(data, "layer=0&head=1")
    first.receive({"bookmark": {"star": True}})
    second._check_bookmarks()
    assert second.pages["corpus"].inspector.frame["bookmark"]["star"] is True
    assert second.pages["corpus"].map.frame["bookmarks"] == {"0.1": {"star": True, "note": ""}}
    # a note that was begun on one head arrives after the tab moved to another head
    second.receive({"go": {"layer": 2, "head": 3}})
    Bookmarks(data.bookmarks.path).update("encoder", 2, 3, note="of another viewer")
    second.receive({"bookmark": {"head": "0.1", "note": "of 0.1"}})
    assert data.bookmarks.heads("encoder") == {
        "0.1": Bookmark(True, "of 0.1"),
        "2.3": Bookmark(False, "of another viewer"),
    }
    for head in ("9.9", "x", None, "0.1; 2.3"):
        second.receive({"bookmark": {"head": head, "star": True}})
    assert set(data.bookmarks.heads("encoder")) == {"0.1", "2.3"}
