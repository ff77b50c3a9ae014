"""Simulation of power loss: data that was not flushed may be lost, in any combination that a file system allows.

Before each call that changes the disk, an image is made of a possible state after a loss of power. A file has its bytes
at its last flush, or none, or all written bytes. A folder has its entries at its last flush, and any later changes.
(After Pillai et al. 2014, "All File Systems Are Not Created Equal".)
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_stores import check_survivor, checked_in_child, fresh, lean_contents, undisturbed, write_lean

WATCHED = ("open", "write", "writev", "fsync", "rename", "link", "mkdir", "unlink", "rmdir", "replace")


class Disk:
    """State of the flushed files below `root`. `on_call` is called before each call that changes them."""

    def __init__(self, root: Path, on_call: Callable[[], None]) -> None:
        self.root, self._on_call, self._busy, self._lock = root, on_call, False, threading.RLock()
        self.data: dict[int, bytes] = {}
        """Flushed bytes of files, by inode."""
        self.entries: dict[int, dict[str, int]] = {}
        """Flushed entries of folders, by inode: the entries' inodes."""
        self.keep: list[int] = []  # open descriptors: an inode number must not be given away again
        self.real = {name: getattr(os, name) for name in WATCHED}

    def watch(self) -> None:
        """Start intercepting calls."""
        for name in WATCHED:
            setattr(os, name, self._intercept(name))

    def unwatch(self) -> None:
        """Stop intercepting calls."""
        for name, call in self.real.items():
            setattr(os, name, call)

    def _intercept(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **options)
            with self._lock:  # another thread's call waits until the image is made
                if self._busy:
                    return real(*arguments, **options)
                self._busy = True
                try:
                    self._on_call()
                    return self._flush(arguments[0]) if name == "fsync" else real(*arguments, **options)
                finally:
                    self._busy = False

        return call

    def _flush(self, fd: int) -> None:
        status, path = os.fstat(fd), Path(os.readlink(f"/proc/self/fd/{fd}"))
        self.keep.append(os.dup(fd))
        if stat.S_ISDIR(status.st_mode):
            self.entries[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.data[status.st_ino] = path.read_bytes()

    def image(self, target: Path, rng: random.Random, mood: str) -> None:
        """Make a possible state after a loss of power, in which "all", "some" or "none" of the changes are lost."""
        now: dict[int, Path] = {}
        for folder, names, files in os.walk(self.root):
            for name in (*names, *files):
                path = Path(folder, name)
                now[path.lstat().st_ino] = path
        self._copy(self.root.stat().st_ino, self.root, target, now, rng, mood)

    def _copy(
        self, inode: int, there: Path | None, target: Path, now: dict[int, Path], rng: random.Random, mood: str
    ) -> None:
        self.real["mkdir"](target)
        flushed = self.entries.get(inode, {})
        current = {entry.name: entry.inode() for entry in os.scandir(there)} if there else {}
        for name in sorted(flushed.keys() | current.keys()):
            old, new = flushed.get(name), current.get(name)
            chosen = old if old == new or mood == "all" else new if mood == "none" else rng.choice((old, new))
            if chosen is None:
                continue
            path = now.get(chosen)
            if chosen in self.entries or (path is not None and path.is_dir()):
                self._copy(chosen, path if path and path.is_dir() else None, target / name, now, rng, mood)
            else:
                self._copy_file(chosen, path, target / name, rng, mood)

    def _copy_file(self, inode: int, path: Path | None, target: Path, rng: random.Random, mood: str) -> None:
        flushed = self.data.get(inode)
        if path is not None and flushed is not None and path.stat().st_size == len(flushed):
            self.real["link"](path, target)  # nothing is ever changed: the survivor may share it
            return
        written = path.read_bytes() if path is not None else b""
        choices = [flushed or b""] if mood == "all" else [b""] if mood == "none" else [flushed or b"", written, b""]
        with open(target, "xb") as file:
            file.write(rng.choice(choices) if mood == "some" else choices[0])


def run(folder: Path, container: str, n: int, seed: int = 1) -> dict[str, tuple[int, list[str]]]:
    """Simulate `n` losses of power during a run, spread over all its calls."""
    violations: list[str] = []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    rng, root, contents = random.Random(seed), folder / "running" / "traces", lean_contents()
    undisturbed(container, folder)
    calls = cases = 0
    moods_by_call: dict[int, list[str]] = {}
    committed: list[str] = []

    def on_call() -> None:
        nonlocal calls, cases
        calls += 1
        for mood in moods_by_call.get(calls, ()):
            disk.image(fresh(folder / "image"), rng, mood)
            what = f"power lost before call {calls}, {mood} lost, {len(committed)} segments committed"
            cases += 1
            checked_in_child(violations, what, lambda: survive(len(committed)))

    def survive(at_least: int) -> None:
        disk.unwatch()
        check_survivor(folder / "image" / "traces", container, folder, at_least)

    def record(step: str) -> None:
        if step == "committed":
            committed.append(step)

    for attempt in range(2):  # the first counts the calls
        shutil.rmtree(root.parent, ignore_errors=True)
        root.parent.mkdir()
        calls, committed[:] = 0, []
        disk = Disk(root.parent, on_call)
        disk.watch()
        write_lean(root, contents, container, on_step=record)
        disk.unwatch()
        for fd in disk.keep:
            os.close(fd)
        if attempt == 0:
            for i in range(n):
                moods_by_call.setdefault(1 + round(i * (calls - 1) / max(1, n - 1)), []).append(
                    ("all", "some", "none")[i % 3]
                )
    return {f"power lost, unflushed writes gone ({container})": (cases, violations)}
