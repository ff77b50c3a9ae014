"""Slow loops for the decay of attention, the overview of heads and the difference of two stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from headatlas.store.comparisons.head_overview import BEHAVIOURS, head_overview
from headatlas.store.statistics.profiles import DECAY_ROWS, REACH, offset_decay
from headatlas.store.store import Store

from . import slow_definitions as slow
from . import slow_proof
from .check_lines import Line
from .slow_definitions import Weights


def comparison_lines(exact: Store, coarse: Store, weights: Callable[[], Iterable[Weights]]) -> Iterator[Line]:
    """Compare decay, overview and difference; `weights` yields the examples of the float32 store."""
    yield from decay_lines(exact, weights())
    yield from overview_lines(exact, weights())
    yield from difference_lines(exact, coarse)


def decay_lines(store: Store, weights: Iterable[Weights]) -> Iterator[Line]:
    """Fit the line through ln mass over ln distance, head by head."""
    site = store.site()
    mass, rows = np.zeros((REACH + 1, site.n_layers * site.n_heads)), np.zeros(REACH + 1)
    for x in weights:
        for q in range(x.n):
            for distance in range(1, min(q, REACH) + 1):
                mass[distance] += x.at(q, q - distance)
                rows[distance] += 1
    slope, fit = np.full((2, mass.shape[1]), np.nan)
    for head in range(mass.shape[1]):
        points = [d for d in range(1, REACH + 1) if rows[d] >= DECAY_ROWS and mass[d, head] > 0]
        if len(points) < 3:
            continue
        x, y = np.log(points), np.log([mass[d, head] / rows[d] for d in points])
        weight = 1 / np.array(points)
        slope[head], intercept = np.polyfit(x, y, 1, w=np.sqrt(weight))
        left = (weight * (y - slope[head] * x - intercept) ** 2).sum()
        fit[head] = 1 - left / (weight * (y - np.average(y, weights=weight)) ** 2).sum()
    ours = offset_decay(store)
    for name, expected in (("decay", slope), ("decay_fit", fit)):
        values = ours[name].ravel()
        assert np.array_equal(np.isnan(values), np.isnan(expected)), f"{name}: other heads have a value"
        yield Line(name, len(expected), float(np.nanmax(np.abs(values - expected), initial=0)))


def overview_lines(store: Store, weights: Iterable[Weights]) -> Iterator[Line]:
    """Name the behaviour of each head after sinks, with its share, its uniform share and its q, over examples."""
    site = store.site()
    shape = len(BEHAVIOURS), site.n_layers * site.n_heads
    examples: dict[str, list[tuple[np.ndarray, float, int]]] = {name: [] for name in BEHAVIOURS}
    for x in weights:
        rows, even = x.without_sinks(), _uniform(x).without_sinks()
        for name in BEHAVIOURS:
            total, n = slow.statistic(name, rows)
            if n:
                examples[name].append((total, float(slow.statistic(name, even)[0][0]), n))
    shares, even_shares, p = np.full(shape, np.nan), np.full((shape[0], 1), np.nan), np.full(shape, np.nan)
    for index, name in enumerate(BEHAVIOURS):
        if not examples[name]:
            continue
        sums, expected, rows = (np.array(values) for values in zip(*examples[name], strict=True))
        shares[index], even_shares[index] = sums.sum(axis=0) / rows.sum(), expected.sum() / rows.sum()
        if len(rows) > 12:  # fewer are tested by all choices of signs
            p[index] = [slow_proof.p_above(row) for row in sums.T - expected]
    q = np.full(p.shape, np.nan)
    q[np.isfinite(p)] = slow_proof.benjamini_hochberg(p[np.isfinite(p)])
    best = np.where(np.isnan(shares), -np.inf, shares - even_shares).argmax(axis=0)
    table = head_overview(store, unit="example").sort_values(["layer", "head"])
    heads = np.arange(shares.shape[1])
    names = np.array(BEHAVIOURS)[best]
    assert (table["after_sinks"].to_numpy() == names).all(), "after sinks: another behaviour"
    columns = {
        "after_value": shares[best, heads],
        "after_baseline": even_shares[best, 0],
        "after_q": q[best, heads],
    }
    for name, expected in columns.items():
        yield Line(name, len(heads), float(np.nanmax(np.abs(table[name].to_numpy() - expected))))


def _uniform(x: Weights) -> Weights:
    """Return one head with uniform attention over the keys that each row sees."""
    maps = np.zeros((1, x.n, x.n))
    for q in range(x.n):
        for k in x.keys(q):
            maps[0, q, k] = 1 / len(x.keys(q))
    return Weights(maps, x.tokens, x.causal, x.counts)


def difference_lines(exact: Store, coarse: Store) -> Iterator[Line]:
    """Compute divergence and moved share row by row."""
    (ours,) = exact.diff(coarse, n_examples=exact.n_examples, statistics=["entropy"])
    total: dict[str, np.ndarray] = {}
    n_rows = 0
    for number in exact.example_numbers().tolist():
        maps = [store.examples[number].attention().to_numpy().astype(np.float64) for store in (exact, coarse)]
        a, b = (m.reshape(-1, *m.shape[2:]) for m in maps)
        for q in range(a.shape[1]):
            p, r = (m[:, q] / m[:, q].sum(axis=1, keepdims=True) for m in (a, b))
            middle = (p + r) / 2
            bits = (_entropy(middle) - (_entropy(p) + _entropy(r)) / 2) / np.log(2)
            for name, value in (("divergence", bits), ("moved", np.abs(p - r).sum(axis=1) / 2)):
                total[name] = total.get(name, 0) + value
            n_rows += 1
    for name, sums in total.items():
        values = ours.heads[name].to_numpy().ravel()
        yield Line(f"{name} of two stores", len(sums), float(np.abs(values - sums / n_rows).max()))


def _entropy(weights: np.ndarray) -> np.ndarray:
    return -(weights * np.log(np.where(weights > 0, weights, 1))).sum(axis=1)
