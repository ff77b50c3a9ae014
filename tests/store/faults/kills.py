"""Killed at any moment: at every named step of every operation, and at random ones.

A child is ended by the system (a timer's signal, or SIGKILL at a step): none of its code runs any more.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from fault_stores import check_survivor, checked_in_child, fresh, in_child, lean_contents, undisturbed, write_lean
from store_builder import segment_bytes

from headatlas.store.life.convert import convert_store
from headatlas.store.life.verify import verify_store
from headatlas.store.life.writer import STEPS
from headatlas.store.store import open_store

Result = dict[str, tuple[int, list[str]]]


def run(folder: Path, container: str, n: int, seed: int = 1, what: str = "write") -> Result:
    """`n` kills at random moments of writing or converting a store; with "steps" one at each named step."""
    violations: list[str] = []
    cases = 0
    undisturbed(container, folder)
    if what == "steps":
        for step in STEPS:
            for occurrence in (2, 1, 3, *([4] if step.startswith("manifest") else []))[:n]:
                _kill_at(folder, container, step, occurrence, violations)
                cases += 1
        return {f"killed at a named step ({container})": (cases, violations)}
    rng = random.Random(seed)
    work, check = _writing(folder, container) if what == "write" else _converting(folder, container)
    path = folder / "traces"
    usual = _duration(lambda: work(path), path)
    for _ in range(4 * n):
        delay = rng.uniform(0, usual)
        fresh(path)
        if in_child(lambda delay=delay: _until(delay, lambda: work(path))) == signal.SIGALRM:
            cases += 1
        else:
            usual *= 0.95  # it was done before its time
        checked_in_child(violations, f"killed after {delay:.4f} s of {usual:.4f}", lambda: check(path))
        if cases == n:
            break
    verb = "writing" if what == "write" else "converting"
    return {f"killed at a random moment of {verb} ({container})": (cases, violations)}


def _duration(work, path: Path) -> float:
    """How long an undisturbed child takes: the median of three."""
    found = []
    for _ in range(3):
        fresh(path)
        start = time.monotonic()
        in_child(work)
        found.append(time.monotonic() - start)
    return sorted(found)[1]


def _until(delay: float, work) -> None:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-5))
    work()


def _kill_at(folder: Path, container: str, step: str, occurrence: int, violations: list[str]) -> None:
    path, seen = fresh(folder / "traces"), 0

    def on_step(reached: str) -> None:
        nonlocal seen
        seen += reached == step
        if seen == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    what = f"{step}, time {occurrence}"
    status = in_child(lambda: write_lean(path, lean_contents(), container, on_step=on_step))
    if status != signal.SIGKILL:
        violations.append(f"{what}: never reached, status {status}")
    checked_in_child(violations, what, lambda: check_survivor(path, container, folder))


def _writing(folder: Path, container: str):
    return (
        lambda path: write_lean(path, lean_contents(), container),
        lambda path: check_survivor(path, container, folder),
    )


def _converting(folder: Path, container: str):
    source, other = folder / "source", "zarr" if container == "hdf5" else "hdf5"
    in_child(lambda: write_lean(source, lean_contents(), other))
    before = segment_bytes(source)
    in_child(lambda: convert_store(source, folder / "whole", container, threads=1))
    expected = segment_bytes(folder / "whole")

    def check(path: Path) -> None:
        if any(path.glob("manifest-*")):
            assert verify_store(path, full=True).is_sound, "the part that is there is damaged"
        convert_store(source, path, container, threads=1)
        assert segment_bytes(path) == expected, "gone on, it has other bytes"
        assert segment_bytes(source) == before, "the source was touched"
        assert open_store(path).is_complete

    return lambda path: convert_store(source, path, container, threads=1), check
