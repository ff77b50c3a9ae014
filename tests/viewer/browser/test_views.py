"""The views of one example in a real browser: matrix, compare, units of the head view, space, and downloads.

The tests read the numbers of a picture from its text mirror and compare them with the store.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headatlas.store.schema.traces import Keep
from headatlas.store.store import Store, open_store
from headatlas.viewer.data.map_pyramid import pool_blocks
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.data.vector_space import principal_plane, sample_tokens

from ..conftest import write_store
from ..view_data import wait_for
from ..viewer_process import viewing
from .test_corpus_and_url import opened, wait_query

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser
LONG, PAIR = 1, 0
EXAMPLE = 9


@pytest.fixture(scope="module")
def long_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a pair of texts, a text of 1,302 tokens, and a text from right to left."""
    rows = ["She met him . They left .", "w " * 1299 + "end", "היא פגשה אותו . 漢字"]
    second = ["He agreed .", None, None]
    return write_store(tmp_path_factory.mktemp("traces") / "long", n_segments=1, rows=rows, second=second)


@pytest.fixture(scope="module")
def vectors_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of `store` with another model. The store keeps query and key only."""
    keep = Keep(attention=None, edges=None, statistics=False)
    return write_store(tmp_path_factory.mktemp("traces") / "vectors", n_segments=1, keep=keep)


@pytest.fixture(scope="module")
def url(store_path: Path, long_store: Path, vectors_store: Path) -> Iterator[str]:
    with viewing(store_path, str(long_store), str(vectors_store)) as address:
        yield address


def mirror(page: Page, name: str) -> Locator:
    table = (
        page.locator(f"table[data-mirror='{name}']")
        .locator("visible=true")
        .or_(page.locator(f"table[data-mirror='{name}']"))
    )
    table.last.locator("tbody tr").first.wait_for(state="attached")
    return table.last


def rows(page: Page, name: str) -> list[dict[str, str]]:
    return mirror(page, name).locator("tbody tr").evaluate_all("rows => rows.map(r => ({...r.dataset}))")


def wait_rows(page: Page, name: str, condition) -> list[dict[str, str]]:
    wait_for(page, lambda: condition(rows(page, name)), lambda: f"the change of {name}: {rows(page, name)[:3]}")
    return rows(page, name)


def test_the_matrix_shows_the_store_and_its_window_is_in_the_address(page: Page, url: str, store: Store) -> None:
    opened(page, url, f"page=views&view=matrix&example={EXAMPLE}&layer=1&head=2&specials=show")
    weights = store.examples[EXAMPLE].attention(1, 2).values
    cells = rows(page, "strongest cells of the matrix")
    assert len(cells) == min(60, int((weights > 0).sum()))
    for row in cells:
        assert float(row["weight"]) == pytest.approx(weights[int(row["q"]), int(row["k"])], abs=4e-3)
    plot = page.locator("canvas[data-level]")
    cell, left, top = (float(plot.get_attribute(f"data-{name}")) for name in ("cell", "left", "top"))
    plot.hover(position={"x": left + 3.5 * cell, "y": top + 2.5 * cell})
    value = page.locator(".tip-value.hot").first
    assert float(value.inner_text()) == pytest.approx(weights[2, 3], abs=2e-3)
    plot.click(position={"x": left + 3.5 * cell, "y": top + 2.5 * cell})
    wait_query(page, pin="q2")
    page.get_by_label("zoom in").click()
    wait_for(page, lambda: "zoom=" in page.url)
    zoomed = page.url
    page.goto(zoomed)
    page.locator(f"canvas[data-level='0']:not([data-cell='{cell:.3f}'])").wait_for()


def test_a_long_matrix_is_pooled_and_finer_tiles_come_when_it_is_zoomed(page: Page, url: str, long_store: Path) -> None:
    opened(page, url, f"store=long&page=views&view=matrix&example={LONG}&layer=2&head=3&specials=show")
    weights = open_store(long_store).examples[LONG].attention(2, 3).values
    assert weights.shape[0] > 1024
    canvas = page.locator("canvas[data-level][data-missing='0']")
    canvas.wait_for()
    level = int(canvas.get_attribute("data-level"))
    assert level > 0
    for kind in ("maximum", "mean"):
        page.locator(f"[data-choice={kind}]").click()
        pooled = pool_blocks(weights, 1 << level, kind)
        page.locator(f"[data-choice={kind}][aria-pressed=true]").wait_for()
        cells = wait_rows(
            page,
            "strongest cells of the matrix",
            lambda mirror_rows, p=pooled: (
                abs(float(mirror_rows[0]["weight"]) - p.max()) < 4e-3 and int(mirror_rows[0]["level"]) == level
            ),
        )
        for row in cells:
            cell = int(row["q"]) >> level, int(row["k"]) >> level
            assert float(row["weight"]) == pytest.approx(pooled[cell], abs=4e-3)
    opened(page, url, f"store=long&page=views&view=matrix&example={LONG}&layer=2&head=3&specials=show&zoom=700,690,40")
    page.locator("canvas[data-level='0'][data-missing='0']").wait_for()
    for row in wait_rows(page, "strongest cells of the matrix", lambda mirror_rows: mirror_rows[0]["level"] == "0"):
        assert float(row["weight"]) == pytest.approx(weights[int(row["q"]), int(row["k"])], abs=4e-3)


def test_examples_and_models_are_compared(page: Page, url: str, store: Store, vectors_store: Path) -> None:
    other = EXAMPLE + 3  # differs in the last word only
    opened(
        page,
        url,
        f"page=views&view=compare&example={EXAMPLE}&other_example={other}&layer=1&head=1&pin=q3&specials=show",
    )
    first, second = (store.examples[n].attention(1, 1).values for n in (EXAMPLE, other))
    for row in rows(page, "difference of two maps"):
        q, k = int(row["q"]), int(row["k"])
        assert float(row["difference"]) == pytest.approx(second[q, k] - first[q, k], abs=1e-5)
    changed = rows(page, "heads that change")
    all_maps = store.examples[EXAMPLE].attention().values, store.examples[other].attention().values
    moved = np.abs(all_maps[1] - all_maps[0]).sum(-1).mean(-1) / 2
    assert float(changed[0]["value"]) == pytest.approx(moved.max(), abs=5e-3)
    best = np.unravel_index(moved.argmax(), moved.shape)
    assert changed[0]["head"] == f"{best[0]}.{best[1]}"
    bar = page.locator(".two").first
    k = int(bar.get_attribute("data-key"))
    assert float(bar.get_attribute("data-a")) == pytest.approx(first[3, k], abs=1e-5)
    assert float(bar.get_attribute("data-b")) == pytest.approx(second[3, k], abs=1e-5)
    page.locator(".t[data-side='q'][data-index='2']").first.hover()  # the other view marks the same row
    page.locator(".t.me[data-side='q'][data-index='2']").nth(1).wait_for()
    page.locator("[data-compare=heads]").click()
    wait_query(page, compare="heads")
    opened(page, url, f"page=views&view=compare&compare=models&other_store=long&example={EXAMPLE}")
    page.locator(".message", has_text="has no example with the id").wait_for()
    assert str(store.path.parent) not in page.locator("body").inner_text()
    address = f"page=views&view=compare&compare=models&example={EXAMPLE}&layer=1&head=1"
    opened(page, url, f"{address}&other_store=vectors&other_head=0.2")
    page.get_by_role("heading", name="vectors 0.2").wait_for()
    example = open_store(vectors_store).examples[EXAMPLE]
    words = store.examples[EXAMPLE].word_attention(1, 1).values, example.word_attention(0, 2).values
    for row in wait_rows(page, "difference of two maps", lambda mirror_rows: len(mirror_rows) > 3):
        q, k = int(row["q"]), int(row["k"])
        assert float(row["difference"]) == pytest.approx(words[1][q, k] - words[0][q, k], abs=1e-4)


def test_lines_join_words_and_sentences_and_rows_are_renormalised(
    page: Page, url: str, store: Store, long_store: Path
) -> None:
    address = f"page=views&view=head&example={EXAMPLE}&layer=0&head=0&unit=word&share=1&keys=64"
    opened(page, url, address)
    words = store.examples[EXAMPLE].word_attention(0, 0).values

    def drawn() -> dict[tuple[int, int], float]:
        return {(int(r["q"]), int(r["k"])): float(r["weight"]) for r in rows(page, "edges of the head view")}

    assert drawn() == pytest.approx({(q, k): w for (q, k), w in np.ndenumerate(words) if w >= 0.01}, abs=1e-5)
    page.locator("[data-control=weights]").check()
    wait_query(page, weights="renormalised")
    page.get_by_text("rows add up to 1").wait_for()
    shares = words / words.sum(axis=1, keepdims=True)
    assert drawn() == pytest.approx({(q, k): w for (q, k), w in np.ndenumerate(shares) if w >= 0.01}, abs=1e-5)
    page.locator("[data-control=layout]").check()
    page.locator(".plot.flat[data-direction=ltr]").wait_for()
    page.locator(".plot.flat .t[data-side=q][data-index='1']").click()
    page.locator(".plot.flat .t.me[data-side=q][data-index='1']").wait_for()
    opened(page, url, "store=long&page=views&view=head&example=2&layout=rows")
    page.locator(".plot.flat[data-direction=rtl]").wait_for()
    first, last = (page.locator(f".plot.flat .t[data-side=q][data-index='{i}']").bounding_box() for i in (0, 5))
    assert first
    assert last
    assert first["x"] > last["x"]
    pair = open_store(long_store).examples[PAIR]
    opened(
        page,
        url,
        f"store=long&page=views&view=head&example={PAIR}&layer=0&head=0&unit=sentence&specials=show&keys=64&share=1",
    )
    page.locator(".col.q .t .l").nth(2).wait_for()
    assert page.locator(".col.q .t .l").all_inner_texts() == ["She met him .", "They left .", "He agreed ."]
    page.locator("[data-unit=token]").click()
    page.locator("[data-control=segments]").select_option("ab")
    page.get_by_text("sentence A → sentence B").wait_for()
    weights = pair.attention(0, 0).values
    start = int(np.flatnonzero(pair.tokens().second)[0])
    expected = {(q, k): w for (q, k), w in np.ndenumerate(weights) if q < start <= k and w >= 0.01}
    assert drawn() == pytest.approx(expected, abs=1e-5)


def test_the_space_lies_where_it_is_computed_and_a_lasso_opens_examples(page: Page, url: str, store: Store) -> None:
    opened(page, url, "page=views&view=space&layer=1&head=2&shade=upos")
    tokens = sample_tokens(DataSource(store), store.site(), (1, 2))
    plane = principal_plane(tokens)
    for row, (x, y) in zip(rows(page, "query-key space")[:50], plane.query[:50].tolist(), strict=True):
        assert (float(row["x"]), float(row["y"])) == pytest.approx((x, y), abs=2e-3)
    canvas = page.locator("canvas[data-shade=upos]")
    assert int(canvas.get_attribute("data-tokens")) == len(tokens.label)
    box = canvas.bounding_box()
    assert box
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for x, y in ((1, 0.02), (1, 1), (0.02, 1), (0, 0.02)):
        page.mouse.move(box["x"] + x * (box["width"] - 4) + 2, box["y"] + y * (box["height"] - 4) + 2, steps=3)
    page.mouse.up()
    hits = page.locator(".hit")
    hits.first.wait_for()
    number, position, side = (hits.first.get_attribute(f"data-{name}") for name in ("example", "position", "side"))
    hits.first.click()
    wait_query(page, view="", example=number if number != "0" else "", pin=f"{side}{position}")
    page.locator("[role=tab][data-view=head][aria-selected=true]").wait_for()


def store_text(store: Store) -> str:
    """Return the first words of the example, as the first line of a figure has them."""
    return store.examples[EXAMPLE].text[:20]


def test_a_view_is_downloaded_as_picture_table_and_page(page: Page, url: str, store: Store, tmp_path: Path) -> None:
    opened(page, url, f"page=views&view=head&example={EXAMPLE}&layer=1&head=2&pin=q2")
    edges = rows(page, "edges of the head view")
    menu, names = page.get_by_label("download head view"), []

    def download(kind: str) -> Path:
        menu.click()
        with page.expect_download() as waiting:
            page.locator(f".downloads[open] [data-format={kind}]").first.click()
        names.append(waiting.value.suggested_filename)
        target = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(target)
        return target

    svg = download("SVG").read_text("utf-8")
    labels = page.locator(".col.q .t .l").all_inner_texts()
    assert labels
    assert all(f">{label}</text>" in svg for label in labels)
    assert svg.count("<path") >= len(edges)
    assert names[-1].startswith("attention-lines_tiny-b-random-b_head-1.2_ex-009_85mm")
    assert 'width="85.00mm"' in svg
    assert ">Head 1.2 \u00b7 tiny-" in svg
    assert store_text(store) in svg
    assert not re.search(r"<script|foreignObject|>SVG<|>edges drawn<", svg)
    assert download("PNG").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    table = list(csv.DictReader(io.StringIO(download("CSV").read_text("utf-8"))))
    assert [(row["Head"], row["q"], row["k"], row["Weight"]) for row in table] == [
        (row["head"], row["q"], row["k"], row["weight"]) for row in edges
    ]
    document = download("HTML")
    offline = page.context.new_page()
    offline.goto("about:blank")
    offline.set_content(document.read_text("utf-8"))
    offline.locator(".t.me[data-side=q][data-index='2']").wait_for()
    assert rows(offline, "edges of the head view") == edges
    offline.locator(".hchip[data-head='1.2']").wait_for()
    assert len(rows(offline, "weight of each head")) == 12  # the file holds every head of the example
    offline.close()
    opened(page, url, "page=corpus")
    menu = page.get_by_label("download head map")
    values = list(csv.DictReader(io.StringIO(download("CSV").read_text("utf-8"))))
    assert len(values) == 12
    assert json.loads(json.dumps(values[0]["head"])) == "0.1"
