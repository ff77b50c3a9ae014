"""Run one job on several devices: one process for each, which writes a share of the segments into the same store.

The shares are those of ``headatlas run --part``. The first process creates or extends the store; the others start when
it has. If a process dies, the others go on, and the job ends with an error that names it. The same command writes what
is missing.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from headatlas.store.errors import HeadAtlasError

from ..config import JobConfig
from ..progress import CheckPassed, Event, JobDone, JobReport, JobStarted, Listener, Stage
from ..tokens.batch_plan import Share
from .deferred_statistics import add_deferred
from .job_runner import execute_job, report_job
from .prepared_job import AlignmentKeys, alignment_keys, check_aligned, prepare_job


@dataclass(frozen=True)
class DeviceOptions:
    """Options of `run_jobs` that every process gets, and the keys of the first model's examples."""

    repair: bool
    extend: bool
    check_space: bool
    first_keys: AlignmentKeys | None


@dataclass(frozen=True)
class _Finished:
    """Last message of a process that wrote its share."""

    report: JobReport
    keys: AlignmentKeys


@dataclass(frozen=True)
class _Failed:
    """Last message of a process whose share failed."""

    reason: str


@dataclass
class _Worker:
    device: str
    process: BaseProcess
    connection: Connection
    result: _Finished | _Failed | None = None


def run_on_devices(
    config: JobConfig, on_event: Listener, options: DeviceOptions, share: Share
) -> tuple[JobReport, AlignmentKeys]:
    """Run a share of a job on the devices of ``run.devices``. Return its report and the keys of its examples.

    Raises
    ------
    HeadAtlasError
        A process failed or died. What the others wrote is committed.
    """
    start_time = time.monotonic()
    devices, path = config.run.devices, config.store.path
    assert path is not None, "load_config gives every job a store"
    context = multiprocessing.get_context("spawn")  # a process that was forked cannot use CUDA
    workers: list[_Worker] = []

    def start(number: int) -> None:
        receiving, sending = context.Pipe(duplex=False)
        part = Share((share.number - 1) * len(devices) + number + 1, share.n_shares * len(devices))
        arguments = (sending, config.on_device(devices[number]), options, part, share)
        process = context.Process(target=_run_share, args=arguments, name=f"headatlas {devices[number]}")
        process.start()
        sending.close()  # the end of the process then ends the connection
        workers.append(_Worker(devices[number], process, receiving))

    try:
        start(0)
        while running := [worker for worker in workers if not worker.connection.closed]:
            for connection in wait([worker.connection for worker in running]):
                worker = next(worker for worker in running if worker.connection is connection)
                try:
                    message = worker.connection.recv()
                except EOFError:
                    worker.connection.close()
                    worker.process.join()
                    continue
                if isinstance(message, _Finished | _Failed):
                    worker.result = message
                elif isinstance(message, JobStarted | Stage | CheckPassed):
                    if worker is workers[0]:
                        on_event(message)
                    if isinstance(message, JobStarted):
                        for number in range(len(workers), len(devices)):
                            start(number)
                elif not isinstance(message, JobDone):
                    on_event(message)
    except BaseException:
        for worker in workers:  # each commits the segment that it is writing
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.process.join()
    failures = {f"{i} ({w.device})": reason for i, w in enumerate(workers, 1) if (reason := _failure(w))}
    if failures:
        reasons = "; ".join(f"process {name} {reason.removesuffix('.')}" for name, reason in failures.items())
        raise HeadAtlasError(
            f"{len(failures)} of {len(devices)} processes did not finish: {reasons}. Every committed segment is in {path}. "
            "Run the same command again to write the others."
        )
    results = [worker.result for worker in workers if isinstance(worker.result, _Finished)]
    add_deferred(path, config.keep.computed_later, on_event)
    n_written = sum(result.report.n_segments_written for result in results)
    report = report_job(path, n_written, results[0].report.n_quarantined, start_time, on_event)
    return report, results[0].keys


def _failure(worker: _Worker) -> str | None:
    """Return why a process did not write its share; None if it did."""
    if isinstance(worker.result, _Failed):
        return f"failed: {worker.result.reason}"
    if worker.result is not None:
        return None
    code = worker.process.exitcode or 0
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _run_share(connection: Connection, config: JobConfig, options: DeviceOptions, share: Share, whole: Share) -> None:
    """Prepare the job in this process, and write a share of its segments. `whole` is the share of all processes."""

    def send(event: Event) -> None:
        connection.send(event)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal also sends it to the parent, which terminates this process
    signal.signal(signal.SIGTERM, interrupt)
    try:
        job = prepare_job(config, send, extend=options.extend, repair=options.repair)
        check_aligned(job, options.first_keys)
        report = execute_job(
            job,
            send,
            repair=options.repair,
            check_space=options.check_space,
            share=share,
            whole=whole,
        )
        connection.send(_Finished(report, alignment_keys(job)))
    except HeadAtlasError as error:
        connection.send(_Failed(str(error)))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
