"""Run one job on a cluster: plan it here, have the workers place its segments, and commit them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from headatlas.store.commands.cluster import DEFAULT_WORKERS
from headatlas.store.errors import ConfigError, HeadAtlasError
from headatlas.store.files.leases import private_folder
from headatlas.store.files.locations import is_url, location_text
from headatlas.store.writing.placed_segments import commit_placed

from ...calls.out_of_memory import release_memory
from ...config import JobConfig
from ...progress import JobReport, Listener, SegmentDone, Stage
from ...tokens.batch_plan import SegmentSpec, Share
from ..deferred_statistics import add_deferred
from ..job_runner import OpenJob, open_job, report_job
from ..prepared_job import Job
from ..segment_groups import count_tokens
from .segment_dispatch import SegmentDispatch
from .work_package import JobPackage, PackedFile, SegmentPackage

if TYPE_CHECKING:
    import torch
    from distributed import Client


def n_local_workers(config: JobConfig) -> int:
    """Return the number of workers of a local cluster: one for each device, or as the job says."""
    return len(config.run.devices) or config.cluster.workers or DEFAULT_WORKERS


def execute_on_cluster(
    job: Job,
    connect: Callable[[int, Path], Client],
    on_event: Listener,
    *,
    repair: bool,
    check_space: bool,
    share: Share,
) -> JobReport:
    """Compute the missing segments of a job on the workers of a cluster. See `job_runner.execute_job`.

    `connect` gets the number of segments and a folder that all machines share, and starts the cluster. It is not called
    if nothing is missing. The weights of `job` are freed, because the workers have their own.

    Raises
    ------
    ConfigError
        The store is at a URL.
    HeadAtlasError
        As `SegmentDispatch.results`. What was committed before stays.
    """
    if is_url(job.path):
        raise ConfigError(
            f"{location_text(job.path)} is a URL. The workers of a cluster write to a folder that all machines share under the "
            "same path: name one with --out, or leave out --cluster."
        )
    start_time = time.monotonic()
    opened = open_job(job, on_event, repair=repair, check_space=check_space, share=share)
    if opened.pending_segments:
        try:
            _run(job, opened, connect, on_event)
        except HeadAtlasError as error:
            if type(error) is not HeadAtlasError:  # the same command would fail again
                raise
            message = str(error).removesuffix(".")
            raise HeadAtlasError(
                f"{message}. Every committed segment is in {job.path}; run the same command again to write the others."
            ) from error
    add_deferred(job.path, job.config.keep.computed_later, on_event)
    return report_job(job.path, len(opened.pending_segments), job.n_quarantined, start_time, on_event)


def _run(job: Job, opened: OpenJob, connect: Callable[[int, Path], Client], on_event: Listener) -> None:
    """Compute and commit the pending segments of a job, of which there is at least one."""
    writer, config, topic = opened.writer, job.config, uuid.uuid4().hex
    segments = {segment.index: segment for segment in opened.pending_segments}
    is_local = config.cluster.kind == "local"
    n_threads = max(1, _n_processors() // n_local_workers(config)) if is_local else None
    with private_folder(Path(job.path)) as folder:
        files: dict[int, PackedFile] = {}

        def pack(index: int) -> PackedFile:
            if index not in files:
                package = SegmentPackage.of(job, opened, segments[index])
                files[index] = PackedFile.write(folder.absolute() / f"{index}.pickle", package)
            return files[index]

        job_file = PackedFile.write(folder.absolute() / "job.pickle", JobPackage.of(job, opened, topic, n_threads))
        device, model = job.loaded.model.device, cast("torch.nn.Module", job.loaded.model)
        model.to("meta")  # frees the weights
        release_memory(device)
        client = connect(len(segments), Path(job.path).absolute().parent)
        on_event(Stage(f"the dashboard of the workers is {client.dashboard_link}"))
        first_machines = writer.manifest.provenance.get("workers", ())
        dispatch = SegmentDispatch(
            client, config.cluster, job_file, topic, _longest_first(job, opened), pack, on_event, *first_machines[:1]
        )
        machines, reductions = set[str](), set[str]()
        for result in dispatch.results():
            for name, text, noted in (
                ("workers", result.machine, machines),
                *(("reduction", note, reductions) for note in result.reductions),
            ):
                if text not in noted:
                    noted.add(text)
                    writer.note(name, text)
            index = result.entry.index
            if index in segments:  # else a second copy of the task
                entry = commit_placed(writer, result.entry, result.skipped, opened.repairs.get(index))
                on_event(SegmentDone(index, entry.n_examples, entry.data_bytes + entry.bytes))
                files.pop(index).path.unlink()
                del segments[index]


def _longest_first(job: Job, opened: OpenJob) -> list[int]:
    """Return the numbers of the segments to write, that with the most tokens first."""

    def n_tokens(segment: SegmentSpec) -> int:
        counts = count_tokens(job.examples[segment.examples], job.spec)
        return sum(int(values.sum()) for values in counts.values())

    return [segment.index for segment in sorted(opened.pending_segments, key=n_tokens, reverse=True)]


def _n_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
