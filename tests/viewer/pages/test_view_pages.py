"""The view pages on a real store: they follow the state, write it, and name the arrays that a job must keep."""

from __future__ import annotations

import numpy as np
import pytest

from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store
from headatlas.viewer.data.example_reader import reader_of
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.frames.view_frames import table_frame
from headatlas.viewer.pages.layout import grid
from headatlas.viewer.pages.page import PageStack
from headatlas.viewer.state.page_table import VIEWS
from headatlas.viewer.state.reader_state import ViewState

from ..components.test_headview import rows_of
from ..conftest import write_store
from ..view_data import wait_for

EXAMPLE = 9  # a sentence such as "They met ." without hostile text


@pytest.fixture(scope="module")
def data(store):
    return DataSource(store)


class ViewSession:
    """The views of one state, without the bars and pages around them."""

    wants_best_head = False

    def __init__(self, state, data):
        self.state, self.data = state, data
        self.column = grid()
        self.views = PageStack(self, VIEWS, self.column)
        self.views.refresh(state.view)
        state.param.watch(self._changed, list(state.FIELDS))

    def _changed(self, *events):
        self.views.mark({event.name for event in events})
        self.views.refresh(self.state.view)


def view_of(state, data):
    """Return the open view."""
    return ViewSession(state, data).views[state.view]


def state_of(data, **fields):
    return ViewState(data.bounds, page="views", example=EXAMPLE, layer=1, head=2, **fields)


def test_head_page_shows_the_heads_of_the_state(data):
    state = state_of(data, heads="0.1", view="head", pin="q2")
    page = view_of(state, data)
    frame, example = page.lines.frame, data.example(EXAMPLE)
    assert frame["heads"] == ["1.2", "0.1"]
    assert frame["codec"] == "sqrt8"
    np.testing.assert_allclose((frame["attention"][1] / 255.0) ** 2, example.attention(0, 1).values, atol=1e-7)
    row = example.attention().values[:, :, 2]
    strongest = np.argmax(np.where(example.tokens().special, -1, row[1, 2]))  # of head 1.2, at the pinned token
    np.testing.assert_allclose(page.picker.frame["values"], row[:, :, strongest], atol=1e-6)
    state.apply({"pin": "q2k1"})
    page.refresh(frozenset({"pin"}))
    np.testing.assert_allclose(page.picker.frame["values"], row[:, :, 1], atol=1e-6)
    state.apply({"pin": "q2"})
    page.refresh(frozenset({"pin"}))
    assert page.picker.selected == "1.2,0.1"
    assert page.keys.frame["rows"][0]["weights"] == pytest.approx(
        [example.attention(*h).values[2, page.keys.frame["rows"][0]["position"]] for h in ((1, 2), (0, 1))]
    )


def test_a_pin_sends_no_maps_again_and_a_head_does(data):
    state = state_of(data, view="head")
    page = view_of(state, data)
    sent, tokens = [], []
    page.lines.param.watch(sent.append, "frame")
    page.lines.param.watch(tokens.append, "tokens")
    state.apply({"pin": "q3"})
    assert (page.lines.pin, page.keys.frame["position"], len(sent)) == ("q3", 3, 0)
    state.apply({"heads": "2.3"})
    assert (page.lines.frame["heads"], len(sent), len(tokens)) == (["1.2", "2.3"], 1, 0)
    state.apply({"example": EXAMPLE + 1})
    assert len(tokens) == 1
    assert page.lines.frame["id"] == page.lines.tokens["id"]


def test_choices_in_the_components_reach_the_state(data):
    state = state_of(data, view="head")
    page = view_of(state, data)
    page.lines.pin = "k1"
    page.picker.selected = "2.0,2.1,0.3"
    page.picker.share, page.picker.keys, page.picker.hide_special = 0.4, 3, False
    assert (state.pin, state.layer, state.head, state.heads) == ("k1", 2, 0, "2.1,0.3")
    assert (state.share, state.keys, state.specials) == (0.4, 3, "show")
    assert (page.lines.share, page.lines.keys, page.lines.hide_special) == (0.4, 3, False)
    page.add_head("1.1")
    assert state.heads == "2.1,0.3,1.1"
    assert page.lines.frame["heads"] == ["2.0", "2.1", "0.3", "1.1"]
    page.picker.selected = "9.9"  # an invalid value from a browser
    assert (state.layer, state.head) == (2, 0)


def test_a_view_that_is_not_shown_does_nothing_until_it_is(data):
    state = state_of(data, view="model")
    page = ViewSession(state, data).views["head"]
    assert page.lines.frame == {}
    state.apply({"heads": "0.0"})
    assert page.lines.frame == {}
    state.apply({"view": "head"})
    assert page.lines.frame["heads"] == ["1.2", "0.0"]


def test_model_page(data):
    state = state_of(data, view="model", pin="q1")
    page = view_of(state, data)
    example = data.example(EXAMPLE)
    np.testing.assert_allclose((page.maps.frame["codes"] / 255.0) ** 2, example.attention().values, atol=1e-7)
    assert page.detail.frame["head"] == "1.2"
    np.testing.assert_array_equal(page.detail.frame["attention"], example.attention(1, 2).values)
    stored = example.statistics()
    assert {label: value for label, value, _ in page.detail.frame["facts"]}["Entropy"] == pytest.approx(
        float(stored["entropy"].values[1, 2])
    )
    sent = []
    page.maps.param.watch(sent.append, "frame")
    page.maps.enlarged = "2.3"
    assert (state.layer, state.head, page.detail.frame["head"], sent) == (2, 3, "2.3", [])
    page.detail.pin = "q4"
    assert state.pin == "q4"


def test_neuron_page_compares_with_the_store(data):
    state = state_of(data, view="neuron", pin="q3")
    page = view_of(state, data)
    frame, example = page.vectors.frame, data.example(EXAMPLE)
    np.testing.assert_array_equal(frame["query"], example.query(1, 2).values[3])
    np.testing.assert_array_equal(frame["stored"], example.attention(1, 2).values[3])
    assert np.abs(frame["rebuilt"] - frame["stored"]).max() <= 1 / 255
    assert frame["rebuilt"].sum() == pytest.approx(1, abs=2e-3)
    state.apply({"pin": "q4"})
    assert page.vectors.frame["query_pos"] == 4
    page.picker.selected = "0.1"
    assert (state.layer, state.head, page.vectors.frame["head"]) == (0, 1, "0.1")


def keep_store(tmp_path, keep):
    return DataSource(open_store(write_store(tmp_path / "kept", n_examples=12, n_segments=1, keep=keep)))


def test_attention_that_was_not_kept_is_rebuilt(tmp_path):
    # both stores hold the same vectors: the writer of the fixture starts from one seed
    rebuilt, stored = (
        keep_store(tmp_path / "a", Keep(attention=None, edges=4)),
        keep_store(tmp_path / "b", Keep(edges=4)),
    )
    state = state_of(rebuilt, view="head")
    page = view_of(state, rebuilt)
    assert page.lines.note == "rebuilt from query and key"
    reader = reader_of(rebuilt, EXAMPLE, "")
    for layer in range(3):
        maps = reader.maps([(layer, head) for head in range(4)])
        assert np.abs(maps - stored.example(EXAMPLE).attention(layer).values).max() <= 0.006


def test_vectors_that_were_not_kept_are_asked_for(tmp_path):
    data = keep_store(tmp_path, Keep(query_key=None, edges=4))
    page = view_of(state_of(data, view="neuron"), data)
    assert "query_key" in page.vectors.frame["message"]["text"]
    assert view_of(state_of(data, view="head"), data).lines.frame["heads"] == ["1.2"]


def test_with_neither_every_view_says_so(tmp_path):
    data = keep_store(tmp_path, Keep(attention=None, query_key=None, edges=4))
    head, model, neuron = (view_of(state_of(data, view=view), data) for view in ("head", "model", "neuron"))
    assert "attention" in head.lines.frame["message"]["text"]
    assert "attention" in model.maps.frame["message"]["text"]
    assert "query_key" in neuron.vectors.frame["message"]["text"]


def test_a_pin_outside_the_example_is_no_pin(data):
    page = view_of(state_of(data, view="head", pin="q999"), data)
    assert page.keys.frame["edges"]
    assert page.lines.frame["heads"] == ["1.2"]


@pytest.mark.browser
def test_the_page_in_a_browser_shows_the_stores_numbers_and_pins(serve, data):
    states = []

    def make():
        import panel as pn

        state = state_of(data, view="head", pin="q2")
        states.append(state)
        return pn.Column(view_of(state, data).view, width=1300, height=700)

    served = serve(make)
    page = served.page
    page.locator(".t.me[data-index='2']").wait_for()
    weights = data.example(EXAMPLE).attention(1, 2).values
    special = data.example(EXAMPLE).tokens().special
    expected = {
        ("1.2", 2, k): float(weights[2, k]) for k in range(len(special)) if weights[2, k] >= 0.01 and not special[k]
    }
    assert rows_of(page) == pytest.approx(expected, abs=1e-6)
    page.locator(".col.k .t[data-index='1'] .l").click()
    page.locator(".pinned .tok.k").wait_for()
    wait_for(page, lambda: states[-1].pin == "k1")
    page.keyboard.press("Escape")
    page.get_by_text("Strongest edges").wait_for()
    wait_for(page, lambda: states[-1].pin == "")
    served.shot("headpage")


@pytest.mark.browser
def test_hostile_examples_in_all_views(serve, data):
    from playwright.sync_api import expect

    states = []

    def make():
        import panel as pn

        own_states = [
            ViewState(data.bounds, page="views", example=0, view=view, pin="q1") for view in ("head", "model", "neuron")
        ]
        states[:] = own_states
        views = [view_of(state, data).view for state in own_states]
        for view in views:
            view.param.update(sizing_mode="fixed", width=1300, height=500)
        return pn.Column(*views)

    served = serve(make)
    for example in range(8):
        for state in states:
            state.apply({"example": example})
        labels = table_frame(data.example(example).tokens())["labels"]
        served.page.wait_for_function(
            """labels => { const texts = []; const walk = n => { if (n.shadowRoot) walk(n.shadowRoot); for (const c of n.children || []) { if (c.matches('.col.q .t .l')) texts.push(c.textContent); walk(c); } };
            walk(document.documentElement); return JSON.stringify(texts) === JSON.stringify(labels) }""",
            arg=labels,
        )
        expect(served.page.locator(".pinned .tok")).to_have_text(labels[1])
    for picture in ("head view", "model view", "neuron view"):
        assert served.page.locator(f"[aria-label^='{picture}']").is_visible()
    assert served.page.locator("img").count() == 0
