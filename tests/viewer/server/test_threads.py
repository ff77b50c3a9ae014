"""Searches that never end, and what other readers still get meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest

from ..browser.test_corpus_and_url import viewing
from ..view_data import PATIENCE_S
from .raw_page import RawPage, data_event, fetch, patch, run

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
"""Code that lets every search wait until the test ends, and reads every picture in a thread."""


async def drawn(url: str) -> RawPage:
    """Open a page, and tell the server that it is drawn."""
    page = await (await RawPage.open(url)).ready()
    ready = {"type": "event", "name": "document_ready", "values": {"type": "map", "entries": []}}
    listens = {"type": "map", "entries": [["listens", True]]}
    events = [
        {"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": ready},
        data_event(page.model("Router")["id"], listens),
    ]
    for number, event in enumerate(events):
        for part in (f'{{"msgid": "drawn {number}", "msgtype": "PATCH-DOC"}}', "{}", patch(event)):
            await page.socket.write_message(part)
    return page


def test_searches_that_never_end_leave_pages_and_files_to_others(store_path: Path) -> None:
    """More searches wait than asyncio's own pool has threads, and a page of another session is read.

    The server starts although the roles of its first page are searched.
    """

    async def attack(url: str) -> None:
        for number in range(N_SEARCHES):
            pattern = quote(f"key.position == query.position - {100 + number}")
            await drawn(f"{url}?page=search&pattern={pattern}")
        while int((await fetch(f"{url}stuck")).body) < 2:
            await asyncio.sleep(0.05)
        assert (await fetch(f"{url}start.js", headers={"Accept-Encoding": "gzip"})).code == 200
        page = await drawn(f"{url}?page=views&view=head")
        while (message := await page.receive()) and "query_start" not in str(message[2]):
            pass
        assert message is not None

    with viewing(store_path, before=STUCK) as url:
        try:
            run(asyncio.wait_for(attack(url), PATIENCE_S))
        finally:
            run(fetch(f"{url}end"))
