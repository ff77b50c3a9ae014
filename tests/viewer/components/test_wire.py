"""The changes of one step of a session travel as one message, and arrive unchanged."""

import json
import math

import numpy as np
import pytest
from bokeh.document import Document

from headatlas.viewer.components.wire import Outbox, encode_message, open_outbox, step
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.pages.session import Session


class Page:
    """Page that records its messages."""

    def __init__(self):
        self.messages = []

    def receive(self, message):
        self.messages.append(decode_message(message))


def decode_message(message):
    """Decode a message as wire.js does."""

    def revive(value):
        code = value.get(message["mark"]) if message["mark"] else None
        if code is None:
            return value
        if isinstance(code, str):
            return float(code)
        kind, start, size = code
        assert start % 8 == 0
        return np.frombuffer(message["bytes"], kind, size, start)

    return json.loads(message["text"], object_hook=revive)


def test_arrays_and_numbers_arrive_unchanged():
    value = {
        "a": np.arange(5, dtype=np.uint8), "b": [np.float32(0.5), {"c": np.linspace(0, 1, 3, dtype=np.float32)}],
        "flags": np.array([True, False]), "long": np.array([[1, 2], [3, 4]]), "text": "</script>\u2028 {{7*7}}", "none": None,
    }  # fmt: skip
    result = decode_message(encode_message({**value, "nan": math.nan, "all": (math.inf, -math.inf, 1.5)}))
    np.testing.assert_array_equal(result["a"], value["a"])
    assert result["a"].dtype == np.uint8
    assert result["b"][0] == 0.5
    np.testing.assert_array_equal(result["b"][1]["c"], value["b"][1]["c"])
    assert result["flags"].tolist() == [1, 0]
    assert result["long"].tolist() == [1, 2, 3, 4]
    assert (result["text"], result["none"]) == (value["text"], None)
    assert math.isnan(result["nan"])
    assert result["all"] == [math.inf, -math.inf, 1.5]
    assert encode_message({"only": "text"})["mark"] == ""


def test_a_value_without_an_encoding_is_rejected():
    with pytest.raises(TypeError, match="a frame holds a set"):
        encode_message({"a": {1, 2}})


def test_a_step_is_one_message_with_the_last_values():
    page = Page()
    outbox = Outbox(page.receive)
    with outbox:
        outbox.put("1", "frame", {"n": 1})
        with outbox:
            outbox.put("1", "frame", {"n": 2})
        outbox.put("2", "selected", "0.1")
        assert page.messages == []
    assert page.messages == [{"1": {"frame": {"n": 2}}, "2": {"selected": "0.1"}}]
    outbox.put("1", "frame", {"n": 3})
    assert page.messages[1:] == [{"1": {"frame": {"n": 3}}}]


def test_a_click_on_a_head_is_one_message_with_the_changes_alone(store):
    session, document, page = Session(DataSource(store)), Document(), Page()
    root = session.view.get_root(document)
    document.add_root(root)
    corpus = session.pages["corpus"]
    models = {
        name: card._models[root.ref["id"]][0]
        for name, card in {
            "map": corpus.map, "inspector": corpus.inspector, "scatter": corpus.scatter, "router": session.router, "facts": corpus.facts,
        }.items()
    }  # fmt: skip
    session.receive({"go": {"layer": 0, "head": 2}})  # the page has no outbox yet: Panel sends the change
    assert models["map"].data.selected == "0.2"
    open_outbox(document, page.receive)
    with step(document):
        session.receive({"go": {"layer": 2, "head": 3}})
    assert len(page.messages) == 1
    changes = page.messages[0]
    assert changes[models["map"].id] == {"selected": "2.3"}
    assert changes[models["inspector"].id]["frame"]["head"] == "2.3"
    assert set(changes[models["inspector"].id]) == {"frame"}
    assert "frame" not in changes[models["scatter"].id]
    assert "layer=2&head=3" in changes[models["router"].id]["frame"]["query"]
    assert models["facts"].id not in changes
    assert models["map"].data.selected == "0.2"


def test_choices_of_the_browser_are_also_set_on_the_server(store):
    session, document, page = Session(DataSource(store), "page=views&view=head&example=3"), Document(), Page()
    document.add_root(root := session.view.get_root(document))
    open_outbox(document, page.receive)
    from headatlas.viewer.components.headview import HeadView

    lines = next(iter(session.view.select(HeadView)))
    model = lines._models[root.ref["id"]][0]
    with step(document):
        session.receive({"go": {"pin": "q2"}})
    assert page.messages[0][model.id]["pin"] == "q2"
    assert model.data.pin == "q2"
    assert "frame" not in page.messages[0][model.id]
