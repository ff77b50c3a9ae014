"""The syntax tree of a pattern: immutable nodes with their source spans, and their canonical text.

`to_text` writes the fewest parentheses that parse to the same tree, so two spellings of one pattern have one canonical
text. URLs, caches and results use it.
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
    """Base of all nodes. The span does not take part in equality."""

    span: Span = field(default=Span(0, 0), compare=False)
    below: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that hold child nodes."""

    @property
    def children(self) -> tuple[Node, ...]:
        """The direct child nodes."""
        nodes: list[Node] = []
        for name in self.below:
            value = getattr(self, name)
            nodes.extend(value if isinstance(value, tuple) else (value,))
        return tuple(nodes)


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
    """A field: ``query.text``, ``key.previous.id``, ``example.topic``. `steps` lead to a neighbouring token."""

    side: Side
    name: str
    steps: tuple[Step, ...] = ()


Scalar = int | float | str | bool
Value = Scalar | tuple[Scalar, ...]
"""Value of a parameter: a constant, or the constants of a set."""


@dataclass(frozen=True)
class Named(Node):
    """A named pattern. `body` is its expression with all parameters replaced, `arguments` those in the source text."""

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
    """A chain ``a < b <= c``: every comparison of two neighbours must hold."""

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
    """``x matches "regex"`` or ``x not matches "regex"``; `regex` is the source text between the quotes."""

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
    """``a and b and c`` or ``a or b or c``. An operand is never a junction with the same operator."""

    operator: Literal["and", "or"]
    operands: tuple[Node, ...]
    below: ClassVar[tuple[str, ...]] = ("operands",)


def junction(operator: Literal["and", "or"], operands: list[Node], span: Span) -> Node:
    """Join operands and flatten junctions with the same operator; a single operand is returned unchanged."""
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
    """Find a node deeper than `max_depth` or beyond the first `max_nodes`, without recursion; None if there is none."""
    generation, n_nodes = [node], 1
    for _ in range(max_depth):
        generation = [child for parent in generation for child in parent.children]
        n_nodes += len(generation)
        if not generation:
            return None
        if n_nodes > max_nodes:
            break
    return generation[0]


_OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _MINUS, _ATOM = range(8)


def _precedence(node: Node) -> int:
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


def to_text(node: Node, precedence: int = _OR) -> str:
    """Return the canonical text of `node`, in parentheses if it binds weaker than `precedence`."""
    text = _text(node)
    return f"({text})" if _precedence(node) < precedence else text


def _text(node: Node) -> str:
    match node:
        case Constant(value=value):
            return _constant(value)
        case Reference(side=side, steps=steps, name=name):
            dotted = name.isidentifier() and name not in KEYWORDS and name not in STEPS
            return ".".join((side, *steps)) + (f".{name}" if dotted else f"[{quote(name)}]")
        case Named(name=name, arguments=arguments):
            argument_text = ", ".join(f"{parameter}={value_text(value)}" for parameter, value in arguments)
            return f"{name}({argument_text})" if argument_text else name
        case Negate(operand=operand):
            return "-" + to_text(operand, _MINUS)
        case Arithmetic(operator=operator, left=left, right=right):
            precedence = _precedence(node)
            return f"{to_text(left, precedence)} {operator} {to_text(right, precedence + 1)}"
        case Compare(operands=operands, operators=operators):
            links = (f" {o} {to_text(x, _SUM)}" for o, x in zip(operators, operands[1:], strict=True))
            return to_text(operands[0], _SUM) + "".join(links)
        case Member(operand=operand, values=values, negated=negated):
            members = value_text(tuple(constant.value for constant in values))
            return f"{to_text(operand, _SUM)} {'not ' * negated}in {members}"
        case Matches(operand=operand, regex=regex, negated=negated):
            return f"{to_text(operand, _SUM)} {'not ' * negated}matches {quote_regex(regex)}"
        case Not(operand=operand):
            return "not " + to_text(operand, _NOT)
        case Junction(operator=operator, operands=operands):
            return f" {operator} ".join(to_text(operand, _precedence(node) + 1) for operand in operands)
        case _:
            raise AssertionError(f"unknown node {type(node).__name__}")


def value_text(value: Value) -> str:
    """Return a constant, or a set of constants, in the syntax of an expression."""
    return "{" + ", ".join(map(_constant, value)) + "}" if isinstance(value, tuple) else _constant(value)


def expanded(node: Node) -> Node:
    """Return the same condition with named patterns replaced by their bodies."""
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
    """Put quotes around a regular expression; its backslashes are not escaped."""
    bare = regex.replace("\\\\", "").replace('\\"', "")
    return f"'{regex}'" if '"' in bare else f'"{regex}"'
