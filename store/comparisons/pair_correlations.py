"""Correlation of the differences of minimal pairs with a number of the pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float64, Int64

from ..queries.evidence.resampling import same_rows
from ..queries.minimal_pairs import Contrast
from ..reading.snapshot import Snapshot
from .example_tests import q_values, rank_correlation
from .search_comparisons import check_numbers_differ, example_numbers_of, heads_table

_HEADS = ("layer", "head")


@dataclass(frozen=True)
class PairCorrelation:
    """Correlation of the differences of minimal pairs with a number that both members of a pair have."""

    contrast: Contrast
    column: str
    pair: Int64[np.ndarray, "pair"]
    """Indices of the pairs with a number among `contrast.pair_index`."""
    value: Float64[np.ndarray, "pair"]
    left_out: dict[str, int]
    """Number of compared pairs without a number, by reason."""
    heads: xr.Dataset
    """`rho`, `low`, `high` (95 %), `p_value` (two-sided), `q_value`, `difference` (mean), `pairs` and `units` (numbers of
    them); dims (layer, head)."""
    n_units: int

    def table(self) -> pd.DataFrame:
        """Return one row for each head, the largest absolute correlation first."""
        table, _ = heads_table(self.heads, "rho")
        return table.astype({"pairs": np.int64, "units": np.int64})

    @property
    def n_below(self) -> int:
        """Number of heads with q < .05."""
        return int((self.heads["q_value"] < 0.05).sum())

    def scatter(self, layer: int, head: int) -> pd.DataFrame:
        """Return the pairs of a head: pair, unit, value, difference. `unit` is the number of the sampling unit.

        Raises
        ------
        NotFoundError
            There is no such head.
        """
        difference = self.contrast.of_head(layer, head)[self.pair]
        names = [self.contrast.pairs.names[i] for i in self.contrast.pair_index[self.pair].tolist()]
        unit = self.contrast.units.of(self.contrast.pairs.first[self.contrast.pair_index[self.pair]])
        table = pd.DataFrame({"pair": names, "unit": unit, "value": self.value, "difference": difference})
        return table.take(np.flatnonzero(np.isfinite(difference)).tolist()).reset_index(drop=True)


def correlate_pairs(store: Snapshot, result: Contrast, column: str) -> PairCorrelation:
    """Correlate the difference of every head in a pair with a numeric annotation of its members: Spearman's ρ over units.

    Pairs whose members have different numbers, or none, are left out and counted. Heads whose differences are all
    within rounding have no correlation.

    Raises
    ------
    NotFoundError
        The examples have no such annotation.
    ConfigError
        It is not a number, or equal in all pairs or in all sampling units.
    """
    members = [numbers[result.pair_index] for numbers in (result.pairs.first, result.pairs.second)]
    first, second = (example_numbers_of(store, column, numbers) for numbers in members)
    is_missing, is_equal = np.isnan(first) | np.isnan(second), first == second
    pair = np.flatnonzero(is_equal)
    numbers = np.where(is_equal, first, np.nan)
    check_numbers_differ(column, numbers, result.units.of(members[0]), result.units.name, "compared pairs")
    reasons = {
        "without a number in both members": int(is_missing.sum()),
        "with different numbers in its members": int((~is_missing & ~is_equal).sum()),
    }
    names = ("rho", "low", "high", "p_value", "difference", "pairs", "units")
    columns = {name: np.full(result.difference.shape[:2], np.nan) for name in names}
    differences = result.difference[:, :, pair]
    for layers, compared in same_rows(np.asarray(np.isfinite(differences).all(axis=1))):
        own, index = differences[layers][:, :, compared], pair[compared]
        units = result.units.of(members[0][index])
        correlation = rank_correlation(own, np.ones(len(index)), first[index], units)
        is_rounding = np.abs(own).max(axis=2, initial=0) <= result.rounding
        for name in ("rho", "low", "high", "p_value"):
            columns[name][layers] = np.where(is_rounding, np.nan, getattr(correlation, name))
        if len(index):
            columns["difference"][layers] = own.mean(axis=2)
        columns["pairs"][layers], columns["units"][layers] = len(index), correlation.n_units
    columns["q_value"] = q_values(columns["p_value"])
    coords = {name: result.heads[name] for name in _HEADS}
    return PairCorrelation(
        result,
        column,
        pair,
        first[pair],
        {reason: n for reason, n in reasons.items() if n},
        xr.Dataset({name: (_HEADS, values) for name, values in columns.items()}, coords),
        result.units.count(members[0][pair]),
    )
