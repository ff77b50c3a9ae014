"""A model with its output head and the examples that it runs on, from a job or from a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headatlas.store.errors import ConfigError

from ...corpora.examples import EncodedExample
from ...progress import Event, Stage, plural
from ...tokens.batch_plan import BatchLimits
from ...tokens.corpus_encoding import encode_corpus, open_corpus
from .stored_examples import check_store, stored_examples
from .stored_job import InterventionJob, StoredJob

if TYPE_CHECKING:
    from ...models.sources import LoadedModel


@dataclass(frozen=True)
class Material:
    """A model with its output head and the examples that it runs on."""

    loaded: LoadedModel
    examples: list[EncodedExample]
    """Examples that have tokens."""
    n_not_encoded: int
    corpus: str
    """Path of the corpus or of the store."""
    sampling_unit: str | None
    limits: BatchLimits
    notes: tuple[str, ...] = ()


def open_material(
    job: InterventionJob,
    on_event: Callable[[Event], None] = lambda event: None,
    check_model: Callable[[LoadedModel], None] = lambda loaded: None,
) -> Material:
    """Load the model of a job with the output head that it was saved with, and read its examples.

    The examples of a store have the token ids that it holds. `check_model` raises an error for models that do not fit,
    before the examples are read.

    Raises
    ------
    ConfigError
        Model or corpus cannot be read, no example has tokens, or the model is not that of the store.
    """
    import torch

    from ...models.sources import load_configured

    if job.run.threads is not None:
        torch.set_num_threads(job.run.threads)
    on_event(Stage(f"reading model {job.model.source}"))
    is_stored = isinstance(job, StoredJob)
    loaded = load_configured(job.model, saved_head=True, images=not is_stored and job.corpus.kind == "images")
    check_model(loaded)
    if is_stored:
        return _stored_material(job, loaded, on_event)
    encoded, skipped = encode_corpus(job.encoding, loaded, open_corpus(job.corpus, on_event), on_event)
    examples = [example for i, example in enumerate(encoded) if i not in skipped]
    if not examples:
        raise ConfigError(f"no example of {job.corpus.path} can be encoded; see headatlas plan")
    return Material(
        loaded, examples, len(skipped), str(job.corpus.path), job.corpus.sampling_unit, job.run.limits, loaded.notes
    )


def _stored_material(job: StoredJob, loaded: LoadedModel, on_event: Callable[[Event], None]) -> Material:
    store = job.store
    if loaded.tokenizer is None:
        raise ConfigError(f"{store.location} holds no pixels of its images; name the job file instead of the store")
    check_store(store, loaded)
    on_event(Stage(f"reading {plural(store.n_examples, 'example')} of {store.location}"))
    stored = list(stored_examples(store))
    chosen = [stored[i] for i in job.corpus.select(len(stored))]
    examples = [example for example in chosen if len(example.source)]
    if not examples:
        raise ConfigError(f"{store.location}: {len(chosen)} examples are selected, and none of them has tokens")
    dropped = sum(entry.n_examples for entry in store.manifest.dropped)
    notes = (f"{plural(dropped, 'example')} of {store.name} were dropped from it.",) if dropped else ()
    return Material(
        loaded, examples, len(chosen) - len(examples), store.location, job.corpus.sampling_unit, job.run.limits,
        (*loaded.notes, *notes),
    )  # fmt: skip
