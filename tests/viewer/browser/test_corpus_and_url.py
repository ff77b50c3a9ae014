"""The viewer in a real browser: the path from the corpus to an edge, addresses, keys, and hostile text.

The `page` fixture fails a test on any request that leaves this machine and on any error on the console.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest

from headatlas.store.store import Store, open_store

from ..view_data import PATIENCE_S, wait_for
from ..viewer_process import viewing

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
PREVIOUS = "key.position == query.position - 1"


@pytest.fixture(scope="module")
def url(store_path: Path) -> Iterator[str]:
    with viewing(store_path) as address:
        yield address


def opened(page: Page, url: str, query: str = "") -> None:
    page.goto(f"{url}?{query}" if query else url)
    page.locator(".path").wait_for()


def click_head(page: Page, layer: int, head: int) -> None:
    canvas = page.locator("canvas[data-cell]").first
    canvas.wait_for()
    left, top, across, down = (float(canvas.get_attribute(f"data-{n}")) for n in ("left", "top", "across", "down"))
    canvas.click(position={"x": left + (head + 0.4) * across, "y": top + (layer + 0.4) * down})


def wait_query(tab: Page, /, **fields: str) -> None:
    """Wait until the address has these fields."""

    def has_fields() -> bool:
        query = parse_qs(urlsplit(tab.url).query)
        return all(query.get(name, [""])[-1] == value for name, value in fields.items())

    wait_for(tab, has_fields, lambda: f"an address with {fields}")


def mirrors(page: Page) -> dict[str, list[str]]:
    """Return the rows of the text mirror of every shown picture."""
    tables = page.locator("table[data-mirror]").all()
    shown_tables = [
        table
        for table in tables
        if table.evaluate(
            "t => { for (let e = t; e; e = e.parentElement || e.getRootNode().host) if (getComputedStyle(e).display === 'none') return false; return true; }"
        )
    ]
    return {table.get_attribute("data-mirror"): table.locator("tr").all_text_contents() for table in shown_tables}


def test_from_the_map_to_a_line_and_back_by_the_address(page: Page, url: str, store: Store) -> None:
    opened(page, url)
    click_head(page, 1, 2)
    wait_query(page, layer="1", head="2")
    page.get_by_role("link", name="Examples", exact=True).last.click()
    wait_query(page, page="examples", order="strongest")
    first = page.locator("a.er").first
    number = int(first.get_attribute("data-example"))
    values = store.statistics()["previous"].values[1, 2]
    assert values[number] == pytest.approx(np.nanmax(values), abs=1e-6)
    first.click()
    wait_query(page, page="views", example=str(number), layer="1", head="2")
    page.locator("[role=tab][data-view=head][aria-selected=true]").wait_for()
    page.locator('.tok[data-token="1"]').first.click()
    wait_query(page, pin="q1")
    page.locator("table[data-mirror] tr").nth(1).wait_for(state="attached")
    tables = mirrors(page)
    assert any(len(rows) > 2 for rows in tables.values())
    page.reload()
    page.locator(".path").wait_for()
    page.locator("table[data-mirror] tr").nth(1).wait_for(state="attached")
    wait_query(page, page="views", example=str(number), pin="q1")
    wait_for(page, lambda: mirrors(page) == tables)


def test_back_and_forward_walk_the_choices(page: Page, url: str) -> None:
    opened(page, url)
    start = page.url
    click_head(page, 2, 3)
    wait_query(page, layer="2", head="3")
    page.locator('[data-page="examples"]').click()
    wait_query(page, page="examples")
    page.go_back()
    wait_query(page, page="", layer="2")
    page.locator('canvas[data-selected="2.3"]').first.wait_for()
    page.go_back()
    page.wait_for_url(start)
    page.locator('canvas[data-selected="0.1"]').first.wait_for()
    page.go_forward()
    page.go_forward()
    wait_query(page, page="examples", layer="2", head="3")
    page.locator("a.er").first.wait_for()
    page.locator('[data-page="examples"][aria-current="page"]').wait_for()


def test_colours_and_sorts_replace_the_address(page: Page, url: str) -> None:
    opened(page, url)
    length = page.evaluate("history.length")
    page.get_by_label("statistic", exact=True).select_option("first")
    wait_query(page, statistic="first")
    page.get_by_label("light or dark").click()
    wait_query(page, theme="dark")
    assert page.evaluate("history.length") == length
    assert page.locator("canvas[data-choice=first]").count() == 1


def test_the_map_shows_the_numbers_of_the_store(page: Page, url: str, store: Store) -> None:
    opened(page, url, "statistic=maximum")
    page.locator("canvas[data-choice=maximum]").wait_for()
    rows = page.locator('table[data-mirror="numbers of the head map"] tbody tr').evaluate_all(
        "rows => rows.map(r => [r.dataset.head, +r.dataset.value])"
    )
    lengths = np.concatenate([s.tokens("source").n_tokens for s in store.segments])
    mean = (store.statistics()["maximum"].values * lengths).sum(-1) / lengths.sum()
    assert {head: pytest.approx(value, abs=1e-5) for head, value in rows} == {
        f"{layer}.{head}": mean[layer, head] for layer in range(3) for head in range(4)
    }


def test_a_search_ranks_heads_and_leads_to_an_edge(page: Page, url: str) -> None:
    opened(page, url, "page=search")
    page.get_by_label("pattern", exact=True).last.fill(PREVIOUS)
    page.keyboard.press("Enter")
    best = page.locator("[data-mass]").first
    best.wait_for()
    assert best.get_attribute("data-head") == "0.1"
    wait_query(page, page="search", pattern=PREVIOUS)
    row = page.locator("a.kw").first
    row.wait_for()
    example, pin = row.get_attribute("data-example"), row.get_attribute("data-pin")
    assert float(row.get_attribute("data-weight")) > 0.9
    row.click()
    wait_query(page, page="views", example=example, pin=pin, pattern=PREVIOUS)
    page.locator(f".tok.q[data-token='{pin[1:].partition(chr(107))[0]}']").wait_for()


def test_a_mistake_is_pointed_at_and_the_last_answer_is_named_so(page: Page, url: str) -> None:
    opened(page, url, f"page=search&pattern={quote(PREVIOUS)}")
    page.locator("[data-mass]").first.wait_for()
    field = page.get_by_label("pattern", exact=True).last
    field.fill("key.positon == 0")
    page.keyboard.press("Enter")
    arrow = page.locator(".arrow")
    arrow.wait_for()
    assert arrow.text_content() == "^" * len("key.positon")
    assert "position" in page.locator("[data-message]").text_content()
    page.get_by_text("of the last valid pattern").wait_for()  # visible
    wait_query(page, pattern="key.positon == 0")
    page.reload()
    page.locator(".arrow").wait_for()


def test_what_nothing_matches_is_said(page: Page, url: str) -> None:
    opened(page, url, "page=search&pattern=" + quote('key.text == "nobody"'))
    page.locator("[data-state=no-match]").wait_for()


def test_bad_values_in_an_address_are_named(page: Page, url: str) -> None:
    opened(page, url, "layer=99&page=nowhere&colour=red")
    page.locator("[data-field]").nth(2).wait_for()
    assert sorted(page.locator("[data-field]").evaluate_all("items => items.map(i => i.dataset.field)")) == [
        "colour",
        "layer",
        "page",
    ]
    page.get_by_label("dismiss").click()
    page.locator("[data-field]").first.wait_for(state="detached")


def test_the_keyboard_reaches_every_level(page: Page, url: str, store: Store) -> None:
    opened(page, url)
    canvas = page.locator("canvas[data-cell]").first
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.locator('canvas[data-selected="1.1"]').first.wait_for()
    wait_query(page, layer="1")
    page.keyboard.press("ArrowRight")
    wait_query(page, layer="1", head="2")
    page.keyboard.press("Enter")
    wait_query(page, page="examples")
    page.locator("a.er").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    wait_query(page, page="views", example="1")
    page.locator("[role=tab]").first.wait_for()
    page.keyboard.press("2")
    wait_query(page, view="model")
    page.keyboard.press("1")
    wait_query(page, view="")
    page.keyboard.press("/")
    words = " ".join(store.example_texts()[1].split()[:2])  # one word would be a token to search for
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    wait_query(page, page="examples", text=words)
    page.locator("a.er").first.wait_for()
    n_found = sum(words in text for text in store.example_texts())
    page.locator(f'[data-found="{n_found}"]').wait_for()
    assert page.locator("[data-found]").text_content() == f"{n_found} of 60"


@pytest.mark.parametrize(
    "query",
    [
        "page=corpus&statistic=first",
        "page=examples",
        f"page=search&pattern={quote(PREVIOUS)}&layer=0&head=1",
        *(f"page=views&example={i}&pin=q1" for i in range(8)),
    ],
)
def test_hostile_text_is_shown_and_does_nothing(page: Page, url: str, query: str) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    opened(page, url, query)
    page.locator("a.exm, a.er, a.kw, .tok").first.wait_for()
    page.wait_for_timeout(300)
    text = page.locator("body").inner_text()
    assert page.locator("body img, body iframe, body i:has-text('news')").count() == 0
    if "example=0" in query:
        assert "<img" in page.locator(".lines").inner_text()
    if "page=examples" in query:
        listed_text = "\n".join(page.locator("a.er").all_text_contents())
        for literal in ("</script><script>alert(2)</script>", "‹RLO›", "‹NUL›", "‹U+D83D›", "&lt;b&gt;", "<i>news</i>"):
            assert literal in listed_text
    assert "\u202e" not in text


def test_hostile_addresses_are_shown_and_do_nothing(page: Page, url: str) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    bad = quote("<img src=x onerror=alert(1)>\u202e")
    opened(page, url, f"page={bad}&text={bad}&pattern={bad}&heads={bad}&{bad}=1")
    page.locator("[data-field]").nth(2).wait_for()
    opened(page, url, f"page=search&pattern={bad}")
    page.locator(".arrow").wait_for()
    assert page.locator("body img").count() == 0


@pytest.mark.parametrize(("theme", "background"), [("light", "rgb(245, 246, 248)"), ("dark", "rgb(14, 17, 23)")])
def test_the_theme_of_the_address_is_there_from_the_start(page: Page, url: str, theme: str, background: str) -> None:
    opened(page, url, f"theme={theme}")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
    assert page.locator(".ha").first.get_attribute("data-theme") == theme


def test_an_empty_store_says_what_to_do(page: Page, tmp_path: Path, viewer_store: Callable[..., Path]) -> None:
    path = viewer_store(tmp_path / "none", n_segments=0, planned=3)
    assert open_store(path).n_examples == 0
    with viewing(path) as address:
        opened(page, address, "page=search")
        page.locator("[data-state=empty]").wait_for()
        assert page.locator(".code").text_content() == f"headatlas run CONFIG --out {path.name}"
        assert str(path.parent) not in page.locator("body").inner_text()  # readers must not see folders of the server
        page.goto("about:blank")  # before the server ends


def test_below_a_prefix_everything_is_found(page: Page, store_path: Path) -> None:
    with viewing(store_path, "--prefix", "/atlas") as address:
        assert address.endswith("/atlas/")
        opened(page, address)
        page.locator("canvas[data-cell]").first.wait_for()
        page.locator('[data-page="examples"]').click()
        page.wait_for_url("**/atlas/?page=examples")
        page.goto("about:blank")  # before the server ends


def test_another_web_page_may_not_read_the_store(url: str) -> None:
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE_S)
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "x" * 22 + "==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "bokeh, x",
    }
    connection.request("GET", "/ws", headers=headers | {"Origin": "http://evil.example"})
    assert connection.getresponse().status == 403
    connection.close()
