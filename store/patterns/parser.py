"""The parser: recursive descent from lexemes to the syntax tree, with one method for each rule of the grammar.

::

    expression  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | comparison
    comparison  = sum { ("==" | "!=" | "<" | "<=" | ">" | ">=") sum }
                | sum ["not"] "in" set
                | sum ["not"] "matches" string
    sum         = product { ("+" | "-") product }
    product     = factor { "*" factor }
    factor      = "-" factor | "(" expression ")" | constant | reference
    constant    = ["-"] number | string | "true" | "false"
    reference   = ("query" | "key") { ".previous" | ".next" } field | "example" field | call
    field       = "." NAME | "[" string "]"
    set         = "{" constant { "," constant } "}"
    call        = NAME [ "(" [ NAME "=" (constant | set) { "," NAME "=" (constant | set) } ] ")" ]

Inside a named pattern the names of its parameters stand for a constant, a set or a regular expression.

The parser does not know the columns of a store; `check` compares the tree with a vocabulary. Nesting is limited, so
neither the parser nor a later walk over the tree can exhaust the stack.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from ..errors import PatternError
from .lexer import Lexeme, error, lex, meaningless, unquote
from .tree import (
    COMPARISONS,
    OPERATORS,
    SIDES,
    STEPS,
    Arithmetic,
    Compare,
    Constant,
    Matches,
    Member,
    Named,
    Negate,
    Node,
    Not,
    Reference,
    Scalar,
    Span,
    Step,
    Value,
    junction,
    outside_limits,
    value_text,
)

MAX_DEPTH = 40
"""Largest nesting of parentheses, `not` and `-`."""
MAX_TREE_DEPTH = 80
"""Largest depth of the tree, including library patterns and the terms of one sum."""
MAX_NODES = 3_000


def nearest(name: str, names: list[str]) -> list[str]:
    """Return the names closest to `name`, best first."""
    folded = {k.casefold(): k for k in reversed(names)}
    return [folded[n] for n in difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.6)]


class Definition(Protocol):
    """Definition of a named pattern: a condition with parameters that have defaults."""

    @property
    def parameters(self) -> Mapping[str, Value]:
        """Parameters with their defaults."""
        ...

    def bound(self, arguments: Mapping[str, Value]) -> Node:
        """Return the condition with these values for its parameters."""
        ...


class _Parser:
    """Parser of one expression. `names` are the patterns that it may call, `scope` the values of parameters."""

    def __init__(self, expression: str, names: Mapping[str, Definition], scope: Mapping[str, Value]) -> None:
        self.expression, self.names, self.scope = expression, names, scope
        self.lexemes = lex(expression)
        self.index = 0
        self.depth = 0

    def parse(self) -> Node:
        """Parse the whole expression."""
        if self.now.kind == "end":
            raise self.error_at(
                "the expression is empty; write for example  key.position == query.position - 1", self.now
            )
        node = self.disjunction()
        if self.now.kind != "end":
            raise self.unexpected("and, or, a comparison, or the end")
        beyond = outside_limits(node, MAX_TREE_DEPTH, MAX_NODES)
        if beyond is not None:
            message = f"the expression is deeper than {MAX_TREE_DEPTH} levels or has more than {MAX_NODES:,} parts"
            raise error(message, self.expression, beyond.span.start, beyond.span.stop)
        return node

    # Lexemes.

    @property
    def now(self) -> Lexeme:
        return self.lexemes[self.index]

    def take(self) -> Lexeme:
        lexeme = self.now
        self.index += 1
        return lexeme

    def is_now(self, *texts: str) -> bool:
        return self.now.kind in ("symbol", "keyword") and self.now.text in texts

    def expect(self, text: str, why: str) -> Lexeme:
        if not self.is_now(text):
            raise self.unexpected(f"{text} {why}")
        return self.take()

    def error_at(self, message: str, lexeme: Lexeme, suggestions: tuple[str, ...] = ()) -> PatternError:
        return error(message, self.expression, lexeme.start, lexeme.stop, suggestions)

    def unexpected(self, expected: str) -> PatternError:
        if self.is_now("="):
            return meaningless(self.expression, self.now.start)
        problem = "the expression ends here" if self.now.kind == "end" else f"unexpected {self.now.text}"
        return self.error_at(f"{problem}; expected {expected}", self.now)

    def span(self, first: Node | Lexeme) -> Span:
        start = first.span.start if isinstance(first, Node) else first.start
        return Span(start, self.lexemes[self.index - 1].stop)

    def deeper(self, by: Literal[1, -1]) -> None:
        self.depth += by
        if self.depth > MAX_DEPTH:
            raise self.error_at(f"the expression is nested more than {MAX_DEPTH} levels deep", self.now)

    # Grammar.

    def disjunction(self) -> Node:
        self.deeper(1)
        operands = [self.conjunction()]
        while self.is_now("or"):
            self.take()
            operands.append(self.conjunction())
        self.deeper(-1)
        return junction("or", operands, self.span(operands[0]))

    def conjunction(self) -> Node:
        operands = [self.negation()]
        while self.is_now("and"):
            self.take()
            operands.append(self.negation())
        return junction("and", operands, self.span(operands[0]))

    def negation(self) -> Node:
        if not self.is_now("not"):
            return self.comparison()
        first = self.take()
        self.deeper(1)
        operand = self.negation()
        self.deeper(-1)
        return Not(operand, span=self.span(first))

    def comparison(self) -> Node:
        first = self.sum()
        if self.is_now("not", "in", "matches"):
            return self.membership(first)
        operands, operators = [first], []
        while self.is_now(*COMPARISONS):
            operators.append(self.take().text)
            operands.append(self.sum())
        if self.is_now("in", "matches") and operators:
            raise self.unexpected("and before another condition (in and matches are not chained)")
        return Compare(tuple(operands), tuple(operators), span=self.span(first)) if operators else first

    def membership(self, operand: Node) -> Node:
        negated = self.is_now("not")
        if negated:
            self.take()
        if self.is_now("matches"):
            self.take()
            value = self.scope.get(self.now.text) if self.now.kind == "name" else None
            if self.now.kind != "string" and not isinstance(value, str):
                raise self.unexpected("a regular expression in quotes")
            literal = self.take().text
            regex = value if isinstance(value, str) else literal[1:-1]
            return Matches(operand, regex, negated, span=self.span(operand))
        if not self.is_now("in"):
            raise self.unexpected("in or matches after not")
        self.take()
        value = self.scope.get(self.now.text) if self.now.kind == "name" else None
        if isinstance(value, tuple):
            name = self.take()
            values = tuple(Constant(value, span=self.span(name)) for value in value)
        else:
            values = self.set()
        return Member(operand, values, negated, span=self.span(operand))

    def set(self) -> tuple[Constant, ...]:
        self.expect("{", 'to open the set, as in  query.text in {"he", "she"}')
        values = [self.constant()]
        while self.is_now(","):
            self.take()
            values.append(self.constant())
        self.expect("}", "to close the set")
        return tuple(values)

    def sum(self) -> Node:
        return self.chain(("+", "-"), self.product)

    def product(self) -> Node:
        return self.chain(("*",), self.factor)

    def chain(self, operators: tuple[str, ...], operand: Callable[[], Node]) -> Node:
        node = operand()
        while self.now.kind == "symbol" and self.now.text in operators:
            sign = OPERATORS[self.take().text]
            first, right = node, operand()
            node = Arithmetic(sign, first, right, span=self.span(first))
        return node

    def factor(self) -> Node:
        first = self.now
        if self.is_now("-"):
            self.take()
            self.deeper(1)
            operand = self.factor()
            self.deeper(-1)
            return Negate(operand, span=self.span(first))
        if self.is_now("("):
            self.take()
            inside = self.disjunction()
            self.expect(")", "to close the parenthesis")
            return inside
        if first.kind in ("number", "string") or self.is_now("true", "false"):
            return self.constant()
        if first.kind == "name":
            return self.reference()
        if self.is_now("{"):
            raise self.error_at("a set may stand only after in", first)
        raise self.unexpected('a value, such as query.text, key.position, 3 or "she"')

    def constant(self) -> Constant:
        first = self.now
        if self.is_now("-"):
            self.take()
            if self.now.kind != "number":
                raise self.unexpected("a number after -")
        if self.now.kind == "number":
            text = self.take().text
            value = float(text) if "." in text else int(text)
            return Constant(-value if first.text == "-" else value, span=self.span(first))
        if self.now.kind == "string":
            return Constant(unquote(self.take(), self.expression), span=self.span(first))
        if self.is_now("true", "false"):
            return Constant(self.take().text == "true", span=self.span(first))
        parameter = self.scope.get(first.text) if first.kind == "name" else None
        if parameter is not None and not isinstance(parameter, tuple):
            self.take()
            return Constant(parameter, span=self.span(first))
        raise self.unexpected("a number, a text in quotes, true or false")

    def reference(self) -> Node:
        first = self.take()
        side = SIDES.get(first.text)
        if side is None:
            return self.named(first)
        steps: list[Step] = []
        while True:
            if not self.is_now(".", "["):
                raise self.unexpected(f".field, as in  {side}.{'topic' if side == 'example' else 'text'}")
            if self.take().text == "[":
                if self.now.kind != "string":
                    raise self.unexpected("a column's name in quotes")
                name = unicodedata.normalize("NFC", unquote(self.take(), self.expression))
                self.expect("]", "to close the name")
                break
            if self.now.kind not in ("name", "keyword"):
                raise self.unexpected("a field's name after the dot")
            word = self.take().text
            step = STEPS.get(word) if side != "example" else None
            if step is None:
                name = word
                break
            steps.append(step)
            if len(steps) > MAX_DEPTH:
                raise self.error_at(f"more than {MAX_DEPTH} steps from one token", first)
        return Reference(side, name, tuple(steps), span=self.span(first))

    def named(self, lexeme: Lexeme) -> Node:
        value = self.scope.get(lexeme.text)
        if isinstance(value, tuple):
            raise self.error_at(f"{lexeme.text} is a set; a set may stand only after in", lexeme)
        if value is not None:
            return Constant(value, span=self.span(lexeme))
        definition = self.names.get(lexeme.text)
        if definition is not None:
            arguments = self.arguments(lexeme.text, definition.parameters) if self.is_now("(") else {}
            body = definition.bound(arguments)
            return Named(lexeme.text, body, tuple(arguments.items()), span=self.span(lexeme))
        close = nearest(lexeme.text, [*self.names, *SIDES])
        hint = f"did you mean {close[0]}?" if close else "headatlas patterns lists the names."
        raise self.error_at(
            f"no pattern is called {lexeme.text!r}; {hint} Fields are written query.text, key.position, example.id",
            lexeme,
            tuple(close),
        )

    def arguments(self, name: str, parameters: Mapping[str, Value]) -> dict[str, Value]:
        """Parse ``(n=3, words={"he", "she"})``; each value must have the kind of its parameter."""
        self.take()
        values: dict[str, Value] = {}
        while not self.is_now(")"):
            if values:
                self.expect(",", "or ) after an argument")
            lexeme = self.now
            if lexeme.kind != "name" or lexeme.text not in parameters or lexeme.text in values:
                raise self.argument_error(name, parameters, lexeme, lexeme.text in values)
            self.take()
            self.expect("=", f"and a value after {lexeme.text}")
            value = self.argument()
            if not is_like(value, parameters[lexeme.text]):
                expected = value_text(parameters[lexeme.text])
                raise self.error_at(f"{lexeme.text} is {value_text(value)}; expected something like {expected}", lexeme)
            values[lexeme.text] = value
        self.take()
        return values

    def argument(self) -> Value:
        value = self.scope.get(self.now.text) if self.now.kind == "name" else None
        if isinstance(value, tuple):
            self.take()
            return value
        if self.is_now("{"):
            return tuple(constant.value for constant in self.set())
        return self.constant().value

    def argument_error(
        self, name: str, parameters: Mapping[str, Value], lexeme: Lexeme, is_double: bool
    ) -> PatternError:
        signature = ", ".join(f"{parameter}={value_text(value)}" for parameter, value in parameters.items())
        if lexeme.kind != "name":
            return self.unexpected(f"an argument of {name} ({signature or 'it has none'})")
        if is_double:
            return self.error_at(f"{lexeme.text} occurs twice; write it once", lexeme)
        close = tuple(nearest(lexeme.text, list(parameters)))
        return self.error_at(f"{name} has no parameter {lexeme.text!r}; it has {signature or 'none'}", lexeme, close)


def is_like(value: Value, example: Value) -> bool:
    """Return True if a value has the kind of a parameter's default: number, text, bool, or a set of one of these."""
    if isinstance(value, tuple) or isinstance(example, tuple):
        both = isinstance(value, tuple) and isinstance(example, tuple)
        return both and all(is_like(item, example[0]) for item in value)  # type: ignore[index,union-attr]
    return _kind(value) == _kind(example)


def _kind(value: Scalar) -> str:
    return "text" if isinstance(value, str) else "bool" if isinstance(value, bool) else "number"


def parse(expression: str, names: Mapping[str, Definition], scope: Mapping[str, Value] | None = None) -> Node:
    """Parse `expression` by the grammar above. `scope` holds the values of parameters.

    Raises
    ------
    PatternError
        The expression cannot be read. The error names the characters at fault and what was expected there.
    """
    try:
        return _Parser(expression, names, scope or {}).parse()
    except RecursionError:  # the stack of the caller was nearly full
        raise PatternError("the expression is nested too deeply to be read here", expression) from None
