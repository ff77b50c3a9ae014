"""Statistics of a head that a capture computes: one record for each, with its definition in numpy.

Each statistic is the mean over an example's query rows of one number per row. The same definition therefore applies to
one sentence and to a corpus. `Statistic.row_values` computes the value of each row. `Statistic.counts` selects the rows
that enter the mean. Captures compute `STATISTICS` on the device, before quantization.
`headatlas.store.statistics.definitions` adds the statistics that are computed from stored attention.
`docs/definitions.md` compares the formulas with those of other tools.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from .flat_rows import RowPlan, Rows

Pairs = Int64[np.ndarray, "match"]
Positions = Int[np.ndarray, "..."]
Special = Bool[np.ndarray, "..."]
PairMask = Bool[np.ndarray, "..."]
RowValues = Float64[np.ndarray, "head row"]


def _every_row(plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
    return np.ones(len(plan.length), bool)


@dataclass(frozen=True)
class Statistic:
    """One number for one head on one example: the mean of `row_values` over the rows that count.

    If the statistic is the mass of some pairs, `has_pair` selects them by position, or `find` by tokens. `pattern` is the
    library pattern of the same mass; the uniform baseline of that pattern applies to the statistic too.
    """

    name: str
    label: str
    unit: str
    description: str
    row_values: Callable[[Rows, Pairs | None], RowValues]
    counts: Callable[[RowPlan, Pairs | None], Bool[np.ndarray, "row"]] = _every_row
    has_pair: Callable[[Positions, Positions, Special], PairMask] | None = None
    """Of query positions, key positions and whether the keys are special; they broadcast to the pairs."""
    find: Callable[[Any], Pairs] | None = None
    one_text: bool = False
    """True if query and key must come from the same text. The value is NaN at a cross-attention site."""
    pattern: str | None = None
    has_sink_free: bool = True
    """True if the statistic is meaningful for rows without their sinks."""
    sink_free: bool = False

    def rows(
        self, n_queries: Int[np.ndarray, "example"], n_keys: Int[np.ndarray, "example"], *, causal: bool = False
    ) -> Int64[np.ndarray, "example"]:
        """Return the number of rows that count in examples of these lengths. The statistic must not need tokens."""
        assert self.find is None, f"{self.name} depends on tokens"
        lengths = n_queries.astype(np.int64), n_keys.astype(np.int64)
        plan = RowPlan(*lengths, causal, np.zeros(int(lengths[1].sum()), bool))
        return plan.count(self.counts(plan, None))

    def counted(self, plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
        """Return a mask of the rows that enter the mean. All False at a site of two texts if `one_text`.

        If `sink_free`, a row also has to see a key that is no sink.
        """
        if self.one_text and not plan.one_text:
            return np.zeros(len(plan.length), bool)
        row_mask = self.counts(plan, pairs)
        return row_mask & (plan.n_visible(sinks=False) > 0) if self.sink_free else row_mask

    def example_sums(
        self, rows: Rows, pairs: Pairs | None, counted: Bool[np.ndarray, "row"]
    ) -> Float64[np.ndarray, "head example"]:
        """Sum over the counted rows of each example. `rows` must be without sinks if the statistic is `sink_free`."""
        if not counted.any():
            return np.zeros((len(rows.weights), rows.plan.n_examples))
        values = self.row_values(rows, pairs)
        return rows.plan.sum_examples(values if counted.all() else values * counted)


def entropy_of(weights: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Return −A ln A of each weight, 0 for weight 0."""
    return -weights * np.log(np.where(weights > 0, weights, 1.0))


def _entropy(rows: Rows, pairs: Pairs | None) -> RowValues:
    return rows.plan.sum_rows(entropy_of(rows.weights))


def _diagonal(offset: int) -> Callable[[Rows, Pairs | None], RowValues]:
    def row_values(rows: Rows, pairs: Pairs | None) -> RowValues:
        return rows.mass(np.flatnonzero(rows.plan.offset == offset))

    return row_values


def _has_next(plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
    return plan.query_pos + 1 < plan.n_queries[plan.example]


_DIAGONAL = {"unit": "share", "one_text": True}
_ALL = (
    Statistic(
        "entropy",
        "Entropy",
        "nats",
        "Spread of each row: −Σ A ln A over its keys (0 for weight 0); 0 = one key, ln T = all keys equal.",
        _entropy,
    ),
    Statistic(
        "distance",
        "Mean distance",
        "tokens",
        "Mean distance from query to key: Σ A·|query − key| of each row.",
        lambda rows, pairs: rows.sum(np.abs(rows.plan.offset)),
    ),
    Statistic(
        "maximum", "Strongest key", "share", "The largest weight of each row.", lambda rows, pairs: rows.maximum()
    ),
    Statistic(
        "self",
        "Attention to itself",
        description="Weight from each token to itself.",
        row_values=_diagonal(0),
        has_pair=lambda query, key, special: key == query,
        pattern="self_token",
        **_DIAGONAL,
    ),
    Statistic(
        "previous",
        "Attention to the previous token",
        description="Weight from each token to the one before it; the first row does not count.",
        row_values=_diagonal(-1),
        has_pair=lambda query, key, special: key == query - 1,
        counts=lambda plan, pairs: plan.query_pos > 0,
        pattern="previous_token",
        **_DIAGONAL,
    ),
    Statistic(
        "next",
        "Attention to the next token",
        description="Weight from each token to the one after it; the last row does not count. 0 at a causal site.",
        row_values=_diagonal(1),
        has_pair=lambda query, key, special: key == query + 1,
        counts=_has_next,
        pattern="next_token",
        **_DIAGONAL,
    ),
    Statistic(
        "first",
        "Attention to the first token",
        "share",
        "Weight from each token to position 0.",
        lambda rows, pairs: rows.weights[:, rows.plan.begin],
        has_pair=lambda query, key, special: key == 0,
        pattern="first_token",
        has_sink_free=False,
    ),
    Statistic(
        "special",
        "Attention to special tokens",
        "share",
        "Weight from each token to the special tokens; rows count also where there is none (0).",
        lambda rows, pairs: rows.mass(np.flatnonzero(rows.plan.special)),
        has_pair=lambda query, key, special: special,
        pattern="special_token",
        has_sink_free=False,
    ),
)
STATISTICS: dict[str, Statistic] = {statistic.name: statistic for statistic in _ALL}
"""Statistics that a capture computes, by name."""
STATISTIC_NAMES: tuple[str, ...] = tuple(STATISTICS)
