"""A process that was forked after its parent had read a store is refused at once, for every question."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fault_stores import in_child, lean_contents, write_lean

from headatlas.store.errors import ConfigError
from headatlas.store.store import Store, open_store

MAX_S = 300
"""Limit of a child's answer, in seconds of the clock: a deadlock would take longer."""
ASKED = {
    "an array": lambda store: store.segments[0].read("decoder/query"),
    "a slice": lambda store: store.segments[1].read("decoder/attention", (0, 0, slice(0, 2))),
    "tokens": lambda store: store.segments[0].tokens(),
    "texts": lambda store: store.segments[2].texts(),
    "statistics": lambda store: store.statistics(),
    "an example": lambda store: store.examples[4].attention(0, 0).values,
    "edges": lambda store: store.examples[4].edges(0),
    "a frame": lambda store: store.examples_frame(),
    "tokens of all": lambda store: store.tokens_frame(),
    "a search": lambda store: store.search("key.position == 0"),
}


def run(folder: Path, container: str) -> dict[str, tuple[int, list[str]]]:
    """Ask each question in a fork, of the parent's store and of one that the fork opens."""
    path, violations = folder / "traces", []
    write_lean(path, lean_contents(), container)
    store = open_store(path)
    store.segments[0].read("decoder/query")
    for name, ask in ASKED.items():
        start = time.monotonic()
        status = in_child(lambda ask=ask: _refused(ask, store, path))
        if status or time.monotonic() - start > MAX_S:
            violations.append(f"{name}: status {status} after {time.monotonic() - start:.1f} s")
    return {f"read in a forked child ({container})": (2 * len(ASKED), violations)}


def _refused(ask, store: Store, path: Path) -> None:
    start = time.process_time()
    for which in (store, open_store(path)):
        message = ""
        try:
            ask(which)
        except ConfigError as error:
            message = str(error)
        assert "was forked from" in message, message or f"it was answered by process {os.getpid()}"
    assert time.process_time() - start < 2
