"""`Pattern`: a parsed expression that combines with others and has one canonical text."""

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

    Patterns combine: ``Pattern.parse("induction") & ~Pattern.parse("key.special")``. ``str()`` gives the canonical
    text, which parses to an equal pattern.
    """

    node: Node
    expression: str
    """Source text, which errors point into."""
    library: Mapping[str, LibraryPattern] = field(default_factory=lambda: LIBRARY, repr=False)
    """Named patterns that the expression may use; `read_patterns` reads those of a file."""

    @staticmethod
    def parse(expression: str | Pattern, library: Mapping[str, LibraryPattern] = LIBRARY) -> Pattern:
        """Parse an expression; a `Pattern` is returned unchanged.

        Raises
        ------
        PatternError
            The expression cannot be read. ``.pointed()`` draws an arrow under the characters at fault.
        """
        if isinstance(expression, Pattern):
            return expression
        if not isinstance(expression, str):
            raise ConfigError(f"the pattern has the type {type(expression).__name__}; expected str or Pattern")
        return Pattern(parse(expression, library), expression, library)

    def check(self, vocabulary: Vocabulary) -> None:
        """Check every name and kind against a store's vocabulary; PatternError points at the first mistake."""
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
                raise ConfigError(f"the two patterns define {name!r} differently; expected patterns of one file")
        return Pattern.parse(expression, {**self.library, **other.library})
