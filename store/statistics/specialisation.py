"""Corpus tables of the stored statistics, and what each head does more than chance would.

A statistic that is the mass of a library pattern has a uniform baseline: what a head that spreads its attention evenly
would score on the same texts. The behaviour that exceeds its baseline most is what a head is listed under.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..errors import NotFoundError
from ..patterns import Pattern
from ..schema import Site
from ..search.scan import RowSupport
from ..search.segment_tokens import segment_matcher, site_vocabulary
from ..store import Store
from .definitions import STATISTICS, Average, Statistic, aggregate


def statistics_table(
    store: Store, names: Sequence[str] = (), site: str | None = None, average: Average = "rows"
) -> pd.DataFrame:
    """Corpus mean of statistics: one row a head, columns layer, head and each of `names` (default: all that are kept).

    Raises
    ------
    NotFoundError
        The store does not have a statistic, or kept none.
    """
    found = store.site(site)
    data = store.statistics(found.name)
    for name in names:
        if name not in data:
            raise NotFoundError(f"{store.location}: no statistic {name!r}; this store has {', '.join(map(str, data))}.")
    layer, head = (grid.ravel() for grid in np.indices((found.n_layers, found.n_heads)))
    columns = {"layer": layer, "head": head}
    for name in names or map(str, data):
        columns[name] = aggregate(data[name].to_numpy(), _rows(store, found, STATISTICS.get(name)), average).ravel()
    return pd.DataFrame(columns)


def specialised_heads(store: Store, site: str | None = None, average: Average = "rows") -> pd.DataFrame:
    """Each head with the behaviour in which it exceeds uniform attention most, the most specialised first.

    Columns: layer, head, behaviour (a statistic's name), value, baseline, lift, excess (value − baseline) and every
    stored statistic.
    """
    found = store.site(site)
    table = statistics_table(store, (), found.name, average)
    known = [s for s in STATISTICS.values() if s.pattern and s.name in table and table[s.name].notna().to_numpy().any()]
    if not known:
        raise NotFoundError(f"{store.location}: none of the stored statistics of {found.name} has a uniform baseline.")
    baselines = np.stack(
        [uniform_baseline(store, found, statistic, average) for statistic in known]
    )  # [statistic, layer]
    values = np.stack([table[statistic.name].to_numpy() for statistic in known])  # [statistic, head of the model]
    chance = baselines[:, table["layer"].to_numpy()]
    excess = np.where(np.isnan(values), -np.inf, values - np.nan_to_num(chance))
    best, at = excess.argmax(axis=0), np.arange(len(table))
    value, baseline = values[best, at], chance[best, at]
    lift = np.divide(value, baseline, out=np.full(len(value), np.nan), where=baseline > 0)
    front = {
        "layer": table["layer"],
        "head": table["head"],
        "behaviour": [known[index].name for index in best],
        "value": value,
        "baseline": baseline,
        "lift": lift,
        "excess": excess[best, at],
    }
    rest = table.drop(columns=["layer", "head"])
    result = pd.concat([pd.DataFrame(front), rest], axis=1)
    return result.sort_values("excess", ascending=False, kind="stable", ignore_index=True)


def uniform_baseline(
    store: Store, site: Site, statistic: Statistic, average: Average = "rows"
) -> Float[np.ndarray, "layer"]:
    """What uniform attention would score in `statistic`, for each layer (their windows differ)."""
    assert statistic.pattern is not None, "only the mass of a pattern has a uniform baseline"
    pattern, vocabulary = Pattern.parse(statistic.pattern), site_vocabulary(store, site)
    windows = list(dict.fromkeys(site.window))
    parts = []
    for segment in store.segments:
        uniform = np.zeros((len(windows), segment.n_examples))
        matcher = segment_matcher(segment, site, pattern, vocabulary)
        for matches in matcher:
            support = RowSupport(matches, matcher, site)
            for sums, window in zip(uniform, windows, strict=True):
                np.add.at(sums, support.example, support.uniform(window))
        parts.append(uniform)
    rows = _rows(store, site, statistic)
    total = np.concatenate([np.zeros((len(windows), 0)), *parts], axis=1)
    mean = np.divide(total, rows, out=np.full(total.shape, np.nan), where=rows > 0)
    by_window = aggregate(mean[None], rows, average)[0]
    return np.array([by_window[windows.index(window)] for window in site.window])


def _rows(store: Store, site: Site, statistic: Statistic | None) -> np.ndarray:
    """Rows of each example that count; a statistic of a newer version counts every row."""

    def lengths(sequence: str) -> np.ndarray:
        parts = [np.diff(segment.token_offset(sequence)) for segment in store.segments]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    n_queries = lengths(site.query_sequence)
    return n_queries if statistic is None else statistic.rows(n_queries, lengths(site.key_sequence))
