"""The job of an intervention: a job file, or a store whose model runs again over the stored examples."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headatlas.store.errors import ConfigError
from headatlas.store.store import Store, open_store

from ...config import JobConfig, RunConfig, find_config, load_jobs, parse_override
from ...models.model_options import ModelConfig


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredSelection(_Section):
    """The examples of a store that an intervention uses. The options are those of a corpus."""

    sample: int | None = Field(default=None, gt=0)
    seed: int = 0
    skip: int = Field(default=0, ge=0)
    max_examples: int | None = Field(default=None, gt=0)
    sampling_unit: str | None = None

    def select(self, n_examples: int) -> Sequence[int]:
        """Return the indices of the examples, ascending."""
        indices: Sequence[int] = range(n_examples)
        if self.sample is not None and self.sample < n_examples:
            indices = sorted(random.Random(self.seed).sample(indices, self.sample))
        stop = None if self.max_examples is None else self.skip + self.max_examples
        return indices[self.skip : stop]


class _Settings(_Section):
    model: ModelConfig
    run: RunConfig = RunConfig()
    corpus: StoredSelection = StoredSelection()


@dataclass(frozen=True)
class StoredJob:
    """A store whose model runs again over its examples."""

    store: Store
    model: ModelConfig
    run: RunConfig
    corpus: StoredSelection


InterventionJob = JobConfig | StoredJob


def open_job(name: str | Path | Store | InterventionJob, overrides: Sequence[str] = ()) -> InterventionJob:
    """Open a store, or read a job file with one model. A shipped job file comes before a folder of the same name.

    `overrides` are ``section.key=value``, as for `load_jobs`. A store has the sections model, run and corpus, and of the
    last one the keys that select examples.

    Raises
    ------
    ConfigError
        There is neither, the file names several models, or settings are invalid.
    NotFoundError
        The folder is no store.
    """
    if isinstance(name, JobConfig | StoredJob):
        return name
    if isinstance(name, Store):
        return _stored_job(name, overrides)
    try:
        find_config(name)
    except ConfigError as error:
        if "://" in str(name) or Path(name).is_dir():
            return _stored_job(open_store(name), overrides)
        raise ConfigError(f"{str(error).rstrip('.')}. A folder is opened as a store.") from None
    (job, *others) = load_jobs(name, overrides)
    if others:
        raise ConfigError(f"{name} names {len(others) + 1} models; expected one. Remove the others from the job file.")
    return job


def _stored_job(store: Store, overrides: Sequence[str]) -> StoredJob:
    provenance = store.manifest.provenance
    config = provenance.get("config")
    corpus = provenance.get("corpus")
    options = corpus.get("options") if isinstance(corpus, dict) else None
    unit = options.get("sampling_unit") if isinstance(options, dict) else None
    document: dict[str, dict[str, Any]] = {
        "model": _model_settings(store),
        "run": dict(config.get("run") or {}) if isinstance(config, dict) else {},
        "corpus": {} if unit is None else {"sampling_unit": unit},
    }
    for text in overrides:
        (section, key), value = parse_override(text)
        document.setdefault(section, {})[key] = value
    if "source" not in document["model"]:
        name = (provenance.get("model") or {}).get("name")
        raise ConfigError(
            f"{store.location} was made with the model {name!r}, and does not hold its location; name the same model with "
            "--set model.source=SOURCE"
        )
    try:
        settings = _Settings.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in error.errors())
        valid = ", ".join(f"corpus.{key}" for key in StoredSelection.model_fields)
        raise ConfigError(
            f"{store.location}: {problems}. The settings of a store's intervention are model.*, run.*, {valid}."
        ) from None
    return StoredJob(store, settings.model, settings.run, settings.corpus)


def _model_settings(store: Store) -> dict[str, Any]:
    """Return the model settings that a store records. There is no source if the model was a folder or file."""
    provenance = store.manifest.provenance
    model = provenance.get("model") or {}
    settings = {"dtype": provenance["dtype"]} if provenance.get("dtype") else {}
    name, revision = str(model.get("name")), model.get("revision")
    package = name.partition("/")[0]
    if revision is not None:
        return {**settings, "source": name, "revision": revision}
    if "/" in name and package.isidentifier() and importlib.util.find_spec(package) is not None:
        return {**settings, "source": f"package:{name}"}
    return settings
