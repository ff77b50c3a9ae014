"""Searches that never end, and what other readers still get meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest

from ..browser.test_corpus_and_url import viewing
from .raw_page import RawPage, fetch, run

pytestmark = pytest.mark.browser
N_SEARCHES = 14
STUCK = """
import threading
from headatlas.viewer.data import example_reader, search_answers
example_reader.AT_ONCE_BYTES = -1  # every read needs a thread
end = threading.Event()
n_stuck = [0]
search = search_answers.pattern_search
def stuck(store, expression, *arguments, **options):
    if "100" in expression:
        n_stuck[0] += 1
        end.wait()
    return search(store, expression, *arguments, **options)
search_answers.pattern_search = stuck
from tornado.web import RequestHandler
class End(RequestHandler):
    def get(self):
        end.set()
class Count(RequestHandler):
    def get(self):
        self.write(str(n_stuck[0]))
import headatlas.viewer.server.server as server
routes = server.routes
server.routes = lambda *arguments: [*routes(*arguments), ("/end", End), ("/stuck", Count)]
"""
"""Code that lets searches for patterns with 100 wait until the test ends, and reads every picture in a thread."""


def test_searches_that_never_end_leave_pages_and_files_to_others(store_path: Path) -> None:
    """More searches wait than asyncio's own pool has threads, and a page of another session is read."""

    async def attack(url: str) -> None:
        for number in range(N_SEARCHES):
            pattern = quote(f"key.position == query.position - {100 + number}")
            await (await RawPage.open(f"{url}?page=search&pattern={pattern}")).ready()
        while int((await fetch(f"{url}stuck")).body) < 2:
            await asyncio.sleep(0.05)
        assert (await fetch(f"{url}start.js", headers={"Accept-Encoding": "gzip"})).code == 200
        page = await RawPage.open(f"{url}?page=views&view=head")
        assert (await page.receive())[0]["msgtype"] == "ACK"
        texts = ""
        while '"attention"' not in texts:
            message = await page.receive()
            assert message is not None
            texts += str(message[2])

    with viewing(store_path, before=STUCK) as url:
        try:
            run(attack(url))
        finally:
            run(fetch(f"{url}end"))
