"""Values of the nodes of an expression, each on the smallest axis that it needs.

Every node depends on nothing, on the query token, on the key token, or on the pair. A node that depends on one token is
computed once for all tokens of the segment and cached. Only nodes that join both sides are computed for each candidate
pair. Every comparison with a missing value is false.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from functools import reduce

import numpy as np
from jaxtyping import Bool, Int64

from ..errors import ShapeError
from ..schema.token_table import Column
from .lexer import error
from .regex import matching_texts
from .token_fields import TokenFields, Values, column_values
from .tree import Arithmetic, Compare, Constant, Junction, Matches, Member, Named, Negate, Node, Not, Reference
from .vocabulary import Vocabulary

_COMPARE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ARITHMETIC: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
_INT64_MAX = 2**63 - 1


class Domain(IntFlag):
    """The axis that a node of an expression depends on."""

    NOTHING = 0
    QUERY = 1
    KEY = 2
    PAIR = 3


def domain(node: Node) -> Domain:
    """Return the axis that `node` depends on; a field of the example counts as a field of the query token."""
    if isinstance(node, Reference):
        return Domain.KEY if node.side == "key" else Domain.QUERY
    return reduce(operator.or_, (domain(child) for child in node.children), Domain.NOTHING)


@dataclass(frozen=True)
class Pairs:
    """Candidate pairs as indices of their query token and key token in the segment."""

    query: Int64[np.ndarray, "pair"]
    key: Int64[np.ndarray, "pair"]

    def __len__(self) -> int:
        return len(self.query)


class Evaluator:
    """Evaluates checked expressions over the tokens of one segment.

    Parameters
    ----------
    query, key
        Fields of the two token sequences; the same object if query and key are one text.
    examples
        Annotations of the examples, `id` and `index` among them.
    vocabulary
        The vocabulary that the expression was checked against.
    expression
        Text of the expression, for errors that depend on the data.
    """

    def __init__(
        self,
        query: TokenFields,
        key: TokenFields,
        examples: Mapping[str, Column],
        vocabulary: Vocabulary,
        expression: str = "",
    ) -> None:
        if query.table.n_examples != key.table.n_examples:
            raise ShapeError(
                f"query tokens have {query.table.n_examples} examples, key tokens {key.table.n_examples}; "
                "expected the same examples"
            )
        self.query, self.key, self.examples = query, key, examples
        self.vocabulary, self.expression = vocabulary, expression
        self._cache: dict[int, tuple[Node, Values]] = {}

    def condition(self, node: Node, pairs: Pairs | None = None) -> np.ndarray:
        """Return the truth of `node` for each query token, key token or pair of `pairs`, or a single value."""
        return self.values(node, pairs).data

    def values(self, node: Node, pairs: Pairs | None = None) -> Values:
        """Return the values of `node` on its own axis. `pairs` is required if that axis is the pair."""
        axis = domain(node)
        if axis == Domain.PAIR:
            assert pairs is not None, "a node that joins both sides needs pairs"
            return self._compute(node, [self._lifted(child, pairs) for child in node.children])
        entry = self._cache.get(id(node))
        if entry is None:
            # The entry holds the node too: an id is unique only while its object lives.
            entry = self._cache[id(node)] = node, self._compute(node, [self.values(c) for c in node.children])
        return entry[1]

    def _lifted(self, node: Node, pairs: Pairs) -> Values:
        values, axis = self.values(node, pairs), domain(node)
        if axis in (Domain.QUERY, Domain.KEY):
            return values.take(pairs.query if axis == Domain.QUERY else pairs.key)
        return values

    def _compute(self, node: Node, operands: list[Values]) -> Values:
        match node:
            case Constant(value=value):
                return _constant(value)
            case Reference():
                return self._reference(node)
            case Named():
                return operands[0]
            case Negate():
                return Values("number", np.asarray(-operands[0].data), operands[0].missing)
            case Arithmetic(operator=sign):
                return self._arithmetic(node, sign, *operands)
            case Compare(operators=operators):
                links = zip(operators, operands, operands[1:], strict=False)
                return _truth(reduce(np.logical_and, (compare(sign, a, b) for sign, a, b in links)))
            case Member(values=values, negated=negated):
                return _truth(_present(operands[0], np.asarray(is_member(operands[0], values) ^ negated)))
            case Matches(regex=regex, negated=negated):
                texts = operands[0].texts
                text_matches = matching_texts(regex, texts) if texts else np.zeros(1, dtype=bool)
                # Code -1 (missing) indexes the last text; _present then sets the result to False.
                return _truth(_present(operands[0], np.asarray(text_matches[operands[0].data] ^ negated)))
            case Not():
                return _truth(~operands[0].data)
            case Junction(operator=word):
                join = np.logical_and if word == "and" else np.logical_or
                return _truth(reduce(join, (operand.data for operand in operands)))
            case _:
                raise AssertionError(f"unknown node {type(node).__name__}")

    def _reference(self, node: Reference) -> Values:
        field = self.vocabulary.side(node.side)[node.name]
        if node.side != "example":
            fields = self.query if node.side == "query" else self.key
            return fields.values(node.name, node.steps, field.kind)
        column = self.examples.get(node.name)
        if column is None:
            column = Column.of_text([None] * self.query.table.n_examples)
            if field.kind == "number":
                column = Column(column.data)
        return column_values(column, field.kind).take(self.query.example)

    def _arithmetic(self, node: Node, sign: str, left: Values, right: Values) -> Values:
        if left.data.dtype.kind == right.data.dtype.kind == "i":
            a, b = _largest(left), _largest(right)
            if (a * b if sign == "*" else a + b) > _INT64_MAX:
                raise error("the number is too large for 64 bits", self.expression, node.span.start, node.span.stop)
        with np.errstate(over="ignore", invalid="ignore"):
            data = np.asarray(_ARITHMETIC[sign](left.data, right.data))
        return Values("number", data, _either(left.missing, right.missing))


def _constant(value: int | float | str | bool) -> Values:
    if isinstance(value, str):
        return Values("text", np.zeros((), dtype=np.int64), None, (value,))
    return Values("bool" if isinstance(value, bool) else "number", np.asarray(value))


def _truth(data: np.ndarray | np.generic) -> Values:
    return Values("bool", np.asarray(data))


def _either(left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray | None:
    if left is None or right is None:
        return right if left is None else left
    return left | right


def _present(values: Values, truth: np.ndarray) -> np.ndarray:
    return truth if values.missing is None else np.asarray(truth & ~values.missing)


def _largest(values: Values) -> int:
    return max(abs(int(values.data.max(initial=0))), abs(int(values.data.min(initial=0))))


def compare(sign: str, left: Values, right: Values) -> Bool[np.ndarray, "*rows"]:
    """Compare two values of one kind; False if either is missing."""
    if left.kind == "text":
        left, right = encode_alike(left, right)
    return _present(left, _present(right, np.asarray(_COMPARE[sign](left.data, right.data))))


def encode_alike(left: Values, right: Values) -> tuple[Values, Values]:
    """Encode two texts with one set of codes; a text that the longer list lacks gets -2, the code of no text."""
    if left.texts is right.texts or left.texts == right.texts:
        return left, right
    if len(left.texts) < len(right.texts):
        right, left = encode_alike(right, left)
        return left, right
    if len(right.texts) <= 4:  # usually a constant; a linear search takes 1/20 of the time of building an index
        codes = [left.texts.index(text) if text in left.texts else -2 for text in right.texts]
    else:
        index = {text: code for code, text in enumerate(left.texts)}
        codes = [index.get(text, -2) for text in right.texts]
    code = np.array([*codes, -1], dtype=np.int64)
    return left, Values("text", np.asarray(code[right.data]), right.missing, left.texts)


def is_member(operand: Values, constants: tuple[Constant, ...]) -> Bool[np.ndarray, "*rows"]:
    """Return True for each value that is among the constants."""
    if operand.kind == "text":
        members = {constant.value for constant in constants}
        inside = np.array([*(text in members for text in operand.texts), False], dtype=bool)
        return np.asarray(inside[operand.data])  # code -1 (missing) indexes the last entry
    return np.isin(operand.data, np.array([constant.value for constant in constants]))
