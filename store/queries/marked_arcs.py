"""Arcs that a user marks in examples: from a query position to a key position."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..errors import ConfigError, NotFoundError
from ..reading.snapshot import Snapshot
from ..schema.traces import Site

MAX_ARCS = 64
_ARC = re.compile(r"(?:(?P<example>.+):)?(?P<query>[0-9]{1,9})>(?P<key>[0-9]{1,9})")


class Arc(NamedTuple):
    """An arc from a query position to a key position of an example, which is given by its number."""

    example: int
    query: int
    key: int


def parse_arcs(store: Snapshot, text: str | Iterable[str], *, numbers: bool = False) -> list[Arc]:
    """Parse ``a1:5>2 7>4``: id of an example (or number, with `numbers`), query position, key position.

    Later arcs may omit the example.

    Raises
    ------
    ConfigError
        The text is not a list of arcs, it has too many, or an example is not a number.
    NotFoundError
        An example does not exist.
    """
    arcs: list[Arc] = []
    number: int | None = None
    parts = [text] if isinstance(text, str) else text
    words = [word for part in parts for word in part.replace(",", " ").split()]
    for word in words:
        match = _ARC.fullmatch(word)
        if match is None and ">" not in word:
            number = _example(store, word, numbers)
            continue
        if match is None or (match["example"] is None and number is None):
            raise ConfigError(
                f"{word!r} is not an arc; expected EXAMPLE:QUERY>KEY such as a1:5>2, two token positions of example a1"
            )
        if match["example"] is not None:
            number = _example(store, match["example"], numbers)
        assert number is not None
        arcs.append(Arc(number, int(match["query"]), int(match["key"])))
    if not 0 < len(arcs) <= MAX_ARCS:
        raise ConfigError(f"{len(arcs)} arcs; expected 1 to {MAX_ARCS}, such as a1:5>2 a1:7>4")
    return list(dict.fromkeys(arcs))


def _example(store: Snapshot, name: str, numbers: bool) -> int:
    if numbers and not (name.isascii() and name.isdecimal() and len(name) < 10):
        raise ConfigError(f"--numbers was given, and the example of an arc is {name!r}; expected a number such as 12.")
    return store.examples[int(name) if numbers else name].index


def check_arcs(store: Snapshot, site: Site, arcs: Sequence[Arc]) -> None:
    """Check that the positions of each arc exist and that the site makes the key visible.

    Raises
    ------
    NotFoundError
        A position is outside its example.
    ConfigError
        There are no arcs, or a causal site hides the key.
    """
    if not arcs:
        raise ConfigError("there are no arcs; expected at least one, such as 12:5>2")
    for arc in arcs:
        example = store.examples[arc.example]
        for name, position, sequence in (
            ("query", arc.query, site.query_sequence),
            ("key", arc.key, site.key_sequence),
        ):
            n = len(example.tokens(sequence))
            if not 0 <= position < n:
                raise NotFoundError(f"example {arc.example} has no {name} position {position}; it has 0:{n}")
        if site.causal and arc.key > arc.query:
            raise ConfigError(
                f"{arc.example}:{arc.query}>{arc.key}: at the causal site {site.name} no query sees later keys; "
                "expected a key position that is not after the query position"
            )
