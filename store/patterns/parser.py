"""Recursive descent from lexemes to the syntax tree: the grammar, one method a rule.

::

    expression  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | comparison
    comparison  = sum { ("==" | "!=" | "<" | "<=" | ">" | ">=") sum }
                | sum ["not"] "in" "{" constant { "," constant } "}"
                | sum ["not"] "matches" string
    sum         = product { ("+" | "-") product }
    product     = factor { "*" factor }
    factor      = "-" factor | "(" expression ")" | constant | reference
    constant    = ["-"] number | string | "true" | "false"
    reference   = ("query" | "key") { ".previous" | ".next" } field | "example" field | NAME
    field       = "." NAME | "[" string "]"

Nothing here knows which columns a store has: `check` does that against a vocabulary. Nesting is bounded, so neither
this parser nor any later walk over the tree can run out of stack.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Literal

from ..errors import PatternError
from .lexer import Lexeme, error, lex, unquote
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
    Span,
    Step,
    junction,
    outside_limits,
)

MAX_DEPTH = 40
"""Parentheses, `not` and `-` inside one another."""
MAX_TREE_DEPTH = 80
"""Levels of the tree, library patterns and the terms of one sum included."""
MAX_NODES = 3_000


def nearest(name: str, known: list[str]) -> tuple[list[str], list[str]]:
    """Names that `name` may have meant (best first), and all `known` with these in front."""
    folded = {k.casefold(): k for k in reversed(known)}
    close = [folded[n] for n in difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.6)]
    return close, close + [k for k in known if k not in close]


class _Parser:
    """Parses one expression; `names` are the library patterns that may be called."""

    def __init__(self, expression: str, names: Mapping[str, Node]) -> None:
        self.expression, self.names = expression, names
        self.lexemes = lex(expression)
        self.at = 0
        self.depth = 0

    def parse(self) -> Node:
        """Read the whole expression."""
        if self.now.kind == "end":
            raise self.wrong("the expression is empty; write for example  key.position == query.position - 1", self.now)
        node = self.disjunction()
        if self.now.kind != "end":
            raise self.unexpected("and, or, a comparison, or the end")
        beyond = outside_limits(node, MAX_TREE_DEPTH, MAX_NODES)
        if beyond is not None:
            message = f"a sum or nesting of more than {MAX_TREE_DEPTH} levels, or more than {MAX_NODES:,} parts"
            raise error(message, self.expression, beyond.span.start, beyond.span.stop)
        return node

    # Reading lexemes.

    @property
    def now(self) -> Lexeme:
        return self.lexemes[self.at]

    def take(self) -> Lexeme:
        lexeme = self.now
        self.at += 1
        return lexeme

    def is_now(self, *texts: str) -> bool:
        return self.now.kind in ("symbol", "keyword") and self.now.text in texts

    def expect(self, text: str, why: str) -> Lexeme:
        if not self.is_now(text):
            raise self.unexpected(f"{text} {why}")
        return self.take()

    def wrong(self, message: str, lexeme: Lexeme, suggestions: tuple[str, ...] = ()) -> PatternError:
        return error(message, self.expression, lexeme.start, lexeme.stop, suggestions)

    def unexpected(self, expected: str) -> PatternError:
        found = "the expression ends here" if self.now.kind == "end" else f"unexpected {self.now.text}"
        return self.wrong(f"{found}; expected {expected}", self.now)

    def span(self, first: Node | Lexeme) -> Span:
        start = first.span.start if isinstance(first, Node) else first.start
        return Span(start, self.lexemes[self.at - 1].stop)

    def deeper(self, by: Literal[1, -1]) -> None:
        self.depth += by
        if self.depth > MAX_DEPTH:
            raise self.wrong(f"the expression is nested deeper than {MAX_DEPTH}", self.now)

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
            if self.now.kind != "string":
                raise self.unexpected("a regular expression in quotes")
            regex = self.take().text[1:-1]
            return Matches(operand, regex, negated, span=self.span(operand))
        if not self.is_now("in"):
            raise self.unexpected("in or matches after not")
        self.take()
        self.expect("{", 'to open the set, as in  query.text in {"he", "she"}')
        values = [self.constant()]
        while self.is_now(","):
            self.take()
            values.append(self.constant())
        self.expect("}", "to close the set")
        return Member(operand, tuple(values), negated, span=self.span(operand))

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
            raise self.wrong("a set may stand only after in", first)
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
                name = unquote(self.take(), self.expression)
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
                raise self.wrong(f"more than {MAX_DEPTH} steps", first)
        return Reference(side, name, tuple(steps), span=self.span(first))

    def named(self, lexeme: Lexeme) -> Node:
        body = self.names.get(lexeme.text)
        if body is not None:
            return Named(lexeme.text, body, span=self.span(lexeme))
        close, ordered = nearest(lexeme.text, [*self.names, *SIDES])
        meant = f"did you mean {close[0]}? " if close else ""
        patterns = ", ".join(name for name in ordered if name not in SIDES)
        raise self.wrong(
            f"no pattern is called {lexeme.text!r}; {meant}Known: {patterns}. "
            "Fields are written query.text, key.position, example.id",
            lexeme,
            tuple(close),
        )


def parse(expression: str, names: Mapping[str, Node]) -> Node:
    """Parse `expression`; see the grammar above.

    Raises
    ------
    PatternError
        With the characters at fault, and what was expected there.
    """
    try:
        return _Parser(expression, names).parse()
    except RecursionError:  # the caller's own stack was nearly full
        raise PatternError("the expression is nested too deeply to be read here", expression) from None
