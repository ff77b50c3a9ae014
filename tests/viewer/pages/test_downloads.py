"""HTML downloads of the views: decided by their size before they are made, and sent in pieces."""

from __future__ import annotations

import asyncio
import os
import sys

import numpy as np
import pytest

from headatlas.store.errors import BudgetError
from headatlas.viewer.components.esm_view import MAX_DOWNLOAD
from headatlas.viewer.components.standalone_page import array_bytes
from headatlas.viewer.frames.whole_example import FileLimit, example_part, neuron_part

from ..long_store import write_long_store
from ..watched_server import Click, watched

MAX_PEAK_BYTES, MAX_LOOP_S, MAX_MESSAGE = 300 << 20, 0.25, 4 << 20


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs the process files of Linux")
@pytest.mark.parametrize(
    ("n_tokens", "sentence"),
    [(512, ""), (1024, "this view holds 72.0 MiB of numbers; a file holds at most 24 MiB. headatlas.viewer.head_view")],
)
def test_a_download_is_small_or_says_why_it_is_not_whole(tmp_path, n_tokens, sentence):
    """At 512 tokens the file holds every head. At 1,024 tokens it holds the picture, and says how to get all heads."""
    store = write_long_store(tmp_path / "minilm", "minilm", n_tokens, 1)

    async def run() -> Click:
        await server.open()
        server.start()
        await server.click("head", {"page": "views", "view": "head"})
        click = await server.download("headview.js", "head view")
        await server.close()
        return click

    with watched(store, tmp_path / "liveness.log") as server:
        click = asyncio.run(run())
    print(
        f"{n_tokens} tokens: {len(click.text) / 2**20:.1f} MiB in messages of {click.longest_message / 2**20:.1f} MiB, "
        f"peak {click.peak_bytes / 2**20:.0f} MiB, event loop {1000 * click.busiest_s:.0f} ms",
        file=sys.stderr,
    )
    assert "<!doctype html>" in click.text
    assert "</html>" in click.text
    assert sentence in click.text
    assert ("as it was shown" in click.text) == bool(sentence)
    assert click.peak_bytes < MAX_PEAK_BYTES
    assert click.longest_message < MAX_MESSAGE
    assert click.busiest_s < MAX_LOOP_S


@pytest.mark.parametrize("make", [example_part, neuron_part])
@pytest.mark.parametrize("max_bytes", [40_000, 60_000, 120_000, 200_000, MAX_DOWNLOAD])
def test_the_size_of_a_file_is_decided_before_it_is_read(store, make, max_bytes):
    """Weights are exact if they fit beside the vectors, else rounded. A file that is too large is refused unread."""
    example, site = store.examples[9], store.site()
    whole, reads = make(example, site, site.layers), list[int]()
    vectors = array_bytes(whole["vectors"] or {})
    fits = whole["attention"].size + vectors <= max_bytes
    limit = FileLimit(max_bytes, "Advice", lambda: reads.append(1))
    if not fits:
        with pytest.raises(BudgetError, match=r"MiB\. Advice"):
            make(example, site, site.layers, limit)
        assert not reads
        return
    part = make(example, site, site.layers, limit)
    assert array_bytes([part["attention"], part["vectors"] or {}]) <= max_bytes
    assert np.array_equal(part["attention"], whole["attention"]) or max_bytes < whole["attention"].nbytes + vectors
