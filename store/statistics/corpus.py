"""Statistics as labelled xarray datasets: every example, and how they lie over a corpus."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float32, Int64

from ..errors import ConfigError
from .definitions import Average, aggregate

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 32


def corpus_summary(
    values: Mapping[str, Float32[np.ndarray, "layer head example"]],
    rows: Mapping[str, Int64[np.ndarray, "example"]],
    average: Average = "rows",
    bins: int = BINS,
) -> xr.Dataset:
    """How each statistic of each head lies over the examples of a corpus.

    Variables, float64 unless said: `mean` (weighed as `average` says), `deviation` (standard deviation over examples,
    each alike, of those that have a value), `quantile_value` (of examples alike, dim quantile), `histogram` (int64 counts of
    examples in `bins` equal steps between `bin_edge`, which all heads of a statistic share), `examples` (int64, that
    have a value) and `rows` (int64, that count). Dims (statistic, layer, head, ...). NaN where no example has a value.

    Raises
    ------
    ConfigError
        Fewer than one bin.
    """
    if bins < 1:
        raise ConfigError(f"bins is {bins}; expected at least 1")
    heads = ("statistic", "layer", "head")
    parts = [_summarise(values[name], rows[name], average, bins) for name in values]
    dims = {
        "mean": heads,
        "deviation": heads,
        "quantile_value": (*heads, "quantile"),
        "histogram": (*heads, "bin"),
        "bin_edge": ("statistic", "edge"),
        "examples": heads,
        "rows": ("statistic",),
    }
    data = {name: (dims[name], np.stack([part[name] for part in parts])) for name in dims} if parts else {}
    return xr.Dataset(data, {"statistic": list(values), "quantile": list(QUANTILES)})


def summary_frame(summary: xr.Dataset, statistic: str) -> pd.DataFrame:
    """One statistic of a summary as a table, the largest mean first: layer, head, mean, deviation, q05 … q95, examples."""
    one = summary.sel(statistic=statistic)
    layer, head = (grid.ravel() for grid in np.indices(one["mean"].shape))
    columns = {"layer": layer, "head": head}
    columns |= {name: one[name].to_numpy().ravel() for name in ("mean", "deviation")}
    for quantile in summary["quantile"].to_numpy():
        columns[f"q{round(100 * quantile):02d}"] = one["quantile_value"].sel(quantile=quantile).to_numpy().ravel()
    table = pd.DataFrame({**columns, "examples": one["examples"].to_numpy().ravel(), "rows": int(one["rows"])})
    return table.sort_values("mean", ascending=False, kind="stable", na_position="last", ignore_index=True)


def _summarise(
    values: Float32[np.ndarray, "layer head example"], rows: Int64[np.ndarray, "example"], average: Average, bins: int
) -> dict[str, np.ndarray]:
    n_layers, n_heads, _ = values.shape
    present = np.isfinite(values)
    n_present = present.sum(axis=2)
    exact = np.where(present, values, 0).astype(np.float64)
    centre = np.divide(exact.sum(axis=2), n_present, out=np.full(n_present.shape, np.nan), where=n_present > 0)
    squares = np.where(present, (exact - np.nan_to_num(centre)[:, :, None]) ** 2, 0).sum(axis=2)
    spread = np.sqrt(np.divide(squares, n_present, out=np.full(n_present.shape, np.nan), where=n_present > 0))
    quantiles = np.full((n_layers, n_heads, len(QUANTILES)), np.nan)
    histogram = np.zeros((n_layers, n_heads, bins), np.int64)
    edges = np.linspace(*(_range(exact[present]) if present.any() else (0.0, 1.0)), bins + 1)
    for head in np.ndindex(n_layers, n_heads):
        found = exact[head][present[head]]
        if len(found):
            quantiles[head] = np.quantile(found, QUANTILES)
            histogram[head] = np.histogram(found, edges)[0]
    return {
        "mean": aggregate(values, rows, average),
        "deviation": spread,
        "quantile_value": quantiles,
        "histogram": histogram,
        "bin_edge": edges,
        "examples": n_present.astype(np.int64),
        "rows": np.array(rows.sum(), np.int64),
    }


def _range(values: np.ndarray) -> tuple[float, float]:
    """Where a histogram begins and ends; a share's is 0 to 1."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)
