"""What a step of a session changed leaves as one message, and says what was put into it."""

import json
import math

import numpy as np
import pytest
from bokeh.document import Document

from headatlas.viewer.components.wire import Outbox, open_outbox, packed, step
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.pages.session import Session


class Page:
    """A page that keeps what it is sent."""

    def __init__(self):
        self.messages = []

    def take(self, message):
        self.messages.append(unpacked(message))


def unpacked(message):
    """What wire.js does."""

    def revive(found):
        at = found.get(message["mark"]) if message["mark"] else None
        if at is None:
            return found
        if isinstance(at, str):
            return float(at)
        kind, start, size = at
        assert start % 8 == 0
        return np.frombuffer(message["bytes"], kind, size, start)

    return json.loads(message["text"], object_hook=revive)


def test_arrays_and_numbers_arrive_as_they_were():
    value = {
        "a": np.arange(5, dtype=np.uint8), "b": [np.float32(0.5), {"c": np.linspace(0, 1, 3, dtype=np.float32)}],
        "flags": np.array([True, False]), "long": np.array([[1, 2], [3, 4]]), "text": "</script>\u2028 {{7*7}}", "none": None,
    }  # fmt: skip
    found = unpacked(packed({**value, "nan": math.nan, "all": (math.inf, -math.inf, 1.5)}))
    np.testing.assert_array_equal(found["a"], value["a"])
    assert found["a"].dtype == np.uint8
    assert found["b"][0] == 0.5
    np.testing.assert_array_equal(found["b"][1]["c"], value["b"][1]["c"])
    assert found["flags"].tolist() == [1, 0]
    assert found["long"].tolist() == [1, 2, 3, 4]
    assert (found["text"], found["none"]) == (value["text"], None)
    assert math.isnan(found["nan"])
    assert found["all"] == [math.inf, -math.inf, 1.5]
    assert packed({"only": "text"})["mark"] == ""


def test_a_value_that_no_browser_knows_is_refused():
    with pytest.raises(TypeError, match="a frame holds a set"):
        packed({"a": {1, 2}})


def test_a_step_is_one_message_with_the_last_values():
    page = Page()
    outbox = Outbox(page.take)
    with outbox:
        outbox.put("1", "frame", {"n": 1})
        with outbox:
            outbox.put("1", "frame", {"n": 2})
        outbox.put("2", "selected", "0.1")
        assert page.messages == []
    assert page.messages == [{"1": {"frame": {"n": 2}}, "2": {"selected": "0.1"}}]
    outbox.put("1", "frame", {"n": 3})
    assert page.messages[1:] == [{"1": {"frame": {"n": 3}}}]


def test_a_click_on_a_head_is_one_message_of_what_it_changed(store):
    session, document, page = Session(DataSource(store)), Document(), Page()
    root = session.view.get_root(document)
    document.add_root(root)
    corpus = session.pages["corpus"]
    of = {
        name: card._models[root.ref["id"]][0]
        for name, card in {
            "map": corpus.map, "inspector": corpus.inspector, "scatter": corpus.scatter, "router": session.router, "facts": corpus.facts,
        }.items()
    }  # fmt: skip
    session.receive({"go": {"layer": 0, "head": 2}})  # nobody listens yet: Panel's own way
    assert of["map"].data.selected == "0.2"
    open_outbox(document, page.take)
    with step(document):
        session.receive({"go": {"layer": 2, "head": 3}})
    assert len(page.messages) == 1
    changes = page.messages[0]
    assert changes[of["map"].id] == {"selected": "2.3"}
    assert changes[of["inspector"].id]["frame"]["head"] == "2.3"
    assert set(changes[of["inspector"].id]) == {"frame"}
    assert "frame" not in changes[of["scatter"].id]
    assert "layer=2&head=3" in changes[of["router"].id]["frame"]["query"]
    assert of["facts"].id not in changes
    assert of["map"].data.selected == "0.2"


def test_what_the_browser_may_change_too_is_kept_on_the_server(store):
    session, document, page = Session(DataSource(store), "page=views&view=head&example=3"), Document(), Page()
    document.add_root(root := session.view.get_root(document))
    open_outbox(document, page.take)
    from headatlas.viewer.components.headview import HeadView

    lines = next(iter(session.view.select(HeadView)))
    model = lines._models[root.ref["id"]][0]
    with step(document):
        session.receive({"go": {"pin": "q2"}})
    assert page.messages[0][model.id]["pin"] == "q2"
    assert model.data.pin == "q2"
    assert "frame" not in page.messages[0][model.id]
