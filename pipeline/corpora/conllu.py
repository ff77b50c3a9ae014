"""CoNLL-U: sentences of annotated words (https://universaldependencies.org/format.html).

Words keep their order. Each gets the characters that it covers in ``# text``, or in the text that is built from the
forms. The words of a multiword token (``1-2 don't``) divide its characters if their forms spell it (``do``, ``n't``);
otherwise each of them spans the whole token. Empty nodes (``8.1``) are not part of the text; they are left out and
counted.

A sentence that breaks the format is quarantined as a whole, with the line of the error: wrong columns or numbers, a
tree with two roots or a cycle, forms that do not occur in the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from .corpus_files import CorpusFile, default_id, iter_lines
from .corpus_options import ConlluCorpus
from .examples import CorpusExample, Word, WordColumn
from .records import LINE_OVERHEAD, MAX_RECORD_BYTES, TOO_LONG, ColumnNames, LeftOut, Quarantined, Renaming, check_text

_ID = re.compile(r"(\d{1,6})(?:-(\d{1,6})|\.(\d{1,6}))?")
_COMMENT = re.compile(r"#\s*(?:meta::)?([^=]*?)\s*=\s*(.*?)\s*")
_N_COLUMNS = 10
_COLUMNS_OF_TOKENS = ("LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS")
_READ_COMMENTS = frozenset({"text", "sent_id", "newdoc id", "newdoc"})


class _MalformedSentence(Exception):
    """Raised for a sentence that breaks the format, with line and reason."""

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
    """True if a space follows the surface token that ends with this word (from 0)."""
    left_out: LeftOut = field(default_factory=LeftOut)


def read_conllu(options: ConlluCorpus, file: CorpusFile) -> Iterator[CorpusExample | Quarantined | Renaming]:
    """Yield annotated sentences with the word annotations form, lemma, upos, xpos, feats, deprel, relation, head.

    `relation` is `deprel` without its subtype (``nsubj`` for ``nsubj:pass``). ``_`` is a missing value. The last
    ``# newdoc id`` becomes the annotation `document`, and ``# sent_id`` the id.
    """
    document: str | None = None
    renamings: list[Renaming] = []
    names = ColumnNames(renamings.append)
    for lines in _split_sentences(options, file):
        try:
            sentence = _parse(lines, options.metadata)
            if "newdoc id" in sentence.metadata or "newdoc" in sentence.metadata:
                document = sentence.metadata.get("newdoc id")
            metadata: dict[str, str | int | float | None] = {}
            if document is not None:
                metadata[names("document")] = document
            metadata |= {names(name): sentence.metadata[name] for name in options.metadata if name in sentence.metadata}
            yield from renamings
            renamings.clear()
            yield _build(file, sentence, metadata)
        except _MalformedSentence as error:
            yield error.fault


def _split_sentences(options: ConlluCorpus, file: CorpusFile) -> Iterator[list[tuple[int, str | Quarantined]]]:
    lines: list[tuple[int, str | Quarantined]] = []
    n_chars = 0
    for number, line in iter_lines(file.path, options.encoding):
        if isinstance(line, str) and not line.strip():
            if lines:
                yield lines
            lines, n_chars = [], 0
            continue
        n_chars += LINE_OVERHEAD + (len(line) if isinstance(line, str) else 0)
        if n_chars <= MAX_RECORD_BYTES:
            lines.append((number, line))
        elif not isinstance(lines[0][1], Quarantined):
            lines = [(lines[0][0], Quarantined(lines[0][0], TOO_LONG))]
    if lines:
        yield lines


def _parse(lines: list[tuple[int, str | Quarantined]], metadata: Collection[str]) -> _Sentence:
    sentence = _Sentence(line=lines[0][0])
    n_covered = 0  # number of words up to the end of the last multiword token
    for number, line in lines:
        if isinstance(line, Quarantined):
            raise _MalformedSentence(number, line.reason)
        if line.startswith("#"):
            if match := _COMMENT.fullmatch(line):
                if sentence.metadata.setdefault(match[1], match[2]) != match[2]:
                    sentence.left_out.add("a comment of the same name came before", match[1][:40], "comments")
                elif match[1] not in _READ_COMMENTS and match[1] not in metadata:
                    sentence.left_out.add("not named in corpus.metadata", match[1][:40], "comments")
            elif line[1:].strip() == "newdoc":
                sentence.metadata["newdoc"] = ""
            elif comment := line[1:].strip():
                sentence.left_out.add("not of the form # name = value", comment[:40], "comments")
            continue
        columns = line.split("\t")
        if len(columns) != _N_COLUMNS:
            raise _MalformedSentence(number, f"{len(columns)} columns, expected {_N_COLUMNS} separated by tabs")
        match = _ID.fullmatch(columns[0])
        if not match:
            raise _MalformedSentence(number, f"the word number {columns[0]!r} is no number, range or decimal")
        n_words, has_space = len(sentence.rows), "SpaceAfter=No" not in columns[9].split("|")
        for entry in columns[9].split("|"):
            if entry not in ("_", "SpaceAfter=No"):
                sentence.left_out.add("the column MISC of CoNLL-U is not stored", entry.partition("=")[0][:40])
        if match[3]:  # an empty node
            sentence.left_out.add("empty nodes of CoNLL-U are not part of the text", columns[0], "nodes")
            continue
        if match[2]:
            first, last = int(match[1]) - 1, int(match[2]) - 1
            if first != n_words or last < first or first < n_covered:
                raise _MalformedSentence(
                    number, f"the multiword token {columns[0]} does not begin at word {n_words + 1}"
                )
            sentence.ranges.append((first, last, columns[1]))
            for name, value in zip(_COLUMNS_OF_TOKENS, columns[2:9], strict=True):
                if value != "_":
                    sentence.left_out.add("a multiword token has only its form; its words have annotations", name)
            sentence.spaces[last] = has_space
            n_covered = last + 1
            continue
        if int(match[1]) != n_words + 1:
            raise _MalformedSentence(number, f"word number {match[1]}, expected {n_words + 1}")
        if n_words >= n_covered:
            sentence.spaces[n_words] = has_space
        if columns[8] not in ("_", f"{columns[6]}:{columns[7]}"):
            sentence.left_out.add("the column DEPS of CoNLL-U is not stored", "enhanced dependencies")
        sentence.rows.append((number, columns))
    if not sentence.rows:
        raise _MalformedSentence(sentence.line, "no words")
    if n_covered > len(sentence.rows):
        raise _MalformedSentence(
            sentence.line, f"the last multiword token ends at word {n_covered}, but there are {len(sentence.rows)}"
        )
    return sentence


def _build(file: CorpusFile, sentence: _Sentence, metadata: dict[str, str | int | float | None]) -> CorpusExample:
    text = sentence.metadata.get("text") or _write_text(sentence)
    if reason := check_text(text):
        raise _MalformedSentence(sentence.line, reason)
    rows = [columns for _, columns in sentence.rows]
    deprel = [_value(row[7]) for row in rows]
    word_columns: dict[str, WordColumn] = {
        "form": [row[1] for row in rows],
        "lemma": [row[2] if row[1] == "_" else _value(row[2]) for row in rows],
        "upos": [_value(row[3]) for row in rows],
        "xpos": [_value(row[4]) for row in rows],
        "feats": [_value(row[5]) for row in rows],
        "deprel": deprel,
        "relation": [None if relation is None else relation.partition(":")[0] for relation in deprel],
        "head": _read_tree(sentence),
    }
    return CorpusExample(
        id=sentence.metadata.get("sent_id") or default_id(file.name, sentence.line),
        text=text,
        words=_locate_words(sentence, text),
        word_columns=word_columns,
        columns=metadata,
        left_out=sentence.left_out.omissions(),
    )


def _value(column: str) -> str | None:
    return None if column == "_" else column


def _read_tree(sentence: _Sentence) -> list[int]:
    """Return the index of each word's governor, -1 for the root. All -1 if the sentence has no tree (all ``_``)."""
    n_words = len(sentence.rows)
    if all(row[6] == "_" for _, row in sentence.rows):
        return [-1] * n_words
    governors: list[int] = []
    for number, row in sentence.rows:
        if not (row[6].isascii() and row[6].isdecimal()) or len(row[6]) > 6 or int(row[6]) > n_words:
            raise _MalformedSentence(number, f"head {row[6]!r} is not a word number from 0 to {n_words}")
        governors.append(int(row[6]) - 1)
    roots = [number for (number, _), governor in zip(sentence.rows, governors, strict=True) if governor < 0]
    if len(roots) != 1:
        raise _MalformedSentence(roots[1] if roots else sentence.line, f"{len(roots)} roots, expected one")
    if (cycle_word := find_cycle(governors)) is not None:
        raise _MalformedSentence(
            sentence.rows[cycle_word][0], f"word {cycle_word + 1} is its own head, directly or over others"
        )
    return governors


def find_cycle(governors: list[int]) -> int | None:
    """Return a word on a cycle of governors, or None if every word leads to a root (-1)."""
    state = [0] * len(governors)  # 0: not visited, 1: on the current path, 2: reaches a root
    for start in range(len(governors)):
        path, word = list[int](), start
        while word >= 0 and state[word] == 0:
            state[word] = 1
            path.append(word)
            word = governors[word]
        if word >= 0 and state[word] == 1:
            return word
        for visited in path:
            state[visited] = 2
    return None


def _surface_tokens(sentence: _Sentence) -> Iterator[tuple[int, int, str]]:
    """Yield the first word, last word and form of each surface token."""
    starts = {first: (first, last, form) for first, last, form in sentence.ranges}
    word = 0
    while word < len(sentence.rows):
        token = starts.get(word, (word, word, sentence.rows[word][1][1]))
        yield token
        word = token[1] + 1


def _write_text(sentence: _Sentence) -> str:
    parts = [form + (" " if sentence.spaces[last] else "") for _, last, form in _surface_tokens(sentence)]
    return "".join(parts).rstrip(" ")


def _locate_words(sentence: _Sentence, text: str) -> tuple[Word, ...]:
    words: list[Word] = []
    cursor = 0
    for first, last, form in _surface_tokens(sentence):
        number = sentence.rows[first][0]
        while cursor < len(text) and text[cursor].isspace():
            cursor += 1
        if not form or not text.startswith(form, cursor):
            raise _MalformedSentence(
                number, f"the text has {text[cursor : cursor + len(form)]!r} at character {cursor}, not {form!r}"
            )
        stop = cursor + len(form)
        words += _divide_token(cursor, form, [row[1] for _, row in sentence.rows[first : last + 1]])
        cursor = stop
    if text[cursor:].strip():
        raise _MalformedSentence(sentence.line, f"the text goes on after the last word: {text[cursor:].strip()[:40]!r}")
    return tuple(words)


def _divide_token(start: int, surface: str, forms: list[str]) -> list[Word]:
    """Divide the characters of one surface token among its words."""
    if "".join(forms).casefold() != surface.casefold() or sum(map(len, forms)) != len(surface):
        return [Word(start, start + len(surface)) for _ in forms]
    spans: list[Word] = []
    for form in forms:
        spans.append(Word(start, start + len(form)))
        start += len(form)
    return spans
