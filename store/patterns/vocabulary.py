"""The vocabulary of a store: the fields and columns that expressions may use, and the check of a tree against it.

The check finds unknown names and comparisons of different kinds before any data is read. Its errors point at them.
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
        """Collect the fields of a site over all segments: query side, key side, and columns of the examples."""
        example: dict[str, Field] = {}
        for segment in columns:
            for name, column in segment.items():
                _add(example, Field(name, column_kind(column), "annotation of the example"))
        return Vocabulary(_token_fields(query), _token_fields(key), {**example, **EXAMPLE_FIELDS})

    def side(self, side: Side) -> Mapping[str, Field]:
        """Return the fields of ``query``, ``key`` or ``example``."""
        return {"query": self.query, "key": self.key, "example": self.example}[side]


SHOWN_FIELDS = 8
"""Most fields that an error lists if none has a similar name; those of the corpus come first."""


def _add(fields: dict[str, Field], field: Field) -> None:
    """Add a column. A column that is text in any segment is text in all."""
    previous = fields.get(field.name)
    if previous is None or previous.kind != "text":
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
            "head",
            fields["head"].kind,
            "the governor of the token's word: the word that it depends on; missing at the root",
        )
    return fields


class Checker:
    """Type checker of an expression."""

    def __init__(self, expression: str, vocabulary: Vocabulary) -> None:
        self.expression, self.vocabulary = expression, vocabulary

    def error_at(self, message: str, node: Node, suggestions: tuple[str, ...] = ()) -> PatternError:
        """Create the error that points at `node`."""
        return error(message, self.expression, node.span.start, node.span.stop, suggestions)

    def expect(self, node: Node, expected: Kind, why: str) -> None:
        """Check that `node` has the expected kind; `why` ends the error message."""
        kind: Kind = self.kind(node)
        if kind != expected:
            raise self.error_at(f"{to_text(node)} is {KIND_NAMES[kind]}; expected {KIND_NAMES[expected]} {why}", node)

    def kind(self, node: Node) -> Kind:
        """Check `node` and its children, and return its kind."""
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
                    raise self.error_at(str(cause), node) from cause
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
        close = nearest(node.name, list(fields))
        names = sorted(fields, key=lambda name: name in TOKEN_FIELDS or name in EXAMPLE_FIELDS)[:SHOWN_FIELDS]
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)} and others"
        raise self.error_at(f"{node.side} has no field {node.name!r}; {hint}", node, tuple(close))

    def _named(self, node: Node, name: str, body: Node) -> None:
        text = to_text(body)
        try:
            Checker(text, self.vocabulary).expect(body, "bool", "of a pattern")
        except PatternError as cause:
            raise self.error_at(f"{name} ({text}) does not fit this store: {cause}", node) from cause

    def _compare(self, node: Compare) -> None:
        kinds: list[Kind] = [self.kind(operand) for operand in node.operands]
        for index, operator in enumerate(node.operators):
            left, right = node.operands[index : index + 2]
            if kinds[index] != kinds[index + 1]:
                raise self.error_at(
                    f"{to_text(left)} is {KIND_NAMES[kinds[index]]} and {to_text(right)} is "
                    f"{KIND_NAMES[kinds[index + 1]]}; {operator} compares values of one kind",
                    node,
                )
            if operator not in ("==", "!=") and kinds[index] != "number":
                raise self.error_at(
                    f"{operator} compares numbers; {to_text(left)} is {KIND_NAMES[kinds[index]]} (use == or !=)", node
                )


def check(node: Node, expression: str, vocabulary: Vocabulary) -> None:
    """Check that `node` is a condition over `vocabulary`.

    Raises
    ------
    PatternError
        A field is unknown, a kind is wrong, or a regular expression cannot be read.
    """
    Checker(expression, vocabulary).expect(node, "bool", "of a pattern (compare it with something)")
