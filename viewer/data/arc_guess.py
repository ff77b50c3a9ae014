"""Guesses of the pattern behind arcs that a reader draws on an example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headatlas.store.queries.arc_hypotheses import hypotheses
from headatlas.store.queries.marked_arcs import Arc as MarkedArc

from .store_data import DataSource

Arc = tuple[int, int]
MAX_ARCS = 12
MAX_GUESSES = 6


@dataclass(frozen=True)
class Guess:
    """An expression that matches all arcs, and the number of pairs of the example that it matches."""

    expression: str
    n_matches: int


def guesses(data: DataSource, number: int, site_name: str, arcs: Sequence[Arc]) -> list[Guess]:
    """Return expressions that match all `arcs` (query position, key position) of one example, the likeliest first.

    Returns at most `MAX_GUESSES`. The list is empty without arcs, or if the causal mask hides one of them.
    """
    if not arcs:
        return []
    site = data.site(site_name)
    marked_arcs = [MarkedArc(number, query, key) for query, key in arcs if not site.causal or key <= query]
    if len(marked_arcs) < len(arcs):  # the causal mask hides an arc, so no expression matches it
        return []
    candidates = hypotheses(data.store, site, data.vocabulary(site_name), marked_arcs)
    return [Guess(hypothesis.expression, hypothesis.n_matches) for hypothesis in candidates[:MAX_GUESSES]]
