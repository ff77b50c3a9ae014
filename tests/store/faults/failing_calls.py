"""Failure of every kind of input and output call: the nth call on a file of the store, for n spread over a run.

`failing_calls.c` sits below Python and below the HDF5 library. Errors: too many open files, a failing disk, a full one,
one over quota, no permission, a read-only one; and reads and writes that do half their work.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
from fault_stores import CLEAN, check_survivor, checked_in_child, equal, fresh, lean_contents, undisturbed, write_lean

from headatlas.store.store import open_store
from headatlas.store.writing.verification import verify_store

READING, WRITING = 0b0000011, 0b1111101  # bits of `enum kind`: opening is part of both


def run(folder: Path, container: str, n: int, n_full: int) -> dict[str, tuple[int, list[str]]]:
    """Fail `n` calls while writing, as many while reading, and fill up `n_full` disks."""
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    path, whole = folder / "traces", folder / f"undisturbed-{container}"
    undisturbed(container, folder)
    writing, reading, full = [], [], []

    def arm(where: Path, which: int, nth: int = 0, choice: int = 0, for_good: int = 0) -> None:
        shim.fault_arm(os.fsencode(where), which, ctypes.c_long(nth), choice, for_good)

    arm(fresh(path), WRITING)
    write_lean(path, lean_contents(), container)
    n_writing = shim.fault_count()

    def write(nth: int, choice: int, for_good: int) -> None:
        done: list[str] = []
        arm(fresh(path), WRITING, nth, choice, for_good)
        try:
            write_lean(path, lean_contents(), container, on_step=done.append)
        except CLEAN:
            assert shim.fault_hits(), "it failed by itself"
        shim.fault_disarm()
        check_survivor(path, container, folder, at_least=done.count("committed"))

    def read(nth: int, choice: int) -> None:
        arm(whole, READING, nth, choice)
        store = None
        try:
            store = open_store(whole)
            _compare(store)
        except CLEAN:
            assert shim.fault_hits(), "it failed by itself"
        shim.fault_disarm()
        _compare(open_store(whole) if store is None else store)
        arm(whole, READING, nth, choice)
        try:
            sound = verify_store(whole, full=True).is_sound
        except CLEAN:
            sound = False
        failed = shim.fault_hits() and choice % 2 == 0  # odd choices may be short reads, which the reader continues
        shim.fault_disarm()
        assert not (failed and sound), "verify did not see it"

    def count_reading() -> None:
        arm(whole, READING)
        _compare(open_store(whole))
        (folder / "reads").write_text(str(shim.fault_count()))

    checked_in_child(reading, "undisturbed", count_reading)
    n_reading = int((folder / "reads").read_text())
    for nth, choice in _spread(n_writing, n):
        what = f"call {nth} of {n_writing} while writing, error {choice}"
        checked_in_child(writing, what, lambda nth=nth, choice=choice: write(nth, choice, 0))
    for nth, choice in _spread(n_reading, n):
        what = f"call {nth} of {n_reading} while reading, error {choice}"
        checked_in_child(reading, what, lambda nth=nth, choice=choice: read(nth, choice))
    for nth, _ in _spread(n_writing, n_full):
        checked_in_child(full, f"full from call {nth} of {n_writing} on", lambda nth=nth: write(nth, 0, 1))
    return {
        f"failing call while writing ({container})": (n, writing),
        f"failing call while reading ({container})": (n, reading),
        f"disk full from a call on ({container})": (n_full, full),
    }


def _spread(n_calls: int, n: int) -> list[tuple[int, int]]:
    """Choose `n` calls, each with one of four errors; with fewer calls, several errors a call."""
    calls = np.linspace(1, n_calls, n).astype(int) if n <= n_calls else 1 + np.arange(n) % n_calls
    return [(int(nth), (i + i // n_calls) % 4) for i, nth in enumerate(calls)]


def _compare(store) -> None:
    contents = lean_contents()
    assert len(store.segments) == len(contents)
    for segment, content in zip(store.segments, contents, strict=True):
        for name, data in content.arrays.items():
            assert equal(segment.read(name), data), f"segment {segment.index}: {name} reads otherwise"
        assert segment.texts() == list(content.tables.texts)
        assert segment.ids() == list(content.tables.ids)
        assert segment.tokens().columns["text"].values == content.tables.tokens["source"].columns["text"].values
