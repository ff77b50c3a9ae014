"""Corpus tables of statistics, and the behaviour in which each head exceeds uniform attention most.

A statistic that is the mass of a library pattern has a uniform baseline: the value of a head with uniform attention on
the same texts. `specialised_heads` lists each head under the behaviour that exceeds its baseline most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int64

from ..errors import NotFoundError
from ..reading.snapshot import Snapshot
from ..schema.capture_statistics import STATISTICS, Statistic
from ..schema.flat_rows import Rows
from ..schema.traces import Site
from .blocks import Block, map_blocks
from .definitions import Average, aggregate, statistic_of
from .measurement import StatisticValues, corpus_means, read_cached_array, write_cached_array
from .profiles import offset_decay

CORPUS_STATISTICS = ("decay", "decay_fit")
"""Numbers of a head over a whole corpus, without a value for each example."""


def statistics_table(
    store: Snapshot,
    names: Sequence[str] = (),
    site: str | None = None,
    average: Average = "rows",
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> pd.DataFrame:
    """Return a table of corpus means: one row for each head, columns layer, head and `names` (default: all stored).

    Statistics that the store does not hold are computed from its attention (`measurement.py`). `CORPUS_STATISTICS` are
    those of the whole corpus; an average over examples does not exist.

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
    of_examples = [name for name in statistic_names if name not in CORPUS_STATISTICS]
    means = corpus_means(store, of_examples, site_spec.name, average, on_progress)
    if len(of_examples) < len(statistic_names):
        means |= offset_decay(store, site_spec.name)
    columns = site_spec.head_columns()
    columns |= {name: means[name].ravel() for name in statistic_names}
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
    uniform = uniform_values(store, site, [statistic])[statistic.name]
    return aggregate(uniform.values, uniform.rows, average)[:, 0]


def uniform_values(store: Snapshot, site: Site, statistics: Sequence[Statistic]) -> dict[str, StatisticValues]:
    """Compute statistics of a head with uniform attention over the keys that each row sees, by name.

    The values have one head. Only tokens and masks are read. Without sinks, attention is uniform over the other keys.
    """
    names = [statistic.name for statistic in statistics]
    parts = [result for _, result in map_blocks(partial(_uniform_sums, names), store, site)]
    result = {}
    for name in names:
        total = np.concatenate([np.zeros((site.n_layers, 0)), *(part[name][0] for part in parts)], axis=1)
        rows = np.concatenate([np.zeros((site.n_layers, 0), np.int64), *(part[name][1] for part in parts)], axis=1)
        values = np.divide(total, rows, out=np.full(total.shape, np.nan), where=rows > 0)
        result[name] = StatisticValues(values[:, None].astype(np.float32), rows)
    return result


def _uniform_sums(
    names: Sequence[str], block: Block
) -> dict[str, tuple[Float64[np.ndarray, "layer example"], Int64[np.ndarray, "layer example"]]]:
    """Return the sum of each statistic over the rows of each example of a block, and the number of rows."""
    site, by_name = block.site, {name: statistic_of(name) for name in names}
    shape = site.n_layers, block.plan.n_examples
    result = {name: (np.zeros(shape), np.zeros(shape, np.int64)) for name in names}
    for mask, layers in site.layers_of_masks.items():
        masked = block.of_mask(mask)
        plan = masked.plan
        weights = np.divide(1.0, plan.n_visible(), out=np.zeros(len(plan.length)), where=plan.n_visible() > 0)
        flat = np.where(plan.visible, weights[plan.row], 0.0) if plan.visible is not None else weights[plan.row]
        rows = Rows(plan, flat[None])
        for name, statistic in by_name.items():
            pairs = statistic.find(masked) if statistic.find else None
            counted = statistic.counted(plan, pairs)
            prepared = rows.without_sinks() if statistic.sink_free else rows
            sums, counts = result[name]
            sums[layers] = statistic.example_sums(prepared, pairs, counted)[0]
            counts[layers] = plan.count(counted)
    return result
