"""CoNLL-U: sentences of annotated words (https://universaldependencies.org/format.html).

Words keep their order and get the characters they cover in ``# text`` (or in the text their forms make). Multiword
tokens (``1-2 don't``) are written in the text as a whole: their words share its characters out where the forms spell
it (``do``, ``n't``), else each word spans all of it. Empty nodes (``8.1``) stand in no text and are left out.

A sentence that breaks the format (columns, numbering, a tree with two roots or a cycle, forms that are not in the
text) is quarantined whole, with the line at fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .corpus_options import ConlluCorpus
from .examples import CorpusExample, Word
from .records import Quarantined, check_text, default_id, iter_lines

_ID = re.compile(r"(\d{1,6})(?:-(\d{1,6})|\.(\d{1,6}))?")
_COMMENT = re.compile(r"#\s*(?:meta::)?([^=]*?)\s*=\s*(.*?)\s*")
_N_COLUMNS = 10


class _Broken(Exception):
    """A sentence that breaks the format: line and reason."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.fault = Quarantined(line, reason)


@dataclass
class _Sentence:
    line: int
    metadata: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[int, list[str]]] = field(default_factory=list)
    """Syntactic words: line number and columns."""
    ranges: list[tuple[int, int, str]] = field(default_factory=list)
    """Multiword tokens: first and last word (from 0) and form."""
    spaces: dict[int, bool] = field(default_factory=dict)
    """Whether a space follows the surface token that ends with this word."""


def read_conllu(options: ConlluCorpus) -> Iterator[CorpusExample | Quarantined]:
    """Annotated sentences; word annotations form, lemma, upos, xpos, feats, deprel, relation, head.

    `relation` is `deprel` without its subtype (``nsubj`` for ``nsubj:pass``). ``_`` is a missing value. The last
    ``# newdoc id`` is the annotation `document`, ``# sent_id`` the id.
    """
    document: str | None = None
    for lines in _split_sentences(options):
        try:
            sentence = _parse(lines)
            if "newdoc id" in sentence.metadata or "newdoc" in sentence.metadata:
                document = sentence.metadata.get("newdoc id")
            yield _build(options, sentence, document)
        except _Broken as broken:
            yield broken.fault


def _split_sentences(options: ConlluCorpus) -> Iterator[list[tuple[int, str | Quarantined]]]:
    lines: list[tuple[int, str | Quarantined]] = []
    for number, line in iter_lines(options.path, options.encoding):
        if isinstance(line, str) and not line.strip():
            if lines:
                yield lines
            lines = []
        else:
            lines.append((number, line))
    if lines:
        yield lines


def _parse(lines: list[tuple[int, str | Quarantined]]) -> _Sentence:
    sentence = _Sentence(line=lines[0][0])
    covered = 0  # words up to here lie in a multiword token
    for number, line in lines:
        if isinstance(line, Quarantined):
            raise _Broken(number, line.reason)
        if line.startswith("#"):
            if match := _COMMENT.fullmatch(line):
                sentence.metadata.setdefault(match[1], match[2])
            elif line[1:].strip() == "newdoc":
                sentence.metadata["newdoc"] = ""
            continue
        columns = line.split("\t")
        if len(columns) != _N_COLUMNS:
            raise _Broken(number, f"{len(columns)} columns, expected {_N_COLUMNS} separated by tabs")
        match = _ID.fullmatch(columns[0])
        if not match:
            raise _Broken(number, f"the word number {columns[0]!r} is no number, range or decimal")
        n_words, has_space = len(sentence.rows), "SpaceAfter=No" not in columns[9].split("|")
        if match[3]:  # an empty node
            continue
        if match[2]:
            first, last = int(match[1]) - 1, int(match[2]) - 1
            if first != n_words or last < first or first < covered:
                raise _Broken(number, f"the multiword token {columns[0]} does not begin at word {n_words + 1}")
            sentence.ranges.append((first, last, columns[1]))
            sentence.spaces[last] = has_space
            covered = last + 1
            continue
        if int(match[1]) != n_words + 1:
            raise _Broken(number, f"word number {match[1]}, expected {n_words + 1}")
        if n_words >= covered:
            sentence.spaces[n_words] = has_space
        sentence.rows.append((number, columns))
    if not sentence.rows:
        raise _Broken(sentence.line, "no words")
    if covered > len(sentence.rows):
        raise _Broken(
            sentence.line, f"the last multiword token ends at word {covered}, but there are {len(sentence.rows)}"
        )
    return sentence


def _build(options: ConlluCorpus, sentence: _Sentence, document: str | None) -> CorpusExample:
    text = sentence.metadata.get("text") or _write_text(sentence)
    if reason := check_text(text):
        raise _Broken(sentence.line, reason)
    rows = [columns for _, columns in sentence.rows]
    deprel = [_value(row[7]) for row in rows]
    word_columns: dict[str, list[str | None] | list[int]] = {
        "form": [row[1] for row in rows],
        "lemma": [row[2] if row[1] == "_" else _value(row[2]) for row in rows],
        "upos": [_value(row[3]) for row in rows],
        "xpos": [_value(row[4]) for row in rows],
        "feats": [_value(row[5]) for row in rows],
        "deprel": deprel,
        "relation": [None if relation is None else relation.partition(":")[0] for relation in deprel],
        "head": _read_tree(sentence),
    }
    metadata: dict[str, str | int | float | None] = {"document": document} if document is not None else {}
    metadata |= {name: sentence.metadata[name] for name in options.metadata if name in sentence.metadata}
    return CorpusExample(
        id=sentence.metadata.get("sent_id") or default_id(options.path, sentence.line),
        text=text,
        words=_place_words(sentence, text),
        word_columns=word_columns,
        columns=metadata,
    )


def _value(column: str) -> str | None:
    return None if column == "_" else column


def _read_tree(sentence: _Sentence) -> list[int]:
    """Index of each word's head, -1 for the root; all -1 where the sentence has no tree (every head is ``_``)."""
    n_words = len(sentence.rows)
    if all(row[6] == "_" for _, row in sentence.rows):
        return [-1] * n_words
    heads: list[int] = []
    for number, row in sentence.rows:
        if not (row[6].isascii() and row[6].isdecimal()) or len(row[6]) > 6 or int(row[6]) > n_words:
            raise _Broken(number, f"head {row[6]!r} is not a word number from 0 to {n_words}")
        heads.append(int(row[6]) - 1)
    roots = [number for (number, _), head in zip(sentence.rows, heads, strict=True) if head < 0]
    if len(roots) != 1:
        raise _Broken(roots[1] if roots else sentence.line, f"{len(roots)} roots, expected one")
    if (looping := find_cycle(heads)) is not None:
        raise _Broken(sentence.rows[looping][0], f"word {looping + 1} is its own head, directly or over others")
    return heads


def find_cycle(heads: list[int]) -> int | None:
    """A word on a cycle of heads, or None where every word leads to a root (-1)."""
    state = [0] * len(heads)  # 0 unseen, 1 on the path walked now, 2 known to reach a root
    for start in range(len(heads)):
        path, word = list[int](), start
        while word >= 0 and state[word] == 0:
            state[word] = 1
            path.append(word)
            word = heads[word]
        if word >= 0 and state[word] == 1:
            return word
        for seen in path:
            state[seen] = 2
    return None


def _surface_tokens(sentence: _Sentence) -> Iterator[tuple[int, int, str]]:
    """What is written: first and last word and form of each surface token."""
    starts = {first: (first, last, form) for first, last, form in sentence.ranges}
    word = 0
    while word < len(sentence.rows):
        token = starts.get(word, (word, word, sentence.rows[word][1][1]))
        yield token
        word = token[1] + 1


def _write_text(sentence: _Sentence) -> str:
    parts = [form + (" " if sentence.spaces[last] else "") for _, last, form in _surface_tokens(sentence)]
    return "".join(parts).rstrip(" ")


def _place_words(sentence: _Sentence, text: str) -> tuple[Word, ...]:
    words: list[Word] = []
    cursor = 0
    for first, last, form in _surface_tokens(sentence):
        number = sentence.rows[first][0]
        while cursor < len(text) and text[cursor].isspace():
            cursor += 1
        if not form or not text.startswith(form, cursor):
            raise _Broken(
                number, f"the text has {text[cursor : cursor + len(form)]!r} at character {cursor}, not {form!r}"
            )
        stop = cursor + len(form)
        words += _share_out(cursor, form, [row[1] for _, row in sentence.rows[first : last + 1]])
        cursor = stop
    if text[cursor:].strip():
        raise _Broken(sentence.line, f"the text goes on after the last word: {text[cursor:].strip()[:40]!r}")
    return tuple(words)


def _share_out(start: int, surface: str, forms: list[str]) -> list[Word]:
    """Spans of the words of one surface token."""
    if "".join(forms).casefold() != surface.casefold() or sum(map(len, forms)) != len(surface):
        return [Word(start, start + len(surface)) for _ in forms]
    spans: list[Word] = []
    for form in forms:
        spans.append(Word(start, start + len(form)))
        start += len(form)
    return spans
