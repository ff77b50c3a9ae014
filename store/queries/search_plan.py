"""The plan of a search: one task for each segment, run by threads of this process or by the workers of a cluster.

A task is `scan_segment` of one segment and is independent of the others. Threads share the store of this process and
its decoded edges. A client (`dask.distributed.Client`, or an executor of `concurrent.futures`) gets the same tasks with
a pickled store. A worker opens the store once and caches it, so the second search of a segment reuses its decoded
edges.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from ..files.containers.task_pool import TaskPool
from ..patterns import Pattern, Vocabulary
from ..patterns.segment_matcher import segment_matcher
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..reading.word_attention import Merge
from ..schema.traces import Site
from .segment_scan import Basis, SegmentScores, Stopped, scan_segment
from .word_scan import scan_words

_POLL_S = 0.1
_AHEAD = 64
"""Number of tasks that a client has at once; more tasks are submitted as these finish."""


@dataclass(frozen=True)
class SearchProgress:
    """Progress of a search."""

    n_segments_done: int
    n_segments: int
    n_examples_done: int
    n_examples: int


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


@dataclass(frozen=True)
class SearchPlan:
    """A search, checked against the vocabulary of its store."""

    store: Snapshot
    site: Site
    pattern: Pattern
    vocabulary: Vocabulary
    basis: Basis
    words: Merge | None = None
    """Merging of tokens to words; None to search tokens."""

    def scan(self, segment: Segment, stop: Callable[[], bool] = lambda: False) -> SegmentScores:
        """Run one task in this process."""
        words = self.words is not None
        matcher = segment_matcher(segment, self.site, self.pattern, self.vocabulary, words=words)
        if self.words is not None:
            return scan_words(segment, self.site, matcher, self.words, stop)
        return scan_segment(segment, self.site, matcher, self.basis, stop)

    def run(
        self,
        workers: int | Client,
        on_progress: Callable[[SearchProgress], None],
        stop: Callable[[], bool],
    ) -> Iterator[tuple[Segment, SegmentScores]]:
        """Iterate over the scores of the segments in order, until stopped. Unfinished tasks are then discarded."""
        if isinstance(workers, int):
            with TaskPool(max(1, workers), "search") as pool:
                yield from self._results(lambda s: pool.submit(self.scan, s, stop), workers + 1, on_progress, stop)
        else:
            query = self.site, self.pattern, self.vocabulary, self.basis, self.words
            packed = pickle.dumps((pickle.dumps(self.store), query))
            yield from self._results(
                lambda s: workers.submit(scan_remotely, packed, s.index), _AHEAD, on_progress, stop
            )

    def _results(
        self,
        submit: Callable[[Segment], Future],
        n_ahead: int,
        on_progress: Callable[[SearchProgress], None],
        stop: Callable[[], bool],
    ) -> Iterator[tuple[Segment, SegmentScores]]:
        segments, ahead = self.store.segments, list[tuple[Segment, Future]]()
        waiting, n_done, n_examples_done = iter(segments), 0, 0
        try:
            while True:
                while len(ahead) < n_ahead and (segment := next(waiting, None)) is not None:
                    ahead.append((segment, submit(segment)))
                if not ahead:
                    return
                segment, future = ahead[0]
                scores = _wait_for(future, stop)
                del ahead[0]
                n_done, n_examples_done = n_done + 1, n_examples_done + segment.n_examples
                on_progress(SearchProgress(n_done, len(segments), n_examples_done, self.store.n_examples))
                yield segment, scores
        except Stopped:
            return
        finally:
            for _, future in ahead:
                future.cancel()


def _wait_for(future: Future, stop: Callable[[], bool]) -> SegmentScores:
    """Wait for the scores of a task. `stop` is called in the meantime, because a remote worker cannot call it.

    `result` is called only when the task has finished. With a timeout, dask's `result` can return before there is one.
    """
    finished = threading.Event()
    future.add_done_callback(lambda _: finished.set())
    while not finished.wait(_POLL_S):
        if stop():
            raise Stopped
    return future.result()


def scan_remotely(packed: bytes, index: int) -> SegmentScores:
    """Run one task in another process, which caches the open store."""
    plan, segments = _unpack(packed)
    return plan.scan(segments[index])


_load_store = lru_cache(maxsize=4)(pickle.loads)
"""Load a store from its pickle. The cache lets a worker open each store once."""


@lru_cache(maxsize=1)
def _unpack(packed: bytes) -> tuple[SearchPlan, dict[int, Segment]]:
    pickled_store, query = pickle.loads(packed)
    store: Snapshot = _load_store(pickled_store)
    return SearchPlan(store, *query), {segment.index: segment for segment in store.segments}
