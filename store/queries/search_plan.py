"""The plan of a search: one task for each segment, run by threads of this process or by the workers of a cluster.

A task is `scan_segment` of one segment and is independent of the others. Threads share the store of this process and
its decoded edges. Workers open the store once (`ordered_tasks.py`), so the second search of a segment reuses its
decoded edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from ..patterns import Pattern, Vocabulary
from ..patterns.segment_matcher import segment_matcher
from ..reading.ordered_tasks import Client, current_client, run_in_order
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..reading.word_attention import Merge
from ..schema.traces import Site
from .segment_scan import Basis, SegmentScores, Stopped, scan_segment
from .word_scan import scan_words


@dataclass(frozen=True)
class SearchProgress:
    """Progress of a search."""

    n_segments_done: int
    n_segments: int
    n_examples_done: int
    n_examples: int


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

    def scan(self, position: int, stop: Callable[[], bool] = lambda: False) -> SegmentScores:
        """Run one task in this process: that of the segment at this position."""
        segment, words = self.store.segments[position], self.words is not None
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
        segments, n_done, n_examples_done = self.store.segments, 0, 0
        client = current_client() if isinstance(workers, int) else workers
        scan = partial(self.scan, stop=stop) if client is None else self.scan
        try:
            for position, scores in run_in_order(scan, range(len(segments)), client or workers, stop):
                segment = segments[position]
                n_done, n_examples_done = n_done + 1, n_examples_done + segment.n_examples
                on_progress(SearchProgress(n_done, len(segments), n_examples_done, self.store.n_examples))
                yield segment, scores
        except Stopped:
            return
