"""Layout: narrow and wide windows, large grids of heads, right-to-left texts, titles, ids, axes and bars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import pytest

from headatlas.store.store import open_store

from ..conftest import write_store
from ..long_store import write_long_store
from ..viewer_process import running
from .test_corpus_and_url import PREVIOUS, opened, wait_query

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
HEBREW = "הילדה אמרה לרופאה שהיא רוצה לחזור הביתה לפני הערב"
PAGES = {
    "corpus": "page=corpus",
    "search": f"page=search&pattern={quote(PREVIOUS)}",
    "examples": "page=examples",
    "head": "page=views&view=head&example=1&pin=q2",
    "model": "page=views&view=model&example=1",
    "neuron": "page=views&view=neuron&example=1&pin=q2",
    "matrix": "page=views&view=matrix&example=1",
    "compare": "page=views&view=compare&example=1",
    "space": "page=views&view=space&example=1",
}
SPILLED = """headers => headers.filter(h => h.offsetParent).flatMap(header => {
    const box = header.getBoundingClientRect(), shown = [...header.children].filter(c => c.getBoundingClientRect().width > 0);
    const boxes = shown.map(c => c.getBoundingClientRect()), wrong = [];
    boxes.forEach((b, i) => {
        if (b.right > box.right + 1 || b.left < box.left - 1) wrong.push(`${shown[i].textContent} leaves ${header.textContent}`);
        boxes.slice(i + 1).forEach(o => { if (o.left < b.right - 1 && b.left < o.right - 1 && o.top < b.bottom - 1 && b.top < o.bottom - 1) wrong.push(`two parts overlap in ${header.textContent}`); });
    });
    return wrong; })"""
"""Parts of bars and of the titles of cards that leave them or lie over each other."""
BARS = ".card > header, header.top, nav.path, .viewtabs, .card > .text"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a store of 80 x 64 heads, a right-to-left one with long ids, and one of an encoder-decoder."""
    folder = tmp_path_factory.mktemp("layout")
    rows = [f"{HEBREW} {i}" for i in range(4)]
    write_store(
        folder / "hebrew",
        rows=rows,
        n_segments=1,
        ids=[f"weblog-news.example_2003-10-0{i}_part-000{i}" for i in range(4)],
    )
    write_long_store(folder / "grid", "grid", 20)
    write_store(folder / "cross", rows=["The nurse slept ."] * 3, targets=["Die Schwester schlief ."] * 3, n_segments=1)
    return folder


@pytest.fixture(scope="module")
def url(store_path: Path, folder: Path) -> Iterator[str]:
    others = [str(folder / name) for name in ("hebrew", "grid", "cross")]
    with running(store_path, "--no-token", *others) as (address, _):
        yield address


def check_page(page: Page, url: str, store: str, name: str) -> None:
    opened(page, url, f"store={store}&{PAGES[name]}")
    page.locator(".card:visible").first.wait_for()
    page.wait_for_timeout(500)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), (store, name)
    assert page.locator(BARS).evaluate_all(SPILLED) == [], (store, name)
    assert page.get_by_label("store", exact=True).is_visible()
    head = page.locator("[data-part=head] b")
    assert head.evaluate("b => b.scrollWidth <= b.clientWidth + 1 && b.getBoundingClientRect().width > 10"), (
        store,
        name,
    )
    cards = page.locator("[data-picture]:visible").evaluate_all(
        """cards => cards.filter(card => [...card.querySelectorAll("canvas")].some(c => c.offsetParent && c.getBoundingClientRect().right > card.getBoundingClientRect().right + 1
        && !c.closest(".body").matches(".body:not([style*=hidden])"))).map(card => card.dataset.picture)"""
    )
    assert cards == [], (store, name)


@pytest.mark.parametrize("name", ["corpus", "search", "examples", "neuron"])
def test_a_page_of_720_pixels_has_all_its_titles_and_bars(page: Page, url: str, name: str) -> None:
    page.set_viewport_size({"width": 720, "height": 800})
    check_page(page, url, "hebrew", name)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [720, 1024, 1440, 2560])
@pytest.mark.parametrize("store", ["tiny", "hebrew", "grid", "cross"])
def test_every_page_fits_every_window(page: Page, url: str, store: str, width: int, theme: str) -> None:
    page.set_viewport_size({"width": width, "height": max(700, width * 9 // 16)})
    page.emulate_media(color_scheme=theme)
    for name in PAGES:
        check_page(page, url, store, name)


def test_maps_and_rows_grow_with_the_window(page: Page, url: str) -> None:
    rows = []
    for width, height in ((1280, 720), (2560, 1440)):
        page.set_viewport_size({"width": width, "height": height})
        opened(page, url, "store=hebrew&page=views&view=head&example=1")
        rows.append(page.locator(".col.q .t").first.evaluate("node => node.offsetHeight"))
        opened(page, url, "store=grid")
        canvas = page.locator("[data-picture='head map'] canvas")
        canvas.wait_for()
        share = canvas.evaluate(
            "c => { const b = c.closest('.body'); return [c.offsetWidth / b.clientWidth, c.offsetHeight / b.clientHeight]; }"
        )
        assert min(share) > 0.75, share
    assert rows[0] > 22
    assert rows[1] > 1.3 * rows[0]


def test_a_grid_of_80_times_64_heads_stays_in_its_cards(page: Page, url: str) -> None:
    opened(page, url, f"store=grid&page=search&pattern={quote(PREVIOUS)}")
    card = page.locator("[data-picture='small head map']")
    card.wait_for()
    card.locator("canvas[data-across]").wait_for()
    assert card.evaluate(
        "c => { const a = c.getBoundingClientRect(), b = c.querySelector('canvas').getBoundingClientRect(); return b.right <= a.right && b.bottom <= a.bottom; }"
    )


def test_more_than_twelve_heads_are_their_maximum_or_mean(page: Page, url: str, folder: Path) -> None:
    heads = ",".join(f"0.{head}" for head in range(1, 14))
    opened(
        page,
        url,
        f"store=grid&page=views&view=head&example=0&layer=0&head=0&heads={heads}&share=1&keys=64&specials=show",
    )
    maps = open_store(folder / "grid").examples[0].attention(layer=0).to_numpy()[:14]
    for name, expected in (("maximum", maps.max(axis=0)), ("mean", maps.mean(axis=0))):
        if name == "mean":
            page.get_by_role("button", name="Mean", exact=True).click()
            wait_query(page, pooling="mean")
        rows = page.locator(f"table[data-mirror='edges of the head view'] tr[data-head='{name} of 14 heads']")
        rows.first.wait_for(state="attached")
        edges = rows.evaluate_all("rows => rows.map(r => [+r.dataset.q, +r.dataset.k, +r.dataset.weight])")
        assert len(edges) > 50
        for query, key, weight in edges:
            assert weight == pytest.approx(expected[query, key], abs=2e-3)


def test_right_to_left_words_stand_in_their_order(page: Page, url: str) -> None:
    opened(page, url, "store=hebrew&page=views&view=head&example=1")
    page.locator(".lines .tok").nth(5).wait_for()
    left = "nodes => nodes.map(n => Math.round(n.getBoundingClientRect().left))"
    words = page.locator(".lines .tok").evaluate_all(left)[1:7]
    assert words == sorted(words, reverse=True)
    opened(page, url, f"store=hebrew&page=search&pattern={quote(PREVIOUS)}&layer=0&head=1")
    row = page.locator(".kw").first
    row.wait_for()
    before, query = row.locator(".l > span").last, row.locator(".tok.q")
    assert before.bounding_box()["x"] > query.bounding_box()["x"]  # type: ignore[index]
    opened(page, url, "store=hebrew&layer=0&head=1")
    quoted = page.locator(".exm").first
    quoted.wait_for()
    assert quoted.locator("[dir=rtl]").count() == 1


def test_ids_keep_the_end_that_differs(page: Page, url: str) -> None:
    opened(page, url, "store=hebrew&page=examples")
    ids = page.locator(".er .mid.num")
    ids.first.wait_for()
    ends = ids.evaluate_all(
        """ids => ids.map(id => { const end = id.lastElementChild, a = end.getBoundingClientRect(), b = id.getBoundingClientRect(); return a.right <= b.right + 1 && a.left >= b.left ? end.textContent : "cut"; })"""
    )
    assert ends == [f"art-000{i}" for i in range(4)]


def test_axes_fit_their_values_and_labels_avoid_dots(page: Page, url: str) -> None:
    opened(page, url, "x=entropy&y=first")
    canvas = page.locator("[data-picture='heads by two statistics'] canvas[data-labels]")
    canvas.wait_for()
    cases = {"0..1": [0, 1], "far": [5.1, 5.9], "small": [0, 0.021], "one": [0.3], "none": [], "below": [-2.5, 1]}
    axes = page.evaluate(
        """async ([url, cases]) => { const {axisOf} = await import(new URL(url, document.baseURI).href);
        return Object.fromEntries(Object.entries(cases).map(([name, values]) => { const a = axisOf(values, 5); return [name, [a.low, a.high, a.ticks.length, a.ticks.map(a.text).join(" ")]]; })); }""",
        ["./components/headatlas.viewer.components.esm_view/ESMView/_js/paint.js", cases],
    )
    for name, values in cases.items():
        low, high, n_ticks, _ = axes[name]
        assert low <= min(values, default=0) <= max(values, default=0) <= high, name
        assert 2 <= n_ticks <= 8, name
        assert len(values) < 2 or (max(values) - min(values)) > 0.5 * (high - low), name
    assert axes["0..1"][3] == "0 .2 .4 .6 .8 1.0"
    assert axes["far"][:2] == [pytest.approx(5), pytest.approx(6)]
    low, high = map(float, (canvas.get_attribute("data-x") or "").split())
    values = open_store_entropy(page)
    assert low <= values.min() <= values.max() <= high
    assert high - low < 2 * (values.max() - min(0, values.min()))
    page.set_viewport_size({"width": 2560, "height": 1440})
    page.locator("[data-picture=distribution] canvas[data-bar]").wait_for()
    page.wait_for_timeout(200)
    assert float(page.locator("[data-picture=distribution] canvas").get_attribute("data-bar") or 99) <= 24


def open_store_entropy(page: Page) -> np.ndarray:
    cells = page.locator("table[data-mirror='heads by two statistics'] tbody tr td:nth-child(2)").all_text_contents()
    return np.array([float(cell) for cell in cells])
