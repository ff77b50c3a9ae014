"""The functions that run on the workers of a cluster: load a job once, compute a segment and place it in the store.

A worker runs two tasks at a time. One computes while the other writes, as in a job of one process.
"""

from __future__ import annotations

import os
import pickle
import platform
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from distributed import get_worker

from headatlas.store.errors import ConfigError, located
from headatlas.store.schema.omissions import Omissions
from headatlas.store.writing.placed_segments import place_segment
from headatlas.store.writing.store_writer import StoreWriter

from ...calls.device_arrays import BufferPool
from ...capture.collector import TraceCollector
from ...models.sources import load_configured
from ...progress import Event
from ...reduce.reduction import Reduction
from ...tokens.batch_plan import SegmentSpec
from ...tokens.model_inputs import InputBuilder
from ...tokens.segment_tables import segment_tables
from ..prepared_job import Job, library_versions
from ..reduction_check import check_job, without_kernel
from ..resources.machine import describe_accelerator
from ..segment_computation import compute_segment
from .work_package import JobPackage, PackedFile, SegmentPackage, SegmentResult, WorkerDescription

_REPORT_S = 0.5
"""Seconds between two reports of progress."""


def join_job(file: PackedFile) -> WorkerDescription:
    """Load a job, unless this process has it, and describe this worker.

    Raises
    ------
    HeadAtlasError
        The model cannot be loaded or captured here, or is not that of the client.
    """
    return _load_job(file).description


def compute_remotely(file: PackedFile, segment_file: PackedFile, attempt: int) -> SegmentResult:
    """Compute a segment of a job and place it in the store."""
    work = _load_job(file)
    package: SegmentPackage = segment_file.read()
    segment, reports = package.segment, _Reports(work.package.topic, package.segment.index, attempt)
    job = replace(work.job, examples=package.examples, skipped=package.skipped)
    pool = work.pools.get()
    try:
        with work.computing:
            torch.set_num_threads(work.n_threads)
            reports.send()  # the computation begins
            computed = compute_segment(job, segment, work.collector, pool, reports.add, package.removed)
        reports.send()
        entry = place_segment(
            work.writer,
            segment.index,
            segment.first_example,
            segment_tables(computed.examples, job.spec.sequences),
            computed.buffers.arrays,
            is_replacement=package.is_replacement,
        )
    finally:
        work.pools.put(pool)
    reductions = (work.served_by,)
    if work.reduction.problem is not None:
        reductions = (*reductions, without_kernel(work.reduction))
    return SegmentResult(entry, computed.skipped_rows(), reductions, work.description.machine, reports.events)


@dataclass(frozen=True)
class _LoadedJob:
    """A job as this process has loaded it."""

    package: JobPackage
    job: Job
    collector: TraceCollector
    reduction: Reduction
    served_by: str
    writer: StoreWriter
    description: WorkerDescription
    n_threads: int
    pools: queue.SimpleQueue[BufferPool]
    computing: threading.Lock = field(default_factory=threading.Lock)


_loading = threading.Lock()
_loaded: dict[str, _LoadedJob] = {}
"""The job of this process by the hash of its package; at most one, so that the model of an earlier job is freed."""


def _load_job(file: PackedFile) -> _LoadedJob:
    with _loading:
        if file.sha256 not in _loaded:
            _loaded.clear()
            with located(f"worker on {socket.gethostname()}"):
                _loaded[file.sha256] = _prepare(file.read())
        return _loaded[file.sha256]


def _prepare(package: JobPackage) -> _LoadedJob:
    config, worker = package.config, get_worker()
    if config.run.devices:
        config = config.on_device(config.run.devices[int(worker.name) % len(config.run.devices)])
    n_threads = config.run.threads or package.n_threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(n_threads)
    loaded = load_configured(
        config.model, lm_head=config.generate.max_new_tokens > 0, images=config.corpus.kind == "images"
    )
    loaded = replace(loaded, generator=None)
    if loaded.identity.files != package.identity.files:
        raise ConfigError(f"model.source {config.model.source!r} has other files than on the machine of the command.")
    path = config.store.path
    assert path is not None, "the client names the folder of the store"
    job = Job(
        config=config,
        path=path,
        loaded=loaded,
        inputs=InputBuilder(loaded.model, loaded.tokenizer, loaded.images),
        sites=package.sites,
        spec=package.spec,
        examples=package.checked_examples,
        skipped={},
        n_quarantined=0,
        left_out=Omissions(),
        encoding_notes=(),
        segments=(SegmentSpec(0, 0, len(package.checked_examples)),),
        provenance={},
        corpus_examples=[],
        batch_check=package.batch_check,
    )
    events: list[Event] = []
    reduction, served_by = check_job(job, job.segments, events.append)
    pools: queue.SimpleQueue[BufferPool] = queue.SimpleQueue()
    for _ in range(2):
        pools.put(BufferPool(loaded.model.device))
    return _LoadedJob(
        package,
        job,
        TraceCollector(job.spec, job.sites, reduction),
        reduction,
        served_by,
        StoreWriter(path, container=config.store.container, threads=2 * n_threads),
        WorkerDescription(socket.gethostname(), _describe_machine(job, n_threads, served_by), events),
        n_threads,
        pools,
    )


def _describe_machine(job: Job, n_threads: int, served_by: str) -> str:
    """Describe everything of a worker that can change the bytes of a segment."""
    accelerator = describe_accelerator(job.loaded.model.device)
    hardware = [_processor_name(), torch.backends.cpu.get_cpu_capability(), f"threads {n_threads}"]
    hardware += [str(accelerator[name]) for name in ("name", "driver", "cuda", "triton") if name in accelerator]
    libraries = [f"{name} {number}" for name, number in library_versions().items() if number is not None]
    return ", ".join([*hardware, *libraries, served_by])


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


@dataclass
class _Reports:
    """Progress of a segment on its way to the client, a few times a second."""

    topic: str
    index: int
    attempt: int
    events: list[Event] = field(default_factory=list)
    _sent: float = 0.0
    _log: Callable[[str, Any], None] = field(default_factory=lambda: get_worker().log_event)

    def add(self, event: Event) -> None:
        """Report an event, now or together with the next ones."""
        self.events.append(event)
        if time.monotonic() - self._sent > _REPORT_S:
            self.send()

    def send(self) -> None:
        """Report what is waiting, or that the worker is alive."""
        self._log(self.topic, [self.index, self.attempt, pickle.dumps(self.events)])
        self.events, self._sent = [], time.monotonic()
