"""Tasks that run in threads, with results in order, until the caller stops them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from ..files.containers.task_pool import TaskPool

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_in_order(
    function: Callable[[Task], Result], tasks: Sequence[Task], threads: int, stop: Callable[[], bool]
) -> Iterator[tuple[Task, Result]]:
    """Run a function on tasks in threads, and iterate over tasks and results in order.

    `stop` is called before each result. When it returns True, or the caller leaves the loop, later tasks are cancelled.
    """
    waiting, ahead = iter(tasks), list[tuple[Task, Future[Result]]]()
    with TaskPool(max(1, threads), "comparison") as pool:
        try:
            while not stop():
                while len(ahead) <= threads and (task := next(waiting, None)) is not None:
                    ahead.append((task, pool.submit(function, task)))
                if not ahead:
                    return
                task, future = ahead.pop(0)
                yield task, future.result()
        finally:
            for _, future in ahead:
                future.cancel()
