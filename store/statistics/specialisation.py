"""Corpus tables of statistics, and the behaviour in which each head exceeds uniform attention most.

A statistic that is the mass of a library pattern has a uniform baseline: the value of a head with uniform attention on
the same texts. `specialised_heads` lists each head under the behaviour that exceeds its baseline most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..errors import NotFoundError
from ..patterns import Pattern
from ..patterns.matching_rows import MatchingRows
from ..patterns.segment_matcher import segment_matcher, site_vocabulary
from ..reading.snapshot import Snapshot
from ..schema.capture_statistics import STATISTICS, Statistic
from ..schema.traces import Site
from .definitions import Average, aggregate
from .measurement import corpus_means, read_cached_array, statistic_rows, write_cached_array


def statistics_table(
    store: Snapshot,
    names: Sequence[str] = (),
    site: str | None = None,
    average: Average = "rows",
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> pd.DataFrame:
    """Return a table of corpus means: one row for each head, columns layer, head and `names` (default: all stored).

    Statistics that the store does not hold are computed from its attention (`measurement.py`).

    Raises
    ------
    ConfigError
        There is no such statistic.
    NotFoundError
        The store has no statistics, or neither the statistic nor the attention to compute it from.
    """
    site_spec = store.site(site)
    statistic_names = list(names) or list(store.statistic_names(site_spec.name))
    if not statistic_names:
        store.statistics(site_spec.name)  # raises an error that says what the job must keep
    means = corpus_means(store, statistic_names, site_spec.name, average, on_progress)
    columns = site_spec.head_columns()
    columns |= {name: mean.ravel() for name, mean in means.items()}
    return pd.DataFrame(columns)


def specialised_heads(store: Snapshot, site: str | None = None, average: Average = "rows") -> pd.DataFrame:
    """Return each head with the behaviour in which it exceeds uniform attention most, the most specialised head first.

    Columns: layer, head, behaviour (name of a statistic), value, baseline, lift, excess (value − baseline) and every
    stored statistic.
    """
    site_spec = store.site(site)
    table = statistics_table(store, (), site_spec.name, average)
    candidates = [
        s for s in STATISTICS.values() if s.pattern and s.name in table and table[s.name].notna().to_numpy().any()
    ]
    if not candidates:
        raise NotFoundError(
            f"{store.location}: no stored statistic of {site_spec.name} has a uniform baseline; name a statistic"
        )
    baselines = np.stack(
        [uniform_baseline(store, site_spec, statistic, average) for statistic in candidates]
    )  # [statistic, layer]
    values = np.stack([table[statistic.name].to_numpy() for statistic in candidates])  # [statistic, head of the model]
    head_baselines = np.repeat(baselines, site_spec.n_heads, axis=1)
    excess = np.where(np.isnan(values), -np.inf, values - np.nan_to_num(head_baselines))
    best, head_index = excess.argmax(axis=0), np.arange(len(table))
    value, baseline = values[best, head_index], head_baselines[best, head_index]
    lift = np.divide(value, baseline, out=np.full(len(value), np.nan), where=baseline > 0)
    leading_columns = {
        "layer": table["layer"],
        "head": table["head"],
        "behaviour": [candidates[index].name for index in best],
        "value": value,
        "baseline": baseline,
        "lift": lift,
        "excess": excess[best, head_index],
    }
    statistics = table.drop(columns=["layer", "head"])
    result = pd.concat([pd.DataFrame(leading_columns), statistics], axis=1)
    return result.sort_values("excess", ascending=False, kind="stable", ignore_index=True)


def uniform_baseline(
    store: Snapshot, site: Site, statistic: Statistic, average: Average = "rows"
) -> Float[np.ndarray, "layer"]:
    """Compute the value of `statistic` for uniform attention in each layer (masks differ between layers)."""
    assert statistic.pattern is not None, "only the mass of a pattern has a uniform baseline"
    baseline = read_cached_array(store, site, f"uniform-{average}", statistic.name, (site.n_layers,))
    if baseline is None:
        baseline = _uniform_baseline(store, site, statistic, average)
        write_cached_array(store, site, f"uniform-{average}", statistic.name, baseline)
    return baseline


def _uniform_baseline(
    store: Snapshot, site: Site, statistic: Statistic, average: Average
) -> Float[np.ndarray, "layer"]:
    assert statistic.pattern is not None
    pattern, vocabulary = Pattern.parse(statistic.pattern), site_vocabulary(store, site)
    masks = list(dict.fromkeys(site.masks))
    segment_sums = []
    for segment in store.segments:
        uniform = np.zeros((len(masks), segment.n_examples))
        matcher = segment_matcher(segment, site, pattern, vocabulary)
        for matches in matcher:
            matching_rows = MatchingRows(matches, matcher, site, segment)
            for sums, mask in zip(uniform, masks, strict=True):
                np.add.at(sums, matching_rows.example, matching_rows.uniform(mask))
        segment_sums.append(uniform)
    rows = statistic_rows(store, site, statistic.name)
    total = np.concatenate([np.zeros((len(masks), 0)), *segment_sums], axis=1)
    mean = np.divide(total, rows, out=np.full(total.shape, np.nan), where=rows > 0)
    by_mask = aggregate(mean[None], rows, average)[0]
    return np.array([by_mask[masks.index(mask)] for mask in site.masks])
