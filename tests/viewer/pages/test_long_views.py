"""Numbers of the views of a long text: parts of the maps, compared with direct reads, and the words for the parts."""

from __future__ import annotations

import numpy as np
import pytest

from headatlas.store.store import open_store
from headatlas.viewer.data import edge_maps
from headatlas.viewer.data import strongest_edge as edges
from headatlas.viewer.data.example_reader import READ_BYTES, reader_of
from headatlas.viewer.data.map_pyramid import Pyramid, pool_blocks
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.frames.picture_units import units_of
from headatlas.viewer.frames.view_frames import pool, to_codes, unpack
from headatlas.viewer.pages.head_page import units_within
from headatlas.viewer.state.reader_state import ViewState

from ..long_store import write_long_store
from .test_view_pages import view_of

N = 4096
HEAD = (2, 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return DataSource(open_store(write_long_store(tmp_path_factory.mktemp("long") / "minilm", "minilm", N, 2)))


@pytest.fixture(scope="module")
def example(data):
    return data.example(0)


def page_of(data, **fields):
    return view_of(ViewState(data.bounds, page="views", example=0, layer=HEAD[0], head=HEAD[1], **fields), data)


def at_strongest_edge(row, special):
    """The weights of all heads at the key that the chosen head attends to most."""
    return row[:, :, np.where(special, -1, row[HEAD]).argmax()]


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
    np.testing.assert_allclose(page.picker.frame["values"], at_strongest_edge(row, special), atol=1e-6)


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


def test_the_comparison_of_a_long_text_shows_the_part_around_the_pin(data, example):
    page = page_of(data, view="compare", compare="heads", other_head="0.1", pin="q3000", specials="show")
    part = slice(2744, 3256)
    maps = [example.tile(layer, [head], query=part, key=part)[0] for layer, head in (HEAD, (0, 1))]
    assert page.first.frame["n_queries"] == N
    for view, expected in zip((page.first, page.second), maps, strict=True):
        assert (view.frame["query_start"], view.frame["key_start"], view.pin) == (2744, 2744, "q3000")
        np.testing.assert_allclose(unpack(view.frame["attention"][0], view.frame["codec"]), expected, atol=1e-6)
    delta = page.delta.frame
    np.testing.assert_allclose(delta["delta"], maps[1] - maps[0], atol=1e-6)
    assert "512 of 512 rows align, A: queries 2,744\u20133,255 of 4,096" in delta["title"]
    row = delta["row"]
    assert row == 3000 - 2744
    for listed in delta["rows"]:
        assert (listed["a"], listed["b"]) == pytest.approx([m[row, listed["key"]] for m in maps], abs=1e-6)
    assert "too many weights" in str(page.choices.frame)
    page._pin_row("7")
    assert page.state.pin == f"q{2744 + 7}"


def test_two_long_texts_are_compared_at_the_same_tokens(data):
    page = page_of(data, view="compare", other_example="1", pin="q3000", specials="show")
    starts = [(view.frame["query_start"], view.frame["key_start"]) for view in (page.first, page.second)]
    assert starts == [(2744, 2744)] * 2
    queries, keys = page._alignment
    examples = [data.example(number) for number in (0, 1)]
    tables = [item.tokens().piece for item in examples]
    maps = [item.tile(*HEAD[:1], [HEAD[1]], query=slice(2744, 3256), key=slice(2744, 3256))[0] for item in examples]
    expected = (
        maps[1][np.ix_(queries.second - 2744, keys.second - 2744)]
        - maps[0][np.ix_(queries.first - 2744, keys.first - 2744)]
    )
    np.testing.assert_allclose(page.delta.frame["delta"], expected, atol=1e-6)
    labels = page.delta.frame["labels"]
    assert [label.strip() for label in labels[0][0][:5]] == [tables[0][q].strip() for q in queries.first[:5]]


def test_the_choice_of_b_stays_if_there_is_no_comparison(data):
    page = page_of(data, view="compare", compare="heads", other_head="0.1")
    frame = page.choices.frame
    assert (frame["compare"], frame["choice"]) == ("heads", "0.1")
    assert [value for value, _ in frame["choices"]] == [
        f"{layer}.{head}" for layer, head in data.site().heads if (layer, head) != HEAD
    ]
    page.on_message({"compare": "examples"})
    assert (page.choices.frame["compare"], page.choices.frame["number"]) == ("examples", "")
    page.on_message({"b": "0"})
    assert page.choices.frame["number"] == "0"


def slow_edge_map(example, layer, head, rows, n_pixels):
    """The largest stored weight of each block of queries and keys, edge by edge."""
    edges, n_rows = example.edges(layer, head), rows.stop - rows.start
    pixels = np.zeros((min(n_rows, n_pixels), n_pixels), np.float32)
    starts = [np.arange(side) * n // side for side, n in zip(pixels.shape, (n_rows, N), strict=True)]
    for q in range(rows.start, rows.stop):
        for k, weight in zip(edges["key_pos"].values[q], edges["weight"].values[q], strict=True):
            if k >= 0:
                r, c = ((s <= i).sum() - 1 for s, i in zip(starts, (q - rows.start, k), strict=True))
                pixels[r, c] = max(pixels[r, c], weight)
    return pixels


def test_the_model_view_of_a_long_text_shows_its_strongest_keys(data, example):
    page = page_of(data, view="model", pin="q3000")
    frame = page.maps.frame
    assert frame["shape"] == [6, 12, 96, 96]
    assert "the 8 strongest keys of each query" in frame["note"]
    np.testing.assert_array_equal(frame["codes"][3, 5], to_codes(slow_edge_map(example, 3, 5, slice(0, N), 96)))
    complete = pool(to_codes(example.tile(3, [5]))[None], 96)[0, 0].astype(int)
    assert (frame["codes"][3, 5] <= complete + 1).all()  # never more than the map of all weights
    assert (frame["codes"][3, 5].max(axis=1) >= complete.max(axis=1) - 1).all()  # and all of the strongest keys
    row = example.attention(query=slice(3000, 3001)).values[:, :, 0]
    expected = at_strongest_edge(row, example.tokens().special)
    np.testing.assert_allclose(page.picker.frame["values"], expected, atol=1e-6)


def test_the_enlarged_head_of_a_long_text_is_the_part_around_the_pin(data, example):
    page = page_of(data, view="model", pin="q3000", specials="show")
    detail = page.detail.frame
    query, key = detail["start"]
    assert query == key == 2816 + 128 - 256
    part = example.tile(HEAD[0], [HEAD[1]], query=slice(query, query + 512), key=slice(key, key + 512))[0]
    np.testing.assert_allclose(detail["attention"], part, atol=1e-6)
    for edge in detail["edges"]:
        assert edge["weight"] == pytest.approx(part[edge["query"] - query, edge["key"] - key], abs=1e-6)
    assert "Queries 2,688\u20133,199 of 4,096" in detail["note"]
    page.change(pin="q2900")
    page.refresh(frozenset({"pin"}))
    assert page.detail.frame["start"] == [query, key]
    page.change(pin="q100")
    page.refresh(frozenset({"pin"}))
    assert page.detail.frame["start"] == [0, 0]


def test_a_text_whose_edges_are_too_many_shows_some_of_its_queries(data, example, monkeypatch):
    monkeypatch.setattr(edge_maps, "READ_BYTES", 6 * 12 * 8 * 4 * 200)
    page = page_of(data, view="model", pin="q3000")
    frame = page.maps.frame
    assert (frame["query_start"], frame["n_queries"], frame["n_keys"]) == (2900, 200, N)
    assert len(page.maps.tokens["query"]["labels"]) == 200
    assert frame["note"].startswith("queries 2,900\u20133,099 of 4,096")
    expected = to_codes(slow_edge_map(example, 3, 5, slice(2900, 3100), 96))
    np.testing.assert_array_equal(frame["codes"][3, 5], expected)
