"""Login through an OAuth provider that runs on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from ..browser.test_corpus_and_url import opened
from ..viewer_process import viewing

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
KEY, SECRET, CODE, TOKEN, NAME = "our key", "our secret", "for once", "let me in", "ada@example.org"


class Provider(ThreadingHTTPServer):
    """An OAuth provider with one user, who always agrees to a login, or never."""

    daemon_threads = True

    def __init__(self, agrees: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.agrees, self.requests = agrees, list[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        arguments = {name: value[0] for name, value in parse_qs(address.query).items()}
        self.server.requests.append(address.path)
        if address.path == "/authorize":
            assert arguments["client_id"] == KEY
            answer = {"code": CODE} if self.server.agrees else {"error": "access_denied", "error_description": "<b>no"}
            self.send_response(302)
            self.send_header(
                "Location", f"{arguments['redirect_uri']}?{urlencode(answer | {'state': arguments['state']})}"
            )
            self.end_headers()
        elif address.path == "/user" and self.headers["Authorization"] == f"Bearer {TOKEN}":
            self.say({"email": NAME})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        self.server.requests.append(self.path)
        arguments = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if (arguments["code"], arguments["client_secret"]) == ([CODE], [SECRET]):
            self.say({"access_token": TOKEN, "token_type": "bearer"})
        else:
            self.send_error(401)

    def say(self, answer: dict[str, str]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Discard the messages of the server."""


@contextmanager
def guarded(store: Path, monkeypatch: pytest.MonkeyPatch, agrees: bool) -> Iterator[tuple[str, Provider]]:
    """Run a viewer with a login provider. Yields its address and the provider."""
    with Provider(agrees) as provider:
        thread = Thread(target=provider.serve_forever)
        thread.start()
        for name, path in (("AUTHORIZE", "authorize"), ("TOKEN", "token"), ("USER", "user")):
            monkeypatch.setenv(f"PANEL_OAUTH_{name}_URL", f"{provider.url}/{path}")
        monkeypatch.setenv("HEADATLAS_COOKIE_SECRET", "of sixteen letters or more")
        monkeypatch.setenv("HEADATLAS_OAUTH_KEY", KEY)
        monkeypatch.setenv("HEADATLAS_OAUTH_SECRET", SECRET)
        try:
            with viewing(store, "--oauth", "generic") as address:
                yield address, provider
        finally:
            provider.shutdown()
            thread.join()


def test_a_login_leads_to_the_page_of_the_address(
    page: Page, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded(store_path, monkeypatch, agrees=True) as (address, provider):
        opened(page, address, "page=views&example=9&heads=0.1")
        assert provider.requests == ["/authorize", "/token", "/user"]
        page.locator("table[data-mirror='edges of the head view'] tr[data-head='0.1']").first.wait_for(state="attached")
        assert "example=9" in page.url
        assert "code=" not in page.url  # readers share addresses: no login code stays in one
        opened(page, address, "page=examples")
        assert len(provider.requests) == 3  # the second page needs no new login
        page.goto("about:blank")


def test_a_refused_login_shows_the_reason(
    page: Page, page_record, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded(store_path, monkeypatch, agrees=False) as (address, provider):
        with page.expect_console_message(lambda message: "401" in message.text):  # may arrive after the page
            page.goto(address)
        assert provider.requests == ["/authorize"]
        assert "<b>no" in page.locator("body").inner_text()
        assert page.locator("b").count() == 0
        assert page.locator(".path").count() == 0
        page_record.errors.clear()  # the browser records the answer 401 as an error
