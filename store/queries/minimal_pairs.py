"""Minimal pairs: the difference of a pattern's mass between the two members of a pair, for every head.

Two examples with the same value in the pair column are a pair. The variant column distinguishes its members. Only pairs
that align are compared: they have equally many tokens, the same words at the same positions, and all differing tokens
in one word. Other pairs are left out and counted by reason. Every pair has the same weight. Pairs of one sampling unit,
such as a template, are not independent: intervals and tests are over units.

Without a pattern the attention itself is compared. The rows of both members are distributions over the same positions,
and their distance is the total variation: the share of the mass at different keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Float64, Int64

from ..errors import ConfigError, NotFoundError
from ..reading.data_frames import ShownAsTable
from ..reading.ordered_tasks import run_in_order
from ..reading.snapshot import Snapshot
from ..schema.token_table import TokenFlag, TokenTable
from ..schema.traces import Site
from .evidence.resampling import bootstrap_interval, false_discovery_rate, p_above_zero, p_two_sided, same_rows
from .evidence.sampling_units import SamplingUnits, sampling_units, unit_sums
from .pattern_search import SearchResult

FLOAT_ROUNDING = 1e-6
"""Differences of this size come from the order of sums, which depends on the batch."""
EDGE_ROUNDING = 2.0**-11
"""Rounding of an edge's float16."""
HEAD_COLUMNS = ("difference", "low", "high", "mass_first", "mass_second", "p_value")


@dataclass(frozen=True)
class MinimalPairs:
    """The pairs of a store that align, and the number of other pairs by reason."""

    variants: tuple[str, str]
    names: list[str]
    """Value of the pair column for each pair."""
    first: Int64[np.ndarray, "pair"]
    second: Int64[np.ndarray, "pair"]
    """Numbers of the examples with the first and the second variant."""
    refused: dict[str, int]
    """Number of pairs left out, by reason."""


def minimal_pairs(
    store: Snapshot, pair: str = "pair", variant: str = "variant", between: Sequence[str] | None = None
) -> MinimalPairs:
    """Find the pairs of a store and check that their members align.

    Parameters
    ----------
    between
        The first and the second variant to compare. The default are the two variants with the most pairs.

    Raises
    ------
    NotFoundError
        The examples have no such columns, or no example has both variants.
    ConfigError
        `between` is not two different variants of this store.
    """
    columns = store.example_columns()
    for name in (pair, variant):
        if name not in columns:
            raise NotFoundError(
                f"{store.location}: examples have no annotation {name!r}; this store has {', '.join(columns) or 'none'}. "
                "Name the columns that identify pairs and their members."
            )
    groups: dict[str, dict[str, list[int]]] = {}
    rows = zip(store.example_numbers().tolist(), columns[pair].to_list(), columns[variant].to_list(), strict=True)
    for number, name, value in rows:
        if name not in (None, "", -1) and value is not None:
            groups.setdefault(str(name), {}).setdefault(str(value), []).append(number)
    variants = _variants(groups, between, store)
    refused: Counter[str] = Counter()
    names, first, second = [], [], []
    for name, members in groups.items():
        a, b = (members.get(value, []) for value in variants)
        if not a and not b:
            continue
        if not (a and b):
            reason = "one member missing"
        elif len(a) + len(b) > 2:
            reason = "several members of one variant"
        else:
            reason = _difference(_tokens(store, a[0]), _tokens(store, b[0]))
        if reason:
            refused[reason] += 1
            continue
        names.append(name)
        first.append(a[0])
        second.append(b[0])
    return MinimalPairs(variants, names, np.array(first, np.int64), np.array(second, np.int64), dict(refused))


def _tokens(store: Snapshot, number: int) -> TokenTable:
    segment = store.segment_of(number)
    return segment.tokens().example(number - segment.first_example)


def _variants(
    groups: dict[str, dict[str, list[int]]], between: Sequence[str] | None, store: Snapshot
) -> tuple[str, str]:
    counts = Counter(value for members in groups.values() for value in members)
    if between is not None:
        if len(set(between)) != 2 or not set(between) <= set(counts):
            raise ConfigError(
                f"variants to compare are {', '.join(map(repr, between))}; expected two different ones of "
                f"{', '.join(map(repr, counts))}"
            )
        return between[0], between[1]
    pair_counts = Counter(
        (a, b) for members in groups.values() for a in sorted(members) for b in sorted(members) if a < b
    ).most_common(1)
    if not pair_counts:
        raise NotFoundError(f"{store.location}: no two examples form a pair; expected two variants with one pair value")
    return pair_counts[0][0]


def _difference(a: TokenTable, b: TokenTable) -> str:
    """Return the reason why two examples do not align; an empty text if they align."""
    if not len(a) or not len(b):
        return "one member was skipped"
    if len(a) != len(b):
        return "different numbers of tokens"
    if not np.array_equal(a.token_rank, b.token_rank):
        return "words at different positions"
    differing = set(a.token_rank[a.id != b.id].tolist())
    if not differing:
        is_cut = ((a.flags | b.flags) & TokenFlag.CUT).any()
        return "no difference before the end of the cut text" if is_cut else "no difference"
    return "" if len(differing) == 1 else "more than one word differs"


@dataclass(frozen=True, repr=False)
class Contrast(ShownAsTable):
    """Differences between the second and the first members: of a pattern's mass, or of the attention itself."""

    search: SearchResult | None
    """The search whose mass is compared; None if attention itself is compared."""
    pairs: MinimalPairs
    pair_index: Int64[np.ndarray, "pair"]
    """Indices of the compared pairs, whose members both have a matching row."""
    difference: Float[np.ndarray, "layer head pair"]
    """NaN in layers that see no matching row of one of the members."""
    heads: xr.Dataset
    """`difference`, `low`, `high` (95 % bootstrap over units), `mass_first`, `mass_second` (NaN for attention itself),
    `p_value` (paired test over units: two-sided for a pattern; for attention itself one-sided, above the mean of all
    heads), `q_value` (false-discovery rate over heads); dims (layer, head). A head whose differences are all within
    `rounding` has no p-value."""
    units: SamplingUnits
    n_units: int
    rounding: float
    """Largest difference that the rounding of stored weights explains."""

    def table(self) -> pd.DataFrame:
        """Return one row for each head, the largest absolute difference first."""
        table = self.heads.to_dataframe(dim_order=["layer", "head"]).reset_index()
        table["pairs"] = np.isfinite(self.difference).sum(axis=-1).ravel()
        order = np.argsort(-np.abs(np.nan_to_num(table["difference"].to_numpy())), kind="stable")
        return table.take(order.tolist()).reset_index(drop=True)

    def of_pairs(self, selected: Sequence[bool] | np.ndarray, seed: int = 0) -> Contrast:
        """Return the same comparison over some of its pairs of attention, without reading it again.

        Parameters
        ----------
        selected
            True for each pair of `pair_index` that counts.

        Raises
        ------
        ConfigError
            The comparison is that of a pattern, or no pair is selected.
        """
        mask = np.asarray(selected, bool)
        if self.search is not None or not mask.any():
            raise ConfigError("no pair is selected, or the mass of a pattern is compared; expected pairs of attention")
        return _attention_contrast(self.pairs, self.pair_index[mask], self.difference[:, :, mask], self.units, self.heads.coords, self.rounding, seed)  # fmt: skip

    def of_head(self, layer: int, head: int) -> Float[np.ndarray, "pair"]:
        """Return the difference of a head in each compared pair.

        Raises
        ------
        NotFoundError
            There is no such head.
        """
        layers = self.heads["layer"].to_numpy().tolist()
        if layer not in layers or not 0 <= head < self.heads.sizes["head"]:
            raise NotFoundError(
                f"no head {layer}.{head}; the comparison has layers {layers[0]} to {layers[-1]} and heads "
                f"0:{self.heads.sizes['head']}"
            )
        return self.difference[layers.index(layer), head]

    def driving_pairs(self, layer: int, head: int, n: int | None = 5) -> list[tuple[str, int, int, float]]:
        """List the pairs that contribute most to the difference of a head: name, the two examples, their difference.

        All pairs if `n` is None.

        Raises
        ------
        NotFoundError
            There is no such head.
        """
        values = self.of_head(layer, head)
        is_compared = np.isfinite(values)
        values, pairs = values[is_compared], self.pair_index[is_compared]
        order = np.argsort(-values * np.sign(values.mean()) if len(values) else values, kind="stable")[:n]
        pairs = pairs[order]
        names = [self.pairs.names[pair] for pair in pairs.tolist()]
        first, second = self.pairs.first[pairs].tolist(), self.pairs.second[pairs].tolist()
        return list(zip(names, first, second, values[order].tolist(), strict=True))


def contrast(result: SearchResult, pairs: MinimalPairs, seed: int = 0, *, unit: str | None = None) -> Contrast:
    """Compare the members of minimal pairs by the mass of a search.

    With fewer than five sampling units there is no test: p and q are NaN. The unit of a pair is that of its first
    member; `unit` is the argument of `sampling_units`.

    Raises
    ------
    NotFoundError
        There is no such unit.
    """
    units = sampling_units(result.store, unit)
    numbers = result.example_mass["example"].to_numpy()
    first_index, has_first = _positions(numbers, pairs.first)
    second_index, has_second = _positions(numbers, pairs.second)
    pair_index = np.flatnonzero(has_first & has_second)
    mass = result.example_mass.to_numpy().astype(np.float64)
    first, second = mass[:, :, first_index[pair_index]], mass[:, :, second_index[pair_index]]
    difference = second - first  # [layer, head, pair]
    is_seen = np.isfinite(difference).any(axis=(0, 1))
    pair_index, difference = pair_index[is_seen], difference[:, :, is_seen]
    first, second = first[:, :, is_seen], second[:, :, is_seen]
    rounding = _rounding(result.store, result.basis)
    columns = {name: np.full(difference.shape[:2], np.nan) for name in HEAD_COLUMNS}
    for layers, compared in same_rows(np.asarray(np.isfinite(difference).all(axis=1))):
        own, code = difference[layers][:, :, compared], units.of(pairs.first[pair_index[compared]])
        p_value = p_two_sided(unit_sums(_above_rounding(own, rounding), code))
        masses = first[layers][:, :, compared], second[layers][:, :, compared]
        for name, values in _head_columns(own, masses, p_value, code, seed).items():
            columns[name][layers] = values
    heads = _head_dataset(columns, result.heads.coords)
    n_units = units.count(pairs.first[pair_index])
    return Contrast(result, pairs, pair_index, difference, heads, units, n_units, rounding)


def _rounding(store: Snapshot, basis: str) -> float:
    """Return the largest difference of two weights that would be equal without rounding."""
    codec = store.spec.attention_codec
    if basis == "edges":
        return EDGE_ROUNDING
    if basis == "attention" and codec is not None:
        return max(codec.max_absolute_error, FLOAT_ROUNDING)
    return FLOAT_ROUNDING


def _above_rounding(
    difference: Float[np.ndarray, "layer head pair"], rounding: float
) -> Float[np.ndarray, "layer head pair"]:
    """Return the differences, 0 for heads whose differences are all within `rounding`: these get no p-value."""
    has_size = np.abs(difference).max(axis=-1, keepdims=True, initial=0) > rounding
    return np.where(has_size, difference, 0.0)


def attention_contrast(
    store: Snapshot,
    pairs: MinimalPairs,
    site: str | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
    *,
    unit: str | None = None,
) -> Contrast:
    """Compute the distance of every head's attention between the members of minimal pairs: 0 equal, 1 disjoint.

    The distance of a pair is the mean over query positions of half the sum of the absolute differences. `p_value` tests
    whether a head differs more than the mean head. With fewer than five sampling units there is no test.

    Raises
    ------
    ConfigError
        The site joins two texts, but pairs align within one text.
    NotFoundError
        The store has neither attention nor query and key, or there is no such unit.
    """
    site_spec, units = store.site(site), sampling_units(store, unit)
    if site_spec.query_sequence != site_spec.key_sequence:
        raise ConfigError(
            f"site {site_spec.name} joins two texts; expected a site within one text. Choose another --site."
        )
    shape = site_spec.n_layers, site_spec.n_heads
    difference = np.zeros((*shape, len(pairs.names)))
    members = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    for index, (_, distance) in enumerate(run_in_order(partial(_pair_distance, store, site_spec), members)):
        difference[:, :, index] = distance
        on_progress(index + 1, len(members))
    coords = {"layer": np.array(site_spec.layers), "head": np.arange(site_spec.n_heads)}
    index = np.arange(len(pairs.names))
    return _attention_contrast(pairs, index, difference, units, coords, _rounding(store, "attention"), seed)


def _pair_distance(store: Snapshot, site: Site, members: tuple[int, int]) -> Float64[np.ndarray, "layer head"]:
    distance = np.zeros((site.n_layers, site.n_heads))
    for row, layer in enumerate(site.layers):
        first, second = (store.examples[number].attention(layer, site=site.name).to_numpy() for number in members)
        distance[row] = np.abs(first - second).sum(axis=-1, dtype=np.float64).mean(axis=-1) / 2
    return distance


def _attention_contrast(
    pairs: MinimalPairs,
    pair_index: Int64[np.ndarray, "pair"],
    difference: Float[np.ndarray, "layer head pair"],
    units: SamplingUnits,
    coords: Mapping[Any, Any],
    rounding: float,
    seed: int,
) -> Contrast:
    """Compute intervals and tests of distances between pairs."""
    code = units.of(pairs.first[pair_index])
    p_value = p_above_zero(unit_sums(difference - difference.mean(axis=(0, 1)), code), FLOAT_ROUNDING)
    no_mass = np.full(difference.shape, np.nan)
    heads = _head_dataset(_head_columns(difference, (no_mass, no_mass), p_value, code, seed), coords)
    return Contrast(None, pairs, pair_index, difference, heads, units, len(np.unique(code)), rounding)


def _head_columns(
    difference: Float[np.ndarray, "layer head pair"],
    masses: tuple[Float[np.ndarray, "layer head pair"], Float[np.ndarray, "layer head pair"]],
    p_value: Float[np.ndarray, "layer head"],
    code: Int64[np.ndarray, "pair"],
    seed: int,
) -> dict[str, Float[np.ndarray, "layer head"]]:
    """Compute `Contrast.heads` without q; `masses` are those of the first and the second members, `code` is the unit of a pair."""
    n_pairs = difference.shape[-1]
    low, high = bootstrap_interval(unit_sums(difference, code), np.bincount(code), bounds=(-1, 1), seed=seed)

    def mean(values: np.ndarray) -> np.ndarray:
        return values.mean(axis=-1) if n_pairs else np.full(values.shape[:-1], np.nan)

    values = (mean(difference), low, high, mean(masses[0]), mean(masses[1]), p_value)
    return dict(zip(HEAD_COLUMNS, values, strict=True))


def _head_dataset(columns: dict[str, Float[np.ndarray, "layer head"]], coords: Mapping[Any, Any]) -> xr.Dataset:
    columns = columns | {"q_value": false_discovery_rate(columns["p_value"])}
    return xr.Dataset({n: (("layer", "head"), v) for n, v in columns.items()}, dict(coords))


def _positions(
    numbers: Int64[np.ndarray, "example"], members: Int64[np.ndarray, "pair"]
) -> tuple[Int64[np.ndarray, "pair"], np.ndarray]:
    """Return the index of each member among the ascending numbers, and True for each member that occurs."""
    if not len(numbers):
        return np.zeros(len(members), np.int64), np.zeros(len(members), bool)
    index = np.minimum(np.searchsorted(numbers, members), len(numbers) - 1)
    return index, numbers[index] == members
