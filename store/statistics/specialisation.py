"""Corpus tables of the stored statistics, and what each head does more than chance would.

A statistic that is the mass of a library pattern has a uniform baseline: what a head that spreads its attention evenly
would score on the same texts. The behaviour that exceeds its baseline most is what a head is listed under.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..errors import NotFoundError
from ..patterns import Pattern
from ..patterns.matching_rows import RowSupport
from ..patterns.segment_matcher import segment_matcher, site_vocabulary
from ..reading.snapshot import Snapshot
from ..schema.capture_statistics import STATISTICS, Statistic
from ..schema.traces import Site
from .definitions import Average, aggregate
from .measurement import corpus_means, keep_array, kept_array, statistic_rows


def statistics_table(
    store: Snapshot,
    names: Sequence[str] = (),
    site: str | None = None,
    average: Average = "rows",
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> pd.DataFrame:
    """Corpus mean of statistics: one row a head, columns layer, head and each of `names` (default: all that are kept).

    Those that the store does not hold are computed from its attention (`measured.py`).

    Raises
    ------
    ConfigError
        There is no such statistic.
    NotFoundError
        The store kept none, or neither the statistic nor the attention to compute it from.
    """
    found = store.site(site)
    wanted = list(names) or list(store.statistic_names(found.name))
    if not wanted:
        store.statistics(found.name)  # says what the job must keep
    means = corpus_means(store, wanted, found.name, average, on_progress)
    layer, head = (grid.ravel() for grid in np.indices((found.n_layers, found.n_heads)))
    columns = {"layer": layer, "head": head}
    columns |= {name: mean.ravel() for name, mean in means.items()}
    return pd.DataFrame(columns)


def specialised_heads(store: Snapshot, site: str | None = None, average: Average = "rows") -> pd.DataFrame:
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
    store: Snapshot, site: Site, statistic: Statistic, average: Average = "rows"
) -> Float[np.ndarray, "layer"]:
    """What uniform attention would score in `statistic`, for each layer (their windows differ)."""
    assert statistic.pattern is not None, "only the mass of a pattern has a uniform baseline"
    kept = kept_array(store, site, f"uniform-{average}", statistic.name, (site.n_layers,))
    if kept is None:
        kept = _uniform_baseline(store, site, statistic, average)
        keep_array(store, site, f"uniform-{average}", statistic.name, kept)
    return kept


def _uniform_baseline(
    store: Snapshot, site: Site, statistic: Statistic, average: Average
) -> Float[np.ndarray, "layer"]:
    assert statistic.pattern is not None
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
    rows = statistic_rows(store, site, statistic.name)
    total = np.concatenate([np.zeros((len(windows), 0)), *parts], axis=1)
    mean = np.divide(total, rows, out=np.full(total.shape, np.nan), where=rows > 0)
    by_window = aggregate(mean[None], rows, average)[0]
    return np.array([by_window[windows.index(window)] for window in site.window])
