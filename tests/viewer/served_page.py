"""Fixture `serve`: one component or view on a server, opened in a browser that can reach no other address."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from .view_data import PATIENCE_S, wait_for


class Served:
    """One page, with its requests to other addresses, console errors and script errors."""

    def __init__(self, page, url: str) -> None:
        self.page, self.url, self.ready = page, url, Event()
        self.outside: list[str] = []
        self.errors: list[str] = []
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("dialog", lambda d: (self.errors.append(f"dialog {d.message}"), d.dismiss()))
        page.route("**/*", self._route)

    def _route(self, route) -> None:
        if route.request.url.startswith((self.url, "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def open(self, path: str = "/") -> None:
        """Open the page and wait until its session has loaded. Changes that Python makes earlier do not arrive."""
        self.ready.clear()
        self.page.goto(self.url + path)
        wait_for(self.page, self.ready.is_set, lambda: "loading the page")

    def check(self) -> None:
        """Assert that the page requested no other address and reported no error."""
        assert self.outside == []
        assert [e for e in self.errors if "favicon" not in e] == []

    def shot(self, name: str) -> None:
        """Save a screenshot if HEADATLAS_SHOTS names a folder."""
        folder = os.environ.get("HEADATLAS_SHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


def wait_for_listener(port: int) -> None:
    """Wait until the server, which starts in a thread of its own, accepts connections."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise TimeoutError(f"nothing listens on port {port}") from None
            time.sleep(0.02)


@pytest.fixture
def serve(browser) -> Iterator[Callable[..., Served]]:
    """`serve(make)` serves the viewable that `make()` returns on a free port and opens it.

    At the end of the test every page is checked.
    """
    import panel as pn

    running: list[tuple] = []

    def start(make: Callable[[], object], *, width: int = 1440, height: int = 900, **options) -> Served:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def app():
            pn.state.onload(lambda: served.ready.set())
            return make()

        server = pn.serve(
            app,
            port=port,
            address="127.0.0.1",
            websocket_origin=[f"127.0.0.1:{port}"],
            show=False,
            threaded=True,
            verbose=False,
            unused_session_lifetime_milliseconds=1000 * PATIENCE_S,
        )
        wait_for_listener(port)
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        context.set_default_timeout(1000 * PATIENCE_S)
        served = Served(context.new_page(), f"http://127.0.0.1:{port}")
        running.append((server, context, served))
        served.open()
        return served

    yield start
    for server, context, served in running:
        context.close()
        server.stop()
        served.check()
