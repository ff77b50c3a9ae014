"""Acronyms and their expansions: ``GAO`` and *Government Accountability Office* in one example.

An acronym is a word of 2 to 10 capital letters; full stops are ignored. Its expansion is the nearest run of words in
the same example whose capitalised words begin with those letters in order. A run before the acronym is preferred. Up to
two other words may stand between two capitalised words (*Department of the Interior*).
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
    """Return the letters of an acronym, or None if the word is not an acronym."""
    letters = word.replace(".", "")
    if len(letters) not in LETTERS or not letters.isupper() or not _LETTERS_AND_STOPS.fullmatch(word):
        return None
    return letters


def expansions(
    words: Sequence[str], word_offset: Int64[np.ndarray, "boundary"]
) -> tuple[Int64[np.ndarray, "word"], Int64[np.ndarray, "word"]]:
    """Return the expansion of each acronym, first word and last word + 1 within the example; -1 for other words.

    An empty word (one without a token) is not capitalised, so it is no part of an expansion's letters.
    """
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


def nearest_run(letters: str, words: Sequence[str], acronym: int) -> tuple[int, int] | None:
    """Find the run of words whose initials are these letters, nearest to the acronym, which is word `acronym`."""
    capital = [index for index, word in enumerate(words) if word[:1].isupper() and index != acronym]
    n, runs = len(letters), []
    for index in range(len(capital) - n + 1):
        initials = capital[index : index + n]
        if initials[0] < acronym < initials[-1]:
            continue
        if all(b - a <= MAX_BETWEEN + 1 for a, b in itertools.pairwise(initials)) and letters == "".join(
            words[index][0] for index in initials
        ):
            runs.append((initials[0], initials[-1] + 1))
    before = [run for run in runs if run[1] <= acronym]
    return before[-1] if before else runs[0] if runs else None
