"""Minimal pairs: which heads do a pattern more in one member of a pair than in the other.

Two examples with the same value of a pair column are a pair; the variant column says which member is which. Only pairs
that align are compared: as many tokens, the same words at the same positions, and all differing tokens within one word.
The others are counted with their reason, never guessed at. Every pair weighs alike.

Without a pattern the attention itself is compared: the rows of both members are distributions over the same places, and
their distance is the share of the mass that lies elsewhere (total variation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int64

from ..errors import ConfigError, NotFoundError
from ..reading.snapshot import Snapshot
from ..schema.token_table import TokenTable
from .evidence import MINIMUM_EXAMPLES
from .pattern_search import SearchResult
from .resampling import bootstrap_interval, false_discovery_rate, p_above_zero


@dataclass(frozen=True)
class MinimalPairs:
    """The pairs of a store that align, and how many do not and why."""

    variants: tuple[str, str]
    names: list[str]
    """The value of the pair column, one a pair."""
    first: Int64[np.ndarray, "pair"]
    second: Int64[np.ndarray, "pair"]
    """Numbers of the examples with the first and the second variant."""
    refused: dict[str, int]
    """Pairs left out, by reason."""


def minimal_pairs(
    store: Snapshot, pair: str = "pair", variant: str = "variant", between: Sequence[str] | None = None
) -> MinimalPairs:
    """Find the pairs of a store and check that their members align.

    Parameters
    ----------
    between
        The two variants to compare, first and second; default: the two that most pairs have.

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
                "Name the columns that tell pairs and their members apart."
            )
    groups: dict[str, dict[str, list[int]]] = {}
    rows = zip(store.example_numbers().tolist(), columns[pair].to_list(), columns[variant].to_list(), strict=True)
    for number, name, value in rows:
        if name not in (None, "", -1) and value is not None:
            groups.setdefault(str(name), {}).setdefault(str(value), []).append(number)
    chosen = _variants(groups, between, store)
    refused: Counter[str] = Counter()
    names, first, second = [], [], []
    for name, members in groups.items():
        a, b = (members.get(value, []) for value in chosen)
        if not a and not b:
            continue
        reason = (
            "one member missing" if not (a and b) else "several members of one variant" if len(a) + len(b) > 2 else ""
        )
        reason = reason or _difference(*(store.segment_of(n).tokens().example(n - store.segment_of(n).first_example) for n in (a[0], b[0])))  # fmt: skip
        if reason:
            refused[reason] += 1
            continue
        names.append(name)
        first.append(a[0])
        second.append(b[0])
    return MinimalPairs(chosen, names, np.array(first, np.int64), np.array(second, np.int64), dict(refused))


def _variants(
    groups: dict[str, dict[str, list[int]]], between: Sequence[str] | None, store: Snapshot
) -> tuple[str, str]:
    known = Counter(value for members in groups.values() for value in members)
    if between is not None:
        if len(set(between)) != 2 or not set(between) <= set(known):
            raise ConfigError(
                f"variants to compare are {', '.join(map(repr, between))}; expected two different ones of "
                f"{', '.join(map(repr, known))}"
            )
        return between[0], between[1]
    both = Counter(
        (a, b) for members in groups.values() for a in sorted(members) for b in sorted(members) if a < b
    ).most_common(1)
    if not both:
        raise NotFoundError(f"{store.location}: no two examples are a pair; expected two variants of one pair value.")
    return both[0][0]


def _difference(a: TokenTable, b: TokenTable) -> str:
    """Why two examples do not align; empty where they do."""
    if len(a) != len(b):
        return "another number of tokens"
    if not np.array_equal(a.word, b.word):
        return "words at other positions"
    differing = set(a.word[a.id != b.id].tolist())
    if not differing:
        return "no difference"
    return "" if len(differing) == 1 else "more than one word differs"


@dataclass(frozen=True)
class Contrast:
    """For every head a pattern's mass in the second members less that in the first; or how far attention moved."""

    search: SearchResult | None
    """None: attention itself was compared."""
    pairs: MinimalPairs
    kept: Int64[np.ndarray, "kept"]
    """Indices of the pairs whose members both have a matching row."""
    difference: Float[np.ndarray, "layer head kept"]
    heads: xr.Dataset
    """`difference`, `low`, `high` (95 % bootstrap over pairs), `mass_first`, `mass_second` (NaN of attention itself),
    `p_value` (paired t test over pairs: two-sided of a pattern; of attention itself one-sided, above the mean of all heads),
    `q_value` (false-discovery rate over heads); dims (layer, head)."""

    def table(self) -> pd.DataFrame:
        """One row a head, the largest difference (of either sign) first."""
        table = self.heads.to_dataframe(dim_order=["layer", "head"]).reset_index()
        table["pairs"] = len(self.kept)
        order = np.argsort(-np.abs(np.nan_to_num(table["difference"].to_numpy())), kind="stable")
        return table.take(order.tolist()).reset_index(drop=True)

    def driving_pairs(self, layer: int, head: int, n: int = 5) -> list[tuple[str, int, int, float]]:
        """The pairs that pull a head's difference most its way: name, the two examples, their difference."""
        values = self.difference[layer, head]
        order = np.argsort(-values * np.sign(values.mean()) if len(values) else values, kind="stable")[:n]
        at = self.kept[order]
        names = [self.pairs.names[index] for index in at.tolist()]
        return list(zip(names, self.pairs.first[at].tolist(), self.pairs.second[at].tolist(), values[order].tolist(), strict=True))  # fmt: skip


def contrast(result: SearchResult, pairs: MinimalPairs, seed: int = 0) -> Contrast:
    """Compare the members of minimal pairs by what a search found in them.

    With fewer than five pairs there is no test: p and q are NaN.
    """
    numbers = result.example_mass["example"].to_numpy()
    at_first, found_first = _places(numbers, pairs.first)
    at_second, found_second = _places(numbers, pairs.second)
    kept = np.flatnonzero(found_first & found_second)
    mass = result.example_mass.to_numpy().astype(np.float64)
    first, second = mass[:, :, at_first[kept]], mass[:, :, at_second[kept]]
    difference = second - first  # [layer, head, kept]
    above = p_above_zero(difference)
    two_sided = 2 * np.minimum(above, 1 - above) if len(kept) >= MINIMUM_EXAMPLES else np.full(above.shape, np.nan)
    unchanged = np.all(difference == 0, axis=-1) & np.isfinite(two_sided)
    two_sided[unchanged] = 1.0

    return _contrast(result, pairs, kept, difference, (first, second), two_sided, result.heads.coords, seed)


def attention_contrast(
    store: Snapshot,
    pairs: MinimalPairs,
    site: str | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> Contrast:
    """How far the attention of every head moves between the members of minimal pairs: 0 not at all, 1 all of it.

    Of a pair: the mean over query positions of half the sum of the absolute differences. `p_value` tells heads that move
    more than the mean head does. With fewer than five pairs there is no test.

    Raises
    ------
    ConfigError
        The site joins two texts: pairs align in one.
    NotFoundError
        Attention was not kept and cannot be rebuilt.
    """
    found = store.site(site)
    if found.query_sequence != found.key_sequence:
        raise ConfigError(f"site {found.name} joins two texts; pairs align in one: expected another --site")
    shape = found.n_layers, found.n_heads
    difference = np.zeros((*shape, len(pairs.names)))
    for at, members in enumerate(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)):
        for layer in range(found.n_layers):
            one, other = (store.examples[number].attention(layer, site=found.name).to_numpy() for number in members)
            difference[layer, :, at] = np.abs(one - other).sum(axis=-1, dtype=np.float64).mean(axis=-1) / 2
        on_progress(at + 1, len(pairs.names))
    p_value = np.full(shape, np.nan)
    if len(pairs.names) >= MINIMUM_EXAMPLES:
        p_value = p_above_zero(difference - difference.mean(axis=(0, 1)))
    coords = {"layer": np.arange(shape[0]), "head": np.arange(shape[1])}
    kept, unknown = np.arange(len(pairs.names)), np.full(difference.shape, np.nan)
    return _contrast(None, pairs, kept, difference, (unknown, unknown), p_value, coords, seed)


def _contrast(
    result: SearchResult | None,
    pairs: MinimalPairs,
    kept: Int64[np.ndarray, "kept"],
    difference: Float[np.ndarray, "layer head kept"],
    members: tuple[Float[np.ndarray, "layer head kept"], Float[np.ndarray, "layer head kept"]],
    p_value: Float[np.ndarray, "layer head"],
    coords: Mapping[Any, Any],
    seed: int,
) -> Contrast:
    low, high = bootstrap_interval(difference, np.ones(len(kept)), seed=seed)

    def mean(values: np.ndarray) -> np.ndarray:
        return values.mean(axis=-1) if len(kept) else np.full(values.shape[:-1], np.nan)

    columns = {
        "difference": mean(difference),
        "low": low,
        "high": high,
        "mass_first": mean(members[0]),
        "mass_second": mean(members[1]),
        "p_value": p_value,
        "q_value": false_discovery_rate(p_value),
    }
    heads = xr.Dataset({n: (("layer", "head"), v) for n, v in columns.items()}, dict(coords))
    return Contrast(result, pairs, kept, difference, heads)


def _places(
    numbers: Int64[np.ndarray, "example"], wanted: Int64[np.ndarray, "pair"]
) -> tuple[Int64[np.ndarray, "pair"], np.ndarray]:
    """Where each wanted number stands among the ascending ones, and whether it does."""
    if not len(numbers):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    return at, numbers[at] == wanted
