"""Rows of attention, flat: what statistics are computed on.

The pairs of consecutive examples lie one after the other as in the store: row by row, example by example, no padding.
`RowPlan` says where each row begins and what is known of its keys; it depends on tokens alone and serves every layer.
`Rows` adds the weights of some heads. Sums are float64, since a thousand small weights make one number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped

from ..errors import ShapeError


@dataclass(frozen=True)
class RowPlan:
    """Where the rows of some consecutive examples lie on a flat axis of pairs. Rows without any key are left out."""

    n_queries: Int64[np.ndarray, "example"]
    n_keys: Int64[np.ndarray, "example"]
    causal: bool
    key_special: Bool[np.ndarray, "key_token"]
    """Whether the tokenizer added each key token, examples one after the other."""
    one_text: bool = True
    """Whether queries and keys are the same tokens."""

    def __post_init__(self) -> None:
        """Check that the lengths agree."""
        if self.causal and not np.array_equal(self.n_queries, self.n_keys):
            raise ShapeError(
                "a causal site whose examples have other numbers of queries than of keys; expected as many"
            )
        if len(self.key_special) != self.n_keys.sum():
            raise ShapeError(f"key_special has {len(self.key_special)} tokens; expected {self.n_keys.sum()}")

    @property
    def n_examples(self) -> int:
        """How many examples there are, those without rows included."""
        return len(self.n_queries)

    @cached_property
    def example(self) -> Int64[np.ndarray, "row"]:
        """The example of each row."""
        return np.repeat(np.arange(self.n_examples), np.where(self.n_keys > 0, self.n_queries, 0))

    @cached_property
    def query_pos(self) -> Int64[np.ndarray, "row"]:
        """The position of each row's query."""
        n_rows = np.bincount(self.example, minlength=self.n_examples)
        return np.arange(len(self.example)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)

    @cached_property
    def query(self) -> Int64[np.ndarray, "row"]:
        """The query token of each row."""
        return (np.cumsum(self.n_queries) - self.n_queries)[self.example] + self.query_pos

    @cached_property
    def length(self) -> Int64[np.ndarray, "row"]:
        """Stored keys of each row."""
        return self.query_pos + 1 if self.causal else self.n_keys[self.example]

    @cached_property
    def begin(self) -> Int64[np.ndarray, "row"]:
        """The first pair of each row."""
        return np.cumsum(self.length) - self.length

    @cached_property
    def n_pairs(self) -> int:
        """Pairs of all rows."""
        return int(self.length.sum())

    @cached_property
    def row(self) -> Int64[np.ndarray, "pair"]:
        """The row of each pair."""
        return np.repeat(np.arange(len(self.length)), self.length)

    @cached_property
    def key_pos(self) -> Int64[np.ndarray, "pair"]:
        """The key position of each pair."""
        return np.arange(self.n_pairs) - self.begin[self.row]

    @cached_property
    def key(self) -> Int64[np.ndarray, "pair"]:
        """The key token of each pair."""
        return (np.cumsum(self.n_keys) - self.n_keys)[self.example][self.row] + self.key_pos

    @cached_property
    def offset(self) -> Int64[np.ndarray, "pair"]:
        """Key position less query position of each pair."""
        return self.key_pos - self.query_pos[self.row]

    @cached_property
    def special(self) -> Bool[np.ndarray, "pair"]:
        """Whether each pair's key is a special token."""
        return self.key_special[self.key]

    @cached_property
    def sink(self) -> Bool[np.ndarray, "pair"]:
        """Whether each pair's key is a sink: the first token, or a special one."""
        return self.special | (self.key_pos == 0)

    def n_visible(self, window: int | None, *, sinks: bool = True) -> Int64[np.ndarray, "row"]:
        """Keys that each row sees, of a layer with this sliding window; without `sinks`: those that are no sink."""
        if window is None and sinks:
            return self.length
        seen = np.ones(self.n_pairs, bool) if window is None else np.abs(self.offset) < window
        return self.sum_rows((seen if sinks else seen & ~self.sink).astype(np.float64)[None])[0].astype(np.int64)

    def sum_rows(self, values: Float64[np.ndarray, "head pair"]) -> Float64[np.ndarray, "head row"]:
        """Sum over each row."""
        if not len(self.begin):
            return np.zeros((len(values), 0))
        return np.add.reduceat(values, self.begin, axis=1)

    def sum_examples(self, values: Float64[np.ndarray, "head row"]) -> Float64[np.ndarray, "head example"]:
        """Sum over the rows of each example."""
        result = np.zeros((len(values), self.n_examples))
        if values.shape[1]:
            starts = np.flatnonzero(np.concatenate([[True], self.example[1:] != self.example[:-1]]))
            result[:, self.example[starts]] = np.add.reduceat(values, starts, axis=1)
        return result

    def count(self, chosen: Bool[np.ndarray, "row"]) -> Int64[np.ndarray, "example"]:
        """How many chosen rows each example has."""
        return np.bincount(self.example[chosen], minlength=self.n_examples).astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """The weights of some heads of one layer over the pairs of a plan. `window` is the layer's sliding window."""

    plan: RowPlan
    weights: Float64[np.ndarray, "head pair"]
    window: int | None = None
    sinks: bool = True
    """False: the mass of sinks was taken away, and what is left of each row adds up to 1."""

    @staticmethod
    def of_map(
        attention: Float[np.ndarray, "head query_pos key_pos"],
        key_special: Bool[np.ndarray, "key_pos"],
        *,
        one_text: bool,
    ) -> Rows:
        """The rows of one whole map; what a causal mask hides is 0 in it."""
        n_heads, n_queries, n_keys = attention.shape
        plan = RowPlan(np.array([n_queries]), np.array([n_keys]), False, key_special, one_text)
        return Rows(plan, attention.astype(np.float64).reshape(n_heads, n_queries * n_keys))

    @property
    def n_visible(self) -> Int64[np.ndarray, "row"]:
        """Keys that each row sees (and that are no sink, where those were taken away)."""
        return self.plan.n_visible(self.window, sinks=self.sinks)

    def without_sinks(self) -> Rows:
        """The first token's mass and that of special tokens taken away, each row divided by what is left (0: stays 0)."""
        left = np.where(self.plan.sink, 0.0, self.weights)
        total = self.plan.sum_rows(left)
        left *= np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)[:, self.plan.row]
        return Rows(self.plan, left, self.window, sinks=False)

    def sum(self, factor: Shaped[np.ndarray, "pair"] | None = None) -> Float64[np.ndarray, "head row"]:
        """Sum over each row, of weights times a factor of the pair."""
        return self.plan.sum_rows(self.weights if factor is None else self.weights * factor)

    def mass(self, pairs: Int64[np.ndarray, "match"]) -> Float64[np.ndarray, "head row"]:
        """Sum over each row's pairs among those given, which ascend."""
        result = np.zeros((len(self.weights), len(self.plan.length)))
        if len(pairs):
            row = self.plan.row[pairs]
            starts = np.flatnonzero(np.concatenate([[True], row[1:] != row[:-1]]))
            result[:, row[starts]] = np.add.reduceat(np.take(self.weights, pairs, axis=1), starts, axis=1)
        return result

    def maximum(self) -> Float64[np.ndarray, "head row"]:
        """Largest weight of each row."""
        if not len(self.plan.begin):
            return np.zeros((len(self.weights), 0))
        return np.maximum.reduceat(self.weights, self.plan.begin, axis=1)

    def strongest(self) -> Int64[np.ndarray, "head row"]:
        """The pair of the largest weight of each row, the first of equal ones."""
        plan = self.plan
        largest = self.maximum()
        result = np.zeros(largest.shape, np.int64)
        for of_head, weights, top in zip(result, self.weights, largest, strict=True):
            at = np.flatnonzero(weights == top[plan.row])
            row = plan.row[at]
            of_head[:] = at[np.concatenate([[True], row[1:] != row[:-1]])] if len(at) else at
        return result

    def top(self, n: int) -> Float64[np.ndarray, "head row"]:
        """Sum of the `n` largest weights of each row."""
        plan = self.plan
        result = np.zeros((len(self.weights), len(plan.length)))
        for length in np.unique(plan.length).tolist():  # rows of one length are a rectangle
            rows = np.flatnonzero(plan.length == length)
            block = self.weights[:, plan.begin[rows][:, None] + np.arange(length)]
            if length > n:
                block = np.partition(block, length - n, axis=-1)[..., length - n :]
            result[:, rows] = block.sum(axis=-1)
        return result
