"""Run a job segment by segment. A background thread writes a segment while the next one is computed.

Segments are committed one by one. If a job is interrupted, its committed segments remain and unfinished ones leave no
files. Running the job again resumes it, and the store ends with the same bytes. If an example cannot be stored (it runs
out of memory alone, or its scores are not finite), its segment is computed again without it. Repairs of segments
(`repair.py`) use the same code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from headatlas.store.errors import BudgetError
from headatlas.store.files.drafts import check_free_space
from headatlas.store.files.manifest import Dropped, SegmentEntry, Skipped, left_out_of, read_manifest
from headatlas.store.schema.example_sizes import example_bytes
from headatlas.store.schema.omissions import Omissions
from headatlas.store.writing.extension import extend_store
from headatlas.store.writing.store_writer import Replacement, StoreWriter

from ..calls.segment_buffers import BufferPool, SegmentBuffers
from ..capture.collector import TraceCollector
from ..capture.eager import forwarding
from ..capture.kernel_agreement import check_agreement
from ..checks.eager_check import check_eager
from ..checks.selfcheck import check_capture, choose_examples, most_checked_tokens
from ..config import JobConfig
from ..corpora.examples import CorpusExample, EncodedExample, without_tokens
from ..progress import (
    BatchDone,
    BatchHalved,
    CheckPassed,
    ExampleSkipped,
    JobDone,
    JobReport,
    JobStarted,
    Listener,
    SegmentDone,
    SegmentRestarted,
    Stage,
    format_bytes,
)
from ..reduce import kernel
from ..reduce.reduction import Reduction, choose_reduction
from ..reduce.torch_reduction import TorchReduction
from ..tokens.batch_plan import WHOLE, SegmentSpec, Share, plan_batches
from ..tokens.model_inputs import ModelInputs
from ..tokens.segment_tables import segment_tables
from .deferred_statistics import add_deferred
from .out_of_memory import is_out_of_memory, release_memory
from .prepared_job import Job, count_tokens, prepare_job
from .repair import find_repairs
from .resources import expected_bytes


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


def run_job(
    config: JobConfig,
    on_event: Listener = lambda event: None,
    *,
    repair: bool = False,
    extend: bool = False,
    check_space: bool = True,
) -> JobReport:
    """Run or resume a job. With `repair`, damaged and dropped segments are written again too.

    With `extend`, the records of the corpus that an existing store does not hold are added to it.

    With `check_space`, the free space of the disk is compared with the expected size before anything is computed.

    A KeyboardInterrupt is raised after the segment that is being written has been committed.

    Raises
    ------
    HeadAtlasError
        The job cannot run, the model fails the self-check, or the store belongs to another job.
    """
    job = prepare_job(config, on_event, extend=extend, repair=repair)
    return execute_job(job, on_event, repair=repair, check_space=check_space)


def execute_job(
    job: Job,
    on_event: Listener = lambda event: None,
    *,
    repair: bool = False,
    check_space: bool = True,
    share: Share = WHOLE,
) -> JobReport:
    """Compute and write the missing segments; with `repair`, also the damaged and dropped ones. See `run_job`.

    Only the segments of `share` are written. All shares together are the whole job.

    Raises
    ------
    BudgetError
        The disk has too little free space, or the system starts no further thread.
    """
    start_time = time.monotonic()
    if job.is_extension:
        writer = extend_store(job.path, job.part, spec=job.spec, container=job.config.store.container)
    else:
        writer = StoreWriter.create(
            job.path,
            spec=job.spec,
            provenance=job.provenance,
            n_examples_planned=len(job.examples),
            n_segments_planned=len(job.segments),
            container=job.config.store.container,
        )
    repairs = find_repairs(writer, {segment.index for segment in job.segments}, on_event) if repair else {}
    sound_segments = writer.committed - repairs.keys()
    pending_segments = [
        segment
        for part in writer.manifest.parts  # each is shared on its own, because the earlier ones may be complete
        for segment in share.of([segment for segment in job.segments if part.has_segment(segment.index)])
        if segment.index not in sound_segments
    ]
    stored = [row for row in writer.manifest.segments if row.index in sound_segments]
    n_stored = sum(row.n_examples for row in stored)
    n_examples = n_stored + sum(segment.n_examples for segment in pending_segments)
    n_segments = len(stored) + len(pending_segments)
    name = job.loaded.identity.name
    on_event(JobStarted(str(job.path), name, n_examples, n_stored, n_segments, len(stored)))
    if pending_segments:
        if check_space:
            check_free_space(
                job.path,
                expected_bytes(job.spec, job.n_tokens, pending_segments),
                "Free space, keep less (headatlas plan shows the sizes), or add --ignore-space. "
                "Segments that are committed stay, also if the disk fills up.",
            )
        reduction, served_by = _check(job, pending_segments, on_event)
        writer.note("reduction", served_by)
        collector = TraceCollector(job.spec, job.sites, reduction)
        pools = (BufferPool(), BufferPool())
        pending: Future[SegmentEntry] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="headatlas-write") as background:
            _start_thread(background)
            for number, segment in enumerate(pending_segments):
                computed = compute_segment(
                    job, segment, collector, pools[number % 2], on_event, _recorded_skips(writer, segment)
                )
                computed.replaced_entry = repairs.get(segment.index)
                if pending is not None:
                    _report_segment(pending.result(), on_event)
                pending = background.submit(write_segment, writer, computed)
            if pending is not None:
                _report_segment(pending.result(), on_event)
    add_deferred(job.path, job.config.keep.computed_later, on_event)
    manifest, _ = read_manifest(job.path)
    n_bytes = sum(entry.data_bytes + entry.bytes for entry in manifest.segments)
    seconds = time.monotonic() - start_time
    left_out = left_out_of(manifest)
    n_examples = sum(entry.n_examples for entry in manifest.segments)
    n_segments = len(manifest.segments) + len(manifest.dropped)
    on_event(
        JobDone(
            str(job.path), n_examples, n_bytes, seconds, left_out, n_missing=manifest.n_segments_planned - n_segments
        )
    )
    return JobReport(
        str(job.path),
        n_examples,
        len(manifest.segments),
        len(pending_segments),
        len(manifest.skipped),
        job.n_quarantined,
        n_bytes,
        seconds,
        Omissions(left_out).to_json(),
    )


def _start_thread(pool: ThreadPoolExecutor) -> None:
    """Start the thread that writes segments, before a segment is computed that it could not write."""
    try:
        pool.submit(int)
    except RuntimeError as error:
        raise BudgetError(
            f"no thread can be started to write segments ({error}). Raise the limit of processes (ulimit -u)."
        ) from error


def _recorded_skips(writer: StoreWriter, segment: SegmentSpec) -> dict[int, str]:
    """Return the examples of a segment that the store already lists as skipped, with the reasons."""
    inside = range(segment.first_example, segment.first_example + segment.n_examples)
    return {row.example: row.reason for row in writer.manifest.skipped if row.example in inside}


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


def write_segment(writer: StoreWriter, computed: ComputedSegment) -> SegmentEntry:
    """Commit a computed segment."""
    tables = segment_tables(computed.examples, computed.buffers.spec.sequences)
    notes = [
        {"example": index, "id": computed.examples[index - computed.segment.first_example].example.id, "reason": reason}
        for index, reason in sorted(computed.skipped.items())
    ]
    index, arrays = computed.segment.index, computed.buffers.arrays
    if computed.replaced_entry is None:
        return writer.write(index, computed.segment.first_example, tables, arrays, notes)
    rows = [Skipped.model_validate(note) for note in notes]
    manifest = writer.replace([Replacement(computed.replaced_entry, tables, arrays)], skipped=rows)
    return next(entry for entry in manifest.segments if entry.index == index)


def _fill(
    job: Job,
    segment: SegmentSpec,
    examples: list[EncodedExample],
    collector: TraceCollector,
    pool: BufferPool,
    on_event: Listener,
) -> SegmentBuffers:
    n_tokens = count_tokens(examples, job.spec)
    try:
        buffers = SegmentBuffers(job.spec, n_tokens, pool)
    except MemoryError as error:
        raise _no_memory(job, n_tokens) from error
    failures: dict[int, str] = {}
    of_batches: list[dict[int, str]] = []  # the collector may add entries until the block ends
    with torch.inference_mode(), forwarding(job.loaded.model, job.sites, collector) as forward:
        for batch in plan_batches(n_tokens, job.limits):
            queue: list[Sequence[int]] = [batch.examples]
            while queue:
                part = queue.pop()
                reasons = _run_batch(job, examples, part, buffers, collector, forward)
                if reasons is not None:
                    of_batches.append(reasons)
                    n_batch_tokens = sum(int(counts[i]) for counts in n_tokens.values() for i in part)
                    on_event(BatchDone(segment.index, len(part), n_batch_tokens))
                elif len(part) > 1:
                    on_event(BatchHalved(len(part)))
                    queue += [part[len(part) // 2 :], part[: len(part) // 2]]
                else:
                    size = max(int(counts[part[0]]) for counts in n_tokens.values())
                    failures[part[0]] = f"out of memory: {size} tokens are too many for this machine, even alone"
    for reasons in of_batches:
        failures.update(reasons)
    if failures:
        raise UnstorableExamples(failures)
    buffers.check_filled()
    return buffers


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


def _run_batch(
    job: Job,
    examples: list[EncodedExample],
    part: Sequence[int],
    buffers: SegmentBuffers,
    collector: TraceCollector,
    forward: Callable[[ModelInputs], None],
) -> dict[int, str] | None:
    """Run one batch and return the examples that must not be stored; None if memory ran out.

    The result may receive more entries until the collector has finished.
    """
    n_filled_before = {name: arrays.n_filled for name, arrays in buffers.sites.items()}
    model = job.loaded.model
    try:
        inputs = job.inputs.build([examples[i] for i in part])
        batch = collector.begin(buffers, part, inputs.special)
        forward(inputs)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        for name, count in n_filled_before.items():
            buffers.sites[name].n_filled = count
        release_memory(model.device)
        return None
    return batch.failures


def _check(job: Job, segments: Sequence[SegmentSpec], on_event: Listener) -> tuple[Reduction, str]:
    """Check the capture against eager attention on a few of the next examples. Return the reduction and its name."""
    spec, model = job.spec, job.loaded.model
    torch_reduction = TorchReduction(spec.keep, spec.statistics)
    is_eager = spec.capture == "eager"
    on_event(Stage(f"checking the capture against {'the softmaxes of the model' if is_eager else 'eager attention'}"))
    for segment in segments:
        examples = job.examples[segment.examples]
        n_tokens = count_tokens(examples, spec)
        if not next(iter(n_tokens.values())).any():
            continue
        indices = choose_examples(spec.sites, n_tokens)
        shortened = [examples[i].beginning(most_checked_tokens(spec.sites)) for i in indices]
        lengths = {name: counts.tolist() for name, counts in count_tokens(shortened, spec).items()}
        inputs = job.inputs.build(shortened)
        if is_eager:
            report = check_eager(model, job.sites, inputs, lengths)
        else:
            report = check_capture(model, job.sites, spec.keep, inputs, lengths)
        on_event(CheckPassed(report.n_examples, report.n_weights, report.largest, report.bound, report.rebuilt))
        if is_eager:
            on_event(Stage("capturing in eager mode, with torch operations; query and key are not available"))
            return torch_reduction, "eager mode, torch operations"
        reduction = choose_reduction(spec.keep, spec.statistics, model.device, spec.capture)
        if isinstance(reduction, TorchReduction):
            unused = f"torch operations: no kernel on {model.device.type} computes what this job keeps"
            on_event(Stage(f"capturing with {unused if kernel.available() else kernel.explain()}"))
            return torch_reduction, "torch operations"
        agreement = check_agreement(model, job.sites, spec, inputs, lengths, reduction)
        if agreement.difference:
            on_event(
                Stage(
                    f"capturing with torch operations: the {reduction.name} differs from them ({agreement.difference})"
                )
            )
            return torch_reduction, "torch operations"
        share = f"{reduction.n_fused} of {reduction.n_fused + reduction.n_torch} layers"
        served_by = f"{reduction.name}, {share}" if reduction.n_fused else "torch operations"
        on_event(Stage(f"capturing with {'the ' if reduction.n_fused else ''}{served_by}"))
        return reduction, served_by
    return torch_reduction, "torch operations"


def _report_segment(entry: SegmentEntry, on_event: Listener) -> None:
    on_event(SegmentDone(entry.index, entry.n_examples, entry.data_bytes + entry.bytes))
