"""Several models over one corpus: one after the other, each into a store of its own, example i the same in all.

The corpus is read once. A model that cannot be captured does not keep the others from it; each store resumes by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from headatlas.store.errors import ConfigError, HeadAtlasError

from ..config import JobConfig
from ..corpora.examples import EncodedExample
from ..progress import Listener, ModelBegun, ModelFailed
from ..tokens.corpus_encoding import open_corpus
from ..tokens.windows import WINDOW_COLUMNS
from .job_runner import JobReport, execute_job
from .prepared_job import Job, prepare_job


def run_jobs(
    configs: Sequence[JobConfig], on_event: Listener = lambda event: None, *, repair: bool = False
) -> list[JobReport]:
    """Run jobs that differ in their models (`config.load_jobs`), or what is left of them, see `run.run_job`.

    Raises
    ------
    HeadAtlasError
        A job failed; of several, all others were run before.
    """
    corpus = open_corpus(configs[0].corpus, on_event)
    reports: list[JobReport] = []
    failures: dict[str, str] = {}
    first: list[tuple[object, ...]] | None = None
    for number, config in enumerate(configs, 1):
        name = config.model.short_name
        if len(configs) > 1:
            on_event(ModelBegun(number, len(configs), name))
        try:
            job = prepare_job(config, on_event, corpus)
            first = first or [_place(example) for example in job.examples]
            _check_aligned(job, first)
            reports.append(execute_job(job, on_event, repair=repair))
        except HeadAtlasError as error:
            if len(configs) == 1:
                raise
            on_event(ModelFailed(name, str(error)))
            failures[name] = str(error)
        job = None  # the next model needs its memory
    if failures:
        told = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise HeadAtlasError(f"{len(failures)} of {len(configs)} models failed, the others are done. {told}")
    return reports


def _place(example: EncodedExample) -> tuple[object, ...]:
    """What must be the same in all stores: the example's id, and which characters of its document it shows."""
    return (example.example.id, *(example.example.columns.get(name) for name in WINDOW_COLUMNS))


def _check_aligned(job: Job, first: list[tuple[object, ...]]) -> None:
    if [_place(example) for example in job.examples] != first:
        raise ConfigError(
            "its tokenizer cuts documents into other windows than that of the first model, so examples would not be the "
            'same in both stores. Set tokens.too_long = "truncate", or run the models in jobs of their own.'
        )
