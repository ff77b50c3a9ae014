"""Comparisons of searches, head by head: two patterns, groups of examples, and a number of the examples.

- `versus`: the mass of a pattern minus that of another, paired by example. Only examples in which both match take part.
- `split_by`: the mass in each group of examples that share a label, with a test between the groups.
- `correlate`: Spearman's rank correlation of an example's mass with a number.

Layers whose masks hide matching keys have examples of their own: those of which they see a row. `unit` names the
annotation that groups examples which are not independent (`sampling_units`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float64, Int64

from ..errors import ConfigError, NotFoundError
from ..queries.evidence.resampling import same_rows
from ..queries.evidence.sampling_units import SamplingUnits, sampling_units
from ..queries.pattern_search import SearchResult
from ..reading.data_frames import ShownAsTable
from ..reading.snapshot import Snapshot
from ..schema.token_table import Column
from .example_tests import MINIMUM_UNITS, groups_differ, interval, q_values, rank_correlation, two_sided

MAX_GROUPS = 12
_HEADS = ("layer", "head")


@dataclass(frozen=True, repr=False)
class Versus(ShownAsTable):
    """The mass of a pattern compared with that of another pattern."""

    search: SearchResult
    other: SearchResult
    example: Int64[np.ndarray, "example"]
    """Numbers of the examples in which both patterns match."""
    difference: Float64[np.ndarray, "layer head example"] = field(repr=False)
    """Mass of the pattern minus that of the other, of each example; NaN where the layer sees no row of one of them."""
    heads: xr.Dataset
    """`mass`, `mass_versus` (means over these examples, each with the same weight), `difference`, `low`, `high` (95 %),
    `p_value` (two-sided, paired), `q_value`, `examples` (number of them); dims (layer, head)."""
    units: SamplingUnits
    n_units: int

    def table(self) -> pd.DataFrame:
        """Return one row for each head, the largest absolute difference first."""
        table, _ = heads_table(self.heads, "difference")
        return table.assign(versus=str(self.other.pattern), examples=table["examples"].astype(np.int64))

    def extreme_examples(self, layer: int, head: int, n: int | None = None) -> list[tuple[int, float]]:
        """Return the examples with the largest differences in the direction of the head's mean, and the differences."""
        values = self.difference[self.search.site.layer_index(layer), head]
        example, values = self.example[np.isfinite(values)], values[np.isfinite(values)]
        order = np.argsort(-values * (np.sign(values.mean()) or 1.0) if len(values) else values, kind="stable")[:n]
        return list(zip(example[order].tolist(), values[order].tolist(), strict=True))


def versus(result: SearchResult, others: Sequence[SearchResult], unit: str | None = None) -> list[Versus]:
    """Compare the mass of a search with that of others over the same examples, paired by example.

    `q_value` is the false-discovery rate over all heads and all patterns of the call. With fewer than five examples or
    units in which both match there is no interval and no test.

    Raises
    ------
    ConfigError
        The searches are over different stores or sites.
    """
    comparisons, units = [], sampling_units(result.store, unit)
    for other in others:
        if other.store is not result.store or other.site.name != result.site.name:
            raise ConfigError("the searches have different stores or sites; expected two patterns over one site")
        numbers, own, theirs = np.intersect1d(
            result.example_mass["example"], other.example_mass["example"], assume_unique=True, return_indices=True
        )
        mass, other_mass = (
            searched.example_mass.to_numpy()[:, :, index].astype(np.float64)
            for searched, index in ((result, own), (other, theirs))
        )
        numbers, difference = numbers.astype(np.int64), mass - other_mass
        names = ("mass", "mass_versus", "difference", "low", "high", "p_value", "examples")
        columns = {name: np.full(difference.shape[:2], np.nan) for name in names}
        for layers, both in same_rows(np.asarray(np.isfinite(difference).all(axis=1))):
            own, codes = difference[layers][:, :, both], units.of(numbers[both])
            columns["low"][layers], columns["high"][layers] = interval(own, np.ones(len(codes)), codes)
            columns["p_value"][layers] = two_sided(own, codes)
            columns["examples"][layers] = len(codes)
            for name, values in (("mass", mass), ("mass_versus", other_mass), ("difference", difference)):
                columns[name][layers] = _mean(values[layers][:, :, both])
        comparisons.append((other, numbers, difference, columns))
    q = q_values(np.stack([columns["p_value"] for *_, columns in comparisons])) if comparisons else []
    return [
        Versus(
            result,
            other,
            numbers,
            difference,
            _dataset(columns | {"q_value": q_value}, result),
            units,
            units.count(numbers),
        )
        for (other, numbers, difference, columns), q_value in zip(comparisons, q, strict=True)
    ]


@dataclass(frozen=True, repr=False)
class Split(ShownAsTable):
    """The mass of a pattern in groups of examples."""

    search: SearchResult
    column: str
    labels: tuple[str, ...]
    """Labels of the groups, the most frequent first."""
    examples: tuple[int, ...]
    """Number of examples with a match in each group."""
    rows: tuple[int, ...]
    """Number of rows of each group, in the layer that sees most of them."""
    left_out: int
    """Number of examples with a match that have no label, or one of a group that is not compared."""
    few: tuple[str, ...]
    """Labels of the groups with fewer sampling units than a test needs. If there is one, nothing is tested."""
    groups: xr.Dataset
    """`mass` (over rows), `low`, `high`; dims (group, layer, head), coordinate `group` of labels."""
    heads: xr.Dataset
    """`spread` (largest mass of a group minus the smallest), `p_value` (all groups equal), `q_value`; dims
    (layer, head)."""
    units: SamplingUnits
    n_units: int

    def table(self) -> pd.DataFrame:
        """Return one row for each head, the largest spread first; `mass_LABEL`, `low_LABEL`, `high_LABEL` of groups."""
        table, order = heads_table(self.heads, "spread")
        for index, label in enumerate(self.labels):
            for name in ("mass", "low", "high"):
                table[f"{name}_{label}"] = self.groups[name].to_numpy()[index].ravel()[order]
        return table


def split_by(
    result: SearchResult,
    column: str,
    labels: Sequence[str] | None = None,
    unit: str | None = None,
) -> Split:
    """Compare the mass of a search between the groups of examples that an annotation of examples makes.

    Parameters
    ----------
    labels
        Groups to compare. The default are all, at most `MAX_GROUPS`, the most frequent first.

    Raises
    ------
    NotFoundError
        The examples have no such annotation, or no example with a match has one of the labels.
    ConfigError
        There are fewer than two groups.
    """
    numbers = result.example_mass["example"].to_numpy()
    values = [None if value in (None, "") else str(value) for value in _values(result.store, column, numbers)]
    counts = Counter(value for value in values if value is not None)
    chosen = list(dict.fromkeys(labels)) if labels else [label for label, _ in counts.most_common(MAX_GROUPS)]
    for label in chosen:
        if label not in counts:
            raise NotFoundError(
                f"no example with a match has {column} {label!r}; there are {', '.join(map(repr, counts)) or 'none'}"
            )
    if len(chosen) < 2:
        values_text = f"only the value {chosen[0]!r}" if chosen else "no value"
        raise ConfigError(
            f"{column} has {values_text} in the {len(numbers):,} examples with a match; expected two or more groups. "
            "Choose another column, or a pattern that matches in more examples."
        )
    group = np.array([chosen.index(value) if value in chosen else -1 for value in values], np.int64)
    in_group, units = group >= 0, sampling_units(result.store, unit)
    sums = result.example_sums
    shape = sums.shape[:2]
    parts = {name: np.full((len(chosen), *shape), np.nan) for name in ("mass", "low", "high")}
    p_value, n_rows = np.full(shape, np.nan), np.zeros((len(chosen), shape[0]), np.int64)
    for layers, rows in same_rows(result.example_rows):
        has_rows = rows > 0
        for number in range(len(chosen)):
            index = np.flatnonzero((group == number) & has_rows)
            n_rows[number, layers] = rows[index].sum()
            if len(index):
                own = sums[layers][:, :, index]
                parts["mass"][number, layers] = own.sum(axis=2) / rows[index].sum()
                ends = interval(own, rows[index], units.of(numbers[index]))
                parts["low"][number, layers], parts["high"][number, layers] = ends
        index = np.flatnonzero(in_group & has_rows)
        if len(np.unique(group[index])) == len(chosen):
            own_codes = units.of(numbers[index])
            p_value[layers] = groups_differ(sums[layers][:, :, index], rows[index], group[index], own_codes)
    groups = xr.Dataset(
        {name: (("group", *_HEADS), values) for name, values in parts.items()},
        {"group": chosen, "layer": result.heads["layer"], "head": result.heads["head"]},
    )
    mass = parts["mass"]
    columns = {"spread": mass.max(axis=0) - mass.min(axis=0), "p_value": p_value, "q_value": q_values(p_value)}
    return Split(
        result,
        column,
        tuple(chosen),
        tuple(int((group == number).sum()) for number in range(len(chosen))),
        tuple(n_rows.max(axis=1, initial=0).tolist()),
        int((~in_group).sum()),
        tuple(label for i, label in enumerate(chosen) if units.count(numbers[group == i]) < MINIMUM_UNITS),
        groups,
        _dataset(columns, result),
        units,
        units.count(numbers[in_group]),
    )


@dataclass(frozen=True, repr=False)
class Correlated(ShownAsTable):
    """Correlation of the mass of a pattern with a number of the examples."""

    search: SearchResult
    column: str
    example: Int64[np.ndarray, "example"]
    """Numbers of the examples with a match and a number."""
    value: Float64[np.ndarray, "example"]
    left_out: int
    """Number of examples with a match but without a number."""
    heads: xr.Dataset
    """`rho`, `low`, `high` (95 %), `p_value` (two-sided), `q_value`, `examples` and `units` (numbers of them); dims
    (layer, head)."""
    units: SamplingUnits
    n_units: int

    def table(self) -> pd.DataFrame:
        """Return one row for each head, the largest absolute correlation first."""
        table, _ = heads_table(self.heads, "rho")
        return table.astype({"examples": np.int64, "units": np.int64})

    def scatter(self, layer: int, head: int) -> pd.DataFrame:
        """Return the number and the mass of a head on each example that the layer has rows of: example, value, mass."""
        index = np.searchsorted(self.search.example_mass["example"], self.example)
        mass = self.search.example_mass.to_numpy()[self.search.site.layer_index(layer), head, index]
        table = pd.DataFrame({"example": self.example, "value": self.value, "mass": mass.astype(np.float64)})
        return table.take(np.flatnonzero(np.isfinite(mass)).tolist()).reset_index(drop=True)


def correlate(result: SearchResult, column: str, unit: str | None = None) -> Correlated:
    """Correlate the mass of every head on an example with a numeric annotation of examples: Spearman's ρ.

    Raises
    ------
    NotFoundError
        The examples have no such annotation.
    ConfigError
        It is not a number, or equal in all examples with a match or in all sampling units.
    """
    numbers = result.example_mass["example"].to_numpy()
    number = example_numbers_of(result.store, column, numbers)
    has_number: Bool[np.ndarray, "example"] = np.isfinite(number)
    sums, units = result.example_sums, sampling_units(result.store, unit)
    check_numbers_differ(column, number, units.of(numbers), units.name, "examples with a match")
    names = ("rho", "low", "high", "p_value", "examples", "units")
    columns = {name: np.full(sums.shape[:2], np.nan) for name in names}
    for layers, rows in same_rows(result.example_rows):
        index = np.flatnonzero(has_number & (rows > 0))
        correlation = rank_correlation(sums[layers][:, :, index], rows[index], number[index], units.of(numbers[index]))
        for name in ("rho", "low", "high", "p_value"):
            columns[name][layers] = getattr(correlation, name)
        columns["examples"][layers], columns["units"][layers] = len(index), correlation.n_units
    return Correlated(
        result,
        column,
        numbers[has_number],
        number[has_number],
        int((~has_number).sum()),
        _dataset(columns | {"q_value": q_values(columns["p_value"])}, result),
        units,
        units.count(numbers[has_number]),
    )


def check_numbers_differ(
    column: str, values: Float64[np.ndarray, "row"], unit: Int64[np.ndarray, "row"], unit_name: str, noun: str
) -> None:
    """Check that the means of sampling units differ. Values that are not finite do not count.

    `noun` names the rows in messages, such as "examples with a match".

    Raises
    ------
    ConfigError
        There are no two different numbers, or units do not differ.
    """
    is_number = np.isfinite(values)
    numbers, unit = values[is_number], unit[is_number]
    advice = "Choose another column, or a pattern that matches in more examples."
    if len(numbers) < 2:
        count = "one number" if len(numbers) else "no number"
        raise ConfigError(f"{column} has {count} in the {len(values):,} {noun}; expected two or more. {advice}")
    if (numbers == numbers[0]).all():
        raise ConfigError(
            f"{column} has the same value, {numbers[0]:g}, in the {len(numbers):,} {noun} that have a number; expected "
            f"different numbers. {advice}"
        )
    code = np.unique(unit, return_inverse=True)[1]
    means = np.bincount(code, numbers) / np.bincount(code)
    if np.ptp(means) <= 1e-12 * np.abs(numbers).max():
        raise ConfigError(
            f"{column} has the same mean in each of the {len(means):,} sampling units (values of {unit_name}); expected "
            "means that differ. Name another unit with --unit, or compare groups with headatlas search --split."
        )


def example_numbers_of(
    store: Snapshot, column: str, numbers: Int64[np.ndarray, "example"]
) -> Float64[np.ndarray, "example"]:
    """Return a numeric annotation of the examples with these numbers; NaN where it is missing.

    Raises
    ------
    NotFoundError
        The examples have no such annotation.
    ConfigError
        It is text.
    """
    values = _values(store, column, numbers)
    if any(isinstance(value, str) for value in values):
        raise ConfigError(f"{column} is text; expected numbers. Compare groups with headatlas search --split {column}.")
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _values(store: Snapshot, column: str, numbers: Int64[np.ndarray, "example"]) -> list[str | int | float | None]:
    """Return an annotation of some examples; None where it is missing."""
    columns = store.example_columns()
    if column not in columns:
        raise NotFoundError(
            f"{store.location}: examples have no annotation {column!r}; this store has "
            f"{', '.join(columns) or 'none'}. Name a column of examples."
        )
    values: Column = columns[column]
    position = np.searchsorted(store.example_numbers(), numbers)
    taken = values.take(position)
    missing = values.missing
    return [None if value is None or value == missing or value != value else value for value in taken.to_list()]


def _mean(values: Float64[np.ndarray, "layer head example"]) -> Float64[np.ndarray, "layer head"]:
    return values.mean(axis=2) if values.shape[2] else np.full(values.shape[:2], np.nan)


def _dataset(columns: dict[str, np.ndarray], result: SearchResult) -> xr.Dataset:
    coords = {name: result.heads[name] for name in _HEADS}
    return xr.Dataset({name: (_HEADS, values) for name, values in columns.items()}, coords)


def heads_table(heads: xr.Dataset, by: str) -> tuple[pd.DataFrame, Int64[np.ndarray, "head"]]:
    """Return one row for each head, the largest absolute value first, and the number of each row's head."""
    table = heads.to_dataframe(dim_order=list(_HEADS)).reset_index()
    order = np.argsort(-np.abs(np.nan_to_num(table[by].to_numpy())), kind="stable")
    return table.take(order.tolist()).reset_index(drop=True), order
