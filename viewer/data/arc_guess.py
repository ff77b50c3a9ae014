"""From arcs drawn on an example to expressions that say what they have in common: the likeliest of the store's guesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headatlas.store.queries.arc_hypotheses import Arc as MarkedArc
from headatlas.store.queries.arc_hypotheses import hypotheses

from .store_data import DataSource

Arc = tuple[int, int]
MAX_ARCS = 12
MAX_GUESSES = 6


@dataclass(frozen=True)
class Guess:
    """An expression that matches all arcs, and how many pairs of the example it matches."""

    expression: str
    n_matches: int


def guesses(data: DataSource, number: int, site_name: str, arcs: Sequence[Arc]) -> list[Guess]:
    """Expressions that match all `arcs` (query position, key position) of one example, the likeliest first."""
    if not arcs:
        return []
    site = data.site(site_name)
    marked = [MarkedArc(number, query, key) for query, key in arcs if not site.causal or key <= query]
    if len(marked) < len(arcs):  # hidden by the mask: nothing can match them
        return []
    found = hypotheses(data.store, site, data.vocabulary(site_name), marked)
    return [Guess(one.expression, one.n_matches) for one in found[:MAX_GUESSES]]
