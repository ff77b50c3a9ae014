"""Compute the traces of one segment: batches through the model, and what happens when memory runs out.

A batch that runs out of memory, in the forward pass or later while its results are written, is computed again in two
halves. A single example that runs out of memory alone is not stored. If an example cannot be stored (it runs out of
memory alone, or its scores are not finite), its segment is computed again without it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headatlas.store.errors import BudgetError
from headatlas.store.files.manifest import Dropped, SegmentEntry
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


class UnstorableExamples(Exception):
    """Raised for examples that must not be stored. `reasons` maps their index within the segment to the reason."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


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


def compute_segment(
    job: Job,
    segment: SegmentSpec,
    collector: TraceCollector,
    pool: BufferPool,
    on_event: Listener = lambda event: None,
    removed: Mapping[int, str] | None = None,
) -> ComputedSegment:
    """Run the model over the examples of one segment.

    `removed` has the examples that a user removed, with the reasons by number in the store. Only their ids are kept.
    """
    examples = list(job.examples[segment.examples])
    first = segment.first_example
    numbers = range(first, first + segment.n_examples)
    skipped = {i + segment.shift: reason for i, reason in job.skipped.items() if i + segment.shift in numbers}
    for number, reason in skipped.items():
        on_event(ExampleSkipped(number, examples[number - first].example.id, reason))
    while True:
        try:
            buffers = _fill(job, segment, examples, collector, pool, on_event)
            computed = ComputedSegment(segment, examples, buffers, skipped)
        except UnstorableExamples as error:
            for index, reason in sorted(error.reasons.items()):
                skipped[first + index] = reason
                on_event(ExampleSkipped(first + index, examples[index].example.id, reason))
                examples[index] = without_tokens(examples[index].example, examples[index].target is not None)
            on_event(SegmentRestarted(segment.index, len(error.reasons)))
            continue
        newly_removed = {index: reason for index, reason in (removed or {}).items() if index not in skipped}
        if not newly_removed:
            return computed
        for number in newly_removed:
            removed_example = examples[number - first]
            placeholder = CorpusExample(removed_example.example.id, "")
            examples[number - first] = without_tokens(placeholder, removed_example.target is not None)
        skipped |= newly_removed
        on_event(SegmentRestarted(segment.index, len(newly_removed)))


@dataclass
class _Attempt:
    """A batch whose forward pass is done. Its results may still be written on another thread."""

    part: Sequence[int]
    batch: Batch


def _fill(
    job: Job,
    segment: SegmentSpec,
    examples: list[EncodedExample],
    collector: TraceCollector,
    pool: BufferPool,
    on_event: Listener,
) -> SegmentBuffers:
    """Fill the arrays of a segment. The results of a batch are awaited while the next batch runs."""
    n_tokens = count_tokens(examples, job.spec)
    try:
        buffers = SegmentBuffers(job.spec, n_tokens, pool)
    except MemoryError as error:
        raise _no_memory(job, n_tokens) from error
    failures: dict[int, str] = {}
    waiting: list[Sequence[int]] = [batch.examples for batch in plan_batches(n_tokens, job.limits)]
    waiting.reverse()

    def retry(part: Sequence[int]) -> None:
        release_memory(job.loaded.model.device)
        if len(part) > 1:
            on_event(BatchHalved(len(part)))
            waiting.extend([part[len(part) // 2 :], part[: len(part) // 2]])
        elif collector.shrink():
            waiting.append(part)
        else:
            size = max(int(counts[part[0]]) for counts in n_tokens.values())
            failures[part[0]] = f"out of memory: {size} tokens are too many for this machine, even alone"

    def settle(attempt: _Attempt) -> None:
        if not _is_settled(attempt.batch):
            retry(attempt.part)
            return
        failures.update(attempt.batch.failures)
        n_batch = sum(int(counts[i]) for counts in n_tokens.values() for i in attempt.part)
        on_event(BatchDone(segment.index, len(attempt.part), n_batch))

    unsettled: _Attempt | None = None
    with torch.inference_mode(), forwarding(job.loaded.model, job.sites, collector) as forward:
        while waiting or unsettled is not None:
            attempt = None
            if waiting:
                part = waiting.pop()
                attempt = _start(job, examples, part, buffers, collector, forward)
                if attempt is None:
                    retry(part)
            if unsettled is not None:
                settle(unsettled)
            if attempt is not None and attempt.batch.is_settled:
                settle(attempt)
                attempt = None
            unsettled = attempt
    if failures:
        raise UnstorableExamples(failures)
    buffers.check_filled()
    return buffers


def _start(
    job: Job,
    examples: list[EncodedExample],
    part: Sequence[int],
    buffers: SegmentBuffers,
    collector: TraceCollector,
    forward: Callable[[ModelInputs], None],
) -> _Attempt | None:
    """Run the forward pass of one batch. Return None if memory ran out; nothing of the pass is then in memory."""
    try:
        inputs = job.inputs.build([examples[i] for i in part])
        batch = collector.begin(buffers, part, inputs.special)
        forward(inputs)
    except (MemoryError, RuntimeError, OSError) as error:
        _drop_frames_if_out_of_memory(error)
    else:
        return _Attempt(part, batch)
    collector.discard()
    return None


def _is_settled(batch: Batch) -> bool:
    """Wait until the results of a batch are in the arrays. Return False if memory ran out meanwhile."""
    try:
        batch.settle()
    except (MemoryError, RuntimeError, OSError) as error:
        _drop_frames_if_out_of_memory(error)
        return False
    return True


def _drop_frames_if_out_of_memory(error: BaseException) -> None:
    """Raise an error that is not for want of memory. Otherwise clear the frames that hold the activations."""
    if not is_out_of_memory(error):
        raise error
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _no_memory(job: Job, n_tokens: dict[str, np.ndarray]) -> Exception:
    """Return the error for a segment whose traces do not fit into memory.

    A single example is skipped. A segment of several examples is an error, because smaller segments may fit.
    """
    n_bytes = format_bytes(int(example_bytes(job.spec, n_tokens).sum()))
    rows = np.flatnonzero(next(iter(n_tokens.values())))
    if len(rows) > 1:
        return BudgetError(
            f"there is no memory for the {n_bytes} of a segment. Free memory, or lower store.segment_bytes and write a new store."
        )
    return UnstorableExamples({int(rows[0]): f"out of memory: its traces take {n_bytes}, too much for this machine"})
