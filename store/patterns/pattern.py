"""`Pattern`: an expression that was read, composes with others, and has one canonical text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ConfigError
from .named_patterns import LIBRARY, LibraryPattern
from .parser import parse
from .tree import Node, to_text
from .vocabulary import Vocabulary, check


@dataclass(frozen=True)
class Pattern:
    """A condition on a query token and a key token.

    ``Pattern.parse("induction") & ~Pattern.parse("key.special")`` composes; ``str()`` is the canonical text, which
    reads back as an equal pattern.
    """

    node: Node
    expression: str
    """As it was written; errors point into it."""
    library: Mapping[str, LibraryPattern] = field(default_factory=lambda: LIBRARY, repr=False)
    """The patterns that it may name; see `read_patterns` for those of a file."""

    @staticmethod
    def parse(expression: str | Pattern, library: Mapping[str, LibraryPattern] = LIBRARY) -> Pattern:
        """Read an expression (a pattern is returned as it is).

        Raises
        ------
        PatternError
            With the characters at fault; ``.pointed()`` draws an arrow under them.
        """
        if isinstance(expression, Pattern):
            return expression
        if not isinstance(expression, str):
            raise ConfigError(f"a pattern is written as text; got {type(expression).__name__}")
        return Pattern(parse(expression, library), expression, library)

    def check(self, vocabulary: Vocabulary) -> None:
        """Check every name and kind against what a store has; PatternError points at the first mistake."""
        check(self.node, self.expression, vocabulary)

    def __str__(self) -> str:
        return to_text(self.node)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.node == other.node

    def __hash__(self) -> int:
        return hash(self.node)

    def __and__(self, other: Pattern) -> Pattern:
        return self._joined(f"({self}) and ({other})", other)

    def __or__(self, other: Pattern) -> Pattern:
        return self._joined(f"({self}) or ({other})", other)

    def __invert__(self) -> Pattern:
        return Pattern.parse(f"not ({self})", self.library)

    def _joined(self, expression: str, other: Pattern) -> Pattern:
        for name, pattern in other.library.items():
            if self.library.get(name, pattern) != pattern:
                raise ConfigError(f"the two patterns know another {name!r} each; expected one file of patterns")
        return Pattern.parse(expression, {**self.library, **other.library})
