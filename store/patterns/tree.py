"""The syntax tree of a pattern: immutable nodes that know where they were written, and their canonical text.

`to_text` writes the fewest parentheses that read back as the same tree, so two spellings of one pattern have one
canonical text: it is what URLs, caches and results carry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import ClassVar, Literal

from .lexer import KEYWORDS, quote

Side = Literal["query", "key", "example"]
Step = Literal["previous", "next"]
Operator = Literal["+", "-", "*"]
SIDES: dict[str, Side] = {"query": "query", "key": "key", "example": "example"}
STEPS: dict[str, Step] = {"previous": "previous", "next": "next"}
OPERATORS: dict[str, Operator] = {"+": "+", "-": "-", "*": "*"}
COMPARISONS = ("==", "!=", "<=", ">=", "<", ">")


@dataclass(frozen=True)
class Span:
    """Half-open character span of an expression."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Node:
    """Base of all nodes; two nodes are equal wherever they stand."""

    span: Span = field(default=Span(0, 0), compare=False)
    below: ClassVar[tuple[str, ...]] = ()
    """Which attributes hold the nodes below."""

    @property
    def children(self) -> tuple[Node, ...]:
        """The nodes right below this one."""
        found: list[Node] = []
        for name in self.below:
            value = getattr(self, name)
            found.extend(value if isinstance(value, tuple) else (value,))
        return tuple(found)


@dataclass(frozen=True)
class Constant(Node):
    """A number, a text or a truth value."""

    value: int | float | str | bool

    def __eq__(self, other: object) -> bool:  # 1 == True == 1.0 in Python
        return type(other) is Constant and type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))


@dataclass(frozen=True)
class Reference(Node):
    """``query.text``, ``key.previous.id``, ``example.topic``; `steps` lead to a neighbouring token."""

    side: Side
    name: str
    steps: tuple[Step, ...] = ()


Scalar = int | float | str | bool
Value = Scalar | tuple[Scalar, ...]
"""Of a parameter: a constant, or the constants of a set."""


@dataclass(frozen=True)
class Named(Node):
    """A named pattern; in `body` its parameters are filled in, `arguments` are those that were written."""

    name: str
    body: Node
    arguments: tuple[tuple[str, Value], ...] = ()
    below: ClassVar[tuple[str, ...]] = ("body",)


@dataclass(frozen=True)
class Negate(Node):
    """``-x``."""

    operand: Node
    below: ClassVar[tuple[str, ...]] = ("operand",)


@dataclass(frozen=True)
class Arithmetic(Node):
    """``left + right``, ``-`` or ``*``."""

    operator: Operator
    left: Node
    right: Node
    below: ClassVar[tuple[str, ...]] = ("left", "right")


@dataclass(frozen=True)
class Compare(Node):
    """A chain ``a < b <= c``: every neighbouring pair must hold."""

    operands: tuple[Node, ...]
    operators: tuple[str, ...]
    below: ClassVar[tuple[str, ...]] = ("operands",)


@dataclass(frozen=True)
class Member(Node):
    """``x in {…}`` or ``x not in {…}``; the set holds constants."""

    operand: Node
    values: tuple[Constant, ...]
    negated: bool = False
    below: ClassVar[tuple[str, ...]] = ("operand",)


@dataclass(frozen=True)
class Matches(Node):
    """``x matches "regex"`` or ``x not matches "regex"``; `regex` is as written between the quotes."""

    operand: Node
    regex: str
    negated: bool = False
    below: ClassVar[tuple[str, ...]] = ("operand",)


@dataclass(frozen=True)
class Not(Node):
    """``not x``."""

    operand: Node
    below: ClassVar[tuple[str, ...]] = ("operand",)


@dataclass(frozen=True)
class Junction(Node):
    """``a and b and c`` or ``a or b or c``; never directly inside another junction of its operator."""

    operator: Literal["and", "or"]
    operands: tuple[Node, ...]
    below: ClassVar[tuple[str, ...]] = ("operands",)


def junction(operator: Literal["and", "or"], operands: list[Node], span: Span) -> Node:
    """Join operands, taking apart junctions of the same operator; one operand stays itself."""
    flat: list[Node] = []
    for operand in operands:
        same = isinstance(operand, Junction) and operand.operator == operator
        flat.extend(operand.children if same else (operand,))
    return flat[0] if len(flat) == 1 else Junction(operator, tuple(flat), span=span)


def walk(node: Node) -> Iterator[Node]:
    """Iterate over `node` and everything below it, library patterns included."""
    yield node
    for child in node.children:
        yield from walk(child)


def outside_limits(node: Node, max_depth: int, max_nodes: int) -> Node | None:
    """Find a node below `max_depth` levels or beyond the first `max_nodes`, without recursion; None if there is none."""
    level, n_nodes = [node], 1
    for _ in range(max_depth):
        level = [child for parent in level for child in parent.children]
        n_nodes += len(level)
        if not level:
            return None
        if n_nodes > max_nodes:
            break
    return level[0]


_OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _MINUS, _ATOM = range(8)


def _level(node: Node) -> int:
    match node:
        case Junction(operator=operator):
            return _OR if operator == "or" else _AND
        case Not():
            return _NOT
        case Compare() | Member() | Matches():
            return _COMPARE
        case Arithmetic(operator=operator):
            return _PRODUCT if operator == "*" else _SUM
        case Negate():
            return _MINUS
        case _:
            return _ATOM


def to_text(node: Node, level: int = _OR) -> str:
    """Canonical text of `node`, in parentheses where it binds weaker than `level`."""
    text = _text(node)
    return f"({text})" if _level(node) < level else text


def _text(node: Node) -> str:
    match node:
        case Constant(value=value):
            return _constant(value)
        case Reference(side=side, steps=steps, name=name):
            dotted = name.isidentifier() and name not in KEYWORDS and name not in STEPS
            return ".".join((side, *steps)) + (f".{name}" if dotted else f"[{quote(name)}]")
        case Named(name=name, arguments=arguments):
            written = ", ".join(f"{parameter}={value_text(value)}" for parameter, value in arguments)
            return f"{name}({written})" if written else name
        case Negate(operand=operand):
            return "-" + to_text(operand, _MINUS)
        case Arithmetic(operator=operator, left=left, right=right):
            level = _level(node)
            return f"{to_text(left, level)} {operator} {to_text(right, level + 1)}"
        case Compare(operands=operands, operators=operators):
            rest = (f" {o} {to_text(x, _SUM)}" for o, x in zip(operators, operands[1:], strict=True))
            return to_text(operands[0], _SUM) + "".join(rest)
        case Member(operand=operand, values=values, negated=negated):
            listed = value_text(tuple(constant.value for constant in values))
            return f"{to_text(operand, _SUM)} {'not ' * negated}in {listed}"
        case Matches(operand=operand, regex=regex, negated=negated):
            return f"{to_text(operand, _SUM)} {'not ' * negated}matches {quote_regex(regex)}"
        case Not(operand=operand):
            return "not " + to_text(operand, _NOT)
        case Junction(operator=operator, operands=operands):
            return f" {operator} ".join(to_text(operand, _level(node) + 1) for operand in operands)
        case _:
            raise AssertionError(f"unknown node {type(node).__name__}")


def value_text(value: Value) -> str:
    """A constant, or a set of them, as it is written in an expression."""
    return "{" + ", ".join(map(_constant, value)) + "}" if isinstance(value, tuple) else _constant(value)


def expanded(node: Node) -> Node:
    """The same condition without names: the bodies of named patterns stand in their place."""
    if isinstance(node, Named):
        return expanded(node.body)
    if isinstance(node, Junction):
        return junction(node.operator, [expanded(child) for child in node.operands], node.span)
    changed = {}
    for name in node.below:
        value = getattr(node, name)
        changed[name] = tuple(map(expanded, value)) if isinstance(value, tuple) else expanded(value)
    return replace(node, **changed) if changed else node


def _constant(value: Scalar) -> str:
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return format(Decimal(repr(value)), "f")


def quote_regex(regex: str) -> str:
    """Put quotes around a regular expression, whose backslashes stay as they are."""
    bare = regex.replace("\\\\", "").replace('\\"', "")
    return f"'{regex}'" if '"' in bare else f'"{regex}"'
