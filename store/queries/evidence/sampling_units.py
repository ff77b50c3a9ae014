"""Sampling units: the groups of examples that count as independent in intervals and tests.

Sentences of a document, windows of a text, members of a pair and sentences of a template are alike. They are one unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Num

from ...errors import NotFoundError
from ...reading.snapshot import Snapshot
from ...schema.token_table import Column
from .resampling import MINIMUM_UNITS, RELIABLE_UNITS

EXAMPLE = "example"
"""Name of the unit if every example is one."""
UNIT_COLUMNS = ("template", "document", "window_of", "pair")
"""Annotations whose values are units by default. Of several the coarsest is taken."""


@dataclass(frozen=True)
class SamplingUnits:
    """The unit of each example of a store."""

    name: str
    """Annotation whose values are the units, or "example"."""
    number: Int64[np.ndarray, "example"]
    """Numbers of the examples in the store, ascending."""
    unit: Int64[np.ndarray, "example"]
    """Unit of each example, from 0. An example without a value is a unit of its own."""
    n_without_value: int = 0
    """Number of examples of the store without a value of the annotation."""

    def of(self, numbers: Num[np.ndarray, "row"]) -> Int64[np.ndarray, "row"]:
        """Return the unit of each of these examples, counted from 0 among the units that occur."""
        return np.unique(self.unit[np.searchsorted(self.number, numbers)], return_inverse=True)[1].astype(np.int64)

    def count(self, numbers: Num[np.ndarray, "row"]) -> int:
        """Count the units of some examples."""
        return int(self.of(numbers).max(initial=-1)) + 1

    def describe(self, n_units: int) -> str:
        """Say how many units an answer rests on, with a warning if these are few."""
        noun = f"{self.name}s" if n_units != 1 else self.name
        if self.name != EXAMPLE:
            noun = f"values of {self.name}" if n_units != 1 else f"value of {self.name}"
        if self.n_without_value:
            noun = (
                f"units; the {self.n_without_value:,} examples of the store without a value of {self.name} are units of "
                "their own"
            )
        text = f"Sampling unit: {self.name} ({n_units:,} {noun})."
        if n_units < MINIMUM_UNITS:
            text += f" Fewer than {MINIMUM_UNITS} units: no p-values, and intervals are missing or very wide."
        elif n_units < RELIABLE_UNITS:
            text += f" Fewer than {RELIABLE_UNITS} units: intervals and p-values are rough."
        return text


NO_UNITS = SamplingUnits("example", np.empty(0, np.int64), np.empty(0, np.int64))
"""The units of no example."""


def unit_sums(values: Num[np.ndarray, "*head row"], unit: Int64[np.ndarray, "row"]) -> Num[np.ndarray, "*head unit"]:
    """Add up the values of each unit along the last axis. Units are numbered from 0 without gaps."""
    n_units = int(unit.max(initial=-1)) + 1
    if n_units == len(unit) and np.array_equal(unit, np.arange(n_units)):
        return values
    order = np.argsort(unit, kind="stable")
    start = np.searchsorted(unit[order], np.arange(n_units))
    return np.add.reduceat(values[..., order], start, axis=-1) if n_units else values[..., :0]


def sampling_units(store: Snapshot, name: str | None = None) -> SamplingUnits:
    """Return the sampling units of a store.

    Parameters
    ----------
    name
        An annotation of examples, or "example". The default is the `sampling_unit` of the job that wrote the store,
        else the coarsest of `UNIT_COLUMNS` that has at least two values, else "example".

    Raises
    ------
    NotFoundError
        The examples have no such annotation.
    """
    columns, numbers = store.example_columns(), store.example_numbers()
    name = name or _configured(store)
    if name not in (None, EXAMPLE) and name not in columns:
        raise NotFoundError(
            f"{store.location}: examples have no annotation {name!r}; this store has {', '.join(columns) or 'none'}. "
            "Name one of these as the sampling unit, or 'example'."
        )
    singles = np.arange(len(numbers))
    if name == EXAMPLE:
        return SamplingUnits(EXAMPLE, numbers, singles)
    if name is not None:
        return SamplingUnits(name, numbers, *_codes(columns[name]))
    candidates = {column: _codes(columns[column]) for column in UNIT_COLUMNS if column in columns}
    column = default_unit({name: int(unit.max(initial=-1)) + 1 for name, (unit, _) in candidates.items()}, len(numbers))
    return SamplingUnits(column, numbers, *candidates.get(column, (singles, 0)))


def default_unit(counts: Mapping[str, int], n_examples: int) -> str:
    """Return the coarsest of `UNIT_COLUMNS` that makes at least two units, and fewer than examples, or "example".

    `counts` are the numbers of units that annotations make. An example without a value is a unit of its own.
    """
    usable = [name for name in UNIT_COLUMNS if 2 <= counts.get(name, 0) < n_examples]
    return min(usable, key=lambda name: counts[name], default=EXAMPLE)


def _configured(store: Snapshot) -> str | None:
    corpus = store.manifest.provenance.get("corpus")
    options = corpus.get("options") if isinstance(corpus, dict) else None
    name = options.get("sampling_unit") if isinstance(options, dict) else None
    return name if isinstance(name, str) else None


def _codes(column: Column) -> tuple[Int64[np.ndarray, "example"], int]:
    """Number the values of a column from 0, and count the rows without a value: they get numbers of their own."""
    data = column.data
    is_missing = ~np.isfinite(data) if data.dtype.kind == "f" else data < 0
    if column.values is not None and "" in column.values:
        is_missing = is_missing | (data == column.values.index(""))
    unit = np.zeros(len(data), np.int64)
    values, unit[~is_missing] = np.unique(data[~is_missing], return_inverse=True)
    n_missing = int(is_missing.sum())
    unit[is_missing] = len(values) + np.arange(n_missing)
    return unit, n_missing
