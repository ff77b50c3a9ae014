"""Run several models over one corpus, one after the other. Each has its own store, with the same examples in all.

The corpus is read once. If a model fails, the others still run. Each store is resumed independently.
"""

from __future__ import annotations

from collections.abc import Sequence

from headatlas.store.errors import ConfigError, HeadAtlasError

from ..config import JobConfig
from ..corpora.examples import EncodedExample
from ..progress import Listener, ModelBegun, ModelFailed
from ..tokens.batch_plan import WHOLE, Share
from ..tokens.corpus_encoding import open_corpus
from ..tokens.windows import WINDOW_COLUMNS
from .job_runner import JobReport, execute_job
from .prepared_job import Job, prepare_job


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
    corpus = open_corpus(configs[0].corpus, on_event)
    reports: list[JobReport] = []
    failures: dict[str, str] = {}
    first_keys: list[tuple[object, ...]] | None = None
    for number, config in enumerate(configs, 1):
        name = config.model.short_name
        if len(configs) > 1:
            on_event(ModelBegun(number, len(configs), name))
        try:
            job = prepare_job(config, on_event, corpus, extend=extend, repair=repair)
            first_keys = first_keys or [_alignment_key(example) for example in job.corpus_examples]
            _check_aligned(job, first_keys)
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


def _alignment_key(example: EncodedExample) -> tuple[object, ...]:
    """Return the identity of an example that must be equal in all stores: its id and its span of the document."""
    return (example.example.id, *(example.example.columns.get(name) for name in WINDOW_COLUMNS))


def _check_aligned(job: Job, first_keys: list[tuple[object, ...]]) -> None:
    if [_alignment_key(example) for example in job.corpus_examples] != first_keys:
        raise ConfigError(
            "its tokenizer cuts documents into other windows than the tokenizer of the first model, so the stores would "
            'have different examples. Set tokens.too_long = "truncate", or use a separate job for each model.'
        )
