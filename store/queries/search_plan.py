"""The plan of a search, one task a segment, and who does the tasks: threads here, or the workers of a cluster.

A task is `scan_segment` of one segment, and depends on nothing else. Threads share this process's store with what it
keeps decoded. A client (`dask.distributed.Client`, or an executor of `concurrent.futures`) gets the same tasks with the
store's place instead; a worker opens it once and keeps it, so the second search of a segment finds its edges decoded.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

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
"""Tasks that a client has at once; a cluster with more workers is fed as they finish."""


@dataclass(frozen=True)
class SearchProgress:
    """How far a search is."""

    n_segments_done: int
    n_segments: int
    n_examples_done: int
    n_examples: int


class Future(Protocol):
    """What `Client.submit` gives."""

    def result(self, timeout: float | None = None) -> Any:
        """The result, or TimeoutError."""

    def done(self) -> bool:
        """Whether there is one."""
        ...

    def cancel(self) -> Any:
        """Do not begin, if that has not happened."""


class Client(Protocol):
    """Somebody who does tasks: `dask.distributed.Client`, `concurrent.futures.Executor`."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Do ``fn(*args)`` some time, somewhere."""


@dataclass(frozen=True)
class SearchPlan:
    """What is asked, checked against the store."""

    store: Snapshot
    site: Site
    pattern: Pattern
    vocabulary: Vocabulary
    basis: Basis
    words: Merge | None = None
    """How tokens are merged to words; None: they are not."""

    def scan(self, segment: Segment, stop: Callable[[], bool] = lambda: False) -> SegmentScores:
        """One task, in this process."""
        words = self.words is not None
        matcher = segment_matcher(segment, self.site, self.pattern, self.vocabulary, words=words)
        if self.words is not None:
            return scan_words(segment, self.site, matcher, self.words, stop)
        return scan_segment(segment, self.site, matcher, self.basis, stop)

    def run(
        self,
        threads: int,
        client: Client | None,
        on_progress: Callable[[SearchProgress], None],
        stop: Callable[[], bool],
    ) -> Iterator[tuple[Segment, SegmentScores]]:
        """Scores of the segments in their order, until stopped; what is being computed then is thrown away."""
        if client is None:
            with ThreadPoolExecutor(max(1, threads), "search") as pool:
                yield from self._results(lambda s: pool.submit(self.scan, s, stop), threads + 1, on_progress, stop)
        else:
            question = self.site, self.pattern, self.vocabulary, self.basis, self.words
            packed = pickle.dumps((pickle.dumps(self.store), question))
            yield from self._results(lambda s: client.submit(scan_there, packed, s.index), _AHEAD, on_progress, stop)

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
                scores = _awaited(future, stop)
                del ahead[0]
                n_done, n_examples_done = n_done + 1, n_examples_done + segment.n_examples
                on_progress(SearchProgress(n_done, len(segments), n_examples_done, self.store.n_examples))
                yield segment, scores
        except Stopped:
            return
        finally:
            for _, future in ahead:
                future.cancel()


def _awaited(future: Future, stop: Callable[[], bool]) -> SegmentScores:
    """The scores of a task; `stop` is asked while it runs, since a worker elsewhere cannot ask."""
    while True:
        try:
            return future.result(timeout=_POLL_S)
        except TimeoutError:
            if future.done():  # it was the task that raised, or it has just finished
                return future.result()
            if stop():
                raise Stopped from None


def scan_there(packed: bytes, index: int) -> SegmentScores:
    """One task in another process, which keeps the store open."""
    plan, segments = _unpacked(packed)
    return plan.scan(segments[index])


_opened = lru_cache(maxsize=4)(pickle.loads)
"""Stores by their pickles: a worker opens one once."""


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> tuple[SearchPlan, dict[int, Segment]]:
    place, question = pickle.loads(packed)
    store: Snapshot = _opened(place)
    return SearchPlan(store, *question), {segment.index: segment for segment in store.segments}
