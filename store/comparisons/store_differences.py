"""The same heads in two stores: of two checkpoints, or of two precisions of one model, over one corpus.

Examples are matched by their ids and must have the same tokens. Each row (query token) of a head is compared with the
row of the same head in the other store:

- `divergence`: Jensen–Shannon divergence in bits, 0 for equal rows, 1 for rows without overlap,
- `moved`: ½ Σ |a − b|, the share of the row that is at other keys.

Both are means over rows. Statistics are compared too. A series of stores is compared step by step.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float32, Float64, Int32, Int64

from ..errors import ConfigError, NotFoundError
from ..queries.evidence.sampling_units import SamplingUnits, sampling_units
from ..reading.block_weights import closest_rows
from ..reading.data_frames import ShownAsTable
from ..reading.ordered_tasks import run_in_order
from ..reading.snapshot import Snapshot
from ..schema.token_table import TokenTable
from ..schema.traces import Site
from ..statistics.measurement import measured_statistics
from .example_tests import interval, q_values, two_sided, unit_codes

N_EXAMPLES = 200
THREADS = 2
_TASK_WEIGHTS = 1 << 22  # weights of one layer that a task has in memory
_TINY = np.float32(1e-30)
_HEADS = ("layer", "head")
_STATISTIC_HEADS = ("statistic", *_HEADS)


@dataclass(frozen=True)
class ChangedRow:
    """The row of one example that differs most between two stores, in one head."""

    example: int
    """Number of the example in the first store."""
    id: str
    divergence: float
    """Mean over the rows of the example."""
    query_pos: int
    query_text: str
    key_texts: tuple[str, str]
    """Strongest key of the row in the first and in the second store."""
    weights: tuple[float, float]


@dataclass(frozen=True, repr=False)
class StoreDifference(ShownAsTable):
    """Differences of the heads of two stores."""

    first: Snapshot
    second: Snapshot
    site: Site
    example: Int64[np.ndarray, "example"]
    """Numbers of the compared examples in the first store."""
    other_example: Int64[np.ndarray, "example"]
    rows: Int64[np.ndarray, "example"]
    divergence: Float32[np.ndarray, "layer head example"] = field(repr=False)
    moved: Float32[np.ndarray, "layer head example"] = field(repr=False)
    changed_row: Int32[np.ndarray, "layer head example"] = field(repr=False)
    """Query position with the largest divergence of each example."""
    heads: xr.Dataset
    """`divergence`, `moved` (means over rows) and the 95 % intervals `divergence_low`, `divergence_high`, `moved_low`,
    `moved_high`; dims (layer, head)."""
    statistics: xr.Dataset
    """`first`, `second` (means over rows), `difference`, `low`, `high` (95 %), `p_value` (two-sided, paired by example),
    `q_value` (over all heads, statistics and steps of the call); dims (statistic, layer, head)."""
    rounding: tuple[float, float]
    """Largest distance of a stored weight from the model's, of each store."""
    n_shared: int
    """Number of examples that both stores have with the same tokens."""
    refused: dict[str, int]
    """Number of examples left out, by reason."""
    is_complete: bool
    """False if the comparison was stopped before its end."""
    units: SamplingUnits
    """Sampling units of the first store of the call."""
    n_units: int

    def table(self) -> pd.DataFrame:
        """Return one row for each head, the largest divergence first, with the differences of statistics."""
        table = self.heads.to_dataframe(dim_order=list(_HEADS)).reset_index()
        for name in self.statistics["statistic"].to_numpy().tolist():
            of_statistic = self.statistics.sel(statistic=name)
            for column, title in (("difference", f"{name}_difference"), ("q_value", f"{name}_q")):
                table[title] = of_statistic[column].to_numpy().ravel()
        return table.sort_values("divergence", ascending=False, kind="stable", na_position="last", ignore_index=True)

    def changed_rows(self, layer: int, head: int, n: int = 5) -> list[ChangedRow]:
        """Return the examples in which a head differs most, each with the row that differs most."""
        index = self.site.layer_index(layer)
        order = np.argsort(-self.divergence[index, head], kind="stable")[:n]
        result = []
        for position in order.tolist():
            example = self.first.examples[int(self.example[position])]
            query = int(self.changed_row[index, head, position])
            texts = example.tokens(self.site.key_sequence).text
            rows = [
                _distributions(store, site, index, np.array([head]), int(number), np.array([query]))[0, 0, : len(texts)]
                for store, site, number in zip(
                    (self.first, self.second),
                    (self.site, self.second.site(self.site.name)),
                    (self.example[position], self.other_example[position]),
                    strict=True,
                )
            ]
            keys = [int(row.argmax()) for row in rows]
            result.append(
                ChangedRow(
                    example.index,
                    example.id,
                    float(self.divergence[index, head, position]),
                    query,
                    example.tokens(self.site.query_sequence).text[query],
                    (texts[keys[0]], texts[keys[1]]),
                    (float(rows[0][keys[0]]), float(rows[1][keys[1]])),
                )
            )
        return result


def diff(
    stores: Sequence[Snapshot],
    site: str | None = None,
    *,
    statistics: Sequence[str] | None = None,
    n_examples: int = N_EXAMPLES,
    seed: int = 0,
    unit: str | None = None,
    threads: int = THREADS,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[StoreDifference]:
    """Compare each store with the next one, head by head.

    Parameters
    ----------
    statistics
        Names of statistics to compare. The default are those that all stores hold.
    n_examples
        Number of examples to sample for each step; all of them if there are fewer.
    unit
        A number for each example of the first store. Examples with the same number are not independent.
    on_progress
        Called with examples done and planned, of all steps.
    stop
        Called between examples. When it returns True, the results have the examples so far.

    Raises
    ------
    ConfigError
        There are fewer than two stores, their sites have different heads, or `n_examples` is below 1.
    NotFoundError
        Two stores share no example with the same tokens, or one has neither attention nor query and key.
    """
    if len(stores) < 2:
        raise ConfigError(f"{len(stores)} store; expected two or more to compare")
    if n_examples < 1:
        raise ConfigError(f"n_examples is {n_examples}; expected at least 1")
    sites = [store.site(site) for store in stores]
    for store, other in zip(stores[1:], sites[1:], strict=True):
        if (other.name, other.shape_text, other.causal) != (sites[0].name, sites[0].shape_text, sites[0].causal):
            raise ConfigError(
                f"{stores[0].location} has {sites[0].name}, {sites[0].shape_text}; {store.location} has {other.name}, "
                f"{other.shape_text}; expected the same heads. Name a common --site, or compare heads with similar."
            )
    names = statistics
    if names is None:
        stored = [set(store.statistic_names(sites[0].name)) for store in stores]
        names = [name for name in stores[0].statistic_names(sites[0].name) if all(name in s for s in stored)]
    named = sampling_units(stores[0], unit)
    units = dict(zip(stores[0].example_ids(), named.unit.tolist(), strict=True))
    aligned = [_align(*pair, sites[0], n_examples, seed) for pair in itertools.pairwise(stores)]
    planned, done = sum(len(examples.sample) for examples in aligned), 0

    def advance() -> None:
        nonlocal done
        done += 1
        on_progress(done, planned)

    differences = [
        _compare_stores(both, both_sites, examples, names, named, units, threads, advance, stop)
        for both, both_sites, examples in zip(
            itertools.pairwise(stores), itertools.pairwise(sites), aligned, strict=True
        )
    ]
    q = q_values(np.stack([difference.statistics["p_value"].to_numpy() for difference in differences]))
    return [
        replace(difference, statistics=difference.statistics.assign(q_value=(_STATISTIC_HEADS, q_value)))
        for difference, q_value in zip(differences, q, strict=True)
    ]


def _compare_stores(
    stores: tuple[Snapshot, Snapshot],
    sites: tuple[Site, Site],
    examples: _Aligned,
    names: Sequence[str],
    named: SamplingUnits,
    units: dict[str, int],
    threads: int,
    advance: Callable[[], None],
    stop: Callable[[], bool],
) -> StoreDifference:
    """Compare two stores on aligned examples. `StoreDifference.statistics` lacks `q_value`."""
    site, results = sites[0], []
    tasks = [(first, second) for first, second in examples.sample.tolist()]
    for _, result in run_in_order(partial(_compare_example, stores, sites), tasks, threads, stop):
        results.append(result)
        advance()
    sample = examples.sample[: len(results)]
    shape = site.n_layers, site.n_heads, len(results)
    divergence, moved, changed_row = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    for position, result in enumerate(results):
        divergence[..., position], moved[..., position], changed_row[..., position] = result
    rows = np.array([len(_tokens(stores[0], site.query_sequence, n)) for n in sample[:, 0].tolist()], np.int64)
    coords = {"layer": np.array(site.layers), "head": np.arange(site.n_heads)}
    codes = _codes(stores[0], sample[:, 0], units)
    heads = _means("divergence", divergence, rows, codes) | _means("moved", moved, rows, codes)
    statistics = _statistics(stores, site, names, sample, units)
    return StoreDifference(
        stores[0],
        stores[1],
        site,
        sample[:, 0],
        sample[:, 1],
        rows,
        divergence,
        moved,
        changed_row,
        xr.Dataset({name: (_HEADS, values) for name, values in heads.items()}, coords),
        xr.Dataset(
            {name: (_STATISTIC_HEADS, values) for name, values in statistics.items()},
            {"statistic": list(names), **coords},
        ),
        (stores[0].spec.attention_error, stores[1].spec.attention_error),
        examples.n_shared,
        examples.refused,
        len(results) == len(examples.sample),
        named,
        int(codes.max(initial=-1)) + 1,
    )


@dataclass(frozen=True)
class _Aligned:
    """Examples of two stores with the same tokens."""

    sample: Int64[np.ndarray, "sampled side"]
    n_shared: int
    refused: dict[str, int]


def _align(first: Snapshot, second: Snapshot, site: Site, n_examples: int, seed: int) -> _Aligned:
    refused: Counter[str] = Counter()
    numbers = dict(zip(second.example_ids(), second.example_numbers().tolist(), strict=True))
    pairs = []
    for number, name in zip(first.example_numbers().tolist(), first.example_ids(), strict=True):
        other = numbers.get(name)
        if other is None:
            refused["in one store only"] += 1
            continue
        sequences = dict.fromkeys((site.query_sequence, site.key_sequence))
        tables = [(_tokens(first, s, number), _tokens(second, s, other)) for s in sequences]
        if any(not np.array_equal(a.id, b.id) for a, b in tables):
            refused["with different tokens"] += 1
        elif not all(len(a) for a, _ in tables):
            refused["without tokens"] += 1
        else:
            pairs.append((number, other))
    refused["in one store only"] += len(set(numbers) - set(first.example_ids()))
    counts = {reason: count for reason, count in refused.items() if count}
    if not pairs:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in counts.items())
        raise NotFoundError(
            f"{first.location} and {second.location}: no example can be compared ({reasons or 'no store has an example'})."
            " Trace the same corpus with the same tokenizer."
        )
    shared = np.array(pairs, np.int64)
    sample = shared[np.sort(np.random.default_rng(seed).permutation(len(shared))[:n_examples])]
    return _Aligned(sample, len(shared), counts)


def _tokens(store: Snapshot, sequence: str, number: int) -> TokenTable:
    segment = store.segment_of(number)
    return segment.tokens(sequence).example(number - segment.first_example)


def _compare_example(
    stores: tuple[Snapshot, Snapshot], sites: tuple[Site, Site], numbers: tuple[int, int]
) -> tuple[Float32[np.ndarray, "layer head"], Float32[np.ndarray, "layer head"], Int32[np.ndarray, "layer head"]]:
    """Return mean divergence, mean share moved and the row that differs most, of every head on one example."""
    site = sites[0]
    n_rows = len(_tokens(stores[0], site.query_sequence, numbers[0]))
    n_keys = len(_tokens(stores[0], site.key_sequence, numbers[0]))
    step = max(1, _TASK_WEIGHTS // (site.n_heads * n_keys))
    divergence, moved = np.empty((2, site.n_layers, site.n_heads, n_rows), np.float32)
    heads = np.arange(site.n_heads)
    for layer in range(site.n_layers):
        for start in range(0, n_rows, step):
            rows = np.arange(start, min(start + step, n_rows))
            a, b = (
                _distributions(store, other_site, layer, heads, number, rows)
                for store, other_site, number in zip(stores, sites, numbers, strict=True)
            )
            moved[layer, :, rows] = np.abs(a - b).sum(axis=2).T / 2
            middle = np.log2((a + b) / 2 + _TINY)
            bits = sum((p * (np.log2(p + _TINY) - middle)).sum(axis=2) for p in (a, b)) / 2
            divergence[layer, :, rows] = np.clip(bits, 0, 1).T
    return divergence.mean(axis=2), moved.mean(axis=2), divergence.argmax(axis=2).astype(np.int32)


def _distributions(
    store: Snapshot,
    site: Site,
    layer: int,
    heads: Int64[np.ndarray, "head"],
    number: int,
    rows: Int64[np.ndarray, "row"],
) -> Float32[np.ndarray, "head row cell"]:
    """Return rows that sum to 1. If the model has sinks outside the text, the last cell is their share."""
    segment = store.segment_of(number)
    weights = closest_rows(segment, site, layer, heads, number - segment.first_example, rows)
    if site.has_sinks:
        outside = np.maximum(1 - weights.sum(axis=2, keepdims=True), 0)
        weights = np.concatenate([weights, outside], axis=2)
    return weights / np.maximum(weights.sum(axis=2, keepdims=True), _TINY)


def _means(
    name: str,
    values: Float32[np.ndarray, "layer head example"],
    rows: Int64[np.ndarray, "example"],
    codes: Int64[np.ndarray, "example"],
) -> dict[str, Float64[np.ndarray, "layer head"]]:
    """Return the mean over rows and its 95 % interval, by name."""
    sums = values.astype(np.float64) * rows
    low, high = interval(sums, rows, codes)
    mean = sums.sum(axis=2) / rows.sum() if len(rows) else np.full(sums.shape[:2], np.nan)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _statistics(
    stores: tuple[Snapshot, Snapshot],
    site: Site,
    names: Sequence[str],
    sample: Int64[np.ndarray, "example side"],
    units: dict[str, int],
) -> dict[str, Float64[np.ndarray, "statistic layer head"]]:
    """Compute `StoreDifference.statistics`, without q."""
    shape = len(names), site.n_layers, site.n_heads
    columns = {name: np.full(shape, np.nan) for name in ("first", "second", "difference", "low", "high", "p_value")}
    positions = [
        np.searchsorted(store.example_numbers(), numbers) for store, numbers in zip(stores, sample.T, strict=True)
    ]
    measured = [measured_statistics(store, names, site.name) for store in stores]
    for index, name in enumerate(names):
        a, b = (m[name].values[:, :, p].astype(np.float64) for m, p in zip(measured, positions, strict=True))
        all_rows = np.broadcast_to(measured[0][name].rows, (site.n_layers, stores[0].n_examples))[:, positions[0]]
        for layer in range(site.n_layers):
            counted = np.flatnonzero(
                (all_rows[layer] > 0) & np.isfinite(a[layer]).all(axis=0) & np.isfinite(b[layer]).all(axis=0)
            )
            if not len(counted):
                continue
            rows, codes = all_rows[layer, counted], _codes(stores[0], sample[counted, 0], units)
            sums_a, sums_b = a[layer][:, counted] * rows, b[layer][:, counted] * rows
            columns["first"][index, layer] = sums_a.sum(axis=1) / rows.sum()
            columns["second"][index, layer] = sums_b.sum(axis=1) / rows.sum()
            columns["low"][index, layer], columns["high"][index, layer] = interval(sums_b - sums_a, rows, codes)
            columns["p_value"][index, layer] = two_sided(sums_b - sums_a, codes)
    columns["difference"] = columns["second"] - columns["first"]
    return columns


def _codes(
    first: Snapshot, numbers: Int64[np.ndarray, "example"], units: dict[str, int]
) -> Int64[np.ndarray, "example"]:
    """Return the unit of each example; `units` are by id."""
    ids = np.array(first.example_ids())[np.searchsorted(first.example_numbers(), numbers)]
    return unit_codes(np.array([units.get(name, -1) for name in ids.tolist()], np.int64), len(numbers))
