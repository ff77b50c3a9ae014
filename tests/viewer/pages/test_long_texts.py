"""Long texts in every page: bytes read for a click, memory, and the event loop, in a server of its own.

The texts have the shapes of MiniLM and SmolLM2; attention is rebuilt from query and key. Times of shared machines are
printed, not asserted. Asserted are their causes: the bytes that a click reads, the peak of memory, and the processor
time that the event loop spends without a break.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import pytest

from headatlas.viewer.data.example_reader import READ_BYTES

from ..long_store import SHAPES, write_long_store
from ..watched_server import Click, Watched, watched

MAX_PEAK_BYTES, MAX_LOOP_S = 300 << 20, 0.25
PATTERN = "key.position == query.position - 1"
FAR = "9>2,17>4"
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("corpus", {"page": "corpus"}),
    ("corpus, another head", {"layer": 1, "head": 2}),
    ("examples", {"page": "examples", "text": "w12"}),
    ("search", {"page": "search", "pattern": PATTERN}),
    ("search, another head", {"layer": 2, "head": 3}),
    ("search, arcs", {"arcs": FAR}),
    ("corpus, by the search", {"page": "corpus", "statistic": "search"}),
    ("head", {"page": "views", "view": "head"}),
    ("head, pinned query", {"pin": "q3000"}),
    ("head, pinned key", {"pin": "k2000"}),
    ("head, five heads", {"heads": "2.4,2.5,2.6,2.7"}),
    ("head, words", {"unit": "word", "pin": "q1500"}),
    ("head, sentences", {"unit": "sentence"}),
    ("model", {"view": "model", "unit": "token", "heads": ""}),
    ("model, pinned query", {"pin": "q2500"}),
    ("neuron", {"view": "neuron"}),
    ("neuron, pinned query", {"pin": "q100"}),
    ("matrix", {"view": "matrix", "head": 4}),
    ("matrix, zoomed", {"zoom": "1000,900,300"}),
    ("matrix, pinned query", {"pin": "q1100"}),
    ("matrix, pinned key", {"pin": "k950"}),
    ("compare", {"view": "compare"}),
    ("compare, heads", {"compare": "heads", "other_head": "1.1"}),
    ("space", {"view": "space", "head": 1}),
    ("corpus again", {"page": "corpus", "pin": ""}),
]
"""Clicks through every page and view."""
SAID = {
    "head, pinned query": "Attended by: queries 2,744",
    "head, pinned key": "pin a query for weights",
    "model": "the 8 strongest keys of each query",
    "model, pinned query": "Queries 2,176",
    "neuron, pinned query": r"query_pos\":100",
    "compare, heads": "A: queries",
    "compare": "Search for another example by its text",
}
"""Words for what is left out, by the step that shows them."""


async def click_through(server: Watched, n_tokens: int) -> list[Click]:
    """Open a session and click through every page."""
    await server.open()
    server.start()
    clicks = []
    for name, patch in STEPS:
        click = await server.click(name, patch)
        clicks.append(click)
        print(
            f"{n_tokens:6} {name:24} read {click.read_bytes / 1e6:7.1f} MB, peak {click.peak_bytes / 1e6:6.1f} MB, "
            f"{click.seconds:5.1f} s, liveness within {1000 * click.slowest_s:4.0f} ms, "
            f"event loop {1000 * click.busiest_s:4.0f} ms",
            file=sys.stderr,
        )
    await server.close()
    return clicks


def check(clicks: list[Click], n_tokens: int) -> None:
    """Check the measures of all clicks, and the words of some."""
    assert {c.name: c.peak_bytes >> 20 for c in clicks if c.peak_bytes > MAX_PEAK_BYTES} == {}
    assert {c.name: c.busiest_s for c in clicks if c.busiest_s > MAX_LOOP_S} == {}
    views = [c for c in clicks if not c.name.startswith("search")]
    assert {c.name: c.read_bytes >> 20 for c in views if c.read_bytes > READ_BYTES} == {}
    texts = {c.name: c.text for c in clicks}
    assert {name: words for name, words in SAID.items() if words not in texts[name]} == {}
    assert f"of {n_tokens:,}" in texts["head, pinned query"].replace("\\u2013", "\u2013")


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs the process files of Linux")
@pytest.mark.parametrize(
    ("shape", "n_tokens"),
    [
        ("minilm", 4096),
        pytest.param("smollm2", 4096, marks=pytest.mark.slow),
        pytest.param("minilm", 16_384, marks=pytest.mark.slow),
        pytest.param("smollm2", 16_384, marks=pytest.mark.slow),
    ],
)
def test_every_page_of_a_long_text_stays_within_its_budget(tmp_path, shape, n_tokens):
    assert shape in SHAPES
    store = write_long_store(tmp_path / shape, shape, n_tokens, 1 if n_tokens > 8192 else 2)
    with watched(store, tmp_path / "liveness.log") as server:
        clicks = asyncio.run(click_through(server, n_tokens))
    check(clicks, n_tokens)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs the process files of Linux")
def test_the_next_click_ends_the_reading_of_the_last(tmp_path):
    """Clicks on eight heads, each before the map of the last is read, read less than three maps."""
    store = write_long_store(tmp_path / "minilm", "minilm", 8192, 1)

    async def run(server: Watched) -> tuple[Click, int, Click]:
        await server.open()
        server.start()
        await server.click("space", {"page": "views", "view": "space"})
        one = await server.click("a map", {"view": "matrix", "head": 0})
        before = server.read_bytes()
        for head in range(1, 9):
            await server.send({"head": head})
            await asyncio.sleep(0.1)
        last = await server.click("another page", {"page": "corpus"})
        await server.close()
        return one, server.read_bytes() - before, last

    with watched(store, tmp_path / "liveness.log") as server:
        one, n_bytes, last = asyncio.run(run(server))
    print(f"one map {one.read_bytes:,} bytes, eight superseded maps {n_bytes:,} bytes", file=sys.stderr)
    assert "entropy" in one.text
    assert n_bytes < 3 * one.read_bytes
    assert '"entropy"' not in last.text
