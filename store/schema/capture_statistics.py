"""The statistics of a head that a capture computes: one record each, with its definition in numpy.

Each statistic is the mean over an example's query rows of one number a row, so the same definition serves one sentence
and a corpus: `Statistic.row_values` gives the value of each row and `Statistic.counts` the rows that enter the mean.
Captures compute `STATISTICS` on the device, before quantization. `headatlas.store.statistics.definitions` adds those
that are computed from stored attention. `docs/definitions.md` compares the formulas with those of other tools.
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

    If it is the mass of some pairs, `has_pair` selects them by position, or `find` by tokens. `pattern` is the library
    pattern of the same mass; it gives the uniform baseline.
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
    """Needs query and key from the same text: NaN at a cross-attention site."""
    pattern: str | None = None
    has_sink_free: bool = True
    """Whether it means anything of rows without their sinks."""
    sink_free: bool = False

    def rows(
        self, n_queries: Int[np.ndarray, "example"], n_keys: Int[np.ndarray, "example"], *, causal: bool = False
    ) -> Int64[np.ndarray, "example"]:
        """How many rows count in examples of these lengths, for a statistic that needs no more than lengths."""
        assert self.find is None, f"{self.name} depends on tokens"
        lengths = n_queries.astype(np.int64), n_keys.astype(np.int64)
        plan = RowPlan(*lengths, causal, np.zeros(int(lengths[1].sum()), bool))
        return plan.count(self.counts(plan, None))

    def counted(self, plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
        """Which rows count; none does at a site of two texts if the statistic needs one text.

        Of rows without sinks those count that see something else.
        """
        if self.one_text and not plan.one_text:
            return np.zeros(len(plan.length), bool)
        chosen = self.counts(plan, pairs)
        return chosen & (plan.n_visible(None, sinks=False) > 0) if self.sink_free else chosen

    def example_sums(
        self, rows: Rows, pairs: Pairs | None, counted: Bool[np.ndarray, "row"]
    ) -> Float64[np.ndarray, "head example"]:
        """Sum over the counted rows of each example; `rows` are without sinks if the statistic is."""
        if not counted.any():
            return np.zeros((len(rows.weights), rows.plan.n_examples))
        values = self.row_values(rows, pairs)
        return rows.plan.sum_examples(values if counted.all() else values * counted)


def entropy_of(weights: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """−A ln A of each weight, 0 for weight 0."""
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
        "How spread out each row is: −Σ A ln A over its keys (0 for weight 0); 0 = one key, ln T = all alike.",
        _entropy,
    ),
    Statistic(
        "distance",
        "Mean distance",
        "tokens",
        "How far it looks: Σ A·|query − key| of each row.",
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
        "Weight from each token to the tokens that the tokenizer added; rows count also where there is none (0).",
        lambda rows, pairs: rows.mass(np.flatnonzero(rows.plan.special)),
        has_pair=lambda query, key, special: special,
        pattern="special_token",
        has_sink_free=False,
    ),
)
STATISTICS: dict[str, Statistic] = {statistic.name: statistic for statistic in _ALL}
"""What a capture computes."""
STATISTIC_NAMES: tuple[str, ...] = tuple(STATISTICS)
