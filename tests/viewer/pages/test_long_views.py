"""Numbers of the views of a long text: parts of the maps, compared with direct reads, and the words for the parts."""

from __future__ import annotations

import numpy as np
import pytest

from headatlas.store.store import open_store
from headatlas.viewer.data import strongest_edge as edges
from headatlas.viewer.data.example_reader import READ_BYTES, reader_of
from headatlas.viewer.data.map_pyramid import Pyramid, pool_blocks
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.frames.picture_units import units_of
from headatlas.viewer.frames.view_frames import to_codes
from headatlas.viewer.pages.head_page import units_within
from headatlas.viewer.state.reader_state import ViewState

from ..long_store import write_long_store
from .test_view_pages import view_of

N = 4096
HEAD = (2, 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return DataSource(open_store(write_long_store(tmp_path_factory.mktemp("long") / "minilm", "minilm", N, 1)))


@pytest.fixture(scope="module")
def example(data):
    return data.example(0)


def page_of(data, **fields):
    return view_of(ViewState(data.bounds, page="views", example=0, layer=HEAD[0], head=HEAD[1], **fields), data)


def test_a_pinned_query_lists_its_complete_row(data, example):
    page = page_of(data, view="head", pin="q3000")
    frame, lines = page.keys.frame, page.lines.frame
    assert (lines["query_start"], lines["key_start"], lines["shape"], lines["n_keys"]) == (2744, 2744, [1, 512, 512], N)
    window = example.attention(*HEAD, query=slice(2744, 3256), key=slice(2744, 3256)).values
    np.testing.assert_allclose(lines["attention"][0], window, atol=1e-6)
    row = example.attention(query=slice(3000, 3001)).values[:, :, 0]
    listed = {r["position"]: r["weights"][0] for r in frame["rows"]}
    assert listed == pytest.approx({k: row[HEAD][k] for k in listed}, abs=1e-6)
    special = example.tokens().special
    assert max(listed.values()) == pytest.approx(row[HEAD][~special].max(), abs=1e-6)
    total = sum(listed.values()) + frame["rest"][0] + frame["hidden"][0]
    assert total == pytest.approx(1, abs=1e-4)
    best = frame["rows"][0]["position"]
    assert [h["weight"] for h in frame["edge"]["heads"]] == pytest.approx(
        np.sort(row[:, :, best].ravel())[::-1][:5].tolist(), abs=1e-6
    )
    back = {r["position"]: r["weights"][0] for r in frame["back"]}
    column = example.attention(*HEAD, query=slice(2744, 3256), key=slice(3000, 3001)).values[:, 0]
    assert back == pytest.approx({q: column[q - 2744] for q in back}, abs=1e-6)
    assert "queries 2,744\u20133,255 of 4,096" in frame["note"]
    np.testing.assert_allclose(page.picker.frame["values"], row[:, :, best], atol=1e-6)


def test_a_pinned_key_lists_the_queries_near_it(data, example):
    page = page_of(data, view="head", pin="k2000")
    frame = page.keys.frame
    column = example.attention(*HEAD, query=slice(1744, 2256), key=slice(2000, 2001)).values[:, 0]
    listed = {r["position"]: r["weights"][0] for r in frame["rows"]}
    assert listed == pytest.approx({q: column[q - 1744] for q in listed}, abs=1e-6)
    assert max(listed.values()) == pytest.approx(column.max(), abs=1e-6)
    assert page.picker.frame["title"] == "pin a query for weights"
    best = frame["rows"][0]["position"]
    weights = example.attention(query=slice(best, best + 1), key=slice(2000, 2001)).values.ravel()
    assert frame["edge"]["heads"][0]["weight"] == pytest.approx(weights.max(), abs=1e-6)


def test_without_a_pin_the_strongest_edges_are_those_of_the_part(data, example):
    frame = page_of(data, view="head", specials="show").keys.frame
    window = example.attention(*HEAD, query=slice(0, 512), key=slice(0, 512)).values
    assert frame["edges"][0]["weight"] == pytest.approx(float(window.max()), abs=1e-6)
    for edge in frame["edges"]:
        assert edge["weight"] == pytest.approx(window[edge["query"], edge["key"]], abs=1e-6)
    assert frame["note"] == "Of queries 0\u2013511 of 4,096 and keys 0\u2013511 of 4,096."


@pytest.mark.parametrize("unit", ["word", "sentence"])
def test_units_of_a_part_are_merged_as_those_of_a_text(data, example, unit):
    page = page_of(data, view="head", unit=unit, pin="q3000")
    units, lines = units_of(example, "source", unit), page.lines.frame
    start, n = lines["query_start"], lines["shape"][1]
    tokens = np.flatnonzero((units.of_token >= start) & (units.of_token < start + n))
    rows = slice(int(tokens[0]), int(tokens[-1]) + 1)
    assert rows.stop - rows.start <= 512
    complete = example.attention(*HEAD, query=rows).values
    unit_of_row = units.of_token[rows] - start
    expected = np.stack([
        np.stack([complete[unit_of_row == u][:, units.of_token == start + v].sum(axis=1).mean() for v in range(n)])
        for u in range(min(n, 4))
    ])  # fmt: skip
    np.testing.assert_allclose(lines["attention"][0][: len(expected)], expected, atol=1e-5)
    pinned = int(units.of_token[3000])
    row = complete[unit_of_row == pinned - start].mean(axis=0)
    listed = {r["position"]: r["weights"][0] for r in page.keys.frame["rows"]}
    assert listed == pytest.approx({v: row[units.of_token == v].sum() for v in listed}, abs=1e-5)


def test_a_part_holds_complete_units(example):
    units = units_of(example, "source", "sentence")
    n = len(units.frame["labels"])
    for center in (None, 0, 1234, N - 1):
        span = units_within(units, slice(0, n), center)
        tokens = np.flatnonzero((units.of_token >= span.start) & (units.of_token < span.stop))
        assert len(tokens) == tokens[-1] - tokens[0] + 1 <= 512
        others = np.delete(units.of_token, tokens)
        assert not np.isin(others, np.arange(span.start, span.stop)).any()
        if center is not None and units.of_token[center] >= 0:
            assert span.start <= units.of_token[center] < span.stop


def test_levels_of_strips_equal_those_of_the_map(data, example):
    reader = reader_of(data, 0, "")
    pyramid, weights = reader.pyramid(HEAD), example.tile(HEAD[0], [HEAD[1]])[0]
    for level in range(2, len(pyramid.level_shapes)):
        for kind in ("maximum", "mean"):
            expected = to_codes(pool_blocks(weights, 1 << level, kind))[:256, :256].astype(int)
            assert np.abs(pyramid.tile(level, 0, 0, kind).astype(int) - expected).max() <= 1
    np.testing.assert_allclose(pyramid.margins.received, weights.sum(axis=0, dtype=np.float64), rtol=1e-5)
    assert isinstance(pyramid, Pyramid)


def test_the_budget_is_known_before_the_read(data):
    reader = reader_of(data, 0, "")
    assert reader.row_cost("q", 7) <= READ_BYTES < reader.row_cost("k", 7)
    assert reader.near(2000) == slice(1744, 2256)
    weights = reader.weights(HEAD, "k", 2000)
    assert not weights[:1744].any()
    assert not weights[2256:].any()
    assert weights[1744:2256].all()


def test_the_strongest_edge_of_a_long_text_is_a_stored_edge(data, example, monkeypatch):
    edge = data.strongest_edge("", 0, *HEAD)
    stored = example.edges(*HEAD)
    assert edge is not None
    assert edge.weight == pytest.approx(float(stored["weight"].values[edge.query_pos].max()), abs=1e-3)
    monkeypatch.setattr(edges, "MAX_PAIRS", 1)
    assert edges.strongest_edge(example, data.site(""), *HEAD, "", True) == edge


def test_the_comparison_of_a_long_text_says_why_not_and_keeps_its_choices(data):
    """The choice of B stays, so that a reader leaves a comparison that cannot be drawn."""
    page = page_of(data, view="compare", compare="heads", other_head="0.1")
    assert "has 4,096 tokens: comparing two maps of that size takes" in str(page.first.frame)
    frame = page.choices.frame
    assert (frame["compare"], frame["choice"]) == ("heads", "0.1")
    assert [value for value, _ in frame["choices"]] == [
        f"{layer}.{head}" for layer, head in data.site().heads if (layer, head) != HEAD
    ]
    page.on_message({"compare": "examples"})
    assert (page.choices.frame["compare"], page.choices.frame["number"]) == ("examples", "")
    page.on_message({"b": "0"})
    assert page.choices.frame["number"] == "0"


def test_the_model_view_of_a_long_text_says_why_not_and_fills_its_picker(data, example):
    page = page_of(data, view="model", pin="q3000")
    assert "6 \u00d7 12 maps of 4096 \u00d7 4096 tokens" in str(page.maps.frame)
    assert "Open the head view" in str(page.maps.frame)
    row = example.attention(query=slice(3000, 3001)).values[:, :, 0]
    shown = np.flatnonzero(~example.tokens().special & (np.arange(N) != 3000))
    best = shown[row[HEAD][shown].argmax()]
    np.testing.assert_allclose(page.picker.frame["values"], row[:, :, best], atol=1e-6)
