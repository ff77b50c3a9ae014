"""Run a job segment by segment. A background thread writes a segment while the next one is computed.

Segments are committed one by one. If a job is interrupted, its committed segments remain and unfinished ones leave no
files. Running the job again resumes it, and the store ends with the same bytes. Repairs of segments (`repair.py`) use
the same code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from headatlas.store.errors import BudgetError, ConfigError
from headatlas.store.files.drafts import check_free_space
from headatlas.store.files.locations import location_text, open_source
from headatlas.store.files.manifest import Dropped, SegmentEntry, left_out_of, read_manifest
from headatlas.store.schema.omissions import Omissions
from headatlas.store.writing.extension import extend_store
from headatlas.store.writing.store_writer import Replacement, StoreWriter

from ..calls.device_arrays import BufferPool
from ..capture.collector import TraceCollector
from ..config import JobConfig
from ..progress import JobDone, JobReport, JobStarted, Listener, SegmentDone, Stage
from ..reduce.reduction import Reduction
from ..tokens.batch_plan import WHOLE, SegmentSpec, Share
from ..tokens.segment_tables import segment_tables
from .deferred_statistics import add_deferred
from .prepared_job import Job, prepare_job
from .reduction_check import check_job, without_kernel
from .repair import find_repairs
from .resources.job_projection import expected_bytes
from .segment_computation import ComputedSegment, SegmentRun


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
        The job cannot run, the model fails the self-check, or the store belongs to another job. Or it names several
        devices or a cluster, which `run_jobs` uses.
    """
    if len(config.run.devices) > 1 or config.cluster.kind is not None:
        raise ConfigError("run_job uses one device and one process; run_jobs uses several (run.devices, cluster.kind).")
    if config.run.devices:
        config = config.on_device(config.run.devices[0])
    job = prepare_job(config, on_event, extend=extend, repair=repair)
    return execute_job(job, on_event, repair=repair, check_space=check_space)


@dataclass(frozen=True)
class OpenJob:
    """A job whose store is open for writing."""

    writer: StoreWriter
    repairs: Mapping[int, SegmentEntry | Dropped]
    """Entries of the segments that are written again, by index."""
    pending_segments: list[SegmentSpec]

    def recorded_skips(self, segment: SegmentSpec) -> dict[int, str]:
        """Return the examples of a segment that the store already lists as skipped, with the reasons."""
        inside = range(segment.first_example, segment.first_example + segment.n_examples)
        return {row.example: row.reason for row in self.writer.manifest.skipped if row.example in inside}


def open_job(job: Job, on_event: Listener, *, repair: bool, check_space: bool, share: Share) -> OpenJob:
    """Create, extend or open the store of a job, and find the segments to write. See `execute_job`.

    Raises
    ------
    BudgetError
        The disk has too little free space.
    """
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
    for name, notes in job.notes.items():
        for note in notes:
            writer.note(name, note)
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
    model_name = job.loaded.identity.name
    on_event(JobStarted(location_text(job.path), model_name, n_examples, n_stored, n_segments, len(stored)))
    if pending_segments and check_space:
        check_free_space(
            job.path,
            expected_bytes(job.spec, job.n_tokens, pending_segments),
            "Free space, keep less (headatlas plan shows the sizes), or add --ignore-space. "
            "Segments that are committed stay, also if the disk fills up.",
        )
    return OpenJob(writer, repairs, pending_segments)


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
    opened = open_job(job, on_event, repair=repair, check_space=check_space, share=share)
    writer, pending_segments = opened.writer, opened.pending_segments
    if pending_segments:
        reduction, served_by = check_job(job, pending_segments, on_event)
        writer.note("reduction", served_by)
        collector = TraceCollector(job.spec, job.sites, reduction)
        pools = [BufferPool(job.loaded.model.device) for _ in range(2)]
        with ThreadPoolExecutor(1, thread_name_prefix="headatlas-write") as background:
            _start_thread(background)
            queue = _WriteQueue(background, writer, opened.repairs, reduction, on_event)
            for number, segment in enumerate(pending_segments):
                queue.wait(number % 2)  # the write of the segment whose memory this one reuses
                removed = opened.recorded_skips(segment)
                run = SegmentRun(job, segment, collector, pools[number % 2], on_event, removed)
                run.start(queue.submit_waiting)
                queue.submit_waiting()  # if no batch ran
                queue.waiting = number % 2, run
                if run.is_settled:
                    queue.submit_waiting()
            queue.submit_waiting()
            queue.wait(len(pending_segments) % 2)
            queue.wait(1 - len(pending_segments) % 2)
    add_deferred(job.path, job.config.keep.computed_later, on_event)
    return report_job(job.path, len(pending_segments), job.n_quarantined, start_time, on_event)


def report_job(path: Path, n_written: int, n_quarantined: int, start_time: float, on_event: Listener) -> JobReport:
    """Report a job whose segments are written, from the newest manifest. `start_time` is one of `time.monotonic`."""
    manifest, _ = read_manifest(open_source(path))
    n_bytes = sum(entry.data_bytes + entry.bytes for entry in manifest.segments)
    seconds = time.monotonic() - start_time
    left_out = left_out_of(manifest)
    n_examples = sum(entry.n_examples for entry in manifest.segments)
    n_missing = manifest.n_segments_planned - len(manifest.segments) - len(manifest.dropped)
    on_event(JobDone(location_text(path), n_examples, n_bytes, seconds, left_out, n_missing=n_missing))
    return JobReport(
        location_text(path),
        n_examples,
        len(manifest.segments),
        n_written,
        len(manifest.skipped),
        n_quarantined,
        n_bytes,
        seconds,
        Omissions(left_out).to_json(),
    )


@dataclass
class _WriteQueue:
    """Segments on their way to the disk. One thread writes them in order."""

    background: ThreadPoolExecutor
    writer: StoreWriter
    repairs: Mapping[int, SegmentEntry | Dropped]
    reduction: Reduction
    on_event: Listener
    waiting: tuple[int, SegmentRun] | None = None
    """Index of its memory, and a segment whose last results may be outstanding on a GPU."""
    _kernel_failed: bool = False
    _writes: dict[int, Future[SegmentEntry]] = field(default_factory=dict)

    def submit_waiting(self) -> None:
        """Wait for the results of the waiting segment and for the write before it, and write it in the background."""
        if self.waiting is None:
            return
        (memory, run), self.waiting = self.waiting, None
        computed = run.finish()
        for earlier in list(self._writes):
            self.wait(earlier)
        computed.replaced_entry = self.repairs.get(run.segment.index)
        if self.reduction.problem is not None and not self._kernel_failed:  # after kernels of other shapes have run
            self._kernel_failed = True
            self.on_event(Stage(without_kernel(self.reduction)))
            self.writer.note("reduction", without_kernel(self.reduction))
        self._writes[memory] = self.background.submit(write_segment, self.writer, computed)

    def wait(self, memory: int) -> None:
        """Wait until the segment in this memory is written, and report it."""
        write = self._writes.pop(memory, None)
        if write is not None:
            _report_segment(write.result(), self.on_event)


def _start_thread(pool: ThreadPoolExecutor) -> None:
    """Start the thread that writes segments, before a segment is computed that it could not write."""
    try:
        pool.submit(int)
    except RuntimeError as error:
        raise BudgetError(
            f"no thread can be started to write segments ({error}). Raise the limit of processes (ulimit -u)."
        ) from error


def write_segment(writer: StoreWriter, computed: ComputedSegment) -> SegmentEntry:
    """Commit a computed segment."""
    tables = segment_tables(computed.examples, computed.buffers.spec.sequences)
    skipped = computed.skipped_rows()
    index, arrays = computed.segment.index, computed.buffers.arrays
    if computed.replaced_entry is None:
        return writer.write(index, computed.segment.first_example, tables, arrays, skipped)
    manifest = writer.replace([Replacement(computed.replaced_entry, tables, arrays)], skipped=skipped)
    return next(entry for entry in manifest.segments if entry.index == index)


def _report_segment(entry: SegmentEntry, on_event: Listener) -> None:
    on_event(SegmentDone(entry.index, entry.n_examples, entry.data_bytes + entry.bytes))
