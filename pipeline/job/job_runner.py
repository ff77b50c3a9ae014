"""Run a job segment by segment. A background thread writes a segment while the next one is computed.

Segments are committed one by one. If a job is interrupted, its committed segments remain and unfinished ones leave no
files. Running the job again resumes it, and the store ends with the same bytes. Repairs of segments (`repair.py`) use
the same code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from headatlas.store.errors import BudgetError, ConfigError, UnsupportedModelError
from headatlas.store.files.drafts import check_free_space
from headatlas.store.files.locations import location_text
from headatlas.store.files.manifest import Dropped, SegmentEntry, Skipped, left_out_of, read_manifest
from headatlas.store.schema.omissions import Omissions
from headatlas.store.writing.extension import extend_store
from headatlas.store.writing.store_writer import Replacement, StoreWriter

from ..calls.device_arrays import BufferPool
from ..calls.out_of_memory import is_out_of_memory, release_memory
from ..capture.collector import TraceCollector
from ..capture.kernel_agreement import check_agreement
from ..checks.eager_check import check_eager
from ..checks.long_rows import check_long_rows, most_long_tokens
from ..checks.selfcheck import check_capture, choose_examples, most_checked_tokens
from ..config import JobConfig
from ..progress import (
    CheckPassed,
    JobDone,
    JobReport,
    JobStarted,
    Listener,
    SegmentDone,
    Stage,
)
from ..reduce import kernel
from ..reduce.reduction import Reduction, choose_reduction
from ..reduce.torch_reduction import TorchReduction
from ..tokens.batch_plan import WHOLE, SegmentSpec, Share
from ..tokens.model_inputs import ModelInputs
from ..tokens.segment_tables import segment_tables
from .deferred_statistics import add_deferred
from .prepared_job import Job, prepare_job
from .repair import find_repairs
from .resources.job_projection import expected_bytes
from .segment_computation import ComputedSegment, SegmentRun
from .segment_groups import count_tokens


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
        devices, which `run_jobs` runs.
    """
    if len(config.run.devices) > 1:
        raise ConfigError(f"run.devices is {', '.join(config.run.devices)}; run_job uses one device, run_jobs several.")
    if config.run.devices:
        config = config.on_device(config.run.devices[0])
    job = prepare_job(config, on_event, extend=extend, repair=repair)
    return execute_job(job, on_event, repair=repair, check_space=check_space)


def execute_job(
    job: Job,
    on_event: Listener = lambda event: None,
    *,
    repair: bool = False,
    check_space: bool = True,
    share: Share = WHOLE,
    whole: Share | None = None,
) -> JobReport:
    """Compute and write the missing segments; with `repair`, also the damaged and dropped ones. See `run_job`.

    Only the segments of `share` are written. All shares together are the whole job. If several processes write a share
    together, `whole` is that share: `JobStarted` counts its segments, and the caller adds the statistics that are
    computed from stored attention.

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
    for name, notes in job.notes.items():
        for note in notes:
            writer.note(name, note)
    repairs = find_repairs(writer, {segment.index for segment in job.segments}, on_event) if repair else {}
    sound_segments = writer.committed - repairs.keys()

    def pending_of(share: Share) -> list[SegmentSpec]:
        return [
            segment
            for part in writer.manifest.parts  # each is shared on its own, because the earlier ones may be complete
            for segment in share.of([segment for segment in job.segments if part.has_segment(segment.index)])
            if segment.index not in sound_segments
        ]

    pending_segments, announced_segments = pending_of(share), pending_of(whole or share)
    stored = [row for row in writer.manifest.segments if row.index in sound_segments]
    n_stored = sum(row.n_examples for row in stored)
    n_examples = n_stored + sum(segment.n_examples for segment in announced_segments)
    n_segments = len(stored) + len(announced_segments)
    model_name = job.loaded.identity.name
    on_event(JobStarted(location_text(job.path), model_name, n_examples, n_stored, n_segments, len(stored)))
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
        pools = [BufferPool(job.loaded.model.device) for _ in range(2)]
        with ThreadPoolExecutor(1, thread_name_prefix="headatlas-write") as background:
            _start_thread(background)
            queue = _WriteQueue(background, writer, repairs, reduction, on_event)
            for number, segment in enumerate(pending_segments):
                queue.wait(number % 2)  # the write of the segment whose memory this one reuses
                run = SegmentRun(job, segment, collector, pools[number % 2], on_event, _recorded_skips(writer, segment))
                run.start(queue.submit_waiting)
                queue.submit_waiting()  # if no batch ran
                queue.waiting = number % 2, run
                if run.is_settled:
                    queue.submit_waiting()
            queue.submit_waiting()
            queue.wait(len(pending_segments) % 2)
            queue.wait(1 - len(pending_segments) % 2)
    if whole is None:
        add_deferred(job.path, job.config.keep.computed_later, on_event)
    return report_job(job.path, len(pending_segments), job.n_quarantined, start_time, on_event)


def report_job(path: Path, n_written: int, n_quarantined: int, start_time: float, on_event: Listener) -> JobReport:
    """Report a job whose segments are written, from the newest manifest. `start_time` is one of `time.monotonic`."""
    manifest, _ = read_manifest(path)
    n_bytes = sum(entry.data_bytes + entry.bytes for entry in manifest.segments)
    seconds = time.monotonic() - start_time
    left_out = left_out_of(manifest)
    n_examples = sum(entry.n_examples for entry in manifest.segments)
    n_missing = manifest.n_segments_planned - len(manifest.segments) - len(manifest.dropped)
    on_event(JobDone(str(path), n_examples, n_bytes, seconds, left_out, n_missing=n_missing))
    return JobReport(
        str(path),
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
            self.on_event(Stage(_without_kernel(self.reduction)))
            self.writer.note("reduction", _without_kernel(self.reduction))
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


def _recorded_skips(writer: StoreWriter, segment: SegmentSpec) -> dict[int, str]:
    """Return the examples of a segment that the store already lists as skipped, with the reasons."""
    inside = range(segment.first_example, segment.first_example + segment.n_examples)
    return {row.example: row.reason for row in writer.manifest.skipped if row.example in inside}


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


def _check(job: Job, segments: Sequence[SegmentSpec], on_event: Listener) -> tuple[Reduction, str]:
    """Check the capture on a few of the next examples. Return the reduction that serves, and its name.

    If memory runs out, half as many examples are checked.

    Raises
    ------
    BudgetError
        There is no memory for a single example.
    """
    n_examples = 8
    while True:
        try:
            return _check_examples(job, segments, n_examples, on_event)
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            if n_examples == 1:
                raise BudgetError(
                    f"there is no memory on {job.loaded.model.device} to check the capture on one example ({error}). "
                    'Free memory, or set model.dtype = "bfloat16".'
                ) from error
        release_memory(job.loaded.model.device)
        n_examples //= 2


def _check_examples(
    job: Job, segments: Sequence[SegmentSpec], n_examples: int, on_event: Listener
) -> tuple[Reduction, str]:
    """Check the capture against eager attention on a few examples. Return the reduction and its name."""
    spec, model = job.spec, job.loaded.model
    torch_reduction = TorchReduction(spec.keep, spec.statistics)
    is_eager = spec.capture == "eager"
    on_event(Stage(f"checking the capture against {'the softmaxes of the model' if is_eager else 'eager attention'}"))
    for segment in segments:
        examples = job.examples[segment.examples]
        n_tokens = count_tokens(examples, spec)
        if not next(iter(n_tokens.values())).any():
            continue
        indices = choose_examples(spec.sites, n_tokens, n_examples)
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
        reduction, served_by = _choose_reduction(job, inputs, lengths, on_event)
        n_checked = max(max(counts) for counts in lengths.values())
        difference = _long_rows_difference(job, segments, n_checked, reduction)
        if difference is not None and reduction is not torch_reduction:
            served_by = (
                f"torch operations, because the {reduction.name} differs from a direct computation ({difference})"
            )
            on_event(Stage(f"capturing with {served_by}"))
            reduction, difference = (
                torch_reduction,
                _long_rows_difference(job, segments, n_checked, torch_reduction),
            )
        if difference is not None:
            raise UnsupportedModelError(
                f"{type(model).__name__}: captured attention differs from a direct computation ({difference}). "
                "This model cannot be captured with so long texts; set tokens.max_tokens. Please report it."
            )
        return reduction, served_by
    return torch_reduction, "torch operations"


def _choose_reduction(
    job: Job, inputs: ModelInputs, lengths: Mapping[str, Sequence[int]], on_event: Listener
) -> tuple[Reduction, str]:
    """Return the kernel of this device if it agrees with torch operations, else these, and a name for the provenance."""
    spec, model = job.spec, job.loaded.model
    torch_reduction = TorchReduction(spec.keep, spec.statistics)
    reduction = choose_reduction(spec.keep, spec.statistics, model.device, spec.capture)
    if isinstance(reduction, TorchReduction):
        unused = f"torch operations: no kernel on {model.device.type} computes what this job keeps"
        on_event(Stage(f"capturing with {unused if kernel.available() else kernel.explain()}"))
        return torch_reduction, "torch operations"
    agreement = check_agreement(model, job.sites, spec, inputs, lengths, reduction)
    if reduction.problem is not None:
        on_event(Stage(_without_kernel(reduction)))
        return torch_reduction, _without_kernel(reduction)
    if agreement.difference:
        on_event(
            Stage(f"capturing with torch operations: the {reduction.name} differs from them ({agreement.difference})")
        )
        return torch_reduction, "torch operations"
    share = f"{reduction.n_fused} of {reduction.n_fused + reduction.n_torch} layers"
    served_by = f"{reduction.name}, {share}" if reduction.n_fused else "torch operations"
    on_event(Stage(f"capturing with {'the ' if reduction.n_fused else ''}{served_by}"))
    return reduction, served_by


def _long_rows_difference(
    job: Job, segments: Sequence[SegmentSpec], n_checked: int, reduction: Reduction
) -> str | None:
    """Check rows of the longest example, if it has more than the `n_checked` tokens that were checked before.

    If memory runs out, half as many tokens are checked.
    """
    examples = [example for segment in segments for example in job.examples[segment.examples]]
    total = np.max(np.stack(list(count_tokens(examples, job.spec).values())), axis=0)
    longest, n_tokens = examples[int(total.argmax())], min(int(total.max()), most_long_tokens(job.spec))
    while n_tokens > n_checked:
        example = longest.beginning(n_tokens)
        lengths = {name: int(counts[0]) for name, counts in count_tokens([example], job.spec).items()}
        try:
            return check_long_rows(
                job.loaded.model, job.sites, job.spec, job.inputs.build([example]), lengths, reduction
            )
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory(job.loaded.model.device)
        n_tokens //= 2
    return None


def _without_kernel(reduction: Reduction) -> str:
    return f"torch operations, because the {reduction.name} cannot run on this device ({reduction.problem})"


def _report_segment(entry: SegmentEntry, on_event: Listener) -> None:
    on_event(SegmentDone(entry.index, entry.n_examples, entry.data_bytes + entry.bytes))
