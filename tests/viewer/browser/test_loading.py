"""Loading: bytes over the wire, the skeleton of the first HTML, steady memory, and states in which a picture is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..viewer_process import running
from .test_corpus_and_url import opened, wait_query

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.browser
MAX_WIRE = 800_000
"""Most bytes that a first load may take, messages of the web socket included."""


@pytest.fixture(scope="module")
def viewer(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, BaseProcess, Path]]:
    """Address and process of a viewer, and the folder of its second store, which a test deletes."""
    second = tmp_path_factory.mktemp("traces") / "second"
    shutil.copytree(store_path, second)
    with running(store_path, "--no-token", str(second)) as (address, process):
        yield address, process, second


def test_the_first_load_is_small_and_has_only_libraries_that_pages_use(
    page: Page, viewer: tuple[str, BaseProcess, Path]
) -> None:
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    sizes: dict[str, float] = {}
    addresses: dict[str, str] = {}
    messages: list[int] = []
    session.on(
        "Network.responseReceived", lambda event: addresses.update({event["requestId"]: event["response"]["url"]})
    )
    session.on("Network.loadingFinished", lambda event: sizes.update({event["requestId"]: event["encodedDataLength"]}))
    session.on("Network.webSocketFrameReceived", lambda event: messages.append(len(event["response"]["payloadData"])))
    opened(page, viewer[0])
    page.locator("canvas[data-selected]").first.wait_for()
    page.locator("[data-picture='heads by two statistics'] canvas").wait_for()
    libraries = sorted(url.split("/")[-1].split("?")[0] for url in addresses.values() if ".min.js" in url)
    assert libraries == ["bokeh.min.js", "panel.min.js"]
    assert 400_000 < sum(sizes.values()) + sum(messages) <= MAX_WIRE


def test_something_is_seen_before_the_libraries_arrive(page: Page, viewer: tuple[str, BaseProcess, Path]) -> None:
    waiting: list[Route] = []
    page.route("**/bokeh.min.js*", lambda route: waiting.append(route))
    page.goto(viewer[0], wait_until="commit")
    skeleton = page.locator("#skeleton")
    skeleton.wait_for()
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    assert "headatlas" in skeleton.inner_text()
    assert len(waiting) == 1  # the library is still missing, and the page is painted
    waiting[0].continue_()
    page.locator("canvas[data-selected]").first.wait_for()
    skeleton.wait_for(state="detached")


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        ("page=views&view=head&example=9&pin=q999", "pin", "tokens, 0 to"),
        ("page=views&view=matrix&example=9&zoom=900,0,8", "zoom", "rows and"),
    ],
)
def test_a_pin_or_a_window_outside_the_example_is_named(
    page: Page, viewer: tuple[str, BaseProcess, Path], query: str, field: str, words: str
) -> None:
    opened(page, viewer[0], query)
    problem = page.locator(f"li[data-field={field}]")
    problem.wait_for()
    assert words in problem.inner_text()
    page.get_by_role("button", name="dismiss").click()
    wait_query(page, **{field: ""})
    problem.wait_for(state="detached")


def heap(page: Page) -> dict[str, float]:
    """Return what a page holds after the garbage is collected: nodes, listeners and bytes of its scripts."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    for _ in range(2):
        session.send("HeapProfiler.collectGarbage")
    metrics = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
    session.detach()
    return {name: metrics[name] for name in ("Nodes", "JSEventListeners", "JSHeapUsedSize")}


def server_bytes(process: BaseProcess) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


KEYS = ("gv", "l", "j", "2", "h", "4", "k", "1", "gc", "ge", "gs", "gv", "3", "l", "1")


def interact(page: Page, n: int, pause_ms: float = 40) -> None:
    """Make n changes by keys: pages, views, heads and examples in turn."""
    for i in range(n):
        page.keyboard.type(KEYS[i % len(KEYS)])
        page.wait_for_timeout(pause_ms)
    page.wait_for_timeout(400)


@pytest.mark.parametrize("n", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_interactions_do_not_grow_the_page_or_the_server(
    page: Page, viewer: tuple[str, BaseProcess, Path], n: int
) -> None:
    opened(page, viewer[0])
    page.locator("canvas[data-selected]").first.wait_for()
    before = heap(page)
    for _ in range(10):  # until every page is built
        interact(page, len(KEYS), 200)
        earlier, before = before, heap(page)
        if before["JSEventListeners"] <= earlier["JSEventListeners"]:
            break
    server_before = server_bytes(viewer[1])
    interact(page, n)
    after = heap(page)
    assert after["JSEventListeners"] <= before["JSEventListeners"] + 20
    assert after["Nodes"] <= 1.05 * before["Nodes"]
    assert after["JSHeapUsedSize"] <= 1.1 * before["JSHeapUsedSize"]
    assert server_bytes(viewer[1]) <= server_before + (16 << 20)


def test_a_deleted_store_is_named(page: Page, viewer: tuple[str, BaseProcess, Path]) -> None:
    opened(page, viewer[0], "store=second&page=views&view=head&example=9")
    page.locator("table[data-mirror='edges of the head view'] tr[data-head]").first.wait_for(state="attached")
    shutil.rmtree(viewer[2])
    banner = page.locator("[data-banner=deleted]")
    banner.wait_for()
    assert "second was deleted or moved" in banner.inner_text()
    opened(page, viewer[0], "store=second&page=views&view=head&example=50")
    page.locator("[data-banner=deleted]").wait_for()
    page.get_by_text("This cannot be shown").wait_for()
