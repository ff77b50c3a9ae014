"""Which pairs of a segment match an expression, found without looking at every pair where its form allows.

An expression is taken apart at its ``and``: conditions on the query token alone choose rows, those on the key token
alone choose keys, an equation between the two sides (``key.id == query.id``, ``key.position == query.position - 1``,
``query.position - key.position == 3``) finds each row's keys by sorting, and only what is left is evaluated, on the
candidate pairs that remain. A top-level ``or`` of such expressions is the union of their matches. Work goes in blocks
of rows whose pairs are bounded, so memory does not grow with the corpus.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64, Num

from .evaluate import Domain, Evaluator, Pairs, domain, one_coding
from .token_fields import Values
from .tree import Arithmetic, Compare, Junction, Named, Negate, Node, Reference

BLOCK_PAIRS = 1 << 20


@dataclass(frozen=True)
class Matches:
    """The matching pairs of a block of rows, in the order of the site's flat pair axis."""

    first_pair: int
    """First and last + 1 pair of the block's rows on the segment's pair axis."""
    last_pair: int
    pair: Int64[np.ndarray, "match"]
    """Index on the pair axis of the segment, ascending."""
    query: Int64[np.ndarray, "match"]
    key: Int64[np.ndarray, "match"]
    """Index of the two tokens in the segment's token tables."""

    def __len__(self) -> int:
        return len(self.pair)


@dataclass(frozen=True)
class Layout:
    """Where the pairs of a segment lie on its flat pair axis."""

    pair_offset: Int64[np.ndarray, "offset"]
    causal: bool


@dataclass
class _Plan:
    """One conjunction, taken apart."""

    rows: list[Node] = field(default_factory=list)
    keys: list[Node] = field(default_factory=list)
    equations: list[tuple[Node, Node]] = field(default_factory=list)
    """Query side, key side."""
    rest: list[Node] = field(default_factory=list)


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
    """Both sides of an equation of query and key, the query's first; None where it is no such thing."""
    if not (isinstance(node, Compare) and node.operators == ("==",)):
        return None
    left, right = node.operands
    if not isinstance(left, Arithmetic | Negate) and not isinstance(right, Arithmetic | Negate):
        where = domain(left), domain(right)
        return {(Domain.QUERY, Domain.KEY): (left, right), (Domain.KEY, Domain.QUERY): (right, left)}.get(where)
    # Something like  query.position - key.position == 3: bring the key's terms to one side.
    terms = [*_terms(left, 1), *_terms(right, -1)]
    of_key = [(-sign, term) for sign, term in terms if domain(term) == Domain.KEY]
    of_query = [(sign, term) for sign, term in terms if domain(term) in (Domain.QUERY, Domain.NOTHING)]
    if len(of_key) + len(of_query) < len(terms) or not of_key or not any(domain(t) for _, t in of_query):
        return None
    if len(of_key) == 1 and of_key[0][0] < 0:
        of_key, of_query = [(1, of_key[0][1])], [(-sign, term) for sign, term in of_query]
    return _total(of_query), _total(of_key)


def _plan(node: Node) -> _Plan:
    plan = _Plan()
    for conjunct in _conjuncts(node):
        where = domain(conjunct)
        equation = _equation(conjunct) if where == Domain.PAIR else None
        if equation is not None:
            plan.equations.append(equation)
        else:
            (plan.rest if where == Domain.PAIR else plan.keys if where == Domain.KEY else plan.rows).append(conjunct)
    return plan


def _plans(node: Node) -> list[_Plan]:
    node = _unnamed(node)
    if isinstance(node, Junction) and node.operator == "or":
        plans = [_plan(operand) for operand in node.operands]
        if len(plans) <= 8 and all(plan.equations for plan in plans):
            return plans
    return [_plan(node)]


class Matcher:
    """Finds the matching pairs of one segment.

    The expression must have been checked against the evaluator's vocabulary.
    """

    def __init__(self, node: Node, evaluator: Evaluator, layout: Layout) -> None:
        self.evaluator, self.layout = evaluator, layout
        query, key = evaluator.query, evaluator.key
        self._key_start = key.table.token_offset.astype(np.int64)[:-1]
        self._n_keys = key.table.n_tokens.astype(np.int64)
        per_row = query.position + 1 if layout.causal else self._n_keys[query.example]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_row, dtype=np.int64)])
        self.row_start: Int64[np.ndarray, "row_start"] = starts
        """Where each query token's pairs begin on the pair axis."""
        self._scans = [_Scan(plan, self) for plan in _plans(node)]

    def __iter__(self) -> Iterator[Matches]:
        """Iterate over blocks of rows that have matches, in order."""
        return self.blocks(0, len(self.evaluator.query.table))

    def blocks(self, start: int, stop: int, block_pairs: int = BLOCK_PAIRS) -> Iterator[Matches]:
        """Matches of the query tokens `start:stop`, in blocks of about `block_pairs` pairs (at least one row)."""
        while start < stop:
            limit = self.row_start[start] + block_pairs
            end = min(stop, max(start + 1, int(np.searchsorted(self.row_start, limit, side="right")) - 1))
            matches = self._block(start, end)
            if len(matches):
                yield matches
            start = end

    def example(self, example: int) -> Matches:
        """Matches of one example."""
        first, last = (int(n) for n in self.evaluator.query.table.token_offset[example : example + 2])
        return self._block(first, last)

    def _block(self, start: int, stop: int) -> Matches:
        found = [scan.pairs(start, stop) for scan in self._scans]
        pair = [self._pair(pairs) for pairs in found]
        first, last = int(self.row_start[start]), int(self.row_start[stop])
        if len(found) == 1:
            return Matches(first, last, pair[0], found[0].query, found[0].key)
        union, at = np.unique(np.concatenate(pair), return_index=True)
        query = np.concatenate([pairs.query for pairs in found])[at]
        return Matches(first, last, union, query, np.concatenate([pairs.key for pairs in found])[at])

    def _pair(self, pairs: Pairs) -> Int64[np.ndarray, "match"]:
        return self.row_start[pairs.query] + self.evaluator.key.position[pairs.key]


class _Scan:
    """One plan over one segment: rows and keys are chosen once, candidates are made block by block."""

    def __init__(self, plan: _Plan, matcher: Matcher) -> None:
        self.plan, self.matcher, self.evaluator = plan, matcher, matcher.evaluator
        self.rows = self._chosen(plan.rows, len(self.evaluator.query.table))
        self.keys = self._chosen(plan.keys, len(self.evaluator.key.table))
        joins = [self._join(*equation) for equation in plan.equations]
        self.join = min(joins, key=lambda join: join.n_candidates, default=None)
        chosen = joins.index(self.join) if self.join is not None else -1
        others = [Compare(equation, ("==",)) for i, equation in enumerate(plan.equations) if i != chosen]
        self.rest: list[Node] = [*others, *plan.rest]
        self._key_index = np.flatnonzero(self.keys)

    def _chosen(self, conditions: list[Node], n_tokens: int) -> Bool[np.ndarray, "token"]:
        chosen = np.ones(n_tokens, dtype=bool)
        for condition in conditions:
            chosen &= self.evaluator.condition(condition)
        return chosen

    def _join(self, query_side: Node, key_side: Node) -> _Join:
        query, key = self.evaluator.values(query_side), self.evaluator.values(key_side)
        if isinstance(key_side, Reference) and key_side.name == "position" and not key_side.steps:
            return _PositionJoin(self, query)
        return _SortedJoin(self, query, key)

    def pairs(self, start: int, stop: int) -> Pairs:
        """Matching pairs of the query tokens `start:stop`, by row, then key."""
        rows = start + np.flatnonzero(self.rows[start:stop])
        pairs = self.join.pairs(rows) if self.join is not None else self._all_keys(rows)
        if self.matcher.layout.causal:
            visible = self.evaluator.key.position[pairs.key] <= self.evaluator.query.position[pairs.query]
            if not visible.all():
                pairs = Pairs(pairs.query[visible], pairs.key[visible])
        for condition in self.rest:
            if not len(pairs):
                break
            holds = self.evaluator.condition(condition, pairs)
            pairs = Pairs(pairs.query[holds], pairs.key[holds])
        return pairs

    def _all_keys(self, rows: Int64[np.ndarray, "row"]) -> Pairs:
        """Each row with every chosen key of its example (that it can see)."""
        example = self.evaluator.query.example[rows]
        first = self.matcher._key_start[example]
        visible = (
            self.evaluator.query.position[rows] + 1 if self.matcher.layout.causal else self.matcher._n_keys[example]
        )
        low = np.searchsorted(self._key_index, first)
        high = np.searchsorted(self._key_index, first + visible)
        at, row = expand(low, high)
        return Pairs(rows[row], self._key_index[at])


def expand(
    low: Int64[np.ndarray, "row"], high: Int64[np.ndarray, "row"]
) -> tuple[Int64[np.ndarray, "item"], Int64[np.ndarray, "item"]]:
    """All items of the ranges ``low[i]:high[i]``, one range after the other, and the range of each."""
    count = high - low
    row = np.repeat(np.arange(len(count)), count)
    before = np.cumsum(count) - count
    return np.arange(len(row)) + (low - before)[row], row


class _Join(ABC):
    """Finds the keys whose value equals a row's."""

    n_candidates: int

    @abstractmethod
    def pairs(self, rows: Int64[np.ndarray, "row"]) -> Pairs:
        """Candidates of these rows, by row, then key."""


class _PositionJoin(_Join):
    """``key.position == (something of the query)``: the one key is looked up."""

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
        wanted = self.scan.keys[key]
        return Pairs(rows[wanted], key[wanted])


class _SortedJoin(_Join):
    """Any other equation: keys are sorted by example and value, each row's run is found by bisection."""

    def __init__(self, scan: _Scan, query: Values, key: Values) -> None:
        query_fields, key_fields = scan.evaluator.query, scan.evaluator.key
        if query.kind == "text":
            query, key = one_coding(query, key)
        keys = np.flatnonzero(scan.keys if key.missing is None else scan.keys & ~key.missing)
        # One number for (example, value), equal for equal values.
        query_rank, key_rank, n_ranks = _ranks(query.data, key.data[keys])
        place = key_fields.example[keys] * n_ranks + key_rank
        order = np.argsort(place, kind="stable")
        self._key, place = keys[order], place[order]
        wanted = query_fields.example * n_ranks + query_rank
        self._low = np.searchsorted(place, wanted, side="left")
        self._high = np.searchsorted(place, wanted, side="right")
        if query.missing is not None:
            self._high = np.where(query.missing, self._low, self._high)
        self.n_candidates = int((self._high - self._low)[scan.rows].sum())

    def pairs(self, rows: Int64[np.ndarray, "row"]) -> Pairs:
        at, row = expand(self._low[rows], self._high[rows])
        return Pairs(rows[row], self._key[at])


def _ranks(
    left: Num[np.ndarray, "n"], right: Num[np.ndarray, "m"]
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "m"], int]:
    """Numbers from 0 that are equal where values of either are, and how many there may be."""
    if left.dtype.kind == right.dtype.kind == "i" and len(left) and len(right):
        low, high = min(int(left.min()), int(right.min())), max(int(left.max()), int(right.max()))
        if high - low < 1 << 24:  # token ids, codes, positions: as they are, nothing to sort
            return left.astype(np.int64) - low, right.astype(np.int64) - low, high - low + 1
    distinct, rank = np.unique(np.concatenate([left, right]), return_inverse=True)
    return rank[: len(left)], rank[len(left) :], len(distinct)
