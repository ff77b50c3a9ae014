"""The overview of a store: each head with its most specialised behaviour, and with the best one apart from sinks.

In a language model most heads put most of their weight on the first token. `specialised_heads` therefore names a sink
for them. What such a head does with the rest of its weight is measured on rows without sinks (`_sink_free`): the
behaviour that exceeds uniform attention over the other keys most, with an interval and a test over examples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from ..errors import NotFoundError
from ..queries.evidence.sampling_units import sampling_units
from ..reading.snapshot import Snapshot
from ..schema.capture_statistics import STATISTICS
from ..statistics.definitions import DERIVED_STATISTICS, SINK_FREE, Average, statistic_of
from ..statistics.measurement import measured_statistics
from ..statistics.specialisation import specialised_heads, uniform_values
from .example_tests import above_zero, interval, q_values

BEHAVIOURS = ("self", "previous", "next", "punctuation", "induction", "duplicate", "other_segment")
"""Behaviours apart from sinks. Each is the mass of a pattern."""


def head_overview(
    store: Snapshot,
    site: str | None = None,
    average: Average = "rows",
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
    unit: str | None = None,
) -> pd.DataFrame:
    """Return `specialised_heads` with the best behaviour of each head apart from sinks, on rows without sinks.

    Further columns: `after_sinks` (name of the behaviour), `after_value` (share of the weight that is not on sinks),
    `after_low`, `after_high` (95 % interval over sampling units), `after_baseline` (uniform attention over the keys that are no sinks) and
    `after_q` (false-discovery rate of a share above that, over all heads and behaviours). The behaviour is the one that
    exceeds its baseline most; its interval does not account for that choice.

    Raises
    ------
    NotFoundError
        No stored statistic has a uniform baseline.
    """
    table = specialised_heads(store, site, average)
    site_spec = store.site(site)
    behaviours = [{**STATISTICS, **DERIVED_STATISTICS}[name] for name in BEHAVIOURS]
    one_text = site_spec.query_sequence == site_spec.key_sequence
    statistics = [statistic_of(s.name + SINK_FREE) for s in behaviours if one_text or not s.one_text]
    try:
        measured = measured_statistics(store, [s.name for s in statistics], site_spec.name, on_progress=on_progress)
    except NotFoundError as error:
        table.attrs["without_sinks"] = str(error)
        return table
    uniform = uniform_values(store, site_spec, statistics)
    units, numbers = sampling_units(store, unit), np.asarray(store.example_numbers())
    shape = len(statistics), site_spec.n_layers, site_spec.n_heads
    value, baseline, low, high, p_value = (np.full(shape, np.nan) for _ in range(5))
    for index, statistic in enumerate(statistics):
        of_heads, of_uniform = measured[statistic.name], uniform[statistic.name]
        for layer in range(site_spec.n_layers):
            rows = of_uniform.rows[layer]
            examples = np.flatnonzero(rows)
            if not len(examples):
                continue
            weight = (rows if average == "rows" else np.ones(len(rows), np.int64))[examples]
            code = units.of(numbers[examples])
            sums = of_heads.values[layer][:, examples].astype(np.float64) * weight
            expected = of_uniform.values[layer, 0, examples].astype(np.float64) * weight
            value[index, layer] = sums.sum(axis=1) / weight.sum()
            baseline[index, layer] = expected.sum() / weight.sum()
            low[index, layer], high[index, layer] = interval(sums, weight, code)
            p_value[index, layer] = above_zero(sums - expected, code)
    q = q_values(p_value)
    best = np.where(np.isnan(value), -np.inf, value - baseline).argmax(axis=0)

    def chosen(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, best[None], axis=0)[0].ravel()

    names = np.array([statistic.name.removesuffix(SINK_FREE) for statistic in statistics])
    columns = site_spec.head_columns() | {"after_sinks": names[best].ravel()}
    columns |= {
        f"after_{name}": chosen(values)
        for name, values in (("value", value), ("low", low), ("high", high), ("baseline", baseline), ("q", q))
    }
    return table.merge(pd.DataFrame(columns), on=["layer", "head"], how="left", validate="one_to_one")
