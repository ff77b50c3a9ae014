"""The client's side of a cluster: give each worker its segments, and find workers that ended or do not answer.

Each task names its worker, so the client knows what every worker does. A worker has at most two segments, of which it
computes one and writes the other. This bounds the memory of the workers and the files in the client's folder. A segment
whose worker ended, did not answer in time or left waits for the next free worker. A second copy of a task does no harm:
a segment is placed once, and the client commits the first result.
"""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distributed import KilledWorker
from distributed.core import Status

from headatlas.store.commands.cluster import DEFAULT_WORKERS
from headatlas.store.errors import ConfigError, HeadAtlasError

from ...config import ClusterConfig
from ...progress import Listener, Stage, WorkerLost, plural
from .segment_worker import compute_remotely, join_job
from .work_package import PackedFile, SegmentResult, WorkerDescription

if TYPE_CHECKING:
    from distributed import Client, Future

_POLL_S = 1.0
_SCALE_S = 30.0
_START_S = 300.0
_REPLY_S = 60.0
"""Seconds that the scheduler may take to answer."""
_SEGMENTS_AT_A_TIME = 2


@dataclass
class _Task:
    future: Future
    index: int | None
    """Segment; None while the worker loads the model."""
    attempt: int
    has_begun: bool = False


@dataclass
class _Worker:
    address: str
    n_slots: int
    tasks: dict[str, _Task] = field(default_factory=dict)
    """Tasks by key."""
    description: WorkerDescription | None = None
    last_sign: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return self.address if self.description is None else f"{self.address} on {self.description.host}"

    def release(self) -> None:
        """Let the scheduler forget the tasks. One that runs goes on to its end; the others do not start."""
        for task in self.tasks.values():
            task.future.release()


@dataclass
class SegmentDispatch:
    """Distribution of the segments of one job. `results` runs it."""

    client: Client
    settings: ClusterConfig
    job_file: PackedFile
    topic: str
    order: list[int]
    """Segments that wait for a worker, the next one first."""
    pack: Callable[[int], PackedFile]
    """Writes the file of a segment before it is given to a worker."""
    on_event: Listener
    first_machine: str | None = None
    """Description of the workers that `same_bytes` allows; None until the first one has joined."""
    _workers: dict[str, _Worker] = field(default_factory=dict)
    _restarting: set[str] = field(default_factory=set)
    """Addresses of workers that did not answer."""
    _refused: dict[str, str] = field(default_factory=dict)
    """Descriptions of the workers that `same_bytes` refuses, by address."""
    _messages: queue.SimpleQueue[tuple[Any, ...]] = field(default_factory=queue.SimpleQueue)
    _attempts: dict[int, int] = field(default_factory=dict)
    _n_failures: dict[int | None, int] = field(default_factory=dict)
    """Number of workers that ended while they computed a segment; under None, while they loaded the model."""
    _last_update: float = float("-inf")
    _last_scale: float = field(default_factory=time.monotonic)
    _last_worker: float = field(default_factory=time.monotonic)
    _is_waiting_shown: bool = False
    _is_check_shown: bool = False

    def results(self) -> Iterator[SegmentResult]:
        """Yield the segments as they are placed.

        Raises
        ------
        HeadAtlasError
            A worker reported an error, a segment was tried too often, no worker is left, or the scheduler ended.
        """
        with self._listening():
            while self.order or self._n_running:
                self._update()
                self._submit()
                for message in self._wait():
                    if message[0] == "reports":
                        self._report(*message[1:])
                    elif (result := self._finish(message[1])) is not None:
                        yield result

    @property
    def _start_limit(self) -> float:
        """Seconds until a worker must be there, and until it must have loaded the model."""
        return max(self.settings.timeout, _START_S)

    @property
    def _n_running(self) -> int:
        """Number of segments that workers have now."""
        return sum(task.index is not None for worker in self._workers.values() for task in worker.tasks.values())

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Receive the reports of workers. At the end, also after an error, no task of this job is left."""
        messages = self._messages
        self.client.subscribe_topic(self.topic, lambda event: messages.put(("reports", *event[1])))
        try:
            yield
        finally:
            for worker in self._workers.values():
                worker.release()
            with suppress(Exception):  # the connection may end at this moment
                self.client.unsubscribe_topic(self.topic)

    def _wait(self) -> list[tuple[Any, ...]]:
        """Return the next messages, after at most a second."""
        try:
            messages = [self._messages.get(timeout=_POLL_S)]
        except queue.Empty:
            return []
        while not self._messages.empty():
            messages.append(self._messages.get())
        return messages

    def _update(self) -> None:
        """Compare the workers of the scheduler with those that are known here, once a second."""
        now = time.monotonic()
        if now - self._last_update < _POLL_S:
            return
        self._last_update = now
        n_threads = self._n_threads()
        for address in [address for address in self._workers if address not in n_threads]:
            self._lose(self._workers[address], "ended")
        self._restarting.intersection_update(n_threads)
        self._refused = {address: text for address, text in self._refused.items() if address in n_threads}
        for worker in list(self._workers.values()):
            limit = self._start_limit if worker.description is None else self.settings.timeout
            if worker.tasks and now - worker.last_sign > limit:
                self._restart(worker, limit)
        for address in [
            address for address in n_threads if address not in {*self._workers, *self._restarting, *self._refused}
        ]:
            self._workers[address] = worker = _Worker(address, min(_SEGMENTS_AT_A_TIME, n_threads[address]))
            self._start(worker, None, join_job, self.job_file)
        self._check_workers(now)

    def _n_threads(self) -> Mapping[str, int]:
        """Return the number of threads of each worker of the scheduler, by address."""
        client: Any = self.client
        if client.status != "running":
            raise HeadAtlasError("the connection to the dask scheduler was lost")
        try:
            return client.nthreads(callback_timeout=_REPLY_S)
        except Exception as error:  # of any layer of dask: sockets, timeouts, TLS
            raise HeadAtlasError(f"the dask scheduler ended or cannot be reached ({error})") from error

    def _check_workers(self, now: float) -> None:
        """Start workers in place of those that are gone, and stop if none can come."""
        if self._workers:
            self._last_worker, self._is_waiting_shown = now, False
        if self.order and now - self._last_scale > _SCALE_S:
            self._last_scale = now
            self._replace_closed()
        if self._workers:
            return
        is_queue = self.settings.kind in ("slurm", "pbs")
        if self._refused and not is_queue:
            raise ConfigError(
                f"cluster.same_bytes refuses all workers: {'; '.join(sorted(set(self._refused.values())))}. The store was "
                f"written by: {self.first_machine}. Start such workers, or set cluster.same_bytes = false."
            )
        if not self._is_waiting_shown:
            self._is_waiting_shown = True
            self.on_event(Stage("waiting for a worker"))
        if now - self._last_worker > self._start_limit and not is_queue:
            raise HeadAtlasError(f"there was no worker for {self._start_limit:g} s.")

    def _replace_closed(self) -> None:
        """Start workers in place of processes that could not start, and of jobs that a batch system ended."""
        cluster: Any = self.client.cluster
        n_workers = min(self.settings.workers or DEFAULT_WORKERS, len(self.order) + len(self._workers))
        if self.settings.kind not in ("local", "slurm", "pbs") or len(self._workers) >= n_workers:
            return
        for name in [
            name for name, worker in cluster.workers.items() if worker.status in (Status.closed, Status.failed)
        ]:
            del cluster.workers[name]
            cluster.worker_spec.pop(name, None)
        cluster.scale(max(n_workers, len(cluster.worker_spec)))

    def _submit(self) -> None:
        """Give every free worker its next segment."""
        for worker in self._workers.values():
            while self.order and worker.description is not None and len(worker.tasks) < worker.n_slots:
                index = self.order.pop(0)
                self._attempts[index] = self._attempts.get(index, 0) + 1
                file = self.pack(index)
                self._start(worker, index, compute_remotely, self.job_file, file, self._attempts[index])

    def _start(self, worker: _Worker, index: int | None, function: Callable[..., Any], *arguments: Any) -> None:
        attempt = 0 if index is None else self._attempts[index]
        key = f"headatlas-{self.topic}-{'join' if index is None else index}-{attempt}-{worker.address}"
        future = self.client.submit(
            function, *arguments, key=key, workers=[worker.address], allow_other_workers=False, pure=False
        )
        if not worker.tasks:
            worker.last_sign = time.monotonic()
        worker.tasks[key] = _Task(future, index, attempt)
        future.add_done_callback(lambda done: self._messages.put(("done", done.key)))

    def _report(self, index: int, attempt: int, events: bytes) -> None:
        """Pass on the progress of a segment, unless another worker computes it now."""
        for worker in self._workers.values():
            for task in worker.tasks.values():
                if (task.index, task.attempt) == (index, attempt):
                    worker.last_sign, task.has_begun = time.monotonic(), True
                    for event in pickle.loads(events):
                        self.on_event(event)

    def _finish(self, key: str) -> SegmentResult | None:
        """Return the result of a task that ended, or prepare what follows from its failure."""
        worker = next((worker for worker in self._workers.values() if key in worker.tasks), None)
        if worker is None:  # the worker was given up before
            return None
        task = worker.tasks[key]
        if task.future.status != "finished":
            error: Any = task.future.exception() if task.future.status == "error" else None
            if error is None or isinstance(error, KilledWorker):
                self._lose(worker, "ended")
                return None
            if isinstance(error, HeadAtlasError | OSError | MemoryError):
                raise error
            raise HeadAtlasError(f"worker {worker.name} failed: {type(error).__name__}: {error}") from error
        result = task.future.result()
        del worker.tasks[key]
        worker.last_sign = time.monotonic()
        if isinstance(result, SegmentResult):
            for event in result.events:
                self.on_event(event)
            return result
        self._join(worker, result)
        return None

    def _join(self, worker: _Worker, description: WorkerDescription) -> None:
        """Accept a worker that has loaded the model, or refuse it because its bytes would differ."""
        n_joined = sum(other.description is not None for other in self._workers.values())
        if self.first_machine is None:
            self.first_machine = description.machine
        if self.settings.same_bytes and description.machine != self.first_machine:
            del self._workers[worker.address]
            self._refused[worker.address] = description.machine
            self.on_event(Stage(f"refused worker {worker.address}: {description.machine}"))
            return
        worker.description = description
        self._n_failures.pop(None, None)
        if not self._is_check_shown:
            self._is_check_shown = True
            for event in description.events:
                self.on_event(event)
        self.on_event(Stage(f"worker {worker.name} joined ({plural(n_joined + 1, 'worker')}): {description.machine}"))

    def _lose(self, worker: _Worker, reason: str) -> None:
        """Give up a worker. Its segments wait again, before all others.

        Raises
        ------
        HeadAtlasError
            One of its segments, or the loading of the model, has ended too many workers.
        """
        del self._workers[worker.address]
        self._last_update = float("-inf")
        lost = [task for task in worker.tasks.values() if task.index is not None]
        indices = tuple(task.index for task in lost if task.index is not None)
        worker.release()
        self.on_event(WorkerLost(worker.name, reason, indices))
        self.order[:0] = indices
        for task in worker.tasks.values():
            if not (task.has_begun or task.index is None):
                continue
            n = self._n_failures[task.index] = self._n_failures.get(task.index, 0) + 1
            if n > self.settings.retries:
                work = "loading the model" if task.index is None else f"segment {task.index}"
                raise HeadAtlasError(
                    f"{n} workers ended or did not answer during {work}, the last one {worker.name}. Look for a lack of "
                    "memory there: the system ends a process that takes too much."
                )

    def _restart(self, worker: _Worker, limit: float) -> None:
        """Give up a worker that does not answer, and have its process ended and started again in the background."""
        self._restarting.add(worker.address)

        def restart() -> None:
            try:
                self.client.restart_workers([worker.address], raise_for_error=False)
            except Exception:  # nobody supervises this worker, or the cluster ends; it gets no more segments
                return

        threading.Thread(target=restart, name="headatlas-restart", daemon=True).start()
        self._lose(worker, f"did not answer for {limit:g} s")
