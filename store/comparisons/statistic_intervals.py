"""Intervals over sampling units of the corpus means of statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ..queries.evidence.resampling import same_rows
from ..queries.evidence.sampling_units import SamplingUnits, sampling_units
from ..reading.snapshot import Snapshot
from ..statistics.definitions import Average
from ..statistics.measurement import StatisticValues, measured_statistics
from ..statistics.specialisation import CORPUS_STATISTICS
from .example_tests import interval


@dataclass(frozen=True)
class StatisticIntervals:
    """95 % intervals of corpus means, by name of the statistic. Statistics of a whole corpus have none."""

    low: dict[str, Float64[np.ndarray, "layer head"]]
    high: dict[str, Float64[np.ndarray, "layer head"]]
    units: SamplingUnits
    n_units: int
    """Number of units with a row of one of the statistics."""


def statistic_intervals(
    store: Snapshot,
    names: Sequence[str],
    site: str | None = None,
    average: Average = "rows",
    *,
    unit: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> StatisticIntervals:
    """Compute the intervals of the means that `statistics_table` returns; NaN for fewer than five units.

    Parameters
    ----------
    unit
        Sampling unit (`sampling_units`).

    Raises
    ------
    ConfigError
        There is no such statistic.
    NotFoundError
        The store has neither the statistic nor the attention to compute it from, or there is no such unit.
    """
    site_spec, units = store.site(site), sampling_units(store, unit)
    of_examples = [name for name in names if name not in CORPUS_STATISTICS]
    measured = measured_statistics(store, of_examples, site_spec.name, on_progress=on_progress)
    numbers, has_rows = store.example_numbers(), np.zeros(store.n_examples, bool)
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    for name in of_examples:
        weights = _weights(measured[name], average)
        has_rows |= weights.any(axis=(0, 1))
        sums = (np.nan_to_num(measured[name].values.astype(np.float64)) * weights).reshape(-1, len(numbers))
        ends = np.full((2, len(sums)), np.nan)
        for heads, rows in same_rows(weights.reshape(sums.shape)):
            index = np.flatnonzero(rows)
            ends[:, heads] = interval(sums[heads][:, index], rows[index], units.of(numbers[index]))
        low[name], high[name] = ends.reshape(2, *weights.shape[:2])
    return StatisticIntervals(low, high, units, units.count(numbers[has_rows]))


def _weights(statistic: StatisticValues, average: Average) -> Float64[np.ndarray, "layer head example"]:
    """Return the weight of each example in the mean of each head; 0 for examples without a value."""
    rows = np.broadcast_to(statistic.rows, (len(statistic.values), statistic.rows.shape[-1]))
    weights = rows if average == "rows" else rows > 0
    return weights[:, None].astype(np.float64) * np.isfinite(statistic.values)
