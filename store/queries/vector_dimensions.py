"""The contributions of the dimensions of query and key to a pattern in one head.

A score is a sum over dimensions, scaling · Σ_d q_d k_d, so each dimension contributes one term. A term that is equal
for all keys of a row has no effect, because the softmax cancels it. The difference between matching keys and the other
visible keys of the row (the controls) does have an effect. For every row with both:

    difference_d = scaling · q_d · (mean of k_d over matching keys − mean of k_d over the other visible keys)

The result is the mean over rows, with an interval over examples. The differences of all dimensions add up to the
difference of the scores (before a soft cap, without a position bias). With a rotary embedding the two dimensions of a
pair rotate together, and only their sum is a function of the distance. `NeuronResult.pairs` adds them up and labels
them by their frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float64, Int64

from ..errors import NotFoundError
from ..patterns import Pattern, Vocabulary
from ..patterns.segment_matcher import segment_matcher, site_vocabulary
from ..reading.attention_rebuild import missing_vectors
from ..reading.data_frames import ShownAsTable
from ..reading.ordered_tasks import run_in_order
from ..reading.snapshot import Snapshot
from ..reading.stored_vectors import read_vectors
from ..schema.head_dimensions import rotary_pairs
from ..schema.traces import Site, head_index
from .evidence.resampling import bootstrap_interval
from .evidence.sampling_units import SamplingUnits, sampling_units, unit_sums

PAIR_COLUMNS = ("pair", "first", "second", "frequency", "period")
_COLUMNS = ("matching", "control", "difference", "low", "high", "share")


@dataclass(frozen=True, repr=False)
class NeuronResult(ShownAsTable):
    """The contribution of each dimension of one head to a pattern."""

    pattern: Pattern
    site: Site
    layer: int
    head: int
    dimensions: xr.Dataset
    """`matching`, `control`, `difference`, `low`, `high` (95 % bootstrap over examples), in score units; dim `dimension`."""
    example_difference: xr.DataArray = field(repr=False)
    """Sum of the rows' differences, dims (example, dimension); coordinates `example` (numbers) and `rows`."""
    n_matching: int
    """Number of matching pairs that were compared."""
    n_control: int
    """Number of pairs of the same rows that do not match."""
    n_without_control: int
    """Number of rows left out because all of their visible keys match."""
    codec: str
    """Codec of query and key."""
    units: SamplingUnits = field(repr=False)

    @property
    def rows(self) -> int:
        """Number of rows that were compared."""
        return int(self.example_difference["rows"].sum())

    @property
    def n_examples(self) -> int:
        """Number of examples that were compared."""
        return self.example_difference.sizes["example"]

    @property
    def n_units(self) -> int:
        """Number of sampling units that were compared."""
        return self.units.count(self.example_difference["example"].to_numpy())

    @property
    def score_difference(self) -> float:
        """Mean score of matching keys minus that of the other keys: the sum of `difference` over dimensions."""
        return float(self.dimensions["difference"].sum(skipna=False))

    @property
    def kv_head(self) -> int:
        """Key head of this head."""
        return self.head // (self.site.n_heads // self.site.n_kv_heads)

    @property
    def sharing_heads(self) -> tuple[int, ...]:
        """Other heads with the same key head."""
        size = self.site.n_heads // self.site.n_kv_heads
        return tuple(h for h in range(self.kv_head * size, (self.kv_head + 1) * size) if h != self.head)

    def table(self) -> pd.DataFrame:
        """Return one row for each dimension, the largest difference first; `share` is of the score difference."""
        table = self.dimensions.to_dataframe().reset_index()
        table["share"] = table["difference"] / self.score_difference
        return table.sort_values("difference", ascending=False, kind="stable", ignore_index=True)

    def pairs(self) -> pd.DataFrame:
        """Return one row for each rotary pair, the largest difference first; an empty table if the pairs are unknown.

        `first` and `second` are its dimensions, `frequency` is in radians per token, `period` in tokens; both are NaN if
        they differ between layers. A dimension without rotation has a row of its own, with pair and second −1 and
        frequency 0.
        """
        rows, rotating = [], rotary_pairs(self.site)
        if not rotating:
            return pd.DataFrame(columns=pd.Index([*PAIR_COLUMNS, *_COLUMNS]))
        frequency = np.zeros(self.site.d_head)
        frequency[np.ravel(rotating)] = np.nan
        if self.site.rotary_frequency:
            frequency = np.array(self.site.rotary_frequency)
        members = [np.array(pair) for pair in rotating] + [np.array([d]) for d in np.flatnonzero(frequency == 0)]
        sums = self.example_difference.to_numpy()
        pair_sums = np.stack([sums[:, dimensions].sum(axis=1) for dimensions in members])
        code = self.units.of(self.example_difference["example"].to_numpy())
        rows_of_unit = unit_sums(self.example_difference["rows"].to_numpy(), code)
        low, high = bootstrap_interval(unit_sums(pair_sums, code), rows_of_unit)
        for index, dimensions in enumerate(members):
            rotates = index < len(rotating)
            values = {name: float(self.dimensions[name].to_numpy()[dimensions].sum()) for name in _COLUMNS[:3]}
            rows.append(
                {
                    "pair": index if rotates else -1,
                    "first": int(dimensions[0]),
                    "second": int(dimensions[-1]) if rotates else -1,
                    "frequency": float(frequency[dimensions[0]]),
                    "period": 2 * math.pi / float(frequency[dimensions[0]]) if rotates else math.inf,
                    **values,
                    "low": float(low[index]),
                    "high": float(high[index]),
                    "share": values["difference"] / self.score_difference,
                }
            )
        table = pd.DataFrame(rows, columns=pd.Index([*PAIR_COLUMNS, *_COLUMNS]))
        return table.sort_values("difference", ascending=False, kind="stable", ignore_index=True)


def neurons(
    store: Snapshot,
    pattern: str | Pattern,
    layer: int,
    head: int,
    site: str | None = None,
    *,
    unit: str | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> NeuronResult:
    """Measure the dimensions of a head's query and key that separate matching keys from the row's other visible keys.

    Parameters
    ----------
    unit
        Sampling unit of the intervals (`sampling_units`).

    Raises
    ------
    NotFoundError
        The store has no query and key, or there is no such head or unit.
    PatternError
        The pattern cannot be read, or uses a name that the store does not have.
    """
    site_spec, pattern = store.site(site), Pattern.parse(pattern)
    layer_index, _ = head_index(site_spec, layer, head)
    if store.spec.keep.query_key is None:
        raise NotFoundError(f"{store.location}: {missing_vectors(site_spec, store.spec.capture)}")
    vocabulary = site_vocabulary(store, site_spec)
    pattern.check(vocabulary)
    segment_sums = []
    scan = partial(_scan, store, site_spec, pattern, vocabulary, layer_index, head)
    for position, sums_of_segment in run_in_order(scan, range(len(store.segments))):
        segment_sums.append(sums_of_segment)
        on_progress(position + 1, len(store.segments))
    numbers = [segment.first_example + part.example for segment, part in zip(store.segments, segment_sums, strict=True)]
    rows = np.concatenate([np.empty(0, np.int64), *(part.rows for part in segment_sums)])
    empty = np.empty((0, 2, site_spec.d_head))
    sums = np.concatenate([empty, *(part.sums for part in segment_sums)])  # [example, side, d_head]
    total = rows.sum()
    matching, control = sums.sum(axis=0) / total if total else np.full((2, site_spec.d_head), np.nan)
    difference = sums[:, 0] - sums[:, 1]  # [example, d_head]
    units = sampling_units(store, unit)
    example = np.concatenate([np.empty(0, np.int64), *numbers])
    code = units.of(example)
    low, high = bootstrap_interval(unit_sums(difference.T, code), unit_sums(rows, code), seed=seed)
    columns = {"matching": matching, "control": control, "difference": matching - control, "low": low, "high": high}
    dimension = np.arange(site_spec.d_head)
    return NeuronResult(
        pattern,
        site_spec,
        layer,
        head,
        xr.Dataset({name: ("dimension", values) for name, values in columns.items()}, {"dimension": dimension}),
        xr.DataArray(
            difference,
            {
                "example": example,
                "dimension": dimension,
                "rows": ("example", rows),
            },
            ("example", "dimension"),
            "difference",
        ),
        sum(part.n_matching for part in segment_sums),
        sum(part.n_control for part in segment_sums),
        sum(part.n_without_control for part in segment_sums),
        store.spec.keep.query_key,
        units,
    )


@dataclass(frozen=True)
class _SegmentSums:
    """Sums of one segment. Axis `example` has the examples with compared rows, by their index in the segment."""

    example: Int64[np.ndarray, "example"]
    rows: Int64[np.ndarray, "example"]
    sums: Float64[np.ndarray, "example side d_head"]
    """Contributions summed over rows. The sides are matching keys and other keys."""
    n_matching: int
    n_control: int
    n_without_control: int


def _scan(
    store: Snapshot, site: Site, pattern: Pattern, vocabulary: Vocabulary, layer: int, head: int, position: int
) -> _SegmentSums:
    segment = store.segments[position]
    matcher = segment_matcher(segment, site, pattern, vocabulary)
    group = site.n_heads // site.n_kv_heads
    queries, keys = matcher.evaluator.query, matcher.evaluator.key
    all_queries, all_keys = slice(0, len(queries.table)), slice(0, len(keys.table))
    query = read_vectors(segment, site, "query", layer, np.array([head]), all_queries).values[0]
    key = read_vectors(segment, site, "key", layer, np.array([head // group]), all_keys).values[0]
    # The sum over a run of keys is a difference of two cumulative sums; float64 limits the cancellation error.
    cumulative = np.concatenate([np.zeros((1, site.d_head)), np.cumsum(key, axis=0, dtype=np.float64)])
    n_rows, n_examples = np.zeros(segment.n_examples, np.int64), segment.n_examples
    sums = np.zeros((n_examples, 2, site.d_head))
    n_matching = n_control = n_without_control = 0
    key_start = keys.table.token_offset.astype(np.int64)
    mask = site.masks[layer]
    if mask.stored is not None:
        raise NotFoundError(
            f"{site.name} layer {layer}: the mask of this layer follows no rule of positions, so the keys that a row sees "
            "are no range. Components are compared in layers whose mask is causal, full, a window or chunks."
        )
    for matches in matcher:
        row, match_row = np.unique(matches.query, return_inverse=True)
        example, query_pos = queries.example[row], queries.position[row]
        low, high = mask.span(query_pos, np.diff(key_start)[example])
        key_pos = keys.position[matches.key]
        visible = (key_pos >= low[match_row]) & (key_pos < high[match_row])
        match_row, matched = match_row[visible], matches.key[visible]
        count = np.bincount(match_row, minlength=len(row))
        n_others = np.maximum(high - low, 0) - count
        n_without_control += int(((count > 0) & (n_others == 0)).sum())
        has_both = (count > 0) & (n_others > 0)
        matching_sum = np.zeros((len(row), site.d_head))
        first = np.flatnonzero(np.diff(match_row, prepend=-1)) if len(match_row) else np.empty(0, np.int64)
        if len(first):
            matching_sum[match_row[first]] = np.add.reduceat(key[matched].astype(np.float64), first, axis=0)
        visible_sum = cumulative[key_start[example] + np.maximum(high, low)] - cumulative[key_start[example] + low]
        scaled = site.scaling[layer] * query[row[has_both]].astype(np.float64)
        on_matching = scaled * (matching_sum[has_both] / count[has_both, None])
        on_others = scaled * ((visible_sum[has_both] - matching_sum[has_both]) / n_others[has_both, None])
        np.add.at(sums[:, 0], example[has_both], on_matching)
        np.add.at(sums[:, 1], example[has_both], on_others)
        n_rows += np.bincount(example[has_both], minlength=n_examples)
        n_matching, n_control = n_matching + int(count[has_both].sum()), n_control + int(n_others[has_both].sum())
    with_rows = np.flatnonzero(n_rows)
    return _SegmentSums(with_rows, n_rows[with_rows], sums[with_rows], n_matching, n_control, n_without_control)
