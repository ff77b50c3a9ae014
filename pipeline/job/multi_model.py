"""Run several models over one corpus, one after the other. Each has its own store, with the same examples in all.

The corpus is read once, or once for each device of ``run.devices``. If a model fails, the others still run. Each store is resumed independently.
"""

from __future__ import annotations

from collections.abc import Sequence

from headatlas.store.errors import HeadAtlasError

from ..config import JobConfig
from ..progress import Listener, ModelBegun, ModelFailed
from ..tokens.batch_plan import WHOLE, Share
from ..tokens.corpus_encoding import open_corpus
from .device_processes import DeviceOptions, run_on_devices
from .job_runner import JobReport, execute_job
from .prepared_job import AlignmentKeys, alignment_keys, check_aligned, prepare_job


def run_jobs(
    configs: Sequence[JobConfig],
    on_event: Listener = lambda event: None,
    *,
    repair: bool = False,
    extend: bool = False,
    check_space: bool = True,
    share: Share = WHOLE,
) -> list[JobReport]:
    """Run or resume jobs that differ only in their models (`config.load_jobs`). See `job_runner.run_job`.

    Raises
    ------
    HeadAtlasError
        A job failed. If there are several jobs, all others have run before.
    """
    corpus = None if len(configs[0].run.devices) > 1 else open_corpus(configs[0].corpus, on_event)
    reports: list[JobReport] = []
    failures: dict[str, str] = {}
    first_keys: AlignmentKeys | None = None
    for number, config in enumerate(configs, 1):
        name = config.model.short_name
        if len(configs) > 1:
            on_event(ModelBegun(number, len(configs), name))
        try:
            if len(config.run.devices) > 1:
                options = DeviceOptions(repair, extend, check_space, first_keys)
                report, keys = run_on_devices(config, on_event, options, share)
                first_keys = first_keys or keys
                reports.append(report)
                continue
            config = config.on_device(*config.run.devices) if config.run.devices else config
            job = prepare_job(config, on_event, corpus, extend=extend, repair=repair)
            first_keys = first_keys or alignment_keys(job)
            check_aligned(job, first_keys)
            reports.append(execute_job(job, on_event, repair=repair, check_space=check_space, share=share))
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
