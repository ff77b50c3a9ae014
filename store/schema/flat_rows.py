"""Flat rows of attention, the input of statistics.

The pairs of consecutive examples lie one after the other as in the store: row by row, example by example, no padding.
`RowPlan` holds the offsets of the rows and the properties of their keys. It depends on tokens and on the mask alone, so
layers with equal masks share one plan. `Rows` adds the weights of some heads. Sums are float64, because they can have
thousands of small terms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped

from ..errors import ShapeError


@dataclass(frozen=True)
class RowPlan:
    """Offsets of the rows of consecutive examples on a flat axis of pairs. Rows without any key are left out."""

    n_queries: Int64[np.ndarray, "example"]
    n_keys: Int64[np.ndarray, "example"]
    causal: bool
    key_special: Bool[np.ndarray, "key_token"]
    """True for special key tokens, examples one after the other."""
    one_text: bool = True
    """True if queries and keys are the same tokens."""
    visible: Bool[np.ndarray, "pair"] | None = None
    """True for each pair whose key its row sees. None if rows see every key."""

    def __post_init__(self) -> None:
        """Check that the lengths agree."""
        if self.causal and not np.array_equal(self.n_queries, self.n_keys):
            raise ShapeError(
                "a causal site has examples with different numbers of queries and keys; expected equal numbers"
            )
        if len(self.key_special) != self.n_keys.sum():
            raise ShapeError(f"key_special has {len(self.key_special)} tokens; expected {self.n_keys.sum()}")

    @property
    def n_examples(self) -> int:
        """Number of examples, including examples without rows."""
        return len(self.n_queries)

    @cached_property
    def example(self) -> Int64[np.ndarray, "row"]:
        """Index of each row's example."""
        return np.repeat(np.arange(self.n_examples), np.where(self.n_keys > 0, self.n_queries, 0))

    @cached_property
    def query_pos(self) -> Int64[np.ndarray, "row"]:
        """Position of each row's query."""
        n_rows = np.bincount(self.example, minlength=self.n_examples)
        return np.arange(len(self.example)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)

    @cached_property
    def query(self) -> Int64[np.ndarray, "row"]:
        """Query token of each row."""
        return (np.cumsum(self.n_queries) - self.n_queries)[self.example] + self.query_pos

    @cached_property
    def length(self) -> Int64[np.ndarray, "row"]:
        """Number of stored keys of each row."""
        return self.query_pos + 1 if self.causal else self.n_keys[self.example]

    @cached_property
    def begin(self) -> Int64[np.ndarray, "row"]:
        """First pair of each row."""
        return np.cumsum(self.length) - self.length

    @cached_property
    def n_pairs(self) -> int:
        """Number of pairs of all rows."""
        return int(self.length.sum())

    @cached_property
    def row(self) -> Int64[np.ndarray, "pair"]:
        """Row of each pair."""
        return np.repeat(np.arange(len(self.length)), self.length)

    @cached_property
    def key_pos(self) -> Int64[np.ndarray, "pair"]:
        """Key position of each pair."""
        return np.arange(self.n_pairs) - self.begin[self.row]

    @cached_property
    def key(self) -> Int64[np.ndarray, "pair"]:
        """Key token of each pair."""
        return (np.cumsum(self.n_keys) - self.n_keys)[self.example][self.row] + self.key_pos

    @cached_property
    def offset(self) -> Int64[np.ndarray, "pair"]:
        """Key position minus query position of each pair."""
        return self.key_pos - self.query_pos[self.row]

    @cached_property
    def special(self) -> Bool[np.ndarray, "pair"]:
        """True for pairs whose key is a special token."""
        return self.key_special[self.key]

    @cached_property
    def sink(self) -> Bool[np.ndarray, "pair"]:
        """True for pairs whose key is a sink: the first token or a special token."""
        return self.special | (self.key_pos == 0)

    @property
    def seen(self) -> Bool[np.ndarray, "pair"] | slice:
        """Index of the pairs whose key its row sees: a mask, or a slice of all."""
        return slice(None) if self.visible is None else self.visible

    def with_mask(self, visible: Bool[np.ndarray, "pair"]) -> RowPlan:
        """Return the same rows with other visible keys. Offsets and properties that were computed are shared."""
        plan = replace(self, visible=visible)
        plan.__dict__.update({name: value for name, value in self.__dict__.items() if name != "visible"})
        return plan

    def n_visible(self, *, sinks: bool = True) -> Int64[np.ndarray, "row"]:
        """Return the number of keys that each row sees. Sinks are not counted if `sinks` is False."""
        if self.visible is None and sinks:
            return self.length
        is_visible = np.ones(self.n_pairs, bool) if self.visible is None else self.visible
        counted = is_visible if sinks else is_visible & ~self.sink
        return self.sum_rows(counted.astype(np.float64)[None])[0].astype(np.int64)

    def rows_that_see(self, pairs: Int64[np.ndarray, "match"]) -> Bool[np.ndarray, "row"]:
        """Return a mask of the rows that see the key of at least one of the pairs."""
        row_mask = np.zeros(len(self.length), bool)
        row_mask[self.row[pairs if self.visible is None else pairs[self.visible[pairs]]]] = True
        return row_mask

    def sum_rows(self, values: Float64[np.ndarray, "head pair"]) -> Float64[np.ndarray, "head row"]:
        """Sum the values of each row."""
        if not len(self.begin):
            return np.zeros((len(values), 0))
        return np.add.reduceat(values, self.begin, axis=1)

    def sum_examples(self, values: Float64[np.ndarray, "head row"]) -> Float64[np.ndarray, "head example"]:
        """Sum the values of the rows of each example."""
        result = np.zeros((len(values), self.n_examples))
        if values.shape[1]:
            starts = np.flatnonzero(np.concatenate([[True], self.example[1:] != self.example[:-1]]))
            result[:, self.example[starts]] = np.add.reduceat(values, starts, axis=1)
        return result

    def count(self, chosen: Bool[np.ndarray, "row"]) -> Int64[np.ndarray, "example"]:
        """Return the number of chosen rows of each example."""
        return np.bincount(self.example[chosen], minlength=self.n_examples).astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """Weights of some heads of one layer over the pairs of a plan."""

    plan: RowPlan
    weights: Float64[np.ndarray, "head pair"]
    sinks: bool = True
    """False if the mass of sinks was removed and each row was divided by its remaining sum."""

    @staticmethod
    def of_map(
        attention: Float[np.ndarray, "head query_pos key_pos"],
        key_special: Bool[np.ndarray, "key_pos"],
        *,
        one_text: bool,
    ) -> Rows:
        """Return the rows of one full map, in which weights hidden by a causal mask are 0."""
        n_heads, n_queries, n_keys = attention.shape
        plan = RowPlan(np.array([n_queries]), np.array([n_keys]), False, key_special, one_text)
        return Rows(plan, attention.astype(np.float64).reshape(n_heads, n_queries * n_keys))

    @property
    def n_visible(self) -> Int64[np.ndarray, "row"]:
        """Number of keys that each row sees. Sinks are not counted if they were removed."""
        return self.plan.n_visible(sinks=self.sinks)

    def without_sinks(self) -> Rows:
        """Remove the mass of sinks and divide each row by its remaining sum. A row whose remaining sum is 0 stays 0."""
        weights = np.where(self.plan.sink, 0.0, self.weights)
        total = self.plan.sum_rows(weights)
        weights *= np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)[:, self.plan.row]
        return Rows(self.plan, weights, sinks=False)

    def sum(self, factor: Shaped[np.ndarray, "pair"] | None = None) -> Float64[np.ndarray, "head row"]:
        """Sum over each row of the weights, each multiplied by the factor of its pair."""
        return self.plan.sum_rows(self.weights if factor is None else self.weights * factor)

    def mass(self, pairs: Int64[np.ndarray, "match"]) -> Float64[np.ndarray, "head row"]:
        """Sum the weights of each row over the given pairs, which must be ascending."""
        result = np.zeros((len(self.weights), len(self.plan.length)))
        if len(pairs):
            row = self.plan.row[pairs]
            starts = np.flatnonzero(np.concatenate([[True], row[1:] != row[:-1]]))
            result[:, row[starts]] = np.add.reduceat(np.take(self.weights, pairs, axis=1), starts, axis=1)
        return result

    def maximum(self) -> Float64[np.ndarray, "head row"]:
        """Return the largest weight of each row."""
        if not len(self.plan.begin):
            return np.zeros((len(self.weights), 0))
        return np.maximum.reduceat(self.weights, self.plan.begin, axis=1)

    def strongest(self) -> Int64[np.ndarray, "head row"]:
        """Return the pair of the largest weight of each row. The first of equal pairs wins."""
        plan = self.plan
        largest = self.maximum()
        result = np.zeros(largest.shape, np.int64)
        for head_result, weights, maxima in zip(result, self.weights, largest, strict=True):
            pairs = np.flatnonzero(weights == maxima[plan.row])
            row = plan.row[pairs]
            head_result[:] = pairs[np.concatenate([[True], row[1:] != row[:-1]])] if len(pairs) else pairs
        return result

    def top(self, n: int) -> Float64[np.ndarray, "head row"]:
        """Sum the `n` largest weights of each row."""
        plan = self.plan
        result = np.zeros((len(self.weights), len(plan.length)))
        for length in np.unique(plan.length).tolist():  # rows of one length are a rectangle
            rows = np.flatnonzero(plan.length == length)
            block = self.weights[:, plan.begin[rows][:, None] + np.arange(length)]
            if length > n:
                block = np.partition(block, length - n, axis=-1)[..., length - n :]
            result[:, rows] = block.sum(axis=-1)
        return result
