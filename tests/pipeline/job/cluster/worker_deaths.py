"""Deaths of workers: a plugin of dask that kills its process at a named step, and kills at random moments."""

from __future__ import annotations

import functools
import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed import Client, Worker
from distributed.diagnostics.plugin import WorkerPlugin

STEPS = ("loading", "computing", "arrays-written", "listing-written", "renamed", "placed")


class KillAt(WorkerPlugin):
    """Kill one worker at each of some steps, when it first reaches the step."""

    name = "kill-at"

    def __init__(self, folder: Path, steps: tuple[str, ...]) -> None:
        self.folder, self.steps = folder, steps

    def setup(self, worker: Worker) -> None:
        from headatlas.pipeline.job.cluster import segment_worker
        from headatlas.store.writing.store_writer import StoreWriter

        original = {name: getattr(segment_worker, name) for name in ("_prepare", "compute_segment", "place_segment")}

        def before(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                self.reach(step)
                return function(*arguments, **options)

            return call

        def place(*arguments: Any, **options: Any) -> Any:
            entry = original["place_segment"](*arguments, **options)
            self.reach("placed")
            return entry

        segment_worker._prepare = before("loading", original["_prepare"])
        segment_worker.compute_segment = before("computing", original["compute_segment"])
        segment_worker.place_segment = place
        segment_worker.StoreWriter = functools.partial(StoreWriter, on_step=self.reach)  # type: ignore[assignment]

    def reach(self, step: str) -> None:
        """Kill this process if it is the first one at this step."""
        if step in self.steps:
            with suppress(FileExistsError, FileNotFoundError):  # a process outlives the test, and its folder does not
                (self.folder / step).mkdir()
                os.kill(os.getpid(), signal.SIGKILL)


def worker_processes(client: Client) -> list[int]:
    """Return the ids of the processes of a local cluster that are up."""
    nannies = client.cluster.workers.values()  # type: ignore[union-attr]
    return [nanny.pid for nanny in nannies if nanny.pid is not None]


class RandomDeaths:
    """Kill a worker of a local cluster at random moments, `n` times, while the block runs."""

    def __init__(self, client: Client, n: int, seed: int, longest_s: float) -> None:
        self.client, self.n, self.random, self.longest_s = client, n, random.Random(seed), longest_s
        self.n_killed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)

    def __enter__(self) -> RandomDeaths:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _kill(self) -> None:
        while self.n_killed < self.n and not self._stop.wait(self.random.uniform(0, self.longest_s)):
            if processes := worker_processes(self.client):
                with suppress(ProcessLookupError):
                    os.kill(self.random.choice(processes), signal.SIGKILL)
                    self.n_killed += 1
