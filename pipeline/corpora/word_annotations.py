"""Annotations of words in records: lists with one entry for each word, and spans of characters with a label."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .conllu import find_cycle
from .examples import Word, WordColumn
from .records import LeftOut, check_text
from .word_split import split_words

_MAX_EXACT = 2**53


class UnusableField(Exception):
    """Raised if a field cannot be used as what an option names it. The message is the reason."""


@dataclass(frozen=True)
class WordAnnotations:
    """A text with its words and their annotations by field. No words if the corpus does not have them."""

    text: str | None
    words: tuple[Word, ...] = ()
    columns: dict[str, WordColumn] = field(default_factory=dict)


def read_words(
    text: str | None, text_pair: str | None, words_field: str, fields: Mapping[str, Any], consumed: set[str]
) -> WordAnnotations:
    """Take a list of strings as the words of the text. Lists of the same length annotate the words.

    Without a text, the words are joined by spaces. The names of the lists are added to `consumed`.

    Raises
    ------
    UnusableField
        The words do not spell the text, or the record has a second text.
    """
    forms: list[str] = fields[words_field]
    if text_pair is not None:
        raise UnusableField("no words: the record is a pair of texts, and its words could belong to either")
    if any(map(check_text, forms)):
        raise UnusableField("no words: one of them is blank or has a lone surrogate")
    words, cursor = list[Word](), 0
    if text is None:
        text = " ".join(forms)
    for form in forms:
        while cursor < len(text) and text[cursor].isspace():
            cursor += 1
        if not text.startswith(form, cursor):
            raise UnusableField("no words: they do not spell the text")
        words.append(Word(cursor, cursor + len(form)))
        cursor += len(form)
    if text[cursor:].strip():
        raise UnusableField("no words: they do not spell the text")
    columns: dict[str, WordColumn] = {}
    for name, values in fields.items():
        if name != words_field and isinstance(values, list) and len(values) == len(forms):
            column = _governors(values) if name == "head" else _word_column(values)
            if column is not None:
                columns[name] = column
                consumed.add(name)
    return WordAnnotations(text, tuple(words), columns)


def _word_column(values: list[Any]) -> WordColumn | None:
    """Return the annotations of words from a list; None if it has other values than text and numbers."""
    items = ["true" if item is True else "false" if item is False else item for item in values]
    kinds = {type(item) for item in items}
    if not kinds <= {str, int, float, type(None)}:
        return None
    numbers = [item for item in items if isinstance(item, int | float)]
    if str in kinds or not numbers or max(map(abs, numbers)) > _MAX_EXACT:
        return [None if item is None else str(item) for item in items]
    if kinds == {int} and min(numbers) >= 0 and max(numbers) < 2**31:
        return items  # pyright: ignore[reportReturnType]  only integers
    return [math.nan if item is None else float(item) for item in items]


def _governors(values: list[Any]) -> WordColumn | None:
    """Return the index of each word's governor, -1 for the root; None if the list is no tree.

    A list that counts words from 1, with 0 for the root, is converted. It never has -1, and every tree that counts
    from 0 does.
    """
    if not all(type(value) is int for value in values):
        return None
    governors = values if -1 in values else [value - 1 for value in values]
    if not all(-1 <= governor < len(values) for governor in governors) or find_cycle(governors) is not None:
        return None
    return list(governors)


def annotate_spans(
    annotations: WordAnnotations, text_pair: str | None, name: str, spans: Iterable[Any], left_out: LeftOut
) -> WordAnnotations:
    """Label the words of a text by spans of characters: ``{start, end, label}``, or lists of these three.

    The column `name` has the label of the span that covers the word or a part of it, and the column ``NAME_number`` the
    number of the span in the text (``NAME_number_2`` if the words have a list of that name). Of spans that overlap, the longest comes first, and the others are left out. Without
    words the text is split.
    """
    text = annotations.text or ""
    words = annotations.words or split_words(text) + split_words(text_pair or "", second=True)
    first_words = [word for word in words if not word.second]
    starts, ends = [word.char_start for word in first_words], [word.char_end for word in first_words]
    number_of_word: list[int | None] = [None] * len(words)
    labelled: list[tuple[int, int, str]] = []
    for start, stop, label in _valid_spans(spans, len(text), name, left_out):
        covered = range(bisect_right(ends, start), bisect_left(starts, stop))
        if not covered:
            left_out.add("a span covers no word", name)
        elif any(number_of_word[i] is not None for i in covered):
            left_out.add("a span shares a word with a longer one", name)
        else:
            for i in covered:
                number_of_word[i] = len(labelled)
            labelled.append((start, stop, label))
            if starts[covered[0]] < start or stop < ends[covered[-1]]:
                left_out.add("the end of a span inside a word; the word has its label", name)
    order = sorted(range(len(labelled)), key=labelled.__getitem__)
    rank = {span: i for i, span in enumerate(order)}
    number_name = f"{name}_number"
    while number_name in annotations.columns:
        number_name += "_2"
    columns: dict[str, WordColumn] = {
        name: [None if span is None else labelled[span][2] for span in number_of_word],
        number_name: [-1 if span is None else rank[span] for span in number_of_word],
    }
    return replace(annotations, words=words, columns={**annotations.columns, **columns})


def _valid_spans(spans: Iterable[Any], n_chars: int, name: str, left_out: LeftOut) -> list[tuple[int, int, str]]:
    """Return the start, end and label of each usable span, the longest first."""
    valid: list[tuple[int, int, str]] = []
    for span in spans:
        values = (
            [span.pop(key, None) for key in ("start", "end", "label")] if isinstance(span, dict) else list(span[:3])
        )
        match values:
            case [int(start), int(stop), str(label)] if 0 <= start < stop <= n_chars and not check_text(label):
                valid.append((start, stop, label))
            case _:
                left_out.add("no span: expected a start and an end in the text, and a label", name)
                continue
        if extra := [key for key in span if span[key] is not None] if isinstance(span, dict) else span[3:]:
            for _ in extra:
                left_out.add("more of a span than start, end and label", name)
    return sorted(valid, key=lambda span: (span[0] - span[1], span[0]))
