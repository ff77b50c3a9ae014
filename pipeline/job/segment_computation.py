"""Compute the traces of one segment: batches through the model, and what happens when memory runs out.

A batch that runs out of memory is computed again in two halves. A single example that runs out of memory alone is not stored. If an example cannot be stored (it runs out of
memory alone, or its scores are not finite), its segment is computed again without it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from headatlas.store.errors import BudgetError
from headatlas.store.files.manifest import Dropped, SegmentEntry, Skipped
from headatlas.store.schema.example_sizes import example_bytes

from ..calls.batch import Batch
from ..calls.device_arrays import BufferPool
from ..calls.out_of_memory import is_out_of_memory, release_memory
from ..calls.segment_buffers import SegmentBuffers
from ..capture.collector import TraceCollector
from ..capture.eager import forwarding
from ..corpora.examples import CorpusExample, EncodedExample, without_tokens
from ..progress import BatchDone, BatchHalved, ExampleSkipped, Listener, SegmentRestarted, format_bytes
from ..tokens.batch_plan import SegmentSpec, plan_batches
from ..tokens.model_inputs import ModelInputs
from .prepared_job import Job, count_tokens


@dataclass
class ComputedSegment:
    """A segment that is ready to be written. Its `buffers` are reused by the segment after the next one."""

    segment: SegmentSpec
    examples: list[EncodedExample]
    buffers: SegmentBuffers
    skipped: dict[int, str]
    """Reasons for skipped examples, by number in the store."""
    replaced_entry: SegmentEntry | Dropped | None = None
    """Manifest entry that this segment replaces in a repair; None in a normal run."""

    def skipped_rows(self) -> list[Skipped]:
        """Return the rows of the manifest for the skipped examples."""
        first = self.segment.first_example
        return [
            Skipped(example=number, id=self.examples[number - first].example.id, reason=reason)
            for number, reason in sorted(self.skipped.items())
        ]


def compute_segment(
    job: Job,
    segment: SegmentSpec,
    collector: TraceCollector,
    pool: BufferPool,
    on_event: Listener = lambda event: None,
    removed: Mapping[int, str] | None = None,
) -> ComputedSegment:
    """Run the model over the examples of one segment, and wait for the traces. See `SegmentRun`."""
    run = SegmentRun(job, segment, collector, pool, on_event, removed or {})
    run.start()
    return run.finish()


@dataclass
class SegmentRun:
    """Computation of one segment.

    `start` runs the model, `finish` waits for the last results. On a GPU the batches of the next segment may start
    between the two. `removed` has the examples that a user removed, with the reasons by number in the store. Only their
    ids are kept.
    """

    job: Job
    segment: SegmentSpec
    collector: TraceCollector
    pool: BufferPool
    on_event: Listener
    removed: Mapping[int, str]
    examples: list[EncodedExample] = field(init=False)
    skipped: dict[int, str] = field(default_factory=dict)
    _buffers: SegmentBuffers | None = None
    _unsettled: list[tuple[Sequence[int], Batch]] = field(default_factory=list)
    _failures: dict[int, str] = field(default_factory=dict)

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Run the batches. `meanwhile` is called once, when the first of them runs on a GPU."""
        self.examples = list(self.job.examples[self.segment.examples])
        numbers, shift = self._numbers(), self.segment.shift
        self.skipped = {i + shift: reason for i, reason in self.job.skipped.items() if i + shift in numbers}
        for number, reason in self.skipped.items():
            self.on_event(ExampleSkipped(number, self.examples[number - numbers.start].example.id, reason))
        self._fill(meanwhile)

    @property
    def is_settled(self) -> bool:
        """True if no results are outstanding, as always on the CPU."""
        return not self._unsettled

    def finish(self) -> ComputedSegment:
        """Wait for the results. Run the segment again without the examples that cannot be stored or were removed."""
        first = self.segment.first_example
        while True:
            self._settle()
            for index, reason in sorted(self._failures.items()):
                self.skipped[first + index] = reason
                example = self.examples[index]
                self.on_event(ExampleSkipped(first + index, example.example.id, reason))
                self.examples[index] = without_tokens(example.example, example.target is not None)
            n_left_out = len(self._failures)
            if not n_left_out:
                newly_removed = {number: why for number, why in self.removed.items() if number not in self.skipped}
                if not newly_removed:
                    assert self._buffers is not None
                    self._buffers.check_filled()
                    return ComputedSegment(self.segment, self.examples, self._buffers, self.skipped)
                for number in newly_removed:
                    removed_example = self.examples[number - first]
                    placeholder = CorpusExample(removed_example.example.id, "")
                    self.examples[number - first] = without_tokens(placeholder, removed_example.target is not None)
                self.skipped |= newly_removed
                n_left_out = len(newly_removed)
            self.on_event(SegmentRestarted(self.segment.index, n_left_out))
            self._fill(lambda: None)

    def _numbers(self) -> range:
        return range(self.segment.first_example, self.segment.first_example + self.segment.n_examples)

    def _fill(self, meanwhile: Callable[[], None]) -> None:
        """Run the batches of the segment and start the copy of their traces to the host."""
        job, n_tokens = self.job, count_tokens(self.examples, self.job.spec)
        self._failures, self._buffers = {}, None
        try:
            self._buffers = buffers = SegmentBuffers(job.spec, n_tokens, self.pool)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._failures = _too_large(job, n_tokens, error)
            return
        waiting: list[Sequence[int]] = [batch.examples for batch in plan_batches(n_tokens, job.limits)]
        waiting.reverse()
        with torch.inference_mode(), forwarding(job.loaded.model, job.sites, self.collector) as forward:
            while waiting:
                part = waiting.pop()
                batch = _start(job, self.examples, part, buffers, self.collector, forward)
                if batch is None:
                    waiting.extend(self._retry(part, buffers, n_tokens))
                    continue
                if not batch.is_settled:
                    meanwhile()
                    meanwhile = _nothing
                self._settle()  # the batch before, while this one runs
                self._unsettled = [(part, batch)]
                if batch.is_settled:
                    self._settle()
        buffers.start_copy()

    def _retry(
        self, part: Sequence[int], buffers: SegmentBuffers, n_tokens: Mapping[str, np.ndarray]
    ) -> list[Sequence[int]]:
        """Return the batches to run in place of one that ran out of memory."""
        release_memory(self.job.loaded.model.device)
        if len(part) > 1:
            self.on_event(BatchHalved(len(part)))
            return [part[len(part) // 2 :], part[: len(part) // 2]]
        if buffers.shrink() or self.collector.shrink():
            return [part]
        size = max(int(counts[part[0]]) for counts in n_tokens.values())
        self._failures[part[0]] = f"out of memory: {size} tokens are too many for this machine, even alone"
        return []

    def _settle(self) -> None:
        """Wait for the batches whose results are outstanding, and note which examples cannot be stored."""
        for part, batch in self._unsettled:
            batch.settle()
            self._failures.update(batch.failures)
            self.on_event(BatchDone(self.segment.index, len(part), self._n_tokens(part)))
        self._unsettled = []

    def _n_tokens(self, part: Sequence[int]) -> int:
        assert self._buffers is not None
        return sum(int(counts[list(part)].sum()) for counts in self._buffers.n_tokens.values())


def _nothing() -> None:
    """Do nothing."""


def _start(
    job: Job,
    examples: list[EncodedExample],
    part: Sequence[int],
    buffers: SegmentBuffers,
    collector: TraceCollector,
    forward: Callable[[ModelInputs], None],
) -> Batch | None:
    """Run the forward pass of one batch. Return None if memory ran out; nothing of the pass is then in memory."""
    try:
        inputs = job.inputs.build([examples[i] for i in part])
        batch = collector.begin(buffers, part, inputs.special)
        forward(inputs)
    except (MemoryError, RuntimeError, OSError) as error:
        _drop_frames_if_out_of_memory(error)
    else:
        return batch
    collector.discard()
    return None


def _drop_frames_if_out_of_memory(error: BaseException) -> None:
    """Raise an error that is not for want of memory. Otherwise clear the frames that hold the activations."""
    if not is_out_of_memory(error):
        raise error
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _too_large(job: Job, n_tokens: dict[str, np.ndarray], error: BaseException) -> dict[int, str]:
    """Return the example of a segment whose traces do not fit into memory, with the reason.

    Raises
    ------
    BudgetError
        The segment has several examples. Smaller segments may fit.
    """
    n_bytes = format_bytes(int(example_bytes(job.spec, n_tokens).sum()))
    rows = np.flatnonzero(next(iter(n_tokens.values())))
    if len(rows) > 1:
        raise BudgetError(
            f"there is no memory for the {n_bytes} of a segment. Free memory, or lower store.segment_bytes and write a new store."
        ) from error
    return {int(rows[0]): f"out of memory: its traces take {n_bytes}, too much for this machine"}
