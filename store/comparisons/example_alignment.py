"""Examples whose words can be compared between two stores, or between the heads of one store."""

from __future__ import annotations

from collections import Counter

import numpy as np
from jaxtyping import Int64

from ..reading.snapshot import Snapshot
from ..schema.traces import Site
from ..schema.words_without_tokens import covered_ends

MAX_WORDS = 1_024
"""Largest number of words with tokens of an example. Longer examples are left out, because their maps do not fit in memory."""


def align_examples(
    store: Snapshot, other: Snapshot | None, sites: tuple[Site, Site]
) -> tuple[Int64[np.ndarray, "pair side"], dict[str, int]]:
    """Return the numbers of the examples to compare, ascending in the first store, and the number refused by reason."""
    refused: Counter[str] = Counter()
    ids = dict(zip((other or store).example_ids(), (other or store).example_numbers().tolist(), strict=True))
    pairs = []
    for number, name in zip(store.example_numbers().tolist(), store.example_ids(), strict=True):
        partner = number if other is None else ids.get(name)
        if partner is None:
            refused["in one store only"] += 1
            continue
        words = _words(store, number, sites[0])
        n_words = sum(end >= 0 for _, end in words)
        other_words = words if other is None else _words(other, partner, sites[1])
        if not n_words:
            refused["without tokens" if words else "without words"] += 1
        elif n_words > MAX_WORDS:
            refused[f"of more than {MAX_WORDS:,} words"] += 1
        elif [word for word, _ in words] != [word for word, _ in other_words]:
            refused["with different words"] += 1
        elif words != other_words:
            refused["whose tokens cover different words"] += 1
        else:
            pairs.append((number, partner))
    return np.array(pairs, np.int64).reshape(-1, 2), dict(refused)


def _words(store: Snapshot, number: int, site: Site) -> list[tuple[str, int]]:
    """Return the words of an example as substrings of its texts, each with the end of what its tokens cover.

    That is the end of the word, or the character at which the text was cut; -1 for a word without a token.
    """
    segment = store.segment_of(number)
    row = number - segment.first_example
    table = segment.tokens(site.query_sequence).example(row)
    names = ("target_text", "target_text") if site.query_sequence == "target" else ("text", "text_pair")
    texts = [segment.texts(name)[row] or "" for name in names]
    columns = (table.word_second, table.word_char_start, table.word_char_end, covered_ends(table))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [(texts[second][start:stop], end) for second, start, stop, end in rows]
