"""A lost connection: the page says so, takes no input, and comes back by itself in the same state."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import pytest

from headatlas.viewer.state.page_table import PAGES, VIEWS

from ..view_data import PATIENCE_S, wait_for
from ..viewer_process import running, viewing
from .test_corpus_and_url import PREVIOUS, opened

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
QUERIES = [
    "layer=1&head=2",
    *(f"page={row.route}&layer=1&head=2" for row in PAGES if row.route not in ("corpus", "search", "views")),
    f"page=search&pattern={quote(PREVIOUS)}&layer=1&head=2",
    "page=views&layer=1&head=2&example=9&pin=q2",  # the head view, whose name the viewer leaves out
    *(f"page=views&view={row.route}&layer=1&head=2&example=9&pin=q2" for row in VIEWS if row.route != "head"),
]
"""An address of every page and view, in the order in which the viewer writes it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_inert(page: Page) -> bool:
    return page.evaluate("[...document.body.children].every(child => child.dataset.connection || child.inert)")


def test_every_page_comes_back_after_the_server_was_away(page: Page, page_record, store_path: Path) -> None:
    port, states = free_port(), []
    with running(store_path, "--no-token", port=port) as (url, process):
        for query in QUERIES:
            tab = page.context.new_page()
            opened(tab, url, query)
            wait_for(
                tab, lambda tab=tab: tab.title().endswith(" \u00b7 headatlas"), tab.title
            )  # not that of the empty page
            states.append((tab, tab.url, tab.title()))
        assert len({title for _, _, title in states}) > len(PAGES)
        process.kill()
        for tab, _, _ in states:
            tab.locator("[data-connection=lost]", has_text="connection to the viewer is lost").wait_for(timeout=5_000)
            assert is_inert(tab)
            tab.evaluate("document.documentElement.dataset.old = ''")
    with running(store_path, "--no-token", port=port):
        for tab, address, title in states:
            tab.locator("html:not([data-old])").wait_for(state="attached")
            tab.locator(".path").wait_for()
            wait_for(
                tab,
                lambda tab=tab, state=(address, title): (tab.url, tab.title()) == state,
                lambda tab=tab: f"{tab.url} {tab.title()}",
            )
            assert tab.locator("[data-connection]").count() == 0
            assert not is_inert(tab)
            tab.goto("about:blank")


def test_silence_is_said_and_ends_without_a_new_page(page: Page, store_path: Path) -> None:
    with running(store_path, "--no-token") as (url, process):
        opened(page, url, "page=examples")
        page.evaluate("window.isOldPage = true")
        os.kill(process.pid, signal.SIGSTOP)
        try:
            page.locator("[data-connection=lost]", has_text="does not answer").wait_for(timeout=7_000)
            assert is_inert(page)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        page.locator("[data-connection]").wait_for(state="detached")
        assert page.evaluate("window.isOldPage")
        page.locator("a.er").first.click()
        page.wait_for_url("**page=views**")
        page.goto("about:blank")


def test_a_page_whose_session_has_ended_loads_again(page: Page, page_record, store_path: Path) -> None:
    """A socket that opens late, as after the sleep of a laptop, gets a new session and no file from elsewhere."""
    short = "import headatlas.viewer.server.server as server; server.UNCONNECTED_S = 0.5"
    with viewing(store_path, before=short) as url:
        tokens: list[str] = []
        page.add_init_script(
            """
            const first = !sessionStorage.getItem("late");
            sessionStorage.setItem("late", "1");
            if (first) {
              const add = window.addEventListener.bind(window);
              window.addEventListener = (name, callback, ...more) =>
                add(name, name === "DOMContentLoaded" ? () => setTimeout(callback, 4000) : callback, ...more);
            }
            """
        )
        page.on("websocket", lambda socket: tokens.append(socket.url))
        page.goto(f"{url}?page=examples")
        page.locator("a.er").first.wait_for()
        assert len(tokens) >= 2  # on a slow machine the second one may be late, too
        assert "page=examples" in page.url
        page.goto("about:blank")
    page_record.errors.clear()


def test_the_browser_itself_refuses_requests_elsewhere(page: Page, page_record, store_path: Path) -> None:
    with viewing(store_path) as url:
        opened(page, url, "")
        blocked = page.evaluate(
            """async () => {
                const blocked = [];
                document.addEventListener("securitypolicyviolation", event => blocked.push(event.effectiveDirective));
                const image = new Image();
                image.src = "http://127.0.0.2:9/x.png";
                const script = document.createElement("script");
                script.textContent = "window.pwned = 1";
                document.head.append(script);
                const source = document.createElement("script");
                source.src = "data:text/javascript,window.pwned = 1";
                document.head.append(source);
                document.body.setAttribute("onclick", "window.pwned = 1");
                document.body.click();
                await fetch("http://127.0.0.2:9/").catch(() => {});
                await new Promise(done => setTimeout(done, 500));
                return [blocked, window.pwned ?? 0];
            }"""
        )
        assert set(blocked[0]) >= {"img-src", "script-src-elem", "script-src-attr", "connect-src"}
        assert blocked[1] == 0
        assert urlsplit(url).hostname == "127.0.0.1"
        page.goto("about:blank")
        page.wait_for_timeout(500)  # the reports of the browser arrive later
    page_record.errors.clear()
    page_record.external.clear()


def test_a_page_cannot_be_framed(page: Page, page_record, store_path: Path) -> None:
    with viewing(store_path) as url:
        page.goto(f"{url}start.js")
        page.set_content(f"<iframe src='{url}'></iframe>", timeout=1000 * PATIENCE_S)
        page.wait_for_timeout(1_000)
        assert page.frames[-1].locator(".path").count() == 0
    page_record.errors.clear()
