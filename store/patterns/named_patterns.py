"""The built-in patterns, written in the pattern language. An expression may use each of them by its name.

`UNIVERSAL_RELATIONS` are the relations of Universal Dependencies 2, in treebanks of any language: the values of the
parameter of `dependent_of` and `dependents_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .parser import Definition, parse
from .tree import Node, Value, expanded, to_text


@dataclass(frozen=True)
class LibraryPattern:
    """A named pattern. Its `expression` may use its parameters, which are mapped to their defaults."""

    name: str
    label: str
    expression: str
    description: str
    parameters: Mapping[str, Value] = field(default_factory=dict, hash=False)
    names: Mapping[str, Definition] = field(default_factory=dict, hash=False, repr=False, compare=False)
    """Patterns that the expression may call."""
    group: str = ""
    """Title of the section in docs/patterns.md. Built-in patterns have one."""

    @cached_property
    def node(self) -> Node:
        """Syntax tree with every parameter at its default."""
        return self.bound({})

    @cached_property
    def filled(self) -> str:
        """Expression with every parameter at its default and every named pattern replaced by its body."""
        return to_text(expanded(self.node))

    def bound(self, arguments: Mapping[str, Value]) -> Node:
        """Return the syntax tree with these arguments."""
        return parse(self.expression, self.names, {**self.parameters, **arguments})


_ALL = (
    LibraryPattern(
        "previous_token",
        "Previous token",
        "key.position == query.position - 1",
        "each token looks at the one before it",
        group="Positions",
    ),
    LibraryPattern(
        "next_token",
        "Next token",
        "key.position == query.position + 1",
        "each token looks at the one after it (never visible at a causal site)",
        group="Positions",
    ),
    LibraryPattern(
        "self_token", "Itself", "key.position == query.position", "each token looks at itself", group="Positions"
    ),
    LibraryPattern(
        "first_token", "First token", "key.position == 0", "every token looks at the first", group="Positions"
    ),
    LibraryPattern(
        "special_token",
        "Special tokens",
        "key.special",
        "every token looks at the special tokens ([CLS], [SEP], <s>)",
        group="Kinds of tokens",
    ),
    LibraryPattern(
        "punctuation",
        "Punctuation",
        'key.text matches "^[[:punct:]]+$" and not key.special',
        "tokens look at punctuation marks",
        group="Kinds of tokens",
    ),
    LibraryPattern(
        "delimiter",
        "Delimiters",
        'key.special or key.text matches "^[.,;:!?…。、]+$"',
        "tokens look at separators: full stops, commas, [SEP]",
        group="Kinds of tokens",
    ),
    LibraryPattern(
        "duplicate_token",
        "Earlier copy",
        "key.id == query.id and key.position < query.position",
        "a token looks at an earlier copy of itself",
        group="Copies",
    ),
    LibraryPattern(
        "induction",
        "Induction",
        "key.previous.id == query.id and key.position < query.position",
        "a token looks at the tokens that followed its earlier copies: the next token, if the text repeats",
        group="Copies",
    ),
    LibraryPattern(
        "local",
        "A few tokens back",
        "0 < query.position - key.position <= n",
        "a token looks at one of the n tokens before it",
        {"n": 3},
        group="Positions",
    ),
    LibraryPattern(
        "same_word",
        "Same word",
        "key.word == query.word and key.position != query.position",
        "a token looks at the other tokens of its word",
        group="Words, sentences, names",
    ),
    LibraryPattern(
        "other_segment",
        "Other text of the pair",
        "key.segment != query.segment and not key.special and not query.special",
        "tokens of one text look at the other text",
        group="Words, sentences, names",
    ),
    LibraryPattern(
        "a_to_b",
        "Sentence A to B",
        "query.segment == 0 and key.segment == 1 and not key.special and not query.special",
        "tokens of the first text of a pair look at the second",
        group="Words, sentences, names",
    ),
    LibraryPattern(
        "b_to_a",
        "Sentence B to A",
        "query.segment == 1 and key.segment == 0 and not key.special and not query.special",
        "tokens of the second text of a pair look at the first",
        group="Words, sentences, names",
    ),
    LibraryPattern(
        "to_head",
        "Dependent to head",
        "key.word == query.head",
        "a word looks at the word that it depends on",
        group="Dependencies",
    ),
    LibraryPattern(
        "to_dependent",
        "Head to dependent",
        "key.head == query.word",
        "a word looks at the words that depend on it",
        group="Dependencies",
    ),
    LibraryPattern(
        "dependent_of",
        "A relation, dependent to head",
        "key.word == query.head and query.relation == relation",
        "a word with this relation looks at the word that it depends on",
        {"relation": "nsubj"},
        group="Dependencies",
    ),
    LibraryPattern(
        "dependents_of",
        "A relation, head to dependent",
        "key.head == query.word and key.relation == relation",
        "a word looks at the words that depend on it with this relation",
        {"relation": "nsubj"},
        group="Dependencies",
    ),
    LibraryPattern(
        "subject_of",
        "Subject to verb",
        'key.word == query.head and query.deprel in {"nsubj", "nsubj:pass"}',
        "a subject looks at its predicate",
        group="Dependencies",
    ),
    LibraryPattern(
        "to_subject",
        "Verb to subject",
        'key.head == query.word and key.deprel in {"nsubj", "nsubj:pass"}',
        "a predicate looks at its subject",
        group="Dependencies",
    ),
    LibraryPattern(
        "object_of",
        "Object to verb",
        'key.word == query.head and query.deprel == "obj"',
        "an object looks at its verb",
        group="Dependencies",
    ),
    LibraryPattern(
        "to_object",
        "Verb to object",
        'key.head == query.word and key.deprel == "obj"',
        "a verb looks at its object",
        group="Dependencies",
    ),
    LibraryPattern(
        "determiner_of",
        "Determiner to noun",
        'key.word == query.head and query.deprel == "det"',
        "an article or determiner looks at its noun",
        group="Dependencies",
    ),
    LibraryPattern(
        "to_determiner",
        "Noun to determiner",
        'key.head == query.word and key.deprel == "det"',
        "a noun looks at its article or determiner",
        group="Dependencies",
    ),
    LibraryPattern(
        "modifier_of",
        "Modifier to noun",
        'key.word == query.head and query.deprel in {"amod", "nmod", "nummod", "compound"}',
        "an adjective, number or noun looks at the noun it modifies",
        group="Dependencies",
    ),
    LibraryPattern(
        "to_modifier",
        "Noun to modifier",
        'key.head == query.word and key.deprel in {"amod", "nmod", "nummod", "compound"}',
        "a noun looks at the adjectives, numbers and nouns that modify it",
        group="Dependencies",
    ),
    LibraryPattern(
        "pronoun_to_antecedent",
        "Pronoun to antecedent",
        'key.word == query.antecedent and query.upos in {"PRON", "DET"}',
        "a pronoun looks at the word that it stands for",
        group="Reference",
    ),
    LibraryPattern(
        "coreferent",
        "Same entity, earlier",
        "key.coref == query.coref and key.word < query.word",
        "a mention looks at an earlier mention of the same thing",
        group="Reference",
    ),
    LibraryPattern(
        "acronym_to_words",
        "Acronym to its words",
        'query.expansion_start <= key.word < query.expansion_stop and key.word_text matches "^\\p{Lu}"',
        "an acronym looks at the words of its long form",
        group="Words, sentences, names",
    ),
    LibraryPattern(
        "copy_of_next",
        "Copy of what comes next",
        "key.id == query.next.id and key.position < query.position",
        "a token looks at an earlier copy of the token that follows it: the token to copy next",
        group="Copies",
    ),
    LibraryPattern(
        "needle",
        "Retrieval from a needle",
        "key.id == query.next.id and key.position < query.position and key.needle == 1",
        "a token looks at an earlier copy of the token that follows it, in words that are annotated as the needle (`needle` is 1)",
        group="Copies",
    ),
)
LIBRARY: dict[str, LibraryPattern] = {pattern.name: pattern for pattern in _ALL}
UNIVERSAL_RELATIONS: tuple[str, ...] = (
    "acl", "advcl", "advmod", "amod", "appos", "aux", "case", "cc", "ccomp", "clf", "compound", "conj", "cop", "csubj",
    "dep", "det", "discourse", "dislocated", "expl", "fixed", "flat", "goeswith", "iobj", "list", "mark", "nmod", "nsubj",
    "nummod", "obj", "obl", "orphan", "parataxis", "punct", "reparandum", "vocative", "xcomp",
)  # fmt: skip
"""All relations except `root`, which has no governor."""
