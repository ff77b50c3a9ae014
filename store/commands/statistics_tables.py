"""Tables of statistics on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from rich.table import Table

from ..patterns.lexer import printable
from ..schema.capture_statistics import STATISTICS
from ..statistics.definitions import DERIVED_STATISTICS, SINK_FREE
from .tables import bar, interval, number, percent, plain_table

_OFFSETS_SHOWN, _SHARE_SHOWN = 12, 0.001


def unit_of(name: str) -> str:
    """Return the unit of a statistic by its name; an empty text if it is unknown."""
    statistic = {**STATISTICS, **DERIVED_STATISTICS}.get(name.removesuffix(SINK_FREE))
    return statistic.unit if statistic else ""


def statistics_rich_table(heads: pd.DataFrame, names: Sequence[str], units: Mapping[str, str]) -> Table:
    """Create a table of statistics with one row for each head; `units` has the units of added statistics.

    A statistic with the columns NAME_low and NAME_high has its interval beside it.
    """
    titles = []
    for name in names:
        unit = units[name] if name in units else unit_of(name)
        titles.append(printable(f"{name} ({unit})" if unit else name))
        titles += ["95 %"] if f"{name}_low" in heads else []
    table = plain_table(("head", "right"), *((title, "right") for title in titles))
    for row in heads.to_dict("records"):
        cells = []
        for name in names:
            cells.append(number(row[name]))
            cells += [interval(row[f"{name}_low"], row[f"{name}_high"])] if f"{name}_low" in row else []
        table.add_row(f"{row['layer']}.{row['head']}", *cells)
    return table


def spread_table(frame: pd.DataFrame, name: str) -> Table:
    """Create a table of mean, deviation and quantiles of one statistic, with one row for each head."""
    columns = [str(column) for column in frame if column not in ("layer", "head", "rows")]
    unit = unit_of(name)
    table = plain_table(("head", "right"), *((column, "right") for column in columns))
    table.title = f"{name} ({unit})" if unit else name
    for row in frame.to_dict("records"):
        cells = (f"{row[column]:,}" if column == "examples" else number(row[column]) for column in columns)
        table.add_row(f"{row['layer']}.{row['head']}", *cells)
    return table


def offsets_table(profile: xr.Dataset) -> Table:
    """Create a table of the offsets with the largest mass of one head, in order of offset."""
    share, offsets = profile["share"].to_numpy(), profile["offset"].to_numpy()
    rows = np.sort(np.argsort(-share, kind="stable")[:_OFFSETS_SHOWN])
    rows = rows[share[rows] >= _SHARE_SHOWN]
    table = plain_table(
        ("offset", "right"), ("mass", "right"), ("share of all", "right"), ("", "left"), ("rows", "right")
    )
    for row in rows.tolist():
        mass = float(profile["mass"][row])
        table.add_row(
            f"{offsets[row]:+d}",
            number(mass),
            f"{percent(float(share[row]))} %",
            bar(mass),
            f"{int(profile['rows'][row]):,}",
        )
    table.caption = f"{percent(float(profile['beyond']))} % of the mass is further away than {int(offsets[-1])} tokens"
    return table


def token_pairs_table(pairs: pd.DataFrame) -> Table:
    """Create a table of the token pairs with the largest weight of one head."""
    columns = (("weight", "right"), ("share of all", "right"), ("count", "right"), ("mean", "right"))
    table = plain_table(("query → key", "left"), *columns)
    for row in pairs.to_dict("records"):
        name = f"{printable(row['query'])} → {printable(row['key'])}"
        table.add_row(
            name, number(row["weight"], 1), f"{percent(row['share'])} %", f"{row['count']:,}", number(row["mean"])
        )
    return table


def comparison_table(metrics: pd.DataFrame) -> Table:
    """Create a table that compares the metrics of a store with a reference."""
    columns = (("heads", "right"), ("rank correlation", "right"), ("mean |difference|", "right"), ("largest", "right"))
    table = plain_table(("metric", "left"), *columns, ("at", "right"))
    for row in metrics.to_dict("records"):
        cells = (number(row[name], 4) for name in ("rank_correlation", "mean_difference", "largest_difference"))
        table.add_row(row["metric"], str(row["heads"]), *cells, f"{row['layer']}.{row['head']}")
    return table


def differences_table(heads: pd.DataFrame) -> Table:
    """Create a table of the heads that differ most from a reference."""
    columns = (("head", "right"), ("store", "right"), ("reference", "right"), ("difference", "right"))
    table = plain_table(("metric", "left"), *columns)
    for row in heads.to_dict("records"):
        cells = (number(row[name], 4) for name in ("store", "reference", "difference"))
        table.add_row(row["metric"], f"{row['layer']}.{row['head']}", *cells)
    return table
