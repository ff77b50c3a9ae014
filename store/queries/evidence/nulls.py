"""The nulls of a search: what a score is compared with, and which null a pattern gets by default.

A head is above a null if its attention on the matching keys exceeds what the null expects of it. The table in
docs/definitions.md has the same rows as `KINDS` and `NULLS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import ConfigError
from ...patterns.evaluate import Domain, domain
from ...patterns.token_fields import EXAMPLE_FIELDS, TOKEN_FIELDS, WORD_FIELDS
from ...patterns.tree import Compare, Constant, Junction, Named, Node, Reference, walk
from ...schema.traces import Site

NullName = Literal["uniform", "sink_free", "habit", "matched", "labels", "mismatched", "offset"]
Kind = Literal["position", "token", "annotation", "two_texts"]


@dataclass(frozen=True)
class Null:
    """A null: its name, the words that the answer prints, and what it needs."""

    name: NullName
    sentence: str
    """Ends the sentence "above …"."""
    reads_attention: bool
    """True if it needs whole rows of attention, not only the mass on matching keys."""


NULLS: dict[NullName, Null] = {
    null.name: null
    for null in (
        Null("uniform", "uniform attention over the visible keys that are not special tokens", False),
        Null(
            "sink_free",
            "uniform attention, after the first token and special tokens were left out and rows divided by the rest",
            True,
        ),
        Null(
            "habit",
            "the head's own habit: its attention to each class of keys in the row, spread by its mean attention at each "
            "offset in the other half of the units",
            True,
        ),
        Null("matched", "keys of the same row, class and distance that do not match", True),
        Null("labels", "the same labels permuted among the keys of one class in the row", True),
        Null("mismatched", "the keys that match in another example, at the same positions", True),
        Null("offset", "the best fixed offset, hit rate against hit rate", True),
    )
}
NULL_NAMES: tuple[NullName, ...] = get_args(NullName)


def null_names(names: Iterable[str]) -> tuple[NullName, ...]:
    """Check the names of nulls, in which a hyphen stands for an underscore, and drop repetitions.

    Raises
    ------
    ConfigError
        A name is unknown.
    """
    result: list[NullName] = []
    for text in names:
        matching: list[NullName] = [null for null in NULL_NAMES if str(null) == text.replace("-", "_")]
        if not matching:
            known = ", ".join(null.replace("_", "-") for null in NULL_NAMES)
            raise ConfigError(f"null is {text!r}; expected one of {known}")
        result += matching
    return tuple(dict.fromkeys(result))


@dataclass(frozen=True)
class KindRow:
    """A row of the table of patterns and their default nulls."""

    kind: Kind
    label: str
    null: NullName


KINDS: dict[Kind, KindRow] = {
    row.kind: row
    for row in (
        KindRow("position", "a pattern of positions or texts of a pair", "uniform"),
        KindRow("token", "a pattern of tokens", "habit"),
        KindRow("annotation", "a pattern of words or annotations", "habit"),
        KindRow("two_texts", "a pattern that compares two texts", "mismatched"),
    )
}
_POSITION_FIELDS = frozenset({"position", "length", "segment"})


def pattern_kind(node: Node, site: Site) -> Kind:
    """Return the kind of a pattern: by the fields that it names, and by the texts that it compares."""
    references = [reference for reference in walk(node) if isinstance(reference, Reference)]
    names = {reference.name for reference in references if reference.side != "example"}
    joins_segments = _joins_segments(references)
    if names <= _POSITION_FIELDS | ({"special"} if joins_segments else set()) or is_fixed_offset(node):
        return "position"
    crosses = site.query_sequence != site.key_sequence or joins_segments
    if crosses and any(_compares_contents(compare) for compare in walk(node) if isinstance(compare, Compare)):
        return "two_texts"
    is_annotated = names - (TOKEN_FIELDS.keys() - WORD_FIELDS) or any(
        reference.side == "example" and reference.name not in EXAMPLE_FIELDS for reference in references
    )
    return "annotation" if is_annotated else "token"


def is_fixed_offset(node: Node) -> bool:
    """Return True if the pattern itself fixes the distance of query and key, or a range of distances."""
    if isinstance(node, Named):
        return is_fixed_offset(node.body)
    if isinstance(node, Junction):
        parts = [is_fixed_offset(operand) for operand in node.operands]
        return any(parts) if node.operator == "and" else all(parts)
    if not isinstance(node, Compare) or domain(node) != Domain.PAIR:
        return False
    return _positions_only(node) and _bounds_distance(node)


def _positions_only(compare: Compare) -> bool:
    references = [node for node in walk(compare) if isinstance(node, Reference)]
    return all(reference.name == "position" and not reference.steps for reference in references)


def _bounds_distance(compare: Compare) -> bool:
    """Return True for an equation of positions, and for two inequalities such as ``0 < query.position - key.position <= 3``."""
    constants = sum(isinstance(operand, Constant) for operand in compare.operands)
    return "==" in compare.operators or (len(compare.operands) > 2 and constants >= 2)


def _joins_segments(references: list[Reference]) -> bool:
    return {"query", "key"} <= {reference.side for reference in references if reference.name == "segment"}


def _compares_contents(compare: Compare) -> bool:
    """Return True if a comparison joins a field of the query with one of the key that is not a position."""
    names = {reference.name for reference in _references(compare)}
    return domain(compare) == Domain.PAIR and not names <= _POSITION_FIELDS


def _references(node: Node) -> Iterator[Reference]:
    return (reference for reference in walk(node) if isinstance(reference, Reference))
