"""Run several models over one corpus, one after the other. Each has its own store, with the same examples in all.

The corpus is read once. If a model fails, the others still run. Each store is resumed independently. A job with a
cluster, or with several devices, runs on worker processes (`cluster/`), others in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.store.commands.cluster import DEFAULT_WORKERS, ClusterOptions, open_cluster
from headatlas.store.errors import ConfigError, HeadAtlasError

from ..config import JobConfig
from ..progress import Listener, ModelBegun, ModelFailed
from ..tokens.batch_plan import WHOLE, Share
from ..tokens.corpus_encoding import open_corpus
from .job_runner import JobReport, execute_job
from .prepared_job import AlignmentKeys, alignment_keys, check_aligned, prepare_job

if TYPE_CHECKING:
    from distributed import Client


def run_jobs(
    configs: Sequence[JobConfig],
    on_event: Listener = lambda event: None,
    *,
    repair: bool = False,
    extend: bool = False,
    check_space: bool = True,
    share: Share = WHOLE,
    cluster: ClusterOptions | None = None,
) -> list[JobReport]:
    """Run or resume jobs that differ only in their models (`config.load_jobs`). See `job_runner.run_job`.

    `cluster` replaces the kind and the number of workers in the job's section ``cluster``.

    Raises
    ------
    HeadAtlasError
        A job failed. If there are several jobs, all others have run before.
    """
    options = _cluster_options(configs[0], cluster)
    corpus = open_corpus(configs[0].corpus, on_event)
    reports: list[JobReport] = []
    failures: dict[str, str] = {}
    first_keys: AlignmentKeys | None = None
    with ExitStack() as stack:
        connection = None if options is None else _Connection(options, stack)
        for number, config in enumerate(configs, 1):
            name = config.model.short_name
            if len(configs) > 1:
                on_event(ModelBegun(number, len(configs), name))
            try:
                config = config.on_device(config.run.devices[0]) if config.run.devices else config
                if options is not None:
                    changes = {"kind": options.kind, "workers": options.n_workers}
                    config = config.model_copy(update={"cluster": config.cluster.model_copy(update=changes)})
                job = prepare_job(config, on_event, corpus, extend=extend, repair=repair)
                first_keys = first_keys or alignment_keys(job)
                check_aligned(job, first_keys)
                if connection is None:
                    report = execute_job(job, on_event, repair=repair, check_space=check_space, share=share)
                else:
                    from .cluster.cluster_job import execute_on_cluster

                    report = execute_on_cluster(
                        job, connection.open, on_event, repair=repair, check_space=check_space, share=share
                    )
                reports.append(report)
            except HeadAtlasError as error:
                if len(configs) == 1:
                    raise
                on_event(ModelFailed(name, str(error)))
                failures[name] = str(error)
            job = None  # free the memory for the next model
    if failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise HeadAtlasError(f"{len(failures)} of {len(configs)} models failed, the others are done. {reasons}")
    return reports


def _cluster_options(config: JobConfig, requested: ClusterOptions | None) -> ClusterOptions | None:
    """Return the cluster that runs a job: the requested one, or that of the job file, or processes for its devices.

    Raises
    ------
    ConfigError
        The address is refused, or the job names devices of this machine and another cluster.
    """
    settings, devices = config.cluster, config.run.devices
    target = settings.kind or ("local" if len(devices) > 1 else None)
    options = requested or (None if target is None else ClusterOptions(target))
    if options is None:
        return None
    options.check()
    n_workers = options.n_workers or settings.workers
    if devices and (options.kind != "local" or n_workers not in (None, len(devices))):
        raise ConfigError(
            f"run.devices names {len(devices)} devices of this machine, each for one process; expected a local cluster "
            f"without another number of workers. Remove run.devices to use {options.target} with {n_workers or 'its'} workers."
        )
    return replace(
        options,
        n_workers=None if options.kind is None else len(devices) or n_workers,
        threads_per_worker=2,  # one computes while the other writes
        queue=settings.queue,
        account=settings.account,
        walltime=settings.walltime,
        memory=settings.memory,
        cores=settings.cores,
    )


@dataclass
class _Connection:
    """The cluster of the jobs, which starts with the first of them that has something to compute."""

    options: ClusterOptions
    stack: ExitStack
    client: Client | None = None

    def open(self, n_segments: int, shared_folder: Path) -> Client:
        """Return the client of a cluster that has at most as many workers as there are segments."""
        options = self.options
        n_workers = options.n_workers or (None if options.kind in (None, "cuda") else DEFAULT_WORKERS)
        n_workers = None if n_workers is None else min(n_workers, n_segments)
        if self.client is None:
            options = replace(options, n_workers=n_workers, shared_folder=shared_folder)
            self.client = self.stack.enter_context(open_cluster(options))
            assert self.client is not None, "open_cluster yields a client for options"
        elif n_workers is not None:
            cluster: Any = self.client.cluster
            cluster.scale(max(n_workers, len(cluster.workers)))
        return self.client
