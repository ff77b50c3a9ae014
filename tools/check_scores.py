"""Compare the scores of patterns with slow loops; a part of `check_definitions.py`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headatlas.store.queries.evidence.resampling import random_half
from headatlas.store.queries.evidence.search_evidence import compute_evidence
from headatlas.store.queries.pattern_search import SearchResult, search
from headatlas.store.store import Store

from . import slow_proof
from .check_lines import FLIPS, ROUNDING, Line, Sums
from .slow_definitions import Errors, Tokens, Weights

OFFSETS = range(-8, 9)
PATTERNS = {
    "key.position == query.position - 1": lambda t, q, k: k == q - 1,
    "key.id == query.id and key.position < query.position": lambda t, q, k: k < q and t.ids[k] == t.ids[q],
    "induction": lambda t, q, k: 0 < k < q and t.ids[k - 1] == t.ids[q],
    "key.special": lambda t, q, k: t.special[k],
    "key.word == query.head": lambda t, q, k: t.word[k] >= 0 and t.word[q] >= 0 and t.head[t.word[q]] == t.word[k],
    'query.upos == "NOUN" and key.upos == "DET"': lambda t, q, k: (_tag(t, q), _tag(t, k)) == ("NOUN", "DET"),
    "key.word == query.word and key.position != query.position": lambda t, q, k: t.word[k] == t.word[q] >= 0 and k != q,
}


def _tag(t: Tokens, i: int) -> str | None:
    return t.upos[t.word[i]] if t.word[i] >= 0 else None


def add_scores(sums: Sums, x: Weights, errors: Errors) -> None:
    """Add an example to the totals of each pattern."""
    t, n_heads = x.tokens, len(x.maps)
    for pattern, holds in PATTERNS.items():
        totals = sums.scores.setdefault(pattern, {name: np.zeros(n_heads) for name in ("hits", "bound")})
        rows, uniform, plain, mass, at_offset = 0, 0.0, 0.0, np.zeros(n_heads), np.zeros(len(OFFSETS))
        for q in range(x.n):
            keys = [k for k in x.keys(q) if holds(t, q, k)]
            if not keys:
                continue
            rows += 1
            uniform += len(keys) / len(x.keys(q))
            plain += len(keys) / sum(k in keys or not t.special[k] for k in x.keys(q))
            for k in keys:
                mass += x.at(q, k)
                totals["bound"] += errors.at(q, k)
            strongest = np.argmax([x.at(q, k) for k in x.keys(q)], axis=0)
            totals["hits"] += np.isin(strongest, keys)
            at_offset += [q + offset in keys for offset in OFFSETS]
        if rows:
            sums.examples.setdefault(pattern, []).append((rows, mass, uniform, plain, at_offset))


def score_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """Compare mass, hit rate, baselines, intervals and p-values of some patterns."""
    for pattern in PATTERNS:
        ours, rounded = search(exact, pattern), search(coded, pattern)
        if pattern not in sums.examples:
            assert not ours.rows, f"{pattern}: {ours.rows} rows, expected none"
            yield Line(f"mass of {pattern} (no such rows)", 0, 0.0)
            continue
        totals = sums.scores[pattern]
        n_rows, masses, uniform, plain, at_offset = (
            np.array(part) for part in zip(*sums.examples[pattern], strict=True)
        )
        rows = n_rows.sum()
        assert ours.rows == rounded.rows == rows, f"{pattern}: {ours.rows} rows, expected {rows:.0f}"
        mass, bound = masses.sum(axis=0) / rows, totals["bound"] / rows + ROUNDING
        from_exact, from_coded = (result.heads["mass"].to_numpy().ravel() for result in (ours, rounded))
        errors = np.abs(from_coded - mass)
        shares = errors / bound
        worst = int(np.argmax(shares))
        exact_error = float(np.abs(from_exact - mass).max())
        yield Line(
            f"mass of {pattern}",
            len(mass),
            exact_error,
            float(errors.max()),
            float(bound[worst]),
            float(shares[worst]),
        )
        hits = [np.abs(r.heads["hit_rate"].to_numpy().ravel() - totals["hits"] / rows) for r in (ours, rounded)]
        flips = [float(part.mean()) for part in hits]
        yield Line(f"hit rate of {pattern}", len(mass), flips[0], flips[1], FLIPS, flips[1] / FLIPS, FLIPS)
        chance = uniform.sum() / rows
        baseline_error = np.abs(ours.heads["baseline"].to_numpy().ravel() - chance).max()
        lift = np.abs(ours.heads["lift"].to_numpy().ravel() - mass / chance) / (1 + mass / chance)
        yield Line(f"baseline, lift of {pattern}", len(mass), float(max(baseline_error, lift.max())))
        yield from _evidence_lines(pattern, ours, n_rows, masses.T, plain, at_offset)


def _evidence_lines(
    pattern: str,
    result: SearchResult,
    rows: np.ndarray,
    mass: np.ndarray,
    plain: np.ndarray,
    at_offset: np.ndarray,
) -> Iterator[Line]:
    """Compare the evidence of a search over examples; `mass` is [head, example], `at_offset` [example, offset]."""
    evidence, half = compute_evidence(result, nulls=["uniform"], unit="example"), random_half(len(rows))
    expected = np.zeros(len(rows))
    for i, first in enumerate(half.tolist()):
        others = [at_offset[j] for j, same in enumerate(half.tolist()) if same != first]
        best = max(range(len(OFFSETS)), key=lambda o: (sum(row[o] for row in others), -abs(OFFSETS[o]), -OFFSETS[o]))
        expected[i] = at_offset[i, best]
    baseline = expected.sum() / rows.sum()
    yield Line(f"best fixed offset of {pattern}", 1, abs(evidence.offset_baseline - baseline))
    low, high = slow_proof.resampled(mass, rows)
    ends = [evidence.heads[name].to_numpy().ravel() for name in ("mass_low", "mass_high")]
    width = np.maximum(high - low, 1e-9)
    error = max(float((np.abs(end - own) / width).max()) for end, own in zip(ends, (low, high), strict=True))
    yield Line(f"interval of {pattern} (of its width)", len(mass), error, allowed=0.2)  # two draws differ by chance
    if not evidence.is_supported:
        return
    p = np.array([slow_proof.p_above(m - plain) for m in mass])
    q = slow_proof.benjamini_hochberg(p)
    errors = [np.abs(evidence.null.heads[n].to_numpy().ravel() - v).max() for n, v in (("p_value", p), ("q_value", q))]
    yield Line(f"p, false discoveries of {pattern}", len(p), float(max(errors)))
