"""Tables of statistics for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from rich.table import Table

from ..patterns.lexer import printable
from ..schema.capture_statistics import STATISTICS
from ..statistics.definitions import DERIVED_STATISTICS, SINK_FREE
from .tables import bar, number, percent, plain_table

_OFFSETS_SHOWN, _SHARE_SHOWN = 12, 0.001


def unit_of(name: str) -> str:
    """The unit of a statistic's name; "" where it is not known."""
    known = {**STATISTICS, **DERIVED_STATISTICS}.get(name.removesuffix(SINK_FREE))
    return known.unit if known else ""


def statistics_rich_table(heads: pd.DataFrame, names: Sequence[str], units: Mapping[str, str]) -> Table:
    """Chosen statistics of every head."""
    known = {name: units[name] if name in units else unit_of(name) for name in names}
    titles = [printable(f"{name} ({unit})" if unit else name) for name, unit in known.items()]
    table = plain_table(("head", "right"), *((title, "right") for title in titles))
    for row in heads.to_dict("records"):
        table.add_row(f"{row['layer']}.{row['head']}", *(number(row[name]) for name in names))
    return table


def spread_table(frame: pd.DataFrame, name: str) -> Table:
    """Mean, deviation and quantiles of one statistic of every head."""
    columns = [str(column) for column in frame if column not in ("layer", "head", "rows")]
    unit = unit_of(name)
    table = plain_table(("head", "right"), *((column, "right") for column in columns))
    table.title = f"{name} ({unit})" if unit else name
    for row in frame.to_dict("records"):
        cells = (f"{row[column]:,}" if column == "examples" else number(row[column]) for column in columns)
        table.add_row(f"{row['layer']}.{row['head']}", *cells)
    return table


def offsets_table(profile: xr.Dataset) -> Table:
    """The heaviest offsets of one head, in order."""
    share, offsets = profile["share"].to_numpy(), profile["offset"].to_numpy()
    chosen = np.sort(np.argsort(-share, kind="stable")[:_OFFSETS_SHOWN])
    chosen = chosen[share[chosen] >= _SHARE_SHOWN]
    table = plain_table(
        ("offset", "right"), ("mass", "right"), ("share of all", "right"), ("", "left"), ("rows", "right")
    )
    for at in chosen.tolist():
        mass = float(profile["mass"][at])
        table.add_row(
            f"{offsets[at]:+d}",
            number(mass),
            f"{percent(float(share[at]))} %",
            bar(mass),
            f"{int(profile['rows'][at]):,}",
        )
    table.caption = f"{percent(float(profile['beyond']))} % lies further away than {int(offsets[-1])} tokens"
    return table


def token_pairs_table(pairs: pd.DataFrame) -> Table:
    """The heaviest token pairs of one head."""
    columns = (("weight", "right"), ("share of all", "right"), ("seen", "right"), ("mean", "right"))
    table = plain_table(("query → key", "left"), *columns)
    for row in pairs.to_dict("records"):
        name = f"{printable(row['query'])} → {printable(row['key'])}"
        table.add_row(
            name, number(row["weight"], 1), f"{percent(row['share'])} %", f"{row['count']:,}", number(row["mean"])
        )
    return table


def comparison_table(metrics: pd.DataFrame) -> Table:
    """How a store's metrics lie beside a reference's."""
    columns = (("heads", "right"), ("rank correlation", "right"), ("mean |difference|", "right"), ("largest", "right"))
    table = plain_table(("metric", "left"), *columns, ("at", "right"))
    for row in metrics.to_dict("records"):
        cells = (number(row[name], 4) for name in ("rank_correlation", "mean_difference", "largest_difference"))
        table.add_row(row["metric"], str(row["heads"]), *cells, f"{row['layer']}.{row['head']}")
    return table


def differences_table(heads: pd.DataFrame) -> Table:
    """The heads that differ most."""
    columns = (("head", "right"), ("store", "right"), ("reference", "right"), ("difference", "right"))
    table = plain_table(("metric", "left"), *columns)
    for row in heads.to_dict("records"):
        cells = (number(row[name], 4) for name in ("store", "reference", "difference"))
        table.add_row(row["metric"], f"{row['layer']}.{row['head']}", *cells)
    return table
