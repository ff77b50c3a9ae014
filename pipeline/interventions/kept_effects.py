"""Effects of an intervention in a store, as a statistic, or in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headatlas.store.errors import ConfigError
from headatlas.store.store import Store, open_store

from .head_effects import Intervention

if TYPE_CHECKING:
    from ..config import JobConfig


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


def keep_effects(result: Intervention, job: JobConfig, name: str) -> None:
    """Add the effects of single heads to the store of a job, example by example.

    Raises
    ------
    ConfigError
        The store is of another model, has none of the examples, or the heads were changed together.
    """
    store = check_store(job, name)
    if any(len(heads) > 1 for heads in result.targets):
        raise ConfigError(
            "a store keeps effects of single heads; leave --together out, or write them to a file with --out"
        )
    stored = store.manifest.provenance.get("model") or {}
    if any(
        stored.get(entry) != result.model[entry] for entry in ("files", "model_type")
    ):  # heads differ in architecture
        raise ConfigError(
            f"{store.location} was made with another model ({stored.get('name')}) than the intervention "
            f"({result.model['name']}); name the store of this model with --set store.path=STORE"
        )
    position = {example_id: i for i, example_id in enumerate(result.example_ids)}
    rows = np.array([position.get(example_id, -1) for example_id in store.example_ids()])
    if not (rows >= 0).any():
        raise ConfigError(f"{store.location} has none of the examples of this intervention; check corpus.path")
    values = np.where(rows >= 0, result.head_effects()[..., rows], np.nan).astype(np.float32)
    kind = "estimated from gradients" if result.is_estimate else "measured"
    store.add_statistic(
        name,
        values,
        site=result.site.name,
        unit=result.meaning.rpartition(", ")[2] if ", " in result.meaning else "",
        description=f"{result.action}: {result.meaning}, {kind}; seed {result.seed}; {job.corpus.path}",
    )


def write_effects(result: Intervention, path: Path) -> None:
    """Write one row for each intervention and example: heads, example, effect. Errors are those of `write_table`."""
    names = [result.head_name(heads) for heads in result.targets]
    n_examples = len(result.example_ids)
    table = pd.DataFrame(
        {
            "heads": np.repeat(names, n_examples),
            "example": np.tile(result.example_ids, len(names)),
            "effect": result.effects.ravel(),
        }
    )
    write_table(table, path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table to a Parquet or CSV file.

    Raises
    ------
    ConfigError
        The file is neither ``.parquet`` nor ``.csv``.
    """
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        raise ConfigError(f"--out is {path}; expected a file that ends with .parquet or .csv")
