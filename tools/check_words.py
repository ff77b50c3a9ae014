"""Answers between words beside slow loops: relations, strongest words, searches; a part of `check_definitions.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np

from headatlas.store.queries.dependency_relations import MINIMUM_DEPENDENTS, SquareMaps, relation_atlas
from headatlas.store.queries.pattern_search import search
from headatlas.store.reading.word_attention import Merge, plan_segment, segment_word_attention
from headatlas.store.store import Store

from . import slow_words as slow
from .check_lines import FLIPS, ROUNDING, Line, Sums
from .slow_definitions import Errors, Tokens, Weights

PATTERNS: dict[str, Callable[[Tokens, dict[int, int], int, int], bool]] = {
    "key.position == query.position - 1": lambda t, place, i, j: place[j] == place[i] - 1,
    "key.word == query.head": lambda t, place, i, j: t.head[i] == j,
    "key.id == query.id and key.position < query.position": lambda t, place, i, j: (
        place[j] < place[i] and slow.ids_of(t, i) == slow.ids_of(t, j)
    ),
}
"""Conditions on words; the place of a word is its number among those that have tokens."""


def add_words(sums: Sums, x: Weights, errors: Errors) -> None:
    """Add each word's strongest word, which dependents' heads are found, and what each pattern between words gets."""
    t, n = x.tokens, x.tokens.n_words
    maps = {merge: slow.word_maps(x, merge) for merge in get_args(Merge)}
    without = maps["mean"] * (1 - np.eye(n))
    sums.strongest_words.append(without.argmax(axis=2) if n else np.zeros((len(without), 0), np.int64))
    dependents = [i for i in range(n) if 0 <= t.head[i] < n and t.head[i] != i]
    right = np.zeros((len(without), 2, len(dependents)), bool)
    for at, i in enumerate(dependents):
        right[:, 0, at] = without[:, i, :].argmax(axis=1) == t.head[i]
        right[:, 1, at] = without[:, :, i].argmax(axis=1) == t.head[i]
    sums.right.append(right)
    off = {merge: slow.word_maps(errors, merge) for merge in get_args(Merge)}
    knows_nothing = {merge: slow.uniform_word_map(x, merge) for merge in get_args(Merge)}
    place = {word: at for at, word in enumerate(w for w, tokens in enumerate(slow.pieces(t)) if tokens)}
    for pattern, holds in PATTERNS.items():
        for i in place:
            words = [j for j in place if (j <= i or not x.causal) and holds(t, place, i, j)]
            if not words:
                continue
            for merge, of_words in maps.items():
                of = sums.word_scores.setdefault((pattern, merge), [np.zeros(len(of_words)) for _ in range(5)])
                row = of_words[:, i]
                hit = np.isin(row.argmax(axis=1), words)
                uniform = knows_nothing[merge][i, words].sum()
                for total, more in zip(of, (1, row[:, words].sum(axis=1), off[merge][:, i, words].sum(axis=1), hit, uniform), strict=True):  # fmt: skip
                    total += more


def word_search_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """Mass, hit rate and baseline of searches between words."""
    for (pattern, merge), (rows, mass, off, hits, uniform) in sums.word_scores.items():
        found = [search(store, pattern, words=merge) for store in (exact, coded)]
        assert {result.rows for result in found} == {int(rows[0])}, f"{pattern} ({merge}): other rows"
        name, bound = f"between words ({merge}): {pattern}", off / rows + ROUNDING
        apart = [np.abs(result.heads["mass"].to_numpy().ravel() - mass / rows) for result in found]
        at = int(np.argmax(apart[1] / bound))
        share = float(apart[1][at] / bound[at])
        yield Line(name, len(mass), float(apart[0].max()), float(apart[1].max()), float(bound[at]), share)
        flips = [float(np.abs(r.heads["hit_rate"].to_numpy().ravel() - hits / rows).mean()) for r in found]
        yield Line(f"hit rate {name}", len(mass), flips[0], flips[1], FLIPS, flips[1] / FLIPS, FLIPS)
        chance = np.abs(found[0].heads["baseline"].to_numpy().ravel() - uniform / rows)
        yield Line(f"baseline {name}", len(mass), float(chance.max()))


def word_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """How often a head's answer is another than from float32: over all heads, and in points of a relation's accuracy."""
    expected = np.concatenate(sums.right, axis=2)
    found = [relation_atlas(store).select for store in (exact, coded)]
    answers = [one.head_is_right.reshape(expected.shape) for one in found]
    flips = [float((one != expected).mean()) for one in answers]
    yield Line("head of a dependent (flips)", expected.size, flips[0], flips[1], FLIPS, flips[1] / FLIPS, FLIPS)
    moved, worst, least = [0.0, 0.0], 0.0, 2 * FLIPS
    for relation in found[0].names:
        chosen = found[0].of(relation)
        if len(chosen) < MINIMUM_DEPENDENTS:
            continue
        accuracy = expected[..., chosen].mean(axis=-1)
        best = np.unravel_index(int(accuracy.argmax()), accuracy.shape)
        apart = [abs(float(one[..., chosen].mean(axis=-1)[best] - accuracy[best])) for one in answers]
        allowed = max(2 * FLIPS, 1 / len(chosen))  # one answer may flip in a rare relation
        if apart[1] / allowed > worst:
            worst, least = apart[1] / allowed, allowed
        moved = [max(before, now) for before, now in zip(moved, apart, strict=True)]
    yield Line("accuracy of a relation's best head", len(found[0].names), moved[0], moved[1], least, worst)
    flips = [_flips(sums, store) for store in (exact, coded)]
    shares = [share for share, _ in flips]
    yield Line("strongest word of a word (flips)", flips[0][1], shares[0], shares[1], FLIPS, shares[1] / FLIPS, FLIPS)


def _flips(sums: Sums, store: Store) -> tuple[float, int]:
    site, number, differ, total = store.site(), 0, 0, 0
    for segment in store.segments:
        examples = range(segment.n_examples)
        plan = plan_segment(segment, site, examples)
        diagonal = SquareMaps.of(plan).diagonal
        parts = sums.strongest_words[number : number + segment.n_examples]
        expected = np.concatenate(parts, axis=1).reshape(site.n_layers, site.n_heads, -1)
        number += segment.n_examples
        several = plan.row_length > 1
        for layer in range(site.n_layers):
            for head, weights in enumerate(segment_word_attention(segment, site, layer, examples, plan)):
                weights[diagonal] = 0
                differ += int((plan.strongest(weights) != expected[layer, head])[several].sum())
                total += int(several.sum())
    return differ / max(total, 1), total
