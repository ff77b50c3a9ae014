"""Readers concurrent with a writer that drops, restores and collects. Their snapshots must not change."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
from fault_stores import N_SEGMENTS, in_child, lean_contents, one_case, write_lean
from store_builder import Content

from headatlas.store.store import Store, open_store
from headatlas.store.writing.drop import drop_from_store, without_examples
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.store_writer import Replacement, StoreWriter

READERS, PER_SNAPSHOT = 3, 10


def run(folder: Path, container: str, n: int, seed: int = 1) -> dict[str, tuple[int, list[str]]]:
    """Make `n` reads in three threads, ten per snapshot, while another process changes the store."""
    path, contents = folder / "traces", lean_contents()
    in_child(lambda: write_lean(path, contents, container))
    writer = os.fork()
    if writer == 0:
        _change_for_ever(path, contents, container, seed)
    violations: list[str] = []
    first_reads: dict[str, dict[str, np.ndarray]] = {}
    lock, snapshots = threading.Lock(), set()

    def look(own_seed: int) -> None:
        rng = random.Random(own_seed)
        for _ in range(n // READERS // PER_SNAPSHOT + 1):
            with one_case(violations, f"reader {own_seed}"):
                store = open_store(path)
                snapshots.add(store.manifest.number)
                for _ in range(PER_SNAPSHOT):
                    _read(store, contents, rng, first_reads, lock)
                store.close()

    threads = [threading.Thread(target=look, args=(seed * 10 + i,)) for i in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.kill(writer, signal.SIGKILL)
    status = os.waitpid(writer, 0)[1]
    if status != signal.SIGKILL:
        violations.append(f"the writer ended by itself with status {status}")
    if len(snapshots) < 3:
        violations.append(f"only the snapshots {snapshots} were seen")
    cases = READERS * PER_SNAPSHOT * (n // READERS // PER_SNAPSHOT + 1)
    return {f"read beside a writer and a collection ({container})": (cases, violations)}


def _read(store: Store, contents: list[Content], rng: random.Random, first_reads: dict, lock: threading.Lock) -> None:
    """Check that an array is as written or, in a segment with dropped examples, as in the first read."""
    if not store.segments:
        return
    segment = rng.choice(store.segments)
    name = rng.choice(sorted(contents[0].arrays))
    array = segment.read(name)
    written = contents[segment.index].arrays[name]
    if segment.n_examples == sum(n > 0 for n in segment.tokens().n_tokens):
        assert np.array_equal(array, written, equal_nan=True), f"segment {segment.index}: {name} reads otherwise"
        return
    with lock:
        first = first_reads.setdefault(segment.entry.sha256, {}).setdefault(name, array)
    assert np.array_equal(array, first, equal_nan=True), f"segment {segment.index}: {name} changed"


def _change_for_ever(path: Path, contents: list[Content], container: str, seed: int) -> None:
    """Drop an example or a segment, write it again, and collect unused files, forever."""
    try:
        rng = random.Random(seed)
        while True:
            index = rng.randrange(N_SEGMENTS)
            writer = StoreWriter(path, container=container, threads=1)
            if rng.random() < 0.5:
                drop_from_store(path, segments=[index], threads=1)
            else:
                segment = next(segment for segment in open_store(path).segments if segment.index == index)
                writer.replace([Replacement(segment.entry, *without_examples(segment, {1}))])
            writer = StoreWriter(path, container=container, threads=1)  # knows the newest snapshot
            rows = {row.index: row for row in (*writer.manifest.segments, *writer.manifest.dropped)}
            writer.replace([Replacement(rows[index], contents[index].tables, contents[index].arrays)])
            collect_store(path, grace_s=-1)
    except BaseException as error:
        print(f"writer: {type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(3)
