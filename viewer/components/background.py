"""Background threads for long work, with the result handed back to the session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import panel as pn

from headatlas.store.errors import HeadAtlasError

from .wire import step

Check = Callable[[], None]
"""Function that long work calls often. It raises `SupersededError` if the result is no longer needed."""
READERS = 2
"""Most views that read at the same time in this process. It bounds the memory of all readers together."""
SEARCHERS = 6
"""Most searches and other computations over a corpus at the same time in this process."""
READING = ThreadPoolExecutor(READERS, "headatlas-read")
"""Threads of reads, whose bytes are bounded before they start."""
SEARCHING = ThreadPoolExecutor(SEARCHERS, "headatlas-search")
"""Threads of searches. Searches that take long never occupy the threads that read pages."""
WAITING = ThreadPoolExecutor(2, "headatlas-wait")
"""Threads of what waits for others: for a file that another viewer has locked, or for a server."""


class SupersededError(Exception):
    """Raised inside work whose result is no longer needed."""


class Newest:
    """Work of one view, of which only the newest counts.

    Work that takes long runs in a thread of `pool`: `READING`, `SEARCHING` or `WAITING`. New work, or `stop`,
    ends the work before at its next `check` and drops its result.
    """

    def __init__(self, pool: ThreadPoolExecutor = READING) -> None:
        self._key: Hashable = None
        self._pool = pool
        self._stop = Event()
        if pn.state.curdoc is not None:
            pn.state.on_session_destroyed(lambda context: self.stop())  # type: ignore[arg-type]

    def start(
        self,
        key: Hashable,
        work: Callable[[Check], Any],
        done: Callable[[Any], None],
        failed: Callable[[HeadAtlasError], None],
        *,
        at_once: bool,
    ) -> None:
        """Run `work` and pass its result to `done`, or its error to `failed`.

        With `at_once` it runs in this step and raises its error. Work that runs already under the same `key` continues
        and nothing is started.
        """
        if self._key is not None and key == self._key:
            return
        self.stop()
        stop = self._stop = Event()

        def check() -> None:
            if stop.is_set():
                raise SupersededError

        if at_once:
            done(work(check))
            return
        self._key = key

        def run() -> Any:
            try:
                check()  # it may have waited for a thread
                return work(check)
            except (SupersededError, HeadAtlasError) as error:
                return error

        def finish(result: Any) -> None:
            if stop.is_set():
                return
            self._key = None
            if isinstance(result, HeadAtlasError):
                failed(result)
            else:
                done(result)

        background(run, finish, self._pool)

    @property
    def is_running(self) -> bool:
        """True from the start of work until its result is passed on."""
        return self._key is not None

    def stop(self) -> bool:
        """End the work that runs, and drop its result. Returns True if there was any."""
        is_running, self._key = self.is_running, None
        self._stop.set()
        return is_running


def background(work: Callable[[], Any], done: Callable[[Any], None], pool: ThreadPoolExecutor = READING) -> None:
    """Run `work` in a thread of `pool` and pass its result to `done` in this session.

    Without a document both run at once. A document without a session is seen by nobody, such as the one that the server
    builds when it starts: nothing is run.
    """
    document = pn.state.curdoc
    if document is None:
        done(work())
        return
    if document.session_context is None:
        return

    async def run() -> None:
        result = await asyncio.get_running_loop().run_in_executor(pool, work)
        with step(document):
            done(result)

    # Start after the page has loaded: changes between the response and the page's first connection are lost.
    pn.state.onload(lambda: pn.state.execute(run))
