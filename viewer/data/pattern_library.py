"""The built-in patterns that a store can answer at a site, and the statistics that are the mass of one of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from headatlas.store.errors import PatternError
from headatlas.store.patterns import LIBRARY, LibraryPattern, Pattern, Vocabulary
from headatlas.store.queries.head_roles import ROLES
from headatlas.store.schema.traces import Site
from headatlas.store.statistics.definitions import DERIVED_STATISTICS
from headatlas.store.store import Store

_TWO_TEXTS = {"first_token", "special_token", "punctuation", "delimiter"}
"""Patterns that concern only the key, and so have a meaning between two texts."""


def usable_patterns(store: Store, site: Site, vocabulary: Vocabulary) -> dict[str, LibraryPattern]:
    """Return the built-in patterns that a store can answer at a site, by name, with their parameters filled in.

    Left out are patterns of annotations that the corpus lacks, of keys that a causal mask always hides, of special tokens
    or second texts if there are none, and at a site of two texts patterns that compare query and key.
    """
    patterns, missing = {}, _unanswerable(store, site)
    for name, item in LIBRARY.items():
        try:
            Pattern.parse(item.filled).check(vocabulary)
        except PatternError:
            continue
        if name not in missing:
            patterns[name] = replace(item, expression=item.filled) if item.parameters else item
    return patterns


def _unanswerable(store: Store, site: Site) -> set[str]:
    """Return the names of the patterns that match nothing at a site, or have no meaning there."""
    if site.query_sequence != site.key_sequence:
        return set(LIBRARY) - _TWO_TEXTS
    names: set[str] = set()
    tables = [segment.tokens(site.key_sequence) for segment in store.segments]
    if site.causal:
        names.add("next_token")
    if not any(table.special.any() for table in tables):
        names.add("special_token")
    if not any(table.second.any() for table in tables):
        names |= {"other_segment", "a_to_b", "b_to_a"}
    return names


def searched_statistics(library: Mapping[str, LibraryPattern], stored: Collection[str]) -> dict[str, str]:
    """Return the statistics that are the mass of a search and that the store does not hold: name to expression."""
    return {
        role.statistic: library[role.name].expression
        for role in ROLES
        if role.statistic in DERIVED_STATISTICS and role.statistic not in stored and role.name in library
    }
