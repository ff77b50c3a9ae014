"""The attention of a head if dimensions of its query and key were scaled, over a corpus.

The attention is rebuilt from stored query and key, once as it is and once with the contribution of some dimensions to
query · key multiplied by a factor. Scaling, soft cap, biases, sinks and mask are those of the layer. The change acts on
the query, so heads that share the key head stay as they are. `headatlas intervene --do dimensions:…` makes the same
change in the running model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from ..errors import NotFoundError
from ..patterns import Pattern
from ..patterns.matching import Matcher
from ..patterns.segment_matcher import segment_matcher, site_vocabulary
from ..queries.evidence.resampling import MAX_UNITS, MINIMUM_UNITS
from ..queries.evidence.sampling_units import SamplingUnits, sampling_units
from ..reading.attention_rebuild import missing_vectors, why_not_rebuilt
from ..reading.rescaled_attention import RescaledRows, rescaled_rows
from ..reading.snapshot import Snapshot
from ..schema.head_dimensions import factor_vector, factors_text, parse_factors
from ..schema.traces import Site, head_index
from ..statistics.profiles import REACH, fit_decay
from .example_tests import interval, two_sided

_SIDES = ("before", "after")
_TINY = 1e-30


@dataclass(frozen=True)
class WhatIf:
    """Attention of one head before and after a change of its dimensions."""

    site: Site
    layer: int
    head: int
    factors: dict[int, float]
    """Factor of each changed dimension."""
    pattern: Pattern | None
    measures: pd.DataFrame
    """One row for each `measure`, with `value`, `low` and `high` (95 % over units) of `before`, `after` and `difference`
    in columns such as `before_low`, and `p_value` of the difference. `mass`: mean attention on the pattern's keys. `decay`
    (without a pattern): slope of the power law of the mass at the offsets −1 … −64. `divergence`: Jensen–Shannon divergence
    of a row before and after, in bits; `moved`: share of a row at other keys. The last two have a difference only."""
    examples: pd.DataFrame = field(repr=False)
    """One row for each example, the largest divergence first: `example` (number), `id`, `divergence`, `moved`, with a
    pattern `mass_before`, `mass_after` (NaN without a matching row), and the row that changes most: `query_pos`, `query`,
    `key_before`, `weight_before`, `key_after`, `weight_after` (its strongest keys)."""
    rows: int
    """Number of rows that were compared."""
    matching_rows: int
    """Number of rows with a matching key."""
    matching_examples: int
    uniform: float
    """Mass of uniform attention over the visible keys of these rows; NaN without a pattern."""
    codec: str
    """Codec of query and key."""
    units: SamplingUnits = field(repr=False)
    n_units: int
    """Number of sampling units behind the mass, or behind all numbers without a pattern."""

    @property
    def dimensions(self) -> str:
        """The change in the notation of commands, such as ``12,44:0``."""
        return factors_text(self.factors)


@dataclass
class _Sums:
    """Sums over the rows of each example of a segment, or of the whole store after `join`."""

    rows: Int64[np.ndarray, "example"]
    divergence: Float64[np.ndarray, "example"]
    moved: Float64[np.ndarray, "example"]
    matching: Int64[np.ndarray, "example"]
    mass: Float64[np.ndarray, "side example"]
    uniform: Float64[np.ndarray, "example"]
    largest: Float64[np.ndarray, "example"]
    """Divergence of the row that changes most."""
    changed: Int64[np.ndarray, "position example"]
    """Its position, and those of its strongest key before and after."""
    weight: Float64[np.ndarray, "side example"]

    @staticmethod
    def zeros(n: int) -> _Sums:
        """Create sums over no rows."""
        return _Sums(
            np.zeros(n, np.int64), np.zeros(n), np.zeros(n), np.zeros(n, np.int64), np.zeros((2, n)), np.zeros(n),
            np.full(n, -1.0), np.zeros((3, n), np.int64), np.zeros((2, n)),
        )  # fmt: skip

    @staticmethod
    def join(parts: list[_Sums]) -> _Sums:
        """Concatenate the sums of segments."""
        return _Sums(
            *(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in _Sums.__annotations__)
        )


@dataclass
class _Profile:
    """Mass at the offsets −1 … −`REACH` by group of units, for the decay."""

    mass: Float64[np.ndarray, "side group distance"]
    rows: Float64[np.ndarray, "group distance"]

    def add(self, piece: RescaledRows, group: int) -> None:
        """Add rows of one example."""
        key_pos = piece.query_pos[:, None] - np.arange(1, REACH + 1)
        is_shown = (key_pos >= piece.low[:, None]) & (key_pos < piece.high[:, None])
        row, column = np.arange(len(key_pos))[:, None], np.where(is_shown, key_pos - piece.first_key, 0)
        for side, weights in enumerate((piece.before, piece.after)):
            values = np.where(is_shown, weights[row, column], 0.0)
            self.mass[side, group] += values.sum(axis=0, dtype=np.float64)
        self.rows[group] += is_shown.sum(axis=0)

    def measure(self) -> dict[str, Any]:
        """Fit the decay before and after, with intervals by linearisation over groups."""
        rows = self.rows.sum(axis=0)
        mean = self.mass.sum(axis=1) / np.maximum(rows, 1)  # [side, distance]
        decay = fit_decay(mean, rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            residual = (self.mass - mean[:, None] * self.rows) / (mean * rows)[:, None]
        influence = np.where(decay.leverage[:, None] != 0, decay.leverage[:, None] * residual, 0.0).sum(axis=-1)
        estimates = {
            "before": (decay.slope[0], influence[0]),
            "after": (decay.slope[1], influence[1]),
            "difference": (decay.slope[1] - decay.slope[0], influence[1] - influence[0]),
        }
        measure: dict[str, Any] = {"measure": "decay"}
        n_groups = int((self.rows.sum(axis=1) > 0).sum())
        for name, (value, change) in estimates.items():
            half = _t_quantile(n_groups - 1) * float(np.sqrt(np.square(change).sum() * n_groups / max(n_groups - 1, 1)))
            if n_groups < MINIMUM_UNITS:
                half = np.nan
            measure |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
        return measure


def what_if(
    store: Snapshot,
    layer: int,
    head: int,
    dimensions: str,
    scale: float = 0.0,
    pattern: str | Pattern | None = None,
    site: str | None = None,
    *,
    unit: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> WhatIf:
    """Scale dimensions of a head's query and key over a corpus, and measure what that changes in its attention.

    Parameters
    ----------
    dimensions
        Dimensions such as ``12,44``, or rotary pairs such as ``pairs:0-4``, perhaps with factors of their own
        (`headatlas.store.schema.head_dimensions.parse_factors`).
    scale
        Factor of the dimensions that have none of their own; 0 leaves them out of the scores, 1 changes nothing.
    pattern
        Pattern whose mass is compared. Without it the decay of attention over distance is compared.
    unit
        Sampling unit of intervals and tests.
    on_progress
        Called with the number of examples that are done, and their total.

    Raises
    ------
    ConfigError
        The dimensions cannot be read, or there are no such dimensions.
    NotFoundError
        The store has no query and key, or there is no such head or unit.
    PatternError
        The pattern cannot be read, or uses a name that the store does not have.
    """
    site_spec = store.site(site)
    layer_index, _ = head_index(site_spec, layer, head)
    if store.spec.keep.query_key is None:
        raise NotFoundError(f"{store.location}: {missing_vectors(site_spec, store.spec.capture)}")
    if reason := why_not_rebuilt(site_spec, store.spec.keep):
        raise NotFoundError(f"{store.location}: {reason}")
    factors = parse_factors(dimensions, site_spec, scale)
    vector = factor_vector(factors, site_spec.d_head)
    units = sampling_units(store, unit)
    numbers = store.example_numbers()
    parsed = profile = vocabulary = None
    if pattern is not None:
        parsed, vocabulary = Pattern.parse(pattern), site_vocabulary(store, site_spec)
        parsed.check(vocabulary)
    group = _groups(units, numbers)
    if pattern is None and site_spec.query_sequence == site_spec.key_sequence:
        n_groups = int(group.max(initial=-1)) + 1
        profile = _Profile(np.zeros((2, n_groups, REACH)), np.zeros((n_groups, REACH)))
    parts, n_done = [_Sums.zeros(0)], 0
    for segment in store.segments:
        sums = _Sums.zeros(segment.n_examples)
        matcher = None
        if parsed is not None and vocabulary is not None:
            matcher = segment_matcher(segment, site_spec, parsed, vocabulary)
        for piece in rescaled_rows(segment, site_spec, layer_index, head, vector):
            _add(sums, piece)
            if matcher is not None:
                _add_matches(sums, piece, matcher)
            if profile is not None:
                profile.add(piece, int(group[n_done + piece.example]))
            on_progress(n_done + piece.example, len(numbers))
        parts.append(sums)
        n_done += segment.n_examples
        on_progress(n_done, len(numbers))
    sums = _Sums.join(parts)
    measures = [
        *([] if parsed is None else [_mass(sums, units, numbers)]),
        *([] if profile is None else [profile.measure()]),
        _change("divergence", sums.divergence, sums.rows, units, numbers),
        _change("moved", sums.moved, sums.rows, units, numbers),
    ]
    columns = [f"{name}{end}" for name in (*_SIDES, "difference") for end in ("", "_low", "_high")]
    has_rows = sums.rows > 0 if parsed is None else sums.matching > 0
    return WhatIf(
        site_spec, layer, head, factors, parsed,
        pd.DataFrame(measures).reindex(columns=["measure", *columns, "p_value"]),
        _example_table(store, site_spec, sums, with_mass=parsed is not None),
        int(sums.rows.sum()), int(sums.matching.sum()), int((sums.matching > 0).sum()),
        float(sums.uniform.sum() / sums.matching.sum()) if sums.matching.any() else np.nan,
        store.spec.keep.query_key or "", units, len(np.unique(units.of(numbers[has_rows]))),
    )  # fmt: skip


def _groups(units: SamplingUnits, numbers: Int64[np.ndarray, "example"]) -> Int64[np.ndarray, "example"]:
    """Return the unit of each example. More than `MAX_UNITS` units are combined at random."""
    unit = units.of(numbers)
    n_units = int(unit.max(initial=-1)) + 1
    return unit if n_units <= MAX_UNITS else (np.random.default_rng(0).permutation(n_units) % MAX_UNITS)[unit]


def _add(sums: _Sums, piece: RescaledRows) -> None:
    """Add divergence and moved share of some rows, and remember the row that changes most."""
    before, after = (weights.astype(np.float64) for weights in (piece.before, piece.after))
    outside = [
        np.maximum(1 - weights.sum(axis=1), 0) for weights in (before, after)
    ]  # the share of a sink, or rounding
    divergence = _bits(before, after) + _bits(*(share[:, None] for share in outside))
    moved = (np.abs(before - after).sum(axis=1) + np.abs(outside[0] - outside[1])) / 2
    example = piece.example
    sums.rows[example] += len(divergence)
    sums.divergence[example] += divergence.sum()
    sums.moved[example] += moved.sum()
    row = int(divergence.argmax())
    if divergence[row] > sums.largest[example]:
        keys = [int(weights[row].argmax()) for weights in (before, after)]
        sums.largest[example] = divergence[row]
        sums.changed[:, example] = [piece.query_pos[row], *(piece.first_key + key for key in keys)]
        sums.weight[:, example] = before[row, keys[0]], after[row, keys[1]]


def _bits(p: Float64[np.ndarray, "row key"], q: Float64[np.ndarray, "row key"]) -> Float64[np.ndarray, "row"]:
    """Return the Jensen–Shannon divergence of rows in bits, of the keys that they have in common."""
    middle = np.log2((p + q) / 2 + _TINY)
    bits = sum((weights * (np.log2(weights + _TINY) - middle)).sum(axis=1) for weights in (p, q)) / 2
    return np.clip(bits, 0, 1)


def _add_matches(sums: _Sums, piece: RescaledRows, matcher: Matcher) -> None:
    """Add the mass on the pattern's keys in some rows."""
    start = int(matcher.evaluator.query.table.token_offset[piece.example]) + int(piece.query_pos[0])
    for matches in matcher.blocks(start, start + len(piece.query_pos)):
        row, key_pos = matches.query - start, matcher.evaluator.key.position[matches.key]
        sums.matching[piece.example] += len(np.unique(row))
        is_shown = (key_pos >= piece.low[row]) & (key_pos < piece.high[row])
        row, column = row[is_shown], key_pos[is_shown] - piece.first_key
        for side, weights in enumerate((piece.before, piece.after)):
            sums.mass[side, piece.example] += weights[row, column].sum(dtype=np.float64)
        sums.uniform[piece.example] += (1 / (piece.high - piece.low)[row]).sum()


def _mass(sums: _Sums, units: SamplingUnits, numbers: Int64[np.ndarray, "example"]) -> dict[str, Any]:
    """Compare the mass before and after over the examples with a matching row."""
    present = sums.matching > 0
    rows, (before, after) = sums.matching[present], sums.mass[:, present]
    unit = units.of(numbers[present])
    measure: dict[str, Any] = {"measure": "mass"}
    for name, values in (("before", before), ("after", after), ("difference", after - before)):
        low, high = interval(values, rows, unit)
        value = float(values.sum() / rows.sum()) if len(rows) else np.nan
        measure |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
    return measure | {"p_value": float(two_sided(after - before, unit))}


def _change(
    name: str,
    values: Float64[np.ndarray, "example"],
    rows: Int64[np.ndarray, "example"],
    units: SamplingUnits,
    numbers: Int64[np.ndarray, "example"],
) -> dict[str, Any]:
    low, high = interval(values, rows, units.of(numbers))
    mean = float(values.sum() / rows.sum()) if rows.any() else np.nan
    return {"measure": name, "difference": mean, "difference_low": float(low), "difference_high": float(high)}


def _t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(max(degrees, 1), 0.975))


def _example_table(store: Snapshot, site: Site, sums: _Sums, *, with_mass: bool) -> pd.DataFrame:
    rows, matching = np.maximum(sums.rows, 1), np.where(sums.matching > 0, sums.matching, np.nan)
    table = pd.DataFrame(
        {
            "example": store.example_numbers(),
            "id": pd.Series(store.example_ids(), dtype=object),
            "divergence": sums.divergence / rows,
            "moved": sums.moved / rows,
            **({"mass_before": sums.mass[0] / matching, "mass_after": sums.mass[1] / matching} if with_mass else {}),
            "query_pos": sums.changed[0],
        }
    )
    texts: list[list[str]] = [[], [], []]
    done = 0
    for segment in store.segments:
        sides = (site.query_sequence, site.key_sequence, site.key_sequence)
        for column, sequence, positions in zip(texts, sides, sums.changed, strict=True):
            tokens = segment.tokens(sequence)
            offset = tokens.token_offset.astype(np.int64)
            row = offset[:-1] + positions[done : done + segment.n_examples]
            text = tokens.columns["text"].take(np.minimum(row, max(0, len(tokens) - 1))).to_list()
            column.extend(value if isinstance(value, str) else "" for value in text)
        done += segment.n_examples
    for name, column in zip(("query", "key_before", "key_after"), texts, strict=True):
        table[name] = pd.Series(column, dtype=object)
    table["weight_before"], table["weight_after"] = sums.weight
    order = np.argsort(-sums.divergence / rows, kind="stable")
    return table.iloc[order[sums.rows[order] > 0]].reset_index(drop=True)
