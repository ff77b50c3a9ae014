"""Keys without focus, stops of the Tab key, landmarks, and the rules of axe-core on every page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from ..viewer_process import viewing
from .test_corpus_and_url import PREVIOUS, opened, wait_query

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
SEARCH = f"page=search&pattern={quote(PREVIOUS)}&layer=0&head=1"
PAGES = (
    "page=corpus", SEARCH, "page=search", "page=examples", *(f"page=views&view={view}&example=9&pin=q1" for view in
    ("head", "model", "neuron", "matrix", "compare", "space")),
)  # fmt: skip
FOCUSED = """() => { let node = document.activeElement; while (node?.shadowRoot?.activeElement) node = node.shadowRoot.activeElement;
    return [node.tagName, node.className, node.closest(".card, header, nav")?.getAttribute("aria-label") ?? ""]; }"""
"""Tag, classes and part of the page of the focused element."""
MAX_STOPS = 20


@pytest.fixture(scope="module")
def url(store_path: Path) -> Iterator[str]:
    with viewing(store_path) as address:
        yield address


@pytest.mark.parametrize(("query", "row"), [(SEARCH, ".kw"), ("page=examples", "a.er"), ("page=corpus", ".exm")])
def test_the_first_example_is_at_most_twenty_stops_away(page: Page, url: str, query: str, row: str) -> None:
    opened(page, url, query)
    page.locator(row).first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED)[1].startswith("skip")
    page.keyboard.press("Enter")
    stops: list[str] = []
    while not stops or row.split(".")[1] not in stops[-1].split():
        assert len(stops) + 2 < MAX_STOPS, stops
        page.keyboard.press("Tab")
        stops.append(page.evaluate(FOCUSED)[1])
    page.keyboard.press("Enter")
    wait_query(page, page="views")


def test_j_k_and_enter_need_no_focus(page: Page, url: str) -> None:
    opened(page, url, "page=examples")
    page.locator("a.er").nth(5).wait_for()
    rows = page.locator("a.er").evaluate_all("rows => rows.map(row => row.dataset.example)")
    for key in "jjjk":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    wait_query(page, page="views", example="" if rows[1] == "0" else rows[1])
    opened(page, url, SEARCH)
    page.locator(".kw").first.wait_for()
    first = page.locator(".kw").first.get_attribute("data-example") or ""
    page.keyboard.press("Enter")
    wait_query(page, page="views", example=first.removeprefix("0"))
    page.keyboard.press("?")
    keys = page.locator("dialog.help")
    keys.wait_for()
    assert "in a list of examples" in keys.inner_text()


def test_every_stop_of_a_page_is_counted_and_lists_are_one(page: Page, url: str) -> None:
    opened(page, url, SEARCH)
    page.locator(".kw").first.wait_for()
    stops: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        tag, classes, _part = page.evaluate(FOCUSED)
        if stops and classes.startswith("skip"):
            break
        stops.append(f"{tag}.{classes}")
    assert 15 < len(stops) < 35, stops
    for kind in ("BUTTON.hr", "A.kw", "BUTTON.chip", "CANVAS"):
        assert sum(stop.startswith(kind) for stop in stops) == 1, (kind, stops)
    assert page.locator("[role=main]").count() == 1
    assert page.locator("h1").inner_text() == "Search of tiny"


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing_serious_or_moderate(browser: Browser, url: str, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text("utf-8")
    context = browser.new_context(
        viewport={"width": 1440, "height": 900}, color_scheme=theme, reduced_motion="reduce", bypass_csp=True
    )
    page = context.new_page()
    problems = []
    for query in PAGES:
        opened(page, url, query)
        page.locator(".card:visible").first.wait_for()
        page.wait_for_timeout(500)
        page.evaluate(source)
        rules = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        problems += [
            (query, rule["id"], [node["html"][:120] for node in rule["nodes"][:3]])
            for rule in rules
            if rule["impact"] != "minor"
        ]
    context.close()
    assert problems == []
