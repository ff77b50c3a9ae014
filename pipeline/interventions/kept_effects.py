"""Effects of an intervention in a store, as a statistic, or in a file of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from headatlas.store.errors import ConfigError
from headatlas.store.files.installed_packages import installed_version
from headatlas.store.files.locations import is_url
from headatlas.store.store import Store, open_store

from .intervention import Intervention
from .request import Request
from .subjects.stored_examples import check_store
from .subjects.stored_job import InterventionJob, StoredJob

if TYPE_CHECKING:
    from ..models.sources import LoadedModel


def check_names(job: InterventionJob, names: Sequence[str]) -> Store:
    """Open the store of a job and check that it can take statistics of these names.

    Raises
    ------
    ConfigError
        The job has no store yet, the store is a URL, or a name is taken.
    """
    if isinstance(job, StoredJob):
        store = job.store.refresh()
    else:
        path = job.store.path
        if path is None or not (is_url(path) or path.is_dir()):
            raise ConfigError(
                f"the job has no store at {path}; run it first, or name its store with --set store.path=STORE"
            )
        store = open_store(path)
    store.path  # noqa: B018  # raises an error for a URL
    for name in names:
        if name in store.statistic_names():
            raise ConfigError(f"{store.location} has a statistic {name!r} already; choose another name for --keep")
    return store


def check_kept(job: InterventionJob, loaded: LoadedModel, example_ids: Sequence[str]) -> None:
    """Check that effects of a model on some examples belong into the store of a job, before they are measured.

    Raises
    ------
    ConfigError
        The store is of another model, or has none of the examples.
    """
    store = check_names(job, ())
    check_store(store, loaded, with_tokens=False)  # heads differ in architecture and weights
    if not set(example_ids) & set(store.example_ids()):
        raise ConfigError(f"{store.location} has none of the examples of this intervention; check corpus.path")


def keep_values(
    job: InterventionJob,
    name: str,
    values: Float[np.ndarray, "layer head example"],
    example_ids: Sequence[str],
    *,
    site: str,
    unit: str,
    description: str,
) -> None:
    """Add effects that `check_kept` accepts to the store of a job as a statistic. Other examples have no value."""
    store = check_names(job, [name])
    position = {example_id: i for i, example_id in enumerate(example_ids)}
    rows = np.array([position.get(example_id, -1) for example_id in store.example_ids()])
    of_store = np.where(rows >= 0, values[..., rows], np.nan).astype(np.float32)
    store.add_statistic(name, of_store, site=site, unit=unit, description=description)


def keep_effects(result: Intervention, job: InterventionJob, name: str) -> None:
    """Add the effects of an intervention to the store of a job, example by example."""
    kind = "estimated from gradients" if result.request.estimate else "measured"
    request = {
        name: value
        for name, value in result.summary()["request"].items()
        if value != Request.__dataclass_fields__[name].default
    }
    command = f"headatlas {installed_version('headatlas')} intervene {json.dumps(request)}"
    keep_values(
        job,
        name,
        result.head_effects(),
        result.example_ids,
        site=result.site.name,
        unit=result.meaning.rpartition(", ")[2] if ", " in result.meaning else "",
        description=f"{result.action}: {result.meaning}, {kind}; {command}; {result.model['name']} over {result.corpus}",
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
