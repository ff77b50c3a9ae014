"""Compare results between words (relations, strongest words, searches) with slow loops; a part of `check_definitions.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np

from headatlas.store.queries.dependency_relations import MINIMUM_DEPENDENTS, relation_atlas
from headatlas.store.queries.dependents import SquareMaps
from headatlas.store.queries.pattern_search import search
from headatlas.store.reading.word_attention import Merge, plan_segment, segment_word_attention
from headatlas.store.store import Store

from . import slow_words as slow
from .check_lines import FLIPS, ROUNDING, Line, Sums
from .slow_definitions import Errors, Tokens, Weights

PATTERNS: dict[str, Callable[[Tokens, dict[int, int], int, int], bool]] = {
    "key.position == query.position - 1": lambda t, position, i, j: position[j] == position[i] - 1,
    "key.word == query.head": lambda t, position, i, j: t.head[i] == j,
    "key.id == query.id and key.position < query.position": lambda t, position, i, j: (
        position[j] < position[i] and slow.ids_of(t, i) == slow.ids_of(t, j)
    ),
}
"""Conditions on two words i and j. The position of a word is its number among the words that have tokens."""


def add_words(sums: Sums, x: Weights, errors: Errors) -> None:
    """Add the strongest word of each word, the governors that are strongest, and the totals of each pattern between words."""
    t, n = x.tokens, x.tokens.n_words
    maps = {merge: slow.word_maps(x, merge) for merge in get_args(Merge)}
    without = maps["mean"] * (1 - np.eye(n))
    words_with_tokens = [w for w, tokens in enumerate(slow.pieces(t)) if tokens]
    between = without[:, words_with_tokens][:, :, words_with_tokens]
    sums.strongest_words.append(between.argmax(axis=2) if words_with_tokens else np.zeros((len(without), 0), np.int64))
    dependents = [i for i in words_with_tokens if t.head[i] in words_with_tokens and t.head[i] != i]
    right = np.zeros((len(without), 2, len(dependents)), bool)
    for index, i in enumerate(dependents):
        right[:, 0, index] = without[:, i, :].argmax(axis=1) == t.head[i]
        right[:, 1, index] = without[:, :, i].argmax(axis=1) == t.head[i]
    sums.right.append(right)
    error_maps = {merge: slow.word_maps(errors, merge) for merge in get_args(Merge)}
    uniform_maps = {merge: slow.uniform_word_map(x, merge) for merge in get_args(Merge)}
    position = {word: number for number, word in enumerate(words_with_tokens)}
    for pattern, holds in PATTERNS.items():
        for i in position:
            words = [j for j in position if (j <= i or not x.causal) and holds(t, position, i, j)]
            if not words:
                continue
            for merge, word_map in maps.items():
                totals = sums.word_scores.setdefault((pattern, merge), [np.zeros(len(word_map)) for _ in range(5)])
                row = word_map[:, i]
                mass, error = row[:, words].sum(axis=1), error_maps[merge][:, i, words].sum(axis=1)
                hit = np.isin(row.argmax(axis=1), words)
                uniform = uniform_maps[merge][i, words].sum()
                for total, increment in zip(totals, (1, mass, error, hit, uniform), strict=True):
                    total += increment


def word_search_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """Compare mass, hit rate and baseline of searches between words."""
    for (pattern, merge), (rows, mass, error, hits, uniform) in sums.word_scores.items():
        results = [search(store, pattern, words=merge) for store in (exact, coded)]
        assert {result.rows for result in results} == {int(rows[0])}, f"{pattern} ({merge}): other rows"
        name, bound = f"between words ({merge}): {pattern}", error / rows + ROUNDING
        errors = [np.abs(result.heads["mass"].to_numpy().ravel() - mass / rows) for result in results]
        worst = int(np.argmax(errors[1] / bound))
        share = float(errors[1][worst] / bound[worst])
        yield Line(name, len(mass), float(errors[0].max()), float(errors[1].max()), float(bound[worst]), share)
        flips = [float(np.abs(r.heads["hit_rate"].to_numpy().ravel() - hits / rows).mean()) for r in results]
        yield Line(f"hit rate {name}", len(mass), flips[0], flips[1], FLIPS, flips[1] / FLIPS, FLIPS)
        chance = np.abs(results[0].heads["baseline"].to_numpy().ravel() - uniform / rows)
        yield Line(f"baseline {name}", len(mass), float(chance.max()))


def word_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """Compare the share of answers that differ from float32, over all heads and in the accuracy of each relation."""
    expected = np.concatenate(sums.right, axis=2)
    atlases = [relation_atlas(store).select for store in (exact, coded)]
    answers = [atlas.head_is_right.reshape(expected.shape) for atlas in atlases]
    flips = [float((answer != expected).mean()) for answer in answers]
    yield Line("governor of a dependent (flips)", expected.size, flips[0], flips[1], FLIPS, flips[1] / FLIPS, FLIPS)
    largest, worst, limit = [0.0, 0.0], 0.0, 2 * FLIPS
    for relation in atlases[0].names:
        dependents = atlases[0].of(relation)
        if len(dependents) < MINIMUM_DEPENDENTS:
            continue
        accuracy = expected[..., dependents].mean(axis=-1)
        best = np.unravel_index(int(accuracy.argmax()), accuracy.shape)
        errors = [abs(float(answer[..., dependents].mean(axis=-1)[best] - accuracy[best])) for answer in answers]
        allowed = max(2 * FLIPS, 1 / len(dependents))  # one answer may flip in a rare relation
        if errors[1] / allowed > worst:
            worst, limit = errors[1] / allowed, allowed
        largest = [max(before, error) for before, error in zip(largest, errors, strict=True)]
    yield Line("accuracy of a relation's best head", len(atlases[0].names), largest[0], largest[1], limit, worst)
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
        has_others = plan.row_length > 1
        for layer in range(site.n_layers):
            for head, weights in enumerate(segment_word_attention(segment, site, layer, examples, plan)):
                weights[diagonal] = 0
                differ += int((plan.strongest(weights) != expected[layer, head])[has_others].sum())
                total += int(has_others.sum())
    return differ / max(total, 1), total
