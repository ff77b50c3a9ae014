"""Which dimensions of query and key carry a pattern in one head.

A score is a sum over dimensions, scaling · Σ_d q_d k_d, so each dimension has its own part of it. A part that is the same
for all keys of a row changes nothing, since the softmax divides it out: what counts is by how much the part on matching
keys exceeds the part on the row's other visible keys, its controls. For every row with both:

    difference_d = scaling · q_d · (mean of k_d over matching keys − mean of k_d over the other visible keys)

and the mean over rows is reported, with an interval over examples. The differences of all dimensions add up to the
difference of the scores themselves (before a soft cap, without a bias by position). Where query and key carry a rotary
embedding the two dimensions of a pair turn together, and only their sum is a function of the distance: `pairs` adds
them up and names them by their frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float64, Int64

from ..errors import NotFoundError
from ..patterns import Pattern
from ..patterns.matching import Matcher
from ..patterns.segment_matcher import segment_matcher, site_vocabulary
from ..reading.attention_rebuild import missing_vectors
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..reading.stored_vectors import read_vectors
from ..schema.traces import Site, check_head
from .resampling import bootstrap_interval

PAIR_COLUMNS = ("pair", "first", "second", "frequency", "period")
_COLUMNS = ("matching", "control", "difference", "low", "high", "share")


@dataclass(frozen=True)
class NeuronResult:
    """What each dimension of one head contributes to a pattern."""

    pattern: Pattern
    site: Site
    layer: int
    head: int
    dimensions: xr.Dataset
    """`matching`, `control`, `difference`, `low`, `high` (95 % bootstrap over examples), in score units; dim `dimension`."""
    example_difference: xr.DataArray = field(repr=False)
    """Sum of the rows' differences, dims (example, dimension); coordinates `example` (numbers) and `rows`."""
    n_matching: int
    """Matching pairs that were compared."""
    n_control: int
    """Pairs of the same rows that do not match."""
    n_without_control: int
    """Rows left out because every key that they see matches."""
    codec: str
    """How query and key are kept."""

    @property
    def rows(self) -> int:
        """Rows that were compared."""
        return int(self.example_difference["rows"].sum())

    @property
    def n_examples(self) -> int:
        """Examples that they are of."""
        return self.example_difference.sizes["example"]

    @property
    def score_difference(self) -> float:
        """Mean score of matching keys less that of the others: the sum over dimensions."""
        return float(self.dimensions["difference"].sum(skipna=False))

    @property
    def kv_head(self) -> int:
        """The key head that this head meets."""
        return self.head // (self.site.n_heads // self.site.n_kv_heads)

    @property
    def sharing(self) -> tuple[int, ...]:
        """The other heads that meet the same key head."""
        size = self.site.n_heads // self.site.n_kv_heads
        return tuple(h for h in range(self.kv_head * size, (self.kv_head + 1) * size) if h != self.head)

    def table(self) -> pd.DataFrame:
        """One row a dimension, the largest difference first; `share` is that of the score difference."""
        table = self.dimensions.to_dataframe().reset_index()
        table["share"] = table["difference"] / self.score_difference
        return table.sort_values("difference", ascending=False, kind="stable", ignore_index=True)

    def pairs(self) -> pd.DataFrame:
        """One row a rotary pair, the largest difference first; empty where the frequencies are not known.

        `first` and `second` are its dimensions, `frequency` is in radians a token, `period` in tokens; dimensions that
        are not turned stand alone: pair and second −1, frequency 0.
        """
        frequency = np.array(self.site.rotary_frequency)
        if not len(frequency):
            return pd.DataFrame(columns=pd.Index([*PAIR_COLUMNS, *_COLUMNS]))
        rows, seen = [], -np.sort(-np.unique(frequency[frequency > 0]))
        members = [np.flatnonzero(frequency == f) for f in seen] + [
            np.array([d]) for d in np.flatnonzero(frequency == 0)
        ]
        sums = self.example_difference.to_numpy()
        by_pair = np.stack([sums[:, places].sum(axis=1) for places in members])
        low, high = bootstrap_interval(by_pair, self.example_difference["rows"].to_numpy())
        for index, places in enumerate(members):
            turned = index < len(seen)
            values = {name: float(self.dimensions[name].to_numpy()[places].sum()) for name in _COLUMNS[:3]}
            rows.append(
                {
                    "pair": index if turned else -1,
                    "first": int(places[0]),
                    "second": int(places[-1]) if turned else -1,
                    "frequency": float(frequency[places[0]]),
                    "period": 2 * math.pi / float(frequency[places[0]]) if turned else math.inf,
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
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> NeuronResult:
    """Measure which dimensions of a head's query and key tell matching keys from the other visible keys of a row.

    Raises
    ------
    NotFoundError
        Query and key were not kept, or there is no such head.
    PatternError
        The pattern cannot be read, or names something that the store does not have.
    """
    found, pattern = store.site(site), Pattern.parse(pattern)
    check_head(found, layer, head)
    if store.spec.keep.query_key is None:
        raise NotFoundError(f"{store.location}: {missing_vectors(found)}")
    vocabulary = site_vocabulary(store, found)
    pattern.check(vocabulary)
    parts = []
    for done, segment in enumerate(store.segments):
        parts.append(_scan(segment, found, segment_matcher(segment, found, pattern, vocabulary), layer, head))
        on_progress(done + 1, len(store.segments))
    numbers = [segment.first_example + part.example for segment, part in zip(store.segments, parts, strict=True)]
    rows = np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
    empty = np.empty((0, 2, found.d_head))
    sums = np.concatenate([empty, *(part.sums for part in parts)])  # [example, side, d_head]
    total = rows.sum()
    matching, control = sums.sum(axis=0) / total if total else np.full((2, found.d_head), np.nan)
    difference = sums[:, 0] - sums[:, 1]  # [example, d_head]
    low, high = bootstrap_interval(difference.T, rows, seed=seed)
    columns = {"matching": matching, "control": control, "difference": matching - control, "low": low, "high": high}
    dimension = np.arange(found.d_head)
    return NeuronResult(
        pattern,
        found,
        layer,
        head,
        xr.Dataset({name: ("dimension", values) for name, values in columns.items()}, {"dimension": dimension}),
        xr.DataArray(
            difference,
            {
                "example": np.concatenate([np.empty(0, np.int64), *numbers]),
                "dimension": dimension,
                "rows": ("example", rows),
            },
            ("example", "dimension"),
            "difference",
        ),
        sum(part.n_matching for part in parts),
        sum(part.n_control for part in parts),
        sum(part.n_without_control for part in parts),
        store.spec.keep.query_key,
    )


@dataclass(frozen=True)
class _Part:
    """Sums of one segment; `example` counts within it."""

    example: Int64[np.ndarray, "example"]
    rows: Int64[np.ndarray, "example"]
    sums: Float64[np.ndarray, "example side d_head"]
    """Contributions summed over rows: on matching keys, on the others."""
    n_matching: int
    n_control: int
    n_without_control: int


def _scan(segment: Segment, site: Site, matcher: Matcher, layer: int, head: int) -> _Part:
    group = site.n_heads // site.n_kv_heads
    queries, keys = matcher.evaluator.query, matcher.evaluator.key
    everything = slice(0, len(queries.table)), slice(0, len(keys.table))
    query = read_vectors(segment, site, "query", layer, np.array([head]), everything[0]).values[0]
    key = read_vectors(segment, site, "key", layer, np.array([head // group]), everything[1]).values[0]
    # Sums over a run of keys are differences of these; float64 keeps what cancels.
    before = np.concatenate([np.zeros((1, site.d_head)), np.cumsum(key, axis=0, dtype=np.float64)])
    n_rows, n_examples = np.zeros(segment.n_examples, np.int64), segment.n_examples
    sums = np.zeros((n_examples, 2, site.d_head))
    n_matching = n_control = n_without = 0
    key_start = keys.table.token_offset.astype(np.int64)
    window = site.window[layer]
    for matches in matcher:
        row, of_match = np.unique(matches.query, return_inverse=True)
        example, position = queries.example[row], queries.position[row]
        # The keys that a row sees: up to itself at a causal site, less than a window away.
        n_keys = np.diff(key_start)[example]
        low = np.zeros(len(row), np.int64) if window is None else np.maximum(0, position - window + 1)
        high = np.minimum(n_keys, position + 1) if site.causal else n_keys
        high = high if window is None else np.minimum(high, position + window)
        at = keys.position[matches.key]
        seen = (at >= low[of_match]) & (at < high[of_match])
        of_match, matched = of_match[seen], matches.key[seen]
        count = np.bincount(of_match, minlength=len(row))
        others = np.maximum(high - low, 0) - count
        n_without += int(((count > 0) & (others == 0)).sum())
        kept = (count > 0) & (others > 0)
        of_keys = np.zeros((len(row), site.d_head))
        first = np.flatnonzero(np.diff(of_match, prepend=-1)) if len(of_match) else np.empty(0, np.int64)
        if len(first):
            of_keys[of_match[first]] = np.add.reduceat(key[matched].astype(np.float64), first, axis=0)
        run = before[key_start[example] + np.maximum(high, low)] - before[key_start[example] + low]
        scaled = site.scaling[layer] * query[row[kept]].astype(np.float64)
        on_matching = scaled * (of_keys[kept] / count[kept, None])
        on_others = scaled * ((run[kept] - of_keys[kept]) / others[kept, None])
        np.add.at(sums[:, 0], example[kept], on_matching)
        np.add.at(sums[:, 1], example[kept], on_others)
        n_rows += np.bincount(example[kept], minlength=n_examples)
        n_matching, n_control = n_matching + int(count[kept].sum()), n_control + int(others[kept].sum())
    used = np.flatnonzero(n_rows)
    return _Part(used, n_rows[used], sums[used], n_matching, n_control, n_without)
