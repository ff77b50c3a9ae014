"""Sentences generated from a grammar file. Their annotations follow from the rules that generated them.

The head of a phrase is the head of its head part. It governs the heads of the other parts, so the result is always a
tree. Coreference and entity classes come from the rules too. A variable written ``!x`` generates a minimal pair: one
sentence for each value, and the generator checks that they differ in exactly one word.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from headatlas.store.errors import ConfigError

from .corpus_files import CorpusFile, default_id
from .corpus_options import TemplatesCorpus
from .examples import CorpusExample, Word
from .grammar import Grammar, Lexicon, Part, Rule, read_grammar
from .records import Quarantined

_MAX_DEPTH = 40
_MAX_NODES = 200
_MAX_FAILED_DRAWS = 1000
_OPEN_CLASSES = frozenset({"NOUN", "PROPN", "VERB", "ADJ", "ADV"})
_GLUED = frozenset({".", ",", ";", ":", "!", "?", "'s", "'", "n't"})
_VOWELS = frozenset("aeiouAEIOU")


class _DeadEnd(Exception):
    """Raised if a sentence cannot be completed: no rule or word fits, or it exceeds the size limits."""


@dataclass
class _Cell:
    """The value of a variable: a feature value, or the word that it names as an antecedent."""

    value: str | None = None
    leaf: _Leaf | None = None
    varied: bool = False


@dataclass
class _Leaf:
    """A word of the sentence. The value of `cell` selects its form."""

    upos: str
    entry: tuple[str, ...]
    lexicon: Lexicon | None = None
    cell: _Cell | None = None
    governor: _Leaf | None = None
    relation: str = "root"
    antecedent: _Cell | None = None

    @property
    def form(self) -> str:
        """The form that the value of its variable selects."""
        if self.lexicon is None or self.cell is None or self.cell.value is None:
            return self.entry[0]
        return self.entry[self.lexicon.values.index(self.cell.value)]

    @property
    def lemma(self) -> str:
        """The lemma, as its word class defines it."""
        fixed = None if self.lexicon is None else self.lexicon.lemma
        return (self.entry[0] if fixed is None else self.form if fixed == "form" else fixed).partition("/")[0]


@dataclass
class _Draw:
    """State of the generation of one sentence."""

    grammar: Grammar
    generator: random.Random
    leaves: list[_Leaf] = field(default_factory=list)
    used: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)
    varied: _Cell | None = None
    varied_values: tuple[str, ...] = ()
    n_nodes: int = 0

    def expand(self, rule: Rule, cells: list[_Cell], depth: int) -> _Leaf:
        """Add the words of a rule and return the word that heads them."""
        self.n_nodes += 1
        if depth > _MAX_DEPTH or self.n_nodes > _MAX_NODES:
            raise _DeadEnd
        names: dict[str, _Cell] = {}
        for argument, cell in zip(rule.arguments, cells, strict=True):
            if argument in self.grammar.values:
                cell.value = argument
            elif argument != "_":
                names[argument] = cell
        part_heads: list[tuple[Part, _Leaf]] = []
        for part in rule.parts:
            if part.optional and self.generator.random() < 0.5:
                continue
            leaf = self._expand_part(part, names, depth)
            if part.label is not None:
                names.setdefault(part.label, _Cell()).leaf = leaf
            if part.antecedent is not None:
                leaf.antecedent = names.setdefault(part.antecedent, _Cell())
            part_heads.append((part, leaf))
        head = next(leaf for part, leaf in part_heads if part.relation is None)
        for part, leaf in part_heads:
            if part.relation is not None:
                leaf.governor, leaf.relation = head, part.relation
        return head

    def _expand_part(self, part: Part, names: dict[str, _Cell], depth: int) -> _Leaf:
        if part.symbol is None:
            leaf = _Leaf(part.upos or "X", (part.literal or "",))
            self.leaves.append(leaf)
            return leaf
        cells = [self._cell(argument, names) for argument in part.arguments]
        if (lexicon := self.grammar.lexicons.get(part.symbol)) is not None:
            return self._draw_word(lexicon, cells[0] if cells else None)
        rules = [rule for rule in self.grammar.phrases[part.symbol] if self._fits(rule, cells)]
        if not rules:
            raise _DeadEnd
        rule = self.generator.choices(rules, [rule.weight for rule in rules])[0]
        return self.expand(rule, cells, depth + 1)

    def _cell(self, argument: str, names: dict[str, _Cell]) -> _Cell:
        if argument in self.grammar.values:
            return _Cell(argument)
        if argument == "_":
            return _Cell()
        cell = names.setdefault(argument.lstrip("!"), _Cell())
        if argument.startswith("!") and self.varied is None:
            cell.varied, self.varied = True, cell
        return cell

    def _fits(self, rule: Rule, cells: list[_Cell]) -> bool:
        # A rule for a single value cannot generate both sentences of a minimal pair.
        return all(
            argument not in self.grammar.values or (cell.value in (None, argument) and not cell.varied)
            for argument, cell in zip(rule.arguments, cells, strict=True)
        )

    def _draw_word(self, lexicon: Lexicon, cell: _Cell | None) -> _Leaf:
        if cell is not None:
            if cell.value is None:
                cell.value = self.generator.choice(lexicon.values)
            if cell.value not in lexicon.values:
                raise _DeadEnd
            if cell.varied and not self.varied_values:
                self.varied_values = lexicon.values
        entries = [entry for entry in lexicon.entries if (lexicon.name, entry) not in self.used]
        entry = self.generator.choice(entries or lexicon.entries)
        if lexicon.upos in _OPEN_CLASSES:
            self.used.add((lexicon.name, entry))
        leaf = _Leaf(lexicon.upos, entry, lexicon, cell)
        self.leaves.append(leaf)
        return leaf


def read_templates(options: TemplatesCorpus, file: CorpusFile) -> Iterator[CorpusExample | Quarantined]:
    """Yield distinct sentences of a grammar, the same for the same seed. Minimal pairs are adjacent and never split.

    Word annotations: form, lemma, upos, deprel, relation, head, entity and `antecedent` (index of the word that a
    pronoun refers to, -1 for none). Sentence annotations: `construction`; for minimal pairs also `pair` (the same for
    all sentences of the pair) and `variant` (the value that differs).

    Raises
    ------
    ConfigError
        The grammar is invalid, a pair differs in more than one word, or the grammar has too few different sentences.
    """
    grammar = read_grammar(file.path)
    generator = random.Random(options.seed)
    texts: set[str] = set()
    n_failed = 0
    number = 0
    while len(texts) < options.examples:
        examples = _draw_examples(grammar, generator, default_id(file.name, number + 1))
        new_texts = {example.text for example in examples}
        if not examples or new_texts & texts or len(new_texts) < len(examples):
            n_failed += 1
            if n_failed > _MAX_FAILED_DRAWS:
                raise ConfigError(
                    f"{file.name} gave {len(texts)} different sentences, then none in {_MAX_FAILED_DRAWS} draws; "
                    f"corpus.examples asks for {options.examples}. Lower it, or extend the grammar"
                )
            continue
        if len(texts) + len(new_texts) > options.examples:
            return
        n_failed, number = 0, number + 1
        texts |= new_texts
        yield from examples


def _draw_examples(grammar: Grammar, generator: random.Random, name: str) -> list[CorpusExample]:
    """Generate one sentence, or all sentences of a minimal pair; an empty list if the draw failed."""
    draw = _Draw(grammar, generator)
    rule = generator.choices(grammar.sentences, [rule.weight for rule in grammar.sentences])[0]
    try:
        draw.expand(rule, [], 0)
    except _DeadEnd:
        return []
    if not grammar.min_words <= len(draw.leaves) <= grammar.max_words:
        return []
    columns: dict[str, str | int | float | None] = {"construction": rule.name, "pair": None, "variant": None}
    if draw.varied is None or not draw.varied_values:
        return [_write(draw.leaves, name, columns)]
    examples: list[CorpusExample] = []
    for value in draw.varied_values:
        draw.varied.value = value
        varied = columns | {"pair": name, "variant": value}
        examples.append(_write(draw.leaves, f"{name}-{value}", varied))
    _check_pair(rule, examples)
    return examples


def _check_pair(rule: Rule, examples: list[CorpusExample]) -> None:
    first, *others = (example.word_columns["form"] for example in examples)
    for other in others:
        if (n := sum(a != b for a, b in zip(first, other, strict=True))) != 1:
            raise ConfigError(
                f"sentence {rule.name} (line {rule.line}): its pair {examples[0].text!r} differs in {n} words, expected one. "
                "Only one word may depend on the varied variable"
            )


def _write(leaves: list[_Leaf], name: str, columns: dict[str, str | int | float | None]) -> CorpusExample:
    index = {id(leaf): i for i, leaf in enumerate(leaves)}
    forms = [leaf.form for leaf in leaves]
    text = ""
    words: list[Word] = []
    for i, form in enumerate(forms):
        if "/" in form:  # a form such as "a/an", chosen by the next word
            following = forms[i + 1] if i + 1 < len(forms) else ""
            form = form.split("/")[following[:1] in _VOWELS]
        if i == 0:
            form = form[:1].upper() + form[1:]
        forms[i] = form
        if text and form not in _GLUED:
            text += " "
        words.append(Word(len(text), len(text) + len(form)))
        text += form
    relations: list[str | None] = [leaf.relation for leaf in leaves]
    antecedents = [None if leaf.antecedent is None else leaf.antecedent.leaf for leaf in leaves]
    return CorpusExample(
        id=name,
        text=text,
        words=tuple(words),
        word_columns={
            "form": [*forms],
            "lemma": [leaf.lemma for leaf in leaves],
            "upos": [leaf.upos for leaf in leaves],
            "deprel": relations,
            "relation": [relation and relation.partition(":")[0] for relation in relations],
            "head": [-1 if leaf.governor is None else index[id(leaf.governor)] for leaf in leaves],
            "entity": [None if leaf.lexicon is None else leaf.lexicon.entity for leaf in leaves],
            "antecedent": [-1 if leaf is None else index[id(leaf)] for leaf in antecedents],
        },
        columns=columns,
    )
