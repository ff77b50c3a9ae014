"""Parser of grammar files: a lexicon, and phrases with a marked head (docs/grammar.md describes the language).

Parsing is strict, because a mistake would produce wrong gold annotations. The parser rejects unknown symbols, values
that no word has, variables that are used only once, and phrases without exactly one head. Errors name the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headatlas.store.errors import ConfigError

from .corpus_files import open_bytes

MAX_GRAMMAR_BYTES = 2**20
START = "sentence"

_NAME = r"[A-Za-z][A-Za-z0-9_]*"
_WORDS = re.compile(
    rf"""words \s+ (?P<name>{_NAME}) (?: \(\s* {_NAME} \s*:(?P<values>[^)]*)\) )?
    \s+ (?P<upos>[A-Z]+) (?P<options>(?:\s+\w+=\w+)*)""",
    re.VERBOSE,
)
_RULE = re.compile(
    rf"""(?P<kind>phrase|sentence) \s+ (?P<name>{_NAME}) (?: \((?P<arguments>[^)]*)\) )?
    (?: \s+ x(?P<weight>[1-9]\d{{0,5}}) )? \s*=\s* (?P<parts>.+)""",
    re.VERBOSE,
)
_LENGTH = re.compile(r"length\s+(?P<least>\d{1,4})\s+(?P<most>\d{1,4})")
_PART = re.compile(
    rf"""(?: (?P<symbol>{_NAME})(?:\((?P<arguments>[^)]*)\))? | "(?P<literal>[^"\s]+)"/(?P<upos>[A-Z]+) )
    (?:@(?P<label>{_NAME}))? (?:\^(?P<antecedent>{_NAME}))? (?P<optional>\?)? :(?P<relation>\*|[a-z]+(?::[a-z]+)?)""",
    re.VERBOSE,
)
_ARGUMENT = re.compile(rf"!?{_NAME}|_")


@dataclass(frozen=True)
class Lexicon:
    """Words of one class. Each entry has one form for each of `values`, or a single form if there are no values."""

    name: str
    upos: str
    values: tuple[str, ...]
    entries: tuple[tuple[str, ...], ...]
    entity: str | None = None
    lemma: str | None = None
    """A fixed lemma; ``form`` if each form is its own lemma; None if the lemma is the first form of the entry."""


@dataclass(frozen=True)
class Part:
    """One constituent of a rule: a phrase, a word class or a literal word."""

    symbol: str | None
    arguments: tuple[str, ...]
    literal: str | None
    upos: str | None
    relation: str | None
    """Relation to the head of the rule; None for the head itself."""
    label: str | None = None
    antecedent: str | None = None
    optional: bool = False


@dataclass(frozen=True)
class Rule:
    """One expansion of a phrase, or of a sentence; the `name` of a sentence rule is its construction."""

    name: str
    arguments: tuple[str, ...]
    parts: tuple[Part, ...]
    weight: int
    line: int


@dataclass(frozen=True)
class Grammar:
    """A checked grammar: all names that it uses are defined."""

    sentences: tuple[Rule, ...]
    phrases: dict[str, tuple[Rule, ...]]
    lexicons: dict[str, Lexicon]
    values: frozenset[str]
    """Set of all feature values. Any other argument of a rule is a variable."""
    min_words: int = 1
    max_words: int = 100


@dataclass
class _Draft:
    path: Path
    lexicons: dict[str, Lexicon] = field(default_factory=dict)
    rules: list[tuple[str, Rule]] = field(default_factory=list)
    length: tuple[int, int] = (1, 100)

    def fail(self, line: int, problem: str) -> ConfigError:
        return ConfigError(f"{self.path.name}, line {line}: {problem}")


def read_grammar(path: Path) -> Grammar:
    """Read and check a grammar file.

    Raises
    ------
    ConfigError
        The file cannot be read, is not UTF-8, or has a syntax error. The message names the line.
    """
    with open_bytes(path) as file:
        raw = file.read(MAX_GRAMMAR_BYTES + 1)
    if len(raw) > MAX_GRAMMAR_BYTES:
        raise ConfigError(
            f"{path.name} has more than {MAX_GRAMMAR_BYTES} bytes; expected a grammar of at most this size"
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not UTF-8 (byte {error.start}); save the grammar as UTF-8") from error
    draft = _Draft(path)
    for line, statement in _statements(text):
        _read_statement(draft, line, statement)
    return _check(draft)


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield statements with the number of their first line. A line that is not indented begins a statement."""
    first, lines = 0, list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*", "", line).rstrip()
        if not line:
            continue
        if not line[0].isspace():
            if lines:
                yield first, lines
            first, lines = number, []
        lines.append(line.strip())
    if lines:
        yield first, lines


def _read_statement(draft: _Draft, line: int, lines: list[str]) -> None:
    if match := _WORDS.fullmatch(lines[0]):
        lexicon = _read_lexicon(draft, line, match, lines[1:])
        if lexicon.name in draft.lexicons:
            raise draft.fail(line, f"words {lexicon.name} are defined already")
        draft.lexicons[lexicon.name] = lexicon
    elif match := _RULE.fullmatch(" ".join(lines)):
        arguments = _read_arguments(draft, line, match["arguments"])
        rule = Rule(match["name"], arguments, _read_parts(draft, line, match["parts"]), int(match["weight"] or 1), line)
        if match["kind"] == START and arguments:
            raise draft.fail(line, f"the sentence {rule.name} has arguments; only phrases can")
        draft.rules.append((match["kind"], rule))
    elif match := _LENGTH.fullmatch(" ".join(lines)):
        draft.length = (int(match["least"]), int(match["most"]))
    else:
        expected = "'words NAME(feature: values) UPOS', 'phrase NAME(…) = …', 'sentence NAME = …' or 'length MIN MAX'"
        raise draft.fail(line, f"{lines[0]!r} is not a statement; expected {expected}")


def _read_lexicon(draft: _Draft, line: int, match: re.Match[str], lines: list[str]) -> Lexicon:
    values = tuple((match["values"] or "").split())
    options = dict(option.split("=") for option in match["options"].split())
    if unknown := set(options) - {"entity", "lemma"}:
        raise draft.fail(line, f"unknown option {unknown.pop()!r}; expected entity= or lemma=")
    entries = tuple(tuple(entry.split()) for text in lines for entry in text.split(",") if entry.strip())
    n_forms = max(1, len(values))
    if not entries or len(set(values)) < len(values):
        raise draft.fail(
            line, f"words {match['name']} need entries (indented, separated by commas), and values without repetitions"
        )
    for entry in entries:
        if len(entry) != n_forms:
            expected = f"{n_forms} ({' '.join(values)})" if values else "1"
            raise draft.fail(line, f"{' '.join(entry)!r} has {len(entry)} forms, expected {expected}")
    return Lexicon(match["name"], match["upos"], values, entries, options.get("entity"), options.get("lemma"))


def _read_arguments(draft: _Draft, line: int, text: str | None) -> tuple[str, ...]:
    arguments = tuple(argument.strip() for argument in (text or "").split(",") if argument.strip())
    for argument in arguments:
        if not _ARGUMENT.fullmatch(argument):
            raise draft.fail(line, f"{argument!r} is not an argument; expected a value, a variable, !variable or _")
    return arguments


def _read_parts(draft: _Draft, line: int, text: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    for piece in re.findall(r"(?:[^\s(]|\([^)]*\))+", text):
        match = _PART.fullmatch(piece)
        if not match:
            expected = 'Symbol(arguments):relation or "word"/UPOS:relation, with * for the head\'s relation'
            raise draft.fail(line, f"{piece!r} is not a part; expected {expected}")
        relation = None if match["relation"] == "*" else match["relation"]
        arguments = _read_arguments(draft, line, match["arguments"])
        optional = match["optional"] is not None
        if optional and (match["label"] or relation is None):
            raise draft.fail(line, f"{piece!r} is optional, so it can be neither head nor antecedent")
        parts.append(
            Part(
                symbol=match["symbol"],
                arguments=arguments,
                literal=match["literal"],
                upos=match["upos"],
                relation=relation,
                label=match["label"],
                antecedent=match["antecedent"],
                optional=optional,
            )
        )
    if (n_heads := sum(part.relation is None for part in parts)) != 1:
        raise draft.fail(line, f"{n_heads} parts are heads; exactly one part must be the head (`:*`)")
    return tuple(parts)


def _check(draft: _Draft) -> Grammar:
    phrases: dict[str, list[Rule]] = {}
    for kind, rule in draft.rules:
        if kind != START:
            phrases.setdefault(rule.name, []).append(rule)
    sentences = tuple(rule for kind, rule in draft.rules if kind == START)
    if not sentences:
        raise ConfigError(f"{draft.path.name} has no sentence; write at least one 'sentence NAME = …'")
    values = frozenset(value for lexicon in draft.lexicons.values() for value in lexicon.values)
    arity = {name: 1 if lexicon.values else 0 for name, lexicon in draft.lexicons.items()}
    for name, rules in phrases.items():
        if name in arity:
            raise draft.fail(rules[0].line, f"{name} is the name of words and of a phrase")
        arity[name] = len(rules[0].arguments)
    for _, rule in draft.rules:
        _check_rule(draft, rule, arity, values)
        if rule.name in phrases and len(rule.arguments) != arity[rule.name]:
            raise draft.fail(
                rule.line,
                f"{rule.name} has {len(rule.arguments)} arguments here, but {arity[rule.name]} arguments in another rule",
            )
    min_words, max_words = draft.length
    frozen = {name: tuple(rules) for name, rules in phrases.items()}
    return Grammar(sentences, frozen, draft.lexicons, values, min_words, max_words)


def _check_rule(draft: _Draft, rule: Rule, arity: dict[str, int], values: frozenset[str]) -> None:
    uses: dict[str, int] = {}
    variables = [*rule.arguments]
    for part in rule.parts:
        if part.symbol is not None:
            if part.symbol not in arity:
                raise draft.fail(
                    rule.line, f"there are no words and no phrase {part.symbol!r}; define one, or correct the name"
                )
            if len(part.arguments) != arity[part.symbol]:
                raise draft.fail(
                    rule.line, f"{part.symbol} takes {arity[part.symbol]} arguments, not {len(part.arguments)}"
                )
        variables += [*part.arguments, *filter(None, (part.label, part.antecedent))]
    for name in variables:
        # A varied variable (!x) may be used only once, because it generates a minimal pair by itself.
        uses[name.lstrip("!")] = uses.get(name.lstrip("!"), 0) + (2 if name.startswith("!") else 1)
    for name, count in uses.items():
        if count == 1 and name != "_" and name not in values:
            raise draft.fail(
                rule.line, f"{name!r} is used only once and is not a value of any words; write _ for any value"
            )
