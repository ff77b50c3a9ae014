"""Pages of a store of many examples: nothing that grows with the corpus is read in the server's event loop.

Asserted are the bytes that the thread of the event loop reads for a click and the processor time that it spends without
a break. Both hold for every page, so a new read on the loop fails here whichever function makes it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import pytest

from headatlas.store.store import open_store
from headatlas.viewer.data.example_reader import AT_ONCE_BYTES
from headatlas.viewer.data.store_data import DataSource

from ..long_store import write_many_examples
from ..watched_server import Click, Watched, watched

N_EXAMPLES, N_CHARACTERS = 80_000, 1_200
MAX_LOOP_S = 0.15
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("corpus", {"page": "corpus"}),
    ("corpus, another head", {"layer": 1, "head": 1}),
    ("corpus, another statistic", {"statistic": "entropy"}),
    ("examples", {"page": "examples"}),
    ("examples, by value", {"order": "strongest"}),
    ("examples, by text", {"text": "abcd"}),
    ("examples, by annotation", {"text": "", "where": '{"topic": "topic 3"}'}),
    ("examples, last page", {"where": "", "row": 10**6}),
    ("search", {"page": "search", "pattern": "key.position == query.position"}),
    ("search, another head", {"layer": 0, "head": 1}),
    ("examples, by the search", {"page": "examples", "statistic": "search", "row": 0}),
    ("head", {"page": "views", "view": "head"}),
    ("compare", {"view": "compare"}),
    ("corpus again", {"page": "corpus", "statistic": "previous"}),
]


async def click_through(server: Watched) -> list[Click]:
    """Open a session and click through the pages."""
    await server.open()
    server.start()
    clicks = []
    for name, patch in STEPS:
        click = await server.click(name, patch)
        clicks.append(click)
        print(
            f"{name:26} loop reads {click.loop_bytes / 1e6:6.1f} of {click.read_bytes / 1e6:6.1f} MB, "
            f"works {1000 * click.busiest_s:4.0f} ms, {click.seconds:5.1f} s",
            file=sys.stderr,
        )
    await server.close()
    return clicks


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs the process files of Linux")
def test_what_grows_with_the_corpus_is_read_outside_the_event_loop(tmp_path):
    store = write_many_examples(tmp_path / "many", N_EXAMPLES, N_CHARACTERS)
    with watched(store, tmp_path / "liveness.log") as server:
        clicks = asyncio.run(click_through(server))
    texts = {click.name: click.text for click in clicks}
    assert {click.name: click.loop_bytes for click in clicks if click.loop_bytes > AT_ONCE_BYTES} == {}
    assert {click.name: click.busiest_s for click in clicks if click.busiest_s > MAX_LOOP_S} == {}
    assert f'"n_all":{N_EXAMPLES}' in texts["examples"].replace("\\", "")
    assert f'"n_found":{len(range(3, N_EXAMPLES, 7))},' in texts["examples, by annotation"].replace("\\", "")


@pytest.mark.parametrize(("n_characters", "is_small"), [(1_000, True), (200_000, False)])
def test_texts_far_longer_than_their_tokens_are_read_outside_the_event_loop(tmp_path, n_characters, is_small):
    """Behind a cut a text has characters without tokens. All texts together then take 20 MB, of 300 tokens."""
    data = DataSource(open_store(write_many_examples(tmp_path / "long", 100, n_characters)))
    assert sum(data.store.n_tokens.values()) < 1_000
    assert data.is_small is is_small
