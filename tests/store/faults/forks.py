"""A process that was forked after its parent had read gets an error at once, for any kind of read."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fault_stores import in_child, lean_contents, write_lean

from headatlas.store.errors import ConfigError
from headatlas.store.store import Store, open_store

READS = {
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
    """Run each read in a fork, with the parent's store and with a newly opened one."""
    path, violations = folder / "traces", []
    write_lean(path, lean_contents(), container)
    store = open_store(path)
    store.segments[0].read("decoder/query")
    for name, read in READS.items():
        start = time.monotonic()
        status = in_child(lambda read=read: _refused(read, store, path))
        if status or time.monotonic() - start > 20:
            violations.append(f"{name}: status {status} after {time.monotonic() - start:.1f} s")
    return {f"read in a forked child ({container})": (2 * len(READS), violations)}


def _refused(read, store: Store, path: Path) -> None:
    start = time.process_time()
    for opened in (store, open_store(path)):
        message = ""
        try:
            read(opened)
        except ConfigError as error:
            message = str(error)
        assert "was forked from" in message, message or f"it was answered by process {os.getpid()}"
    assert time.process_time() - start < 2
