"""Summaries of statistics over a corpus as labelled xarray datasets and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Float32, Int64

from ..errors import ConfigError
from .definitions import Average, aggregate

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 32


def corpus_summary(
    values: Mapping[str, Float32[np.ndarray, "layer head example"]],
    rows: Mapping[str, Int64[np.ndarray, "*#layer example"]],
    average: Average = "rows",
    bins: int = BINS,
    layers: Sequence[int] | None = None,
) -> xr.Dataset:
    """Summarise the distribution of each statistic of each head over the examples of a corpus.

    Only examples with a value take part. `layers` are the numbers of the layers in the model, by default from 0. Dims
    (statistic, layer, head, ...). Variables, float64 unless stated:

    - `mean`: mean, weighted as `average` says; NaN if no example has a value,
    - `deviation`: standard deviation over examples with equal weight,
    - `quantile_value`: quantiles over examples with equal weight, dim quantile,
    - `histogram`: int64 counts of examples in `bins` equal steps between `bin_edge`, which all heads share,
    - `examples`: int64, number of examples,
    - `rows`: int64, number of rows in each layer, dims (statistic, layer): the masks of layers differ.

    Raises
    ------
    ConfigError
        `bins` is below 1.
    """
    if bins < 1:
        raise ConfigError(f"bins is {bins}; expected at least 1")
    heads = ("statistic", "layer", "head")
    summaries = [_summarise(values[name], rows[name], average, bins) for name in values]
    dims = {
        "mean": heads,
        "deviation": heads,
        "quantile_value": (*heads, "quantile"),
        "histogram": (*heads, "bin"),
        "bin_edge": ("statistic", "edge"),
        "examples": heads,
        "rows": ("statistic", "layer"),
    }
    data = (
        {name: (dims[name], np.stack([summary[name] for summary in summaries])) for name in dims} if summaries else {}
    )
    coords: dict[str, Any] = {"statistic": list(values), "quantile": list(QUANTILES)}
    if layers is not None:
        coords["layer"] = list(layers)
    return xr.Dataset(data, coords)


def summary_frame(
    summary: xr.Dataset,
    statistic: str,
    interval: tuple[Float[np.ndarray, "layer head"], Float[np.ndarray, "layer head"]] | None = None,
) -> pd.DataFrame:
    """Return one statistic as a table, largest mean first: layer, head, mean, deviation, q05 … q95, examples, rows.

    With an `interval` of the mean the columns low and high follow the mean.
    """
    selected = summary.sel(statistic=statistic)
    n_layers, n_heads = selected["mean"].shape
    columns = {"layer": np.repeat(selected["layer"].to_numpy(), n_heads), "head": np.tile(np.arange(n_heads), n_layers)}
    columns["mean"] = selected["mean"].to_numpy().ravel()
    if interval is not None:
        columns |= {"low": interval[0].ravel(), "high": interval[1].ravel()}
    columns["deviation"] = selected["deviation"].to_numpy().ravel()
    for quantile in summary["quantile"].to_numpy():
        columns[f"q{round(100 * quantile):02d}"] = selected["quantile_value"].sel(quantile=quantile).to_numpy().ravel()
    table = pd.DataFrame(
        {
            **columns,
            "examples": selected["examples"].to_numpy().ravel(),
            "rows": np.repeat(selected["rows"].to_numpy(), n_heads),
        }
    )
    return table.sort_values("mean", ascending=False, kind="stable", na_position="last", ignore_index=True)


def _summarise(
    values: Float32[np.ndarray, "layer head example"],
    rows: Int64[np.ndarray, "*#layer example"],
    average: Average,
    bins: int,
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
        head_values = exact[head][present[head]]
        if len(head_values):
            quantiles[head] = np.quantile(head_values, QUANTILES)
            histogram[head] = np.histogram(head_values, edges)[0]
    return {
        "mean": aggregate(values, rows, average),
        "deviation": spread,
        "quantile_value": quantiles,
        "histogram": histogram,
        "bin_edge": edges,
        "examples": n_present.astype(np.int64),
        "rows": np.broadcast_to(rows.sum(axis=-1), values.shape[:1]).astype(np.int64),
    }


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return the first and last edge of a histogram; 0 and 1 for shares."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)
