"""Work of a view: only the newest counts, the work before ends, and few views read at the same time."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from bokeh.document import Document
from panel.io.state import set_curdoc

from headatlas.store.errors import NotFoundError
from headatlas.viewer.components import background as module
from headatlas.viewer.components.background import READERS, SEARCHERS, SEARCHING, WAITING, Newest, SupersededError


@pytest.fixture
def in_session(monkeypatch):
    """Run `background` without a page: its work runs in threads of an event loop, as in a session."""

    def run(scenario):
        async def main():
            loop = asyncio.get_running_loop()
            tasks = []

            def background(work, done, pool):
                async def wait():
                    done(await loop.run_in_executor(pool, work))

                tasks.append(loop.create_task(wait()))

            monkeypatch.setattr(module, "background", background)
            await scenario()
            await asyncio.gather(*tasks)

        asyncio.run(main())

    return run


def never(error):
    raise error


def test_new_work_ends_the_work_before(in_session):
    ended, results = [], []

    def long_work(check):
        try:
            while True:
                check()
                time.sleep(0.001)
        except SupersededError:
            ended.append(threading.current_thread() is not threading.main_thread())
            raise

    async def scenario():
        newest = Newest()
        newest.start("a", long_work, results.append, never, at_once=False)
        await asyncio.sleep(0.02)
        newest.start("a", lambda check: results.append("again"), results.append, never, at_once=False)
        newest.start("b", lambda check: "b", results.append, never, at_once=False)
        await asyncio.sleep(0.1)

    in_session(scenario)
    assert (ended, results) == ([True], ["b"])


def test_a_result_that_comes_too_late_is_dropped(in_session):
    results, release = [], threading.Event()

    async def scenario():
        newest = Newest()
        newest.start("a", lambda check: release.wait(60), results.append, never, at_once=False)
        assert newest.stop()
        assert not newest.stop()
        release.set()

    in_session(scenario)
    assert results == []


def test_short_work_is_answered_in_the_same_step():
    results, newest = [], Newest()
    newest.start("a", lambda check: threading.current_thread(), results.append, never, at_once=True)
    assert results == [threading.main_thread()]
    with pytest.raises(NotFoundError):
        newest.start("b", lambda check: never(NotFoundError("no map")), results.append, never, at_once=True)


def test_an_error_of_long_work_is_handed_over(in_session):
    errors = []

    async def scenario():
        Newest().start("a", lambda check: never(NotFoundError("no map")), never, errors.append, at_once=False)

    in_session(scenario)
    assert [str(error) for error in errors] == ["no map"]


def test_few_views_read_at_the_same_time_and_waiting_ones_can_be_ended(in_session):
    running, most, release, results = [0], [0], threading.Event(), []
    lock = threading.Lock()

    def work(check):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        release.wait(60)
        with lock:
            running[0] -= 1
        return 1

    async def scenario():
        views = [Newest() for _ in range(READERS + 2)]
        for index, view in enumerate(views):
            view.start(index, work, results.append, never, at_once=False)
        await asyncio.sleep(0.2)
        views[-1].stop()
        await asyncio.sleep(0.2)
        release.set()

    in_session(scenario)
    assert most == [READERS]
    assert sum(results) == READERS + 1


@pytest.mark.parametrize("pool", [SEARCHING, WAITING])
def test_work_that_never_ends_leaves_the_threads_that_read_pages(in_session, pool):
    release, results = threading.Event(), []

    async def scenario():
        for index in range(4 * SEARCHERS):
            Newest(pool).start(index, lambda check: release.wait(60), lambda result: None, never, at_once=False)
        Newest().start("a page", lambda check: "read", results.append, never, at_once=False)
        try:
            async with asyncio.timeout(30):
                while not results:
                    await asyncio.sleep(0.01)
        finally:
            release.set()

    in_session(scenario)
    assert results == ["read"]


def test_the_end_of_a_session_ends_its_work():
    document = Document()
    with set_curdoc(document):
        newest = Newest()
    checks = []
    newest.start("a", checks.append, lambda result: None, never, at_once=True)
    checks[0]()
    for callback in document.session_destroyed_callbacks:
        callback(None)
    with pytest.raises(SupersededError):
        checks[0]()
