"""Control interventions, and the evidence that an effect is more than that of any head.

Each head has control heads: those nearest in output norm, the same layer first. An effect counts if it is unlike theirs
in two ways. Over the units (examples, documents, pairs) it differs from the mean effect of the controls by more than
chance (sign-flip test). And it lies outside of what another control head would have shown (prediction interval of
Student's t over the controls); otherwise any two heads of a random model would differ, since no two are equal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from headatlas.store.queries.evidence.resampling import bootstrap_interval, false_discovery_rate, student_t_tail
from headatlas.store.queries.evidence.sampling_units import unit_sums

N_CONTROLS = 20
N_FLIPS = 9_999
EXACT_UNITS = 13
"""With so many units or fewer all sign changes are enumerated."""
MINIMUM_UNITS = 6
"""With fewer units no p-value is given: even if all agree, the smallest two-sided one would be above .03."""
MINIMUM_CONTROLS = 3
NEAR = 2.0
"""Heads of the same layer come first as controls if their norms differ by less than this factor."""

Heads = tuple[tuple[int, int], ...]
"""Heads of one intervention, as (index on the layer axis, head)."""


def nearest_heads(norms: Float64[np.ndarray, "layer head"], layer: int, head: int, n: int) -> list[tuple[int, int]]:
    """Return the `n` heads nearest in output norm: those of the same layer within a factor of `NEAR`, then all others.

    A norm of NaN is no head: layers may differ in their number of key heads.
    """
    with np.errstate(divide="ignore"):
        distance = np.abs(np.log(norms) - np.log(norms[layer, head]))
    order = [divmod(int(i), norms.shape[1]) for i in np.argsort(distance, axis=None, kind="stable")]
    others = [other for other in order if other != (layer, head) and not np.isnan(norms[other])]
    same = [other for other in others if other[0] == layer and distance[other] < math.log(NEAR)]
    return [*same, *(other for other in others if other not in same)][:n]


def control_sets(norms: Float64[np.ndarray, "layer head"], heads: Heads, n: int, seed: int = 0) -> list[Heads]:
    """Draw `n` control interventions for one: each head is exchanged for one of the heads nearest to it.

    For a single head these are its nearest heads. Control sets of several heads are drawn at random, without any of the
    heads themselves. There may be fewer than `n` in a small model.
    """
    if len(heads) == 1:
        return [(other,) for other in nearest_heads(norms, *heads[0], n)]
    rng, sets = np.random.default_rng(seed), dict[Heads, None]()
    candidates = [
        [other for other in nearest_heads(norms, *head, n + len(heads)) if other not in heads] for head in heads
    ]
    for _ in range(20 * n):
        drawn = list[tuple[int, int]]()
        for options in candidates:
            free = [other for other in options if other not in drawn]
            if free:
                drawn.append(free[int(rng.integers(len(free)))])
        if len(drawn) == len(heads):
            sets[tuple(sorted(drawn))] = None
        if len(sets) == n:
            break
    return list(sets)


def group_controls(
    norms: Float64[np.ndarray, "layer head"],
    heads: Heads,
    groups: Mapping[tuple[int, int], Heads],
    n: int,
    seed: int = 0,
) -> list[Heads]:
    """Draw `n` control interventions for the query heads of one or more key heads: those of other key heads.

    The norm of a key head is the mean over its query heads.
    """
    shape = len(norms), 1 + max(group for _, group in groups)
    of_groups = np.full(shape, np.nan)
    for group, members in groups.items():
        of_groups[group] = np.mean([norms[head] for head in members])
    chosen = tuple(group for group, members in groups.items() if set(members) <= set(heads))
    drawn = control_sets(of_groups, chosen, n, seed)
    return [tuple(sorted(head for group in control for head in groups[group])) for control in drawn]


@dataclass(frozen=True)
class EffectEvidence:
    """Effects of interventions with their evidence. All arrays have one entry for each intervention."""

    effect: Float64[np.ndarray, "target"]
    """Mean over units."""
    low: Float64[np.ndarray, "target"]
    high: Float64[np.ndarray, "target"]
    """95 % bootstrap interval over units."""
    control: Float64[np.ndarray, "target"]
    """Mean effect of the controls."""
    control_spread: Float64[np.ndarray, "target"]
    """Standard deviation of the mean effects of the controls."""
    p_value: Float64[np.ndarray, "target"]
    """The larger of the p-values of both tests; NaN with too few units or controls."""
    q_value: Float64[np.ndarray, "target"]
    n_units: int

    @property
    def matters(self) -> Bool[np.ndarray, "target"]:
        """True if the effect is unlike that of the controls, at a false-discovery rate of .05."""
        return self.q_value < 0.05


def weigh(
    effects: Float64[np.ndarray, "variant example"],
    targets: Sequence[int],
    controls: Sequence[Sequence[int]],
    units: Sequence[Hashable],
    *,
    is_distance: bool = False,
    seed: int = 0,
) -> EffectEvidence:
    """Compute the evidence for the effects of `targets`, rows of `effects`; `controls` are the rows of their controls.

    Examples of one unit are averaged first. Examples without a value in any row are left out. Effects that are distances
    are compared with those of other heads by their logarithms, because they are positive and span orders of magnitude.
    """
    by_unit = unit_means(effects, units)
    n_units = by_unit.shape[1]
    own = by_unit[list(targets)]
    none = np.full_like(own[0], np.nan)
    control_units = np.stack([by_unit[list(rows)].mean(axis=0) if rows else none for rows in controls])
    control_means = [by_unit[list(rows)].mean(axis=1) for rows in controls]
    spread = np.array([rows.std(ddof=1) if len(rows) > 1 else np.nan for rows in control_means])
    low, high = bootstrap_interval(own, np.ones(n_units), seed=seed)
    difference = own - control_units
    p_value = np.full(len(own), np.nan)
    if n_units >= MINIMUM_UNITS:
        p_heads = np.array(
            [_outside(float(row.mean()), means, is_distance) for row, means in zip(own, control_means, strict=True)]
        )
        p_value = np.fmax(sign_flip(difference, seed), p_heads)
        p_value[np.isnan(p_heads)] = np.nan
    return EffectEvidence(
        own.mean(axis=1), low, high, control_units.mean(axis=1), spread, p_value, false_discovery_rate(p_value), n_units
    )


def unit_means(
    effects: Float64[np.ndarray, "variant example"], units: Sequence[Hashable]
) -> Float64[np.ndarray, "variant unit"]:
    """Average the examples of each unit. Examples without a value in any row are left out, and units without examples."""
    present: Bool[np.ndarray, "example"] = np.asarray(np.isfinite(effects).all(axis=0))
    numbers: dict[Hashable, int] = {}
    unit = np.array([numbers.setdefault(u, len(numbers)) for u, p in zip(units, present, strict=True) if p], np.int64)
    return unit_sums(effects[:, present], unit) / np.bincount(unit, minlength=len(numbers))


def sign_flip(differences: Float[np.ndarray, "target unit"], seed: int = 0) -> Float64[np.ndarray, "target"]:
    """Return the two-sided p-value of each mean if the sign of every unit were random. Exact for few units."""
    n = differences.shape[1]
    observed = np.abs(differences.sum(axis=1))
    scale = np.abs(differences).sum(axis=1)
    if n <= EXACT_UNITS:
        codes: Int64[np.ndarray, "flip"] = np.arange(1 << n)
        signs = 1.0 - 2.0 * ((codes[:, None] >> np.arange(n)) & 1)
        n_above = _count_above(signs, differences, observed, scale)
        return n_above / len(signs)
    rng = np.random.default_rng(seed)
    n_above = np.ones(len(differences))
    for start in range(0, N_FLIPS, 1000):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (min(1000, N_FLIPS - start), n))
        n_above += _count_above(signs, differences, observed, scale)
    return n_above / (N_FLIPS + 1)


def _count_above(
    signs: Float[np.ndarray, "flip unit"],
    differences: Float[np.ndarray, "target unit"],
    observed: Float[np.ndarray, "target"],
    scale: Float[np.ndarray, "target"],
) -> Float64[np.ndarray, "target"]:
    """Count the sign changes with a sum at least as far from zero. Sums that differ by rounding are equal."""
    return (np.abs(signs @ differences.T) >= observed - 1e-12 * scale).sum(axis=0).astype(np.float64)


def _outside(effect: float, controls: Float[np.ndarray, "control"], is_distance: bool) -> float:
    """Return the two-sided p-value that one more control head has an effect so far from the others."""
    n = len(controls)
    if n < MINIMUM_CONTROLS:
        return math.nan
    if is_distance and effect > 0 and (controls > 0).all():
        effect, controls = math.log(effect), np.log(controls)
    deviation = float(controls.std(ddof=1)) * math.sqrt(1 + 1 / n)
    distance = abs(effect - float(controls.mean()))
    if deviation == 0:
        return 1.0 if distance == 0 else 0.0
    return float(2 * student_t_tail(np.array([distance / deviation]), n - 1)[0])
