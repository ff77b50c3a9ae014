"""The matcher: finds the pairs of a segment that match an expression, without testing every pair if its form allows.

The matcher splits an expression at its ``and``. Conditions on the query token alone select rows. Conditions on the key
token alone select keys. An equation between the two sides (``key.id == query.id``,
``key.position == query.position - 1``, ``query.position - key.position == 3``) finds the keys of each row by sorting. The remaining conditions are evaluated on
the candidate pairs only. A top-level ``or`` of such expressions is the union of their matches. Rows are processed in
blocks with a bounded number of pairs, so memory does not grow with the corpus.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64, Num

from .evaluate import Domain, Evaluator, Pairs, domain, encode_alike
from .token_fields import Values
from .tree import Arithmetic, Compare, Junction, Named, Negate, Node, Reference

BLOCK_PAIRS = 1 << 20


@dataclass(frozen=True)
class Matches:
    """Matching pairs of a block of rows, in the order of the site's flat pair axis."""

    first_pair: int
    """First pair of the block's rows on the segment's pair axis."""
    last_pair: int
    """Last pair of the block's rows + 1."""
    pair: Int64[np.ndarray, "match"]
    """Index on the pair axis of the segment, ascending."""
    query: Int64[np.ndarray, "match"]
    key: Int64[np.ndarray, "match"]
    """Indices of the query token and the key token in the segment's token tables."""

    def __len__(self) -> int:
        return len(self.pair)

    def select(self, matches: slice | Bool[np.ndarray, "match"]) -> Matches:
        """Select matches."""
        return Matches(self.first_pair, self.last_pair, self.pair[matches], self.query[matches], self.key[matches])


@dataclass(frozen=True)
class Layout:
    """Position of each example's pairs on the flat pair axis of a segment."""

    pair_offset: Int64[np.ndarray, "offset"]
    causal: bool


@dataclass
class _Conjunction:
    """The conditions of one conjunction, grouped by the axis that they depend on."""

    rows: list[Node] = field(default_factory=list)
    keys: list[Node] = field(default_factory=list)
    equations: list[tuple[Node, Node]] = field(default_factory=list)
    """Pairs of query side and key side."""
    filters: list[Node] = field(default_factory=list)
    """Other conditions on pairs."""


def _unnamed(node: Node) -> Node:
    while isinstance(node, Named):
        node = node.body
    return node


def _conjuncts(node: Node) -> Iterator[Node]:
    node = _unnamed(node)
    if isinstance(node, Junction) and node.operator == "and":
        for operand in node.operands:
            yield from _conjuncts(operand)
    elif isinstance(node, Compare):
        for index, sign in enumerate(node.operators):
            yield Compare(node.operands[index : index + 2], (sign,), span=node.span)
    else:
        yield node


def _terms(node: Node, sign: int) -> Iterator[tuple[int, Node]]:
    if isinstance(node, Arithmetic) and node.operator != "*":
        yield from _terms(node.left, sign)
        yield from _terms(node.right, sign if node.operator == "+" else -sign)
    elif isinstance(node, Negate):
        yield from _terms(node.operand, -sign)
    else:
        yield sign, node


def _total(terms: list[tuple[int, Node]]) -> Node:
    total: Node | None = None
    for sign, term in terms:
        signed = term if sign > 0 else Negate(term, span=term.span)
        total = signed if total is None else Arithmetic("+", total, signed, span=term.span)
    assert total is not None
    return total


def _equation(node: Node) -> tuple[Node, Node] | None:
    """Return the query side and the key side of an equation, or None if `node` is not an equation between them."""
    if not (isinstance(node, Compare) and node.operators == ("==",)):
        return None
    left, right = node.operands
    if not isinstance(left, Arithmetic | Negate) and not isinstance(right, Arithmetic | Negate):
        axes = domain(left), domain(right)
        return {(Domain.QUERY, Domain.KEY): (left, right), (Domain.KEY, Domain.QUERY): (right, left)}.get(axes)
    # For example query.position - key.position == 3: move the terms of the key to one side.
    terms = [*_terms(left, 1), *_terms(right, -1)]
    key_terms = [(-sign, term) for sign, term in terms if domain(term) == Domain.KEY]
    query_terms = [(sign, term) for sign, term in terms if domain(term) in (Domain.QUERY, Domain.NOTHING)]
    if len(key_terms) + len(query_terms) < len(terms) or not key_terms or not any(domain(t) for _, t in query_terms):
        return None
    if len(key_terms) == 1 and key_terms[0][0] < 0:
        key_terms, query_terms = [(1, key_terms[0][1])], [(-sign, term) for sign, term in query_terms]
    return _total(query_terms), _total(key_terms)


def _group_conditions(node: Node) -> _Conjunction:
    conjunction = _Conjunction()
    for conjunct in _conjuncts(node):
        axis = domain(conjunct)
        equation = _equation(conjunct) if axis == Domain.PAIR else None
        if equation is not None:
            conjunction.equations.append(equation)
        else:
            (
                conjunction.filters
                if axis == Domain.PAIR
                else conjunction.keys
                if axis == Domain.KEY
                else conjunction.rows
            ).append(conjunct)
    return conjunction


def _split_disjunction(node: Node) -> list[_Conjunction]:
    node = _unnamed(node)
    if isinstance(node, Junction) and node.operator == "or":
        conjunctions = [_group_conditions(operand) for operand in node.operands]
        if len(conjunctions) <= 8 and all(conjunction.equations for conjunction in conjunctions):
            return conjunctions
    return [_group_conditions(node)]


class Matcher:
    """Finds the matching pairs of one segment.

    The caller checks the expression against the evaluator's vocabulary beforehand.
    """

    def __init__(self, node: Node, evaluator: Evaluator, layout: Layout) -> None:
        self.evaluator, self.layout = evaluator, layout
        query, key = evaluator.query, evaluator.key
        self._key_start = key.table.token_offset.astype(np.int64)[:-1]
        self._n_keys = key.table.n_tokens.astype(np.int64)
        per_row = query.position + 1 if layout.causal else self._n_keys[query.example]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_row, dtype=np.int64)])
        self.row_start: Int64[np.ndarray, "row_start"] = starts
        """Offset of each query token's first pair on the pair axis."""
        self._scans = [_Scan(conjunction, self) for conjunction in _split_disjunction(node)]

    def __iter__(self) -> Iterator[Matches]:
        """Iterate in order over the blocks of rows that have matches."""
        return self.blocks(0, len(self.evaluator.query.table))

    def blocks(self, start: int, stop: int, block_pairs: int = BLOCK_PAIRS) -> Iterator[Matches]:
        """Iterate over the matches of query tokens `start:stop`, in blocks of about `block_pairs` pairs or one row."""
        while start < stop:
            limit = self.row_start[start] + block_pairs
            end = min(stop, max(start + 1, int(np.searchsorted(self.row_start, limit, side="right")) - 1))
            matches = self._block(start, end)
            if len(matches):
                yield matches
            start = end

    def example(self, example: int) -> Matches:
        """Return the matches of one example."""
        first, last = (int(n) for n in self.evaluator.query.table.token_offset[example : example + 2])
        return self._block(first, last)

    def _block(self, start: int, stop: int) -> Matches:
        candidates = [scan.pairs(start, stop) for scan in self._scans]
        pair = [self._pair(pairs) for pairs in candidates]
        first, last = int(self.row_start[start]), int(self.row_start[stop])
        if len(candidates) == 1:
            return Matches(first, last, pair[0], candidates[0].query, candidates[0].key)
        union, first_index = np.unique(np.concatenate(pair), return_index=True)
        query = np.concatenate([pairs.query for pairs in candidates])[first_index]
        return Matches(first, last, union, query, np.concatenate([pairs.key for pairs in candidates])[first_index])

    def _pair(self, pairs: Pairs) -> Int64[np.ndarray, "match"]:
        return self.row_start[pairs.query] + self.evaluator.key.position[pairs.key]


class _Scan:
    """One conjunction over one segment: rows and keys are selected once, candidate pairs block by block."""

    def __init__(self, conjunction: _Conjunction, matcher: Matcher) -> None:
        self.plan, self.matcher, self.evaluator = conjunction, matcher, matcher.evaluator
        self.rows = self._select(conjunction.rows, len(self.evaluator.query.table))
        self.keys = self._select(conjunction.keys, len(self.evaluator.key.table))
        joins = [self._join(*equation) for equation in conjunction.equations]
        self.join = min(joins, key=lambda join: join.n_candidates, default=None)
        join_index = joins.index(self.join) if self.join is not None else -1
        others = [Compare(equation, ("==",)) for i, equation in enumerate(conjunction.equations) if i != join_index]
        self.filters: list[Node] = [*others, *conjunction.filters]
        self._key_index = np.flatnonzero(self.keys)

    def _select(self, conditions: list[Node], n_tokens: int) -> Bool[np.ndarray, "token"]:
        mask = np.ones(n_tokens, dtype=bool)
        for condition in conditions:
            mask &= self.evaluator.condition(condition)
        return mask

    def _join(self, query_side: Node, key_side: Node) -> _Join:
        query, key = self.evaluator.values(query_side), self.evaluator.values(key_side)
        if isinstance(key_side, Reference) and key_side.name == "position" and not key_side.steps:
            return _PositionJoin(self, query)
        return _SortedJoin(self, query, key)

    def pairs(self, start: int, stop: int) -> Pairs:
        """Return the matching pairs of query tokens `start:stop`, ordered by row, then by key."""
        rows = start + np.flatnonzero(self.rows[start:stop])
        pairs = self.join.pairs(rows) if self.join is not None else self._all_keys(rows)
        if self.matcher.layout.causal:
            visible = self.evaluator.key.position[pairs.key] <= self.evaluator.query.position[pairs.query]
            if not visible.all():
                pairs = Pairs(pairs.query[visible], pairs.key[visible])
        for condition in self.filters:
            if not len(pairs):
                break
            holds = self.evaluator.condition(condition, pairs)
            pairs = Pairs(pairs.query[holds], pairs.key[holds])
        return pairs

    def _all_keys(self, rows: Int64[np.ndarray, "row"]) -> Pairs:
        """Pair each row with every selected key of its example that is visible to it."""
        example = self.evaluator.query.example[rows]
        first = self.matcher._key_start[example]
        visible = (
            self.evaluator.query.position[rows] + 1 if self.matcher.layout.causal else self.matcher._n_keys[example]
        )
        low = np.searchsorted(self._key_index, first)
        high = np.searchsorted(self._key_index, first + visible)
        key_rank, row = expand(low, high)
        return Pairs(rows[row], self._key_index[key_rank])


def expand(
    low: Int64[np.ndarray, "row"], high: Int64[np.ndarray, "row"]
) -> tuple[Int64[np.ndarray, "item"], Int64[np.ndarray, "item"]]:
    """List the items of the ranges ``low[i]:high[i]`` in order, with the index of each item's range."""
    count = high - low
    row = np.repeat(np.arange(len(count)), count)
    before = np.cumsum(count) - count
    return np.arange(len(row)) + (low - before)[row], row


class _Join(ABC):
    """Finds the keys whose value equals the value of a row."""

    n_candidates: int

    @abstractmethod
    def pairs(self, rows: Int64[np.ndarray, "row"]) -> Pairs:
        """Return the candidate pairs of these rows, ordered by row, then by key."""


class _PositionJoin(_Join):
    """An equation ``key.position == (value of the query)``: the single key is computed directly."""

    def __init__(self, scan: _Scan, query: Values) -> None:
        self.scan, self.value = scan, query
        self.n_candidates = int(scan.rows.sum())

    def pairs(self, rows: Int64[np.ndarray, "row"]) -> Pairs:
        matcher, value = self.scan.matcher, self.value.data[rows]
        example = matcher.evaluator.query.example[rows]
        exists = (value >= 0) & (value < matcher._n_keys[example])
        if value.dtype.kind == "f":
            exists &= value == np.floor(value)
        if self.value.missing is not None:
            exists &= ~self.value.missing[rows]
        rows = rows[exists]
        key = matcher._key_start[example[exists]] + value[exists].astype(np.int64)
        selected = self.scan.keys[key]
        return Pairs(rows[selected], key[selected])


class _SortedJoin(_Join):
    """Any other equation: keys are sorted by example and value, and bisection finds the run of each row."""

    def __init__(self, scan: _Scan, query: Values, key: Values) -> None:
        query_fields, key_fields = scan.evaluator.query, scan.evaluator.key
        if query.kind == "text":
            query, key = encode_alike(query, key)
        keys = np.flatnonzero(scan.keys if key.missing is None else scan.keys & ~key.missing)
        # One integer for each (example, value): equal for equal values.
        query_rank, key_rank, n_ranks = _ranks(query.data, key.data[keys])
        key_code = key_fields.example[keys] * n_ranks + key_rank
        order = np.argsort(key_code, kind="stable")
        self._key, key_code = keys[order], key_code[order]
        query_code = query_fields.example * n_ranks + query_rank
        self._low = np.searchsorted(key_code, query_code, side="left")
        self._high = np.searchsorted(key_code, query_code, side="right")
        n_positions = int(key_fields.position.max(initial=0)) + 1
        if scan.matcher.layout.causal and n_ranks * query_fields.table.n_examples < 2**62 // n_positions:
            # keys of a run ascend by position: the run of a row ends at its own position
            key_code = key_code * n_positions + key_fields.position[self._key]
            visible = np.minimum(query_fields.position, n_positions - 1)
            self._high = np.searchsorted(key_code, query_code * n_positions + visible, side="right")
        if query.missing is not None:
            self._high = np.where(query.missing, self._low, self._high)
        self.n_candidates = int((self._high - self._low)[scan.rows].sum())

    def pairs(self, rows: Int64[np.ndarray, "row"]) -> Pairs:
        key_rank, row = expand(self._low[rows], self._high[rows])
        return Pairs(rows[row], self._key[key_rank])


def _ranks(
    left: Num[np.ndarray, "n"], right: Num[np.ndarray, "m"]
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "m"], int]:
    """Map the values of both arrays to integers from 0, equal for equal values; also return their upper limit."""
    if left.dtype.kind == right.dtype.kind == "i" and len(left) and len(right):
        low, high = min(int(left.min()), int(right.min())), max(int(left.max()), int(right.max()))
        if high - low < 1 << 24:  # token ids, codes, positions: use them directly, without a sort
            return left.astype(np.int64) - low, right.astype(np.int64) - low, high - low + 1
    distinct, rank = np.unique(np.concatenate([left, right]), return_inverse=True)
    return rank[: len(left)], rank[len(left) :], len(distinct)
