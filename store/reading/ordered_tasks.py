"""Tasks over a store, with results in order: in threads of this process, or on the workers of a cluster.

A task is one call of a function. For workers the function is pickled once. Snapshots inside it are replaced by their
own pickles, which name store and manifest, and a worker opens each snapshot once. Later tasks and later queries reuse
what it has decoded.
"""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, Protocol, TypeVar

from ..files.containers.task_pool import TaskPool
from .segment_index import SegmentIndex

Task = TypeVar("Task")
Result = TypeVar("Result")
_POLL_S = 0.1
_AHEAD = 64
"""Number of tasks that a client has at once; more tasks are submitted as these finish."""


class Future(Protocol):
    """The future that `Client.submit` returns."""

    def result(self) -> Any:
        """Wait for the result and return it, or raise the exception of the task."""

    def add_done_callback(self, fn: Callable[[Any], Any], /) -> Any:
        """Call ``fn(future)`` in some thread when the task has finished, failed or been cancelled."""

    def cancel(self) -> Any:
        """Cancel the task if it has not started."""


class Client(Protocol):
    """An executor of tasks: `dask.distributed.Client` or `concurrent.futures.Executor`."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Schedule ``fn(*args)`` and return its future."""


_connect: ContextVar[Callable[[], Client | None] | None] = ContextVar("connect", default=None)


@contextmanager
def tasks_on(connect: Callable[[], Client | None]) -> Iterator[None]:
    """Run the tasks of the block on the workers of a client. `connect` is called for each set of tasks."""
    token = _connect.set(connect)
    try:
        yield
    finally:
        _connect.reset(token)


def current_client() -> Client | None:
    """Return the client of the enclosing `tasks_on`, or None."""
    connect = _connect.get()
    return None if connect is None else connect()


def run_in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int | Client = 1,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Task, Result]]:
    """Run a function on tasks, and iterate over tasks and results in order.

    Parameters
    ----------
    function
        A function of a module, or a `functools.partial` of one: it is pickled for other processes.
    workers
        Number of threads, or a client that runs the tasks. Inside `tasks_on` its client takes the place of threads.
    stop
        Called before each task or while waiting. When it returns True, or the caller leaves the loop, later tasks are
        cancelled.
    """
    client = current_client() if isinstance(workers, int) else workers
    if client is not None:
        packed = _pack(function)
        # Dask sends the function to each worker once, and again if it was lost with a worker.
        shared = client.submit(bytes, packed) if hasattr(client, "scatter") else packed
        yield from _in_order(lambda task: client.submit(run_packed, shared, task), tasks, _AHEAD, stop)
    elif isinstance(workers, int) and workers > 1:
        with TaskPool(workers, "store") as pool:
            yield from _in_order(partial(pool.submit, function), tasks, workers + 1, stop)
    else:
        for task in tasks:
            if stop():
                return
            yield task, function(task)


def _in_order(
    submit: Callable[[Task], Future], tasks: Iterable[Task], n_ahead: int, stop: Callable[[], bool]
) -> Iterator[tuple[Task, Any]]:
    waiting, ahead = iter(tasks), list[tuple[Task, Future]]()
    is_exhausted = False
    try:
        while True:
            while not is_exhausted and len(ahead) < n_ahead:
                try:
                    task = next(waiting)
                except StopIteration:
                    is_exhausted = True
                else:
                    ahead.append((task, submit(task)))
            if not ahead or not _is_finished(ahead[0][1], stop):
                return
            task, future = ahead.pop(0)
            yield task, future.result()
    finally:
        for _, future in ahead:
            future.cancel()


def _is_finished(future: Future, stop: Callable[[], bool]) -> bool:
    """Wait for a task; False if the caller stops. Workers cannot call `stop`, so it is called while this waits.

    With a timeout, dask's `result` can return before there is one.
    """
    finished = threading.Event()
    future.add_done_callback(lambda _: finished.set())
    while not stop():
        if finished.wait(_POLL_S):
            return True
    return False


def run_packed(packed: bytes, task: Any) -> Any:
    """Run one task in another process. The tasks of a set share one function, with what it has loaded."""
    with _unpacking:
        function = _unpack(packed)
    return function(task)


_unpacking = threading.Lock()


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> bytes | None:
        return pickle.dumps(value) if isinstance(value, SegmentIndex) else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: bytes) -> Any:
        return _open_snapshot(pid)


def _pack(function: Callable[..., Any]) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(function)
    return buffer.getvalue()


_open_snapshot = lru_cache(maxsize=4)(pickle.loads)
"""Open a snapshot from its pickle. The cache lets a worker open each snapshot once."""


@lru_cache(maxsize=1)
def _unpack(packed: bytes) -> Callable[..., Any]:
    return _Unpickler(io.BytesIO(packed)).load()
