"""Effects of an intervention in a store, as a statistic, or in a file of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headatlas.store.errors import ConfigError
from headatlas.store.files.installed_packages import installed_version
from headatlas.store.store import Store, open_store

from .intervention import Intervention
from .request import Request

if TYPE_CHECKING:
    from ..config import JobConfig
    from .subject import Subject


def check_store(job: JobConfig, name: str) -> Store:
    """Open the store of a job and check that it can take a statistic of this name.

    Raises
    ------
    ConfigError
        The job has no store yet, or the name is taken.
    """
    path = job.store.path
    if path is None or not path.is_dir():
        raise ConfigError(
            f"the job has no store at {path}; run it first, or name its store with --set store.path=STORE"
        )
    store = open_store(path)
    if name in store.statistic_names():
        raise ConfigError(f"{store.location} has a statistic {name!r} already; choose another name for --keep")
    return store


def check_effects(job: JobConfig, name: str, request: Request, subject: Subject) -> None:
    """Check that the store of a job can take the effects that a request measures, before it is run.

    Raises
    ------
    ConfigError
        The store is of another model, has none of the examples, or heads are changed together.
    """
    store = check_store(job, name)
    if request.together:
        raise ConfigError(
            "a store keeps effects of single heads; leave --together out, or write them to a file with --out"
        )
    stored, model = store.manifest.provenance.get("model") or {}, subject.loaded.identity.to_dict()
    if any(stored.get(entry) != model[entry] for entry in ("files", "model_type")):  # heads differ in architecture
        raise ConfigError(
            f"{store.location} was made with another model ({stored.get('name')}) than the intervention "
            f"({model['name']}); name the store of this model with --set store.path=STORE"
        )
    if not {example.example.id for example in subject.examples} & set(store.example_ids()):
        raise ConfigError(f"{store.location} has none of the examples of this intervention; check corpus.path")


def keep_effects(result: Intervention, job: JobConfig, name: str) -> None:
    """Add effects that `check_effects` accepts to the store of a job, example by example."""
    store = check_store(job, name)
    position = {example_id: i for i, example_id in enumerate(result.example_ids)}
    rows = np.array([position.get(example_id, -1) for example_id in store.example_ids()])
    values = np.where(rows >= 0, result.head_effects()[..., rows], np.nan).astype(np.float32)
    kind = "estimated from gradients" if result.request.estimate else "measured"
    request = {
        name: value
        for name, value in result.summary()["request"].items()
        if value != Request.__dataclass_fields__[name].default
    }
    store.add_statistic(
        name,
        values,
        site=result.site.name,
        unit=result.meaning.rpartition(", ")[2] if ", " in result.meaning else "",
        description=f"{result.action}: {result.meaning}, {kind}; headatlas {installed_version('headatlas')} intervene {json.dumps(request)}; "
        f"{result.model['name']} over {result.corpus}",
    )


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table to a file.

    Raises
    ------
    ConfigError
        The file is neither ``.parquet`` nor ``.csv``, or cannot be written.
    """
    try:
        if path.suffix == ".csv":
            table.to_csv(path, index=False)
        else:
            table.to_parquet(path, index=False)
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror or error}") from error


def check_out(path: Path) -> None:
    """Check the name of a file for a table, before a long run.

    Raises
    ------
    ConfigError
        It ends with neither ``.parquet`` nor ``.csv``, or its folder does not exist.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"--out is {path}; expected a file that ends with .parquet or .csv")
    if not path.parent.is_dir():
        raise ConfigError(f"--out is {path}, and there is no folder {path.parent}; create it first")
