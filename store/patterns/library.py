"""The built-in patterns, written in the language itself; any of them may be used inside an expression by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from .parser import parse
from .tree import Node


@dataclass(frozen=True)
class LibraryPattern:
    """A named pattern."""

    name: str
    label: str
    expression: str
    description: str

    @cached_property
    def node(self) -> Node:
        """Its syntax tree."""
        return parse(self.expression, {})


_ALL = (
    LibraryPattern(
        "previous_token",
        "Previous token",
        "key.position == query.position - 1",
        "each token looks at the one before it",
    ),
    LibraryPattern(
        "next_token",
        "Next token",
        "key.position == query.position + 1",
        "each token looks at the one after it (never visible at a causal site)",
    ),
    LibraryPattern("self_token", "Itself", "key.position == query.position", "each token looks at itself"),
    LibraryPattern("first_token", "First token", "key.position == 0", "every token looks at the first"),
    LibraryPattern(
        "special_token",
        "Special tokens",
        "key.special",
        "every token looks at what the tokenizer added ([CLS], [SEP], <s>)",
    ),
    LibraryPattern(
        "punctuation",
        "Punctuation",
        'key.text matches "^[[:punct:]]+$" and not key.special',
        "tokens look at punctuation marks",
    ),
    LibraryPattern(
        "duplicate_token",
        "Earlier copy",
        "key.id == query.id and key.position < query.position",
        "a token looks at an earlier copy of itself",
    ),
    LibraryPattern(
        "induction",
        "Induction",
        "key.previous.id == query.id and key.position < query.position",
        "a token looks at what followed its earlier copies: what comes next, if the text repeats",
    ),
    LibraryPattern(
        "same_word",
        "Same word",
        "key.word == query.word and key.position != query.position",
        "a piece looks at the other pieces of its word",
    ),
    LibraryPattern(
        "other_segment",
        "Other text of the pair",
        "key.segment != query.segment and not key.special and not query.special",
        "tokens of one text look at the other text",
    ),
    LibraryPattern(
        "to_head",
        "Dependent to head",
        "key.word == query.head",
        "a word looks at the word that it depends on",
    ),
    LibraryPattern(
        "to_dependent",
        "Head to dependent",
        "key.head == query.word",
        "a word looks at the words that depend on it",
    ),
    LibraryPattern(
        "subject_of",
        "Subject to verb",
        'key.word == query.head and query.deprel in {"nsubj", "nsubj:pass"}',
        "a subject looks at its predicate",
    ),
    LibraryPattern(
        "to_subject",
        "Verb to subject",
        'key.head == query.word and key.deprel in {"nsubj", "nsubj:pass"}',
        "a predicate looks at its subject",
    ),
    LibraryPattern(
        "object_of", "Object to verb", 'key.word == query.head and query.deprel == "obj"', "an object looks at its verb"
    ),
    LibraryPattern(
        "to_object", "Verb to object", 'key.head == query.word and key.deprel == "obj"', "a verb looks at its object"
    ),
    LibraryPattern(
        "determiner_of",
        "Determiner to noun",
        'key.word == query.head and query.deprel == "det"',
        "an article or determiner looks at its noun",
    ),
    LibraryPattern(
        "modifier_of",
        "Modifier to noun",
        'key.word == query.head and query.deprel in {"amod", "nmod", "nummod", "compound"}',
        "an adjective, number or noun looks at the noun it modifies",
    ),
    LibraryPattern(
        "coreferent",
        "Same entity, earlier",
        "key.coref == query.coref and key.word < query.word",
        "a mention looks at an earlier mention of the same thing",
    ),
)
LIBRARY: dict[str, LibraryPattern] = {pattern.name: pattern for pattern in _ALL}


def library_nodes(library: Mapping[str, LibraryPattern] = LIBRARY) -> dict[str, Node]:
    """Trees of the library by name, for the parser."""
    return {name: pattern.node for name, pattern in library.items()}
