"""Acronyms and the words that they are made of: ``GAO`` and *Government Accountability Office* in one example.

An acronym is a word of 2 to 10 capital letters, full stops aside. Its words are the nearest run in the same example whose
capitalised words begin with those letters in turn, the runs before it first; up to two other words may stand between
two of them (*Department of the Interior*).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

LETTERS = range(2, 11)
MAX_BETWEEN = 2
_LETTERS_AND_STOPS = re.compile(r"(?:[^\W\d_]\.?)+")


def letters_of(word: str) -> str | None:
    """The letters of an acronym; None where the word is none."""
    letters = word.replace(".", "")
    if len(letters) not in LETTERS or not letters.isupper() or not _LETTERS_AND_STOPS.fullmatch(word):
        return None
    return letters


def expansions(
    words: Sequence[str], word_offset: Int64[np.ndarray, "boundary"]
) -> tuple[Int64[np.ndarray, "word"], Int64[np.ndarray, "word"]]:
    """The words of each acronym: first and last + 1, counted within the example; -1 for all other words."""
    first, stop = np.full(len(words), -1), np.full(len(words), -1)
    for word, text in enumerate(words):
        letters = letters_of(text)
        if letters is None:
            continue
        example = int(np.searchsorted(word_offset, word, side="right")) - 1
        start, end = int(word_offset[example]), int(word_offset[example + 1])
        run = nearest_run(letters, list(words[start:end]), word - start)
        if run is not None:
            first[word], stop[word] = run
    return first, stop


def nearest_run(letters: str, words: Sequence[str], at: int) -> tuple[int, int] | None:
    """The run of words whose initials are these letters, for the acronym that is word `at`."""
    capital = [index for index, word in enumerate(words) if word[:1].isupper() and index != at]
    n, runs = len(letters), []
    for index in range(len(capital) - n + 1):
        places = capital[index : index + n]
        if places[0] < at < places[-1]:
            continue
        if all(b - a <= MAX_BETWEEN + 1 for a, b in itertools.pairwise(places)) and letters == "".join(
            words[place][0] for place in places
        ):
            runs.append((places[0], places[-1] + 1))
    before = [run for run in runs if run[1] <= at]
    return before[-1] if before else runs[0] if runs else None
