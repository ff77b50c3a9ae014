"""State of a reader and its URL query."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.viewer.state.page_table import PAGES, VIEWS
from headatlas.viewer.state.reader_state import (
    MEASURES,
    THEMES,
    Bounds,
    ViewState,
    query_of_arguments,
)

BOUNDS = Bounds(
    sites={"encoder": (range(6), 12), "cross": (range(2), 3)}, statistics=("entropy", "previous"), examples=range(20)
)
TEXT = st.text(max_size=40).filter(lambda s: "\ufffd" not in s)

values = st.fixed_dictionaries(
    {},
    optional={
        "page": st.sampled_from([row.route for row in PAGES]), "view": st.sampled_from([row.route for row in VIEWS]), "site": st.just("encoder"),
        "statistic": st.sampled_from(BOUNDS.statistics), "pattern": TEXT, "measure": st.sampled_from(MEASURES),
        "layer": st.integers(0, 5), "head": st.integers(0, 11),
        "heads": st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11)), unique=True, max_size=12).map(
            lambda heads: ",".join(f"{layer}.{head}" for layer, head in heads)
        ),
        "example": st.integers(0, 19), "pin": st.from_regex(r"([qk][0-9]{1,4})?", fullmatch=True),
        "share": st.integers(0, 100).map(lambda n: n / 100), "keys": st.integers(1, 64), "text": TEXT,
        "row": st.integers(0, 10**6), "theme": st.sampled_from(THEMES),
    },
)  # fmt: skip


@given(values)
def test_a_query_brings_the_state_back(patch):
    state = ViewState(BOUNDS)
    assert state.apply(patch) == []
    other = ViewState(BOUNDS, page="views", layer=3, text="x")
    assert other.from_query(state.to_query()) == []
    assert {f: getattr(other, f) for f in state.FIELDS} == {f: getattr(state, f) for f in state.FIELDS}
    assert state.to_query().isascii()


@given(st.text(st.characters(), max_size=200))
def test_no_query_breaks_the_state(query):
    state = ViewState(BOUNDS)
    state.from_query(query)
    second_state = ViewState(BOUNDS)
    assert second_state.from_query(state.to_query()) == []


@given(
    st.dictionaries(
        st.sampled_from(ViewState.FIELDS),
        st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.lists(st.integers()),
    )
)
def test_a_value_from_the_browser_is_set_or_reported(patch):
    state = ViewState(BOUNDS)
    problems = state.apply(patch)
    refused = {p.field for p in problems}
    assert refused <= set(patch)
    for name in set(patch) - refused:
        assert (
            str(getattr(state, name)) == str(patch[name])
            or float(patch[name]) == getattr(state, name)
            or name == "heads"
        )


def test_the_start_has_an_empty_query():
    state = ViewState(BOUNDS)
    assert (state.to_query(), state.site, state.statistic) == ("", "encoder", "entropy")


@pytest.mark.parametrize(
    ("query", "field", "reason"),
    [
        ("layer=6", "layer", "this store has layer 0 to 5"),
        ("site=cross&head=3", "head", "this store has head 0 to 2"),
        ("example=20", "example", "20 examples, numbers 0 to 19"),
        ("page=admin", "page", "expected one of corpus, search, examples, views"),
        ("heads=5.8,9.1", "heads", "head 9.1 is not in this store: layers 0 to 5 of 12 heads"),
        ("heads=" + ",".join(f"{i % 6}.{i % 12}" for i in range(257)), "heads", "257 heads; at most 256"),
        ("pin=x3", "pin", "expected a token such as q14 or k3, or an edge such as q14k3"),
        ("pin=q3q1", "pin", "an edge such as q14k3"),
        ("share=1.5", "share", "a number from 0 to 1"),
        ("share=nan", "share", "a number from 0 to 1"),
        ("keys=0", "keys", "1 to 64"),
        ("layer=" + "9" * 5000, "layer", "whole number"),
        ("layer=٣", "layer", "whole number"),
        ("colour=red", "colour", "no such field"),
        ("pattern=" + "x" * 2001, "pattern", "at most 2000"),
        ("pattern=%ff", "pattern", "not UTF-8"),
        ("where=" + "[" * 1_990, "where", "a JSON object of texts"),
        ("where=" + '{"a":' * 390, "where", "a JSON object of texts"),
        ('where={"topic": "%5Cud800"}', "where", "half of a surrogate pair"),
        ('where={"%5Cudfff": "x"}', "where", "half of a surrogate pair"),
    ],
)
def test_an_invalid_value_is_reported_and_not_set(query, field, reason):
    state = ViewState(BOUNDS)
    problems = state.from_query(query)
    assert [p.field for p in problems] == [field]
    assert reason in str(problems[0])
    if field not in ("pattern", "colour"):
        assert getattr(state, field) == getattr(ViewState(BOUNDS), field)


def test_an_empty_store_has_no_example():
    problems = ViewState(Bounds(examples=())).from_query("example=0")
    assert "no example yet" in problems[0].reason


def test_the_chosen_head_comes_first_and_once():
    state = ViewState(BOUNDS, layer=5, head=8, heads="5.10,5.8,0.1")
    assert state.heads_shown == ((5, 8), (5, 10), (0, 1))


def test_one_patch_is_one_change():
    state, changes = ViewState(BOUNDS), []
    state.param.watch(lambda *events: changes.append({e.name for e in events}), list(ViewState.FIELDS))
    state.apply({"page": "views", "example": 3, "layer": 2})
    assert changes == [{"page", "example", "layer"}]


def test_arguments_of_a_request_keep_their_bytes():
    state = ViewState(BOUNDS)
    query = query_of_arguments({"pattern": [b'key.text == "a&b=%"'], "layer": [b"1", b"2"]})
    assert state.from_query(query) == []
    assert (state.pattern, state.layer) == ('key.text == "a&b=%"', 2)


def test_an_empty_store_rejects_only_an_example_that_the_query_names():
    state = ViewState(Bounds(sites={"encoder": (range(6), 12)}, examples=range(0)))
    assert state.from_query("page=examples") == []
    assert [problem.field for problem in state.from_query("example=3")] == ["example"]


def test_another_site_deselects_heads_that_it_does_not_have():
    state = ViewState(BOUNDS)
    assert state.apply({"layer": 5, "head": 7, "heads": "1.2,4.11", "pin": "q3"}) == []
    assert state.apply({"site": "cross"}) == []
    assert (state.layer, state.head, state.heads, state.pin) == (1, 2, "1.2", "")
    assert [problem.field for problem in state.apply({"site": "encoder", "layer": 9})] == ["layer"]
