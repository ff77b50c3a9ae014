"""Kills of a process at every named step of every operation, and at random moments.

A child is ended by the system (a timer's signal, or SIGKILL at a step): none of its code runs any more.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fault_stores import check_survivor, checked_in_child, fresh, in_child, lean_contents, undisturbed, write_lean
from store_builder import segment_bytes

from headatlas.store.store import open_store
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import COLLECT_STEPS, collect_store
from headatlas.store.writing.store_writer import STEPS
from headatlas.store.writing.verification import verify_store

Result = dict[str, tuple[int, list[str]]]


def run(folder: Path, container: str, n: int, seed: int = 1, what: str = "write") -> Result:
    """Kill `n` writers or converters at random moments; with "steps", one at each named step."""
    violations: list[str] = []
    cases = 0
    undisturbed(container, folder)
    if what == "steps":
        steps = [(step, i) for step in STEPS for i in (2, 1, 3, *([4] if step.startswith("manifest") else []))[:n]]
        for step, occurrence in steps:
            _kill_at(folder, container, step, occurrence, violations)
        other: list[str] = []
        for step in (*STEPS, *COLLECT_STEPS):
            (_kill_collecting if step in COLLECT_STEPS else _kill_dropping)(folder, container, step, other)
        return {
            f"killed at a named step of writing ({container})": (len(steps), violations),
            f"killed at a named step of dropping or collecting ({container})": (len(STEPS + COLLECT_STEPS), other),
        }
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
            usual *= 0.95  # it finished before it was killed
        checked_in_child(violations, f"killed after {delay:.4f} s of {usual:.4f}", lambda: check(path))
        if cases == n:
            break
    verb = "writing" if what == "write" else "converting"
    return {f"killed at a random moment of {verb} ({container})": (cases, violations)}


def _duration(work, path: Path) -> float:
    """Return the seconds of an undisturbed child: the median of three."""
    seconds = []
    for _ in range(3):
        fresh(path)
        start = time.monotonic()
        in_child(work)
        seconds.append(time.monotonic() - start)
    return sorted(seconds)[1]


def _until(delay: float, work) -> None:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-5))
    work()


def _die_at(step: str, occurrence: int = 1) -> Callable[[str], None]:
    """Return an `on_step` that ends this process when it reaches a step for the nth time."""
    seen = 0

    def on_step(reached: str) -> None:
        nonlocal seen
        seen += reached == step
        if seen == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


def _killed(violations: list[str], what: str, work: Callable[[], object], check: Callable[[], object]) -> None:
    status = in_child(work)
    if status != signal.SIGKILL:
        violations.append(f"{what}: never reached, status {status}")
    checked_in_child(violations, what, check)


def _kill_at(folder: Path, container: str, step: str, occurrence: int, violations: list[str]) -> None:
    path = fresh(folder / "traces")
    _killed(
        violations,
        f"{step}, time {occurrence}",
        lambda: write_lean(path, lean_contents(), container, on_step=_die_at(step, occurrence)),
        lambda: check_survivor(path, container, folder),
    )


def _kill_dropping(folder: Path, container: str, step: str, violations: list[str]) -> None:
    """Check that a drop happened entirely or not at all, and that a second drop ends the same."""
    path = Path(shutil.copytree(folder / f"undisturbed-{container}", fresh(folder / "traces")))

    def check() -> None:
        store = open_store(path)
        done = step in STEPS[STEPS.index("manifest-linked") :]
        assert verify_store(path, full=True).is_sound
        assert [row.example for row in store.manifest.skipped] == ([1, 4] if done else [])
        assert [row.index for row in store.manifest.dropped] == ([2] if done else [])
        if not done:
            drop_from_store(path, examples=[1, 4], segments=[2])
        store = open_store(path)
        assert [row.example for row in store.manifest.skipped] == [1, 4]
        assert [segment.index for segment in store.segments] == [0, 1]
        assert store.examples[1].text == store.examples[4].text == ""
        assert len(list((path / "segments").iterdir())) == 5

    die = _die_at(step)
    _killed(violations, step, lambda: drop_from_store(path, examples=[1, 4], segments=[2], on_step=die), check)


def _kill_collecting(folder: Path, container: str, step: str, violations: list[str]) -> None:
    """Check that the store is whole, and that another collection leaves exactly the files in use."""
    path = Path(shutil.copytree(folder / f"undisturbed-{container}", fresh(folder / "traces")))
    in_child(lambda: drop_from_store(path, examples=[4], segments=[2]))

    def check() -> None:
        assert verify_store(path, full=True).is_sound
        store = open_store(path)
        assert ([segment.index for segment in store.segments], store.examples[3].id) == ([0, 1], "example-3")
        collect_store(path, grace_s=-1)
        assert {p.name for p in (path / "segments").iterdir()} == {Path(s.entry.path).name for s in store.segments}
        assert list((path / "tmp").iterdir()) == []

    _killed(violations, step, lambda: collect_store(path, grace_s=-1, on_step=_die_at(step)), check)


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
