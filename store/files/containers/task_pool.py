"""Threads for tasks that encode, verify or search, and the end of tasks after an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any


class TaskPool(ThreadPoolExecutor):
    """Threads for tasks. If the system starts no thread, the caller of `submit` runs the task itself."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor.submit`."""
        task = _Task(partial(fn, *args, **kwargs))
        try:
            return super().submit(task)
        except RuntimeError as error:
            if "new thread" not in str(error):
                raise
        task.run_once()  # a thread that was started before may have it in its queue too
        return task.future


class _Task:
    """Call that runs once and keeps its result."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self._lock = work, Lock()
        self.future: Future[Any] = Future()

    def __call__(self) -> Any:
        self.run_once()
        return self.future.result()

    def run_once(self) -> None:
        with self._lock:
            if not self.future.done():
                try:
                    self.future.set_result(self._work())
                except BaseException as error:
                    self.future.set_exception(error)


@contextmanager
def finish_tasks(tasks: list[Future[Any]]) -> Iterator[None]:
    """Cancel or await all tasks when the block ends, also after an error. Their arrays may change afterwards."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            if not task.cancelled():
                task.exception()
