"""Narrow windows, or a page zoom of 200 %: cards at the sides become drawers, and nothing lies outside the window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..viewer_process import viewing
from .test_corpus_and_url import opened

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url(store_path: Path) -> Iterator[str]:
    with viewing(store_path) as address:
        yield address


def inside(page: Page) -> bool:
    return page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("query", ["page=corpus", "page=views&view=head&example=9&pin=q1"])
def test_below_1280_the_details_are_a_drawer(page: Page, url: str, query: str) -> None:
    opened(page, url, query)
    button = page.locator("button[data-side=right]")
    card = page.locator(".drawer-right:visible").first
    card.wait_for()
    assert not button.is_visible()
    page.set_viewport_size({"width": 1200, "height": 800})
    button.wait_for()
    page.locator(".drawer-right").first.wait_for(state="hidden")
    assert inside(page)
    button.click()
    card.wait_for()
    assert button.get_attribute("aria-expanded") == "true"
    box = card.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 1200
    assert box["width"] == pytest.approx(320, abs=1)
    page.keyboard.press("Escape")
    page.locator(".drawer-right").first.wait_for(state="hidden")
    assert button.get_attribute("aria-expanded") == "false"
    page.wait_for_timeout(300)
    assert ("pin=q1" in page.url) == ("pin=q1" in query)  # Escape did not release the pin


def test_below_960_the_heads_are_one_too(page: Page, url: str) -> None:
    page.set_viewport_size({"width": 760, "height": 700})
    opened(page, url, "page=views&view=head&example=9&pin=q1&heads=0.1")
    left, right = (page.locator(f".drawer-{side}").first for side in ("left", "right"))
    left.wait_for(state="hidden")
    right.wait_for(state="hidden")
    assert inside(page)
    page.locator("button[data-side=left]").click()
    page.locator(".drawer-left:visible").first.wait_for()
    page.locator("button[data-side=right]").click()  # only one drawer is open
    page.locator(".drawer-right:visible").first.wait_for()
    left.wait_for(state="hidden")
    page.locator(".nav a[data-page=examples]").click()  # a page without drawers
    page.locator("button[data-side=left]").wait_for(state="hidden")
    page.locator("button[data-side=right]").wait_for(state="hidden")
    assert inside(page)
