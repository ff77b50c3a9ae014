"""Which fields and columns a store's expressions may name, and the check of a tree against them.

Checking finds every unknown name and every comparison of unlike things before any data is read, and points at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import PatternError
from ..schema.token_table import Column, TokenTable
from .lexer import error
from .parser import nearest
from .regex import compile_regex
from .token_fields import EXAMPLE_FIELDS, TOKEN_FIELDS, Field, Kind, column_kind, word_field_names
from .tree import (
    Arithmetic,
    Compare,
    Constant,
    Junction,
    Matches,
    Member,
    Named,
    Negate,
    Node,
    Not,
    Reference,
    Side,
    to_text,
)

KIND_NAMES: dict[Kind, str] = {"number": "a number", "text": "text", "bool": "true or false"}


@dataclass(frozen=True)
class Vocabulary:
    """The fields that ``query.``, ``key.`` and ``example.`` have."""

    query: Mapping[str, Field]
    key: Mapping[str, Field]
    example: Mapping[str, Field]

    @staticmethod
    def of(
        query: Iterable[TokenTable], key: Iterable[TokenTable], columns: Iterable[Mapping[str, Column]] = ()
    ) -> Vocabulary:
        """Collect the fields of a site over all segments: its query side, its key side, and the examples' columns."""
        example: dict[str, Field] = {}
        for segment in columns:
            for name, column in segment.items():
                _add(example, Field(name, column_kind(column), "annotation of the example"))
        return Vocabulary(_token_fields(query), _token_fields(key), {**example, **EXAMPLE_FIELDS})

    def side(self, side: Side) -> Mapping[str, Field]:
        """Fields of ``query``, ``key`` or ``example``."""
        return {"query": self.query, "key": self.key, "example": self.example}[side]


def _add(fields: dict[str, Field], field: Field) -> None:
    """Add a column; one that is text in any segment is text in all."""
    known = fields.get(field.name)
    if known is None or known.kind != "text":
        fields[field.name] = field


def _token_fields(tables: Iterable[TokenTable]) -> dict[str, Field]:
    fields = dict(TOKEN_FIELDS)
    for table in tables:
        for name, column in table.columns.items():
            if name not in TOKEN_FIELDS:
                _add(fields, Field(name, column_kind(column), "annotation of the token"))
        for field, name in word_field_names(table.word_columns).items():
            _add(fields, Field(field, column_kind(table.word_columns[name]), "annotation of the token's word"))
    if "head" in fields:
        fields["head"] = Field(
            "head", fields["head"].kind, "the word that the token's word depends on; missing at the root"
        )
    return fields


class Checker:
    """Finds the kind of every part of an expression."""

    def __init__(self, expression: str, vocabulary: Vocabulary) -> None:
        self.expression, self.vocabulary = expression, vocabulary

    def wrong(self, message: str, node: Node, suggestions: tuple[str, ...] = ()) -> PatternError:
        """Make the error that points at `node`."""
        return error(message, self.expression, node.span.start, node.span.stop, suggestions)

    def expect(self, node: Node, expected: Kind, why: str) -> None:
        """Check that `node` has the kind that `why` needs."""
        kind: Kind = self.kind(node)
        if kind != expected:
            raise self.wrong(f"{to_text(node)} is {KIND_NAMES[kind]}; expected {KIND_NAMES[expected]} {why}", node)

    def kind(self, node: Node) -> Kind:
        """Check `node` and everything below it."""
        match node:
            case Constant(value=value):
                return "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
            case Reference():
                return self._reference(node)
            case Named(name=name, body=body):
                self._named(node, name, body)
            case Negate(operand=operand):
                self.expect(operand, "number", "after -")
                return "number"
            case Arithmetic(operator=operator, left=left, right=right):
                self.expect(left, "number", f"for {operator}")
                self.expect(right, "number", f"for {operator}")
                return "number"
            case Compare():
                self._compare(node)
            case Member(operand=operand, values=values):
                kind = self.kind(operand)
                for value in values:
                    self.expect(value, kind, f"in a set for {to_text(operand)}")
            case Matches(operand=operand, regex=regex):
                self.expect(operand, "text", "for matches")
                try:
                    compile_regex(regex)
                except ValueError as cause:
                    raise self.wrong(str(cause), node) from cause
            case Not(operand=operand):
                self.expect(operand, "bool", "after not")
            case Junction(operator=operator, operands=operands):
                for operand in operands:
                    self.expect(operand, "bool", f"beside {operator}")
        return "bool"

    def _reference(self, node: Reference) -> Kind:
        fields = self.vocabulary.side(node.side)
        field = fields.get(node.name)
        if field is not None:
            return field.kind
        close, ordered = nearest(node.name, list(fields))
        meant = f"did you mean {close[0]}? " if close else ""
        raise self.wrong(
            f"{node.side} has no field {node.name!r}; {meant}Known: {', '.join(ordered)}", node, tuple(close)
        )

    def _named(self, node: Node, name: str, body: Node) -> None:
        text = to_text(body)
        try:
            Checker(text, self.vocabulary).expect(body, "bool", "of a pattern")
        except PatternError as cause:
            raise self.wrong(f"{name} ({text}) cannot be asked of this store: {cause}", node) from cause

    def _compare(self, node: Compare) -> None:
        kinds: list[Kind] = [self.kind(operand) for operand in node.operands]
        for index, operator in enumerate(node.operators):
            left, right = node.operands[index : index + 2]
            if kinds[index] != kinds[index + 1]:
                raise self.wrong(
                    f"{to_text(left)} is {KIND_NAMES[kinds[index]]} and {to_text(right)} is "
                    f"{KIND_NAMES[kinds[index + 1]]}; {operator} compares things of one kind",
                    node,
                )
            if operator not in ("==", "!=") and kinds[index] != "number":
                raise self.wrong(
                    f"{operator} compares numbers; {to_text(left)} is {KIND_NAMES[kinds[index]]} (use == or !=)", node
                )


def check(node: Node, expression: str, vocabulary: Vocabulary) -> None:
    """Check that `node` is a condition over `vocabulary`.

    Raises
    ------
    PatternError
        An unknown field, a wrong kind, a regular expression that cannot be read.
    """
    Checker(expression, vocabulary).expect(node, "bool", "of a pattern (compare it with something)")
