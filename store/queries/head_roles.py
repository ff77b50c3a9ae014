"""Roles of heads: one table of patterns and nulls, and the heads that have each role over the corpus.

A head has a role if its attention on the pattern exceeds what the role's null expects (q < 0.05 over all heads of the
site) and its mass is at least 0.3. A head may have several roles; the first of the table is its main role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from ..errors import ConfigError, PatternError
from ..patterns import LIBRARY, LibraryPattern, Pattern, Vocabulary
from ..patterns.segment_matcher import site_vocabulary
from ..reading.snapshot import Snapshot
from ..schema.traces import Site
from .evidence.nulls import NULLS, NullName
from .evidence.sampling_units import SamplingUnits, sampling_units
from .evidence.search_evidence import NullEvidence, compute_evidence
from .pattern_search import SearchResult, search

LARGEST_Q, LEAST_MASS = 0.05, 0.3
COLUMNS = ("role", "layer", "head", "mass", "expected", "above", "q_value", "rows", "null")


@dataclass(frozen=True)
class Role:
    """A role: the name of its pattern in the library, the null, and the statistic of the same mass, if there is one."""

    name: str
    null: NullName
    statistic: str = ""
    is_one_text: bool = True
    """True if the role needs a site within one text."""
    is_sink: bool = False

    @property
    def pattern(self) -> LibraryPattern:
        """The named pattern."""
        return LIBRARY[self.name]


ROLES: tuple[Role, ...] = (
    Role("previous_token", "uniform", "previous"),
    Role("induction", "habit", "induction"),
    Role("duplicate_token", "habit", "duplicate"),
    Role("subject_of", "habit"),
    Role("to_subject", "habit"),
    Role("object_of", "habit"),
    Role("to_object", "habit"),
    Role("determiner_of", "habit"),
    Role("to_determiner", "habit"),
    Role("modifier_of", "habit"),
    Role("to_modifier", "habit"),
    Role("local", "uniform"),
    Role("first_token", "uniform", "first", is_one_text=False, is_sink=True),
    Role("special_token", "uniform", "special", is_one_text=False, is_sink=True),
)
"""The table of roles, the most specific first. Sinks are the last two: the first token, and special tokens."""


@dataclass(frozen=True)
class RoleHeads:
    """One role and the scores of every head of a site for it."""

    role: Role
    result: SearchResult
    evidence: NullEvidence
    least_mass: float = LEAST_MASS

    @property
    def mass(self) -> Float64[np.ndarray, "layer head"]:
        """Mass of each head on the pattern; NaN in layers without a matching row."""
        return self.result.heads["mass"].to_numpy()

    @property
    def is_found(self) -> Bool[np.ndarray, "layer head"]:
        """True for each head that has the role."""
        return (self.evidence.heads["q_value"].to_numpy() < LARGEST_Q) & (self.mass >= self.least_mass)

    def ranked(self, *, found: bool = True) -> list[tuple[int, int]]:
        """Return (layer, head) of the heads that have the role, or of all heads, the largest mass first."""
        mass = np.nan_to_num(self.mass, nan=-1.0)
        order = np.argsort(-mass, axis=None, kind="stable")
        keep = self.is_found.ravel() if found else np.ones(mass.size, bool)
        return [self.result.site.heads[index] for index in order.tolist() if keep[index]]


@dataclass(frozen=True)
class HeadRoles:
    """The roles of a site's heads."""

    site: Site
    roles: tuple[RoleHeads, ...]
    units: SamplingUnits
    left_out: tuple[str, ...]
    """Sentences about the roles that this store cannot answer."""

    @property
    def n_units(self) -> int:
        """Most sampling units of a role's test."""
        return max((role.evidence.n_units for role in self.roles), default=0)

    def table(self, *, every_head: bool = False) -> pd.DataFrame:
        """Return one row for each role and head that has it, or with `every_head` for each role and head.

        Columns: role, layer, head, mass, expected (mass that the null expects), above (mass / expected), q_value, rows and
        null. The largest mass of each role comes first.
        """
        rows = []
        for role in self.roles:
            n_rows = role.result.example_rows.sum(axis=1)
            for layer, head in role.ranked(found=not every_head):
                index = self.site.layer_index(layer), head
                scores = {name: float(role.evidence.heads[name].to_numpy()[index]) for name in COLUMNS[4:7]}
                row = (role.role.name, layer, head, float(role.mass[index]), *scores.values())
                rows.append((*row, int(n_rows[index[0]]), role.evidence.name))
        return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def answerable_roles(vocabulary: Vocabulary, site: Site) -> Iterator[tuple[Role, str]]:
    """Yield each role with the reason why this store cannot answer it; the reason is empty for the others."""
    for role in ROLES:
        reason = ""
        try:
            if role.is_one_text and site.query_sequence != site.key_sequence:
                raise ConfigError(f"site {site.name} joins two texts")
            Pattern.parse(role.pattern.filled).check(vocabulary)
        except ConfigError as error:
            reason = str(error)
        except PatternError:
            reason = "the corpus is not annotated with what it names"
        yield role, reason


def role_heads(
    role: Role, result: SearchResult, *, least_mass: float = LEAST_MASS, unit: str | None = None
) -> RoleHeads:
    """Compare every head of a search for the role's pattern with the role's null.

    A store without rows of attention, or with very long texts only, has only the uniform null.
    """
    evidence = result.evidence if unit is None else compute_evidence(result, unit=unit)
    if evidence.null.name != role.null and NULLS[evidence.null.name].reads_attention:
        evidence = compute_evidence(result, nulls=(role.null,), unit=unit)
    return RoleHeads(role, result, evidence.null, least_mass)


def head_roles(
    store: Snapshot,
    site: str | None = None,
    *,
    least_mass: float = LEAST_MASS,
    unit: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> HeadRoles:
    """Find the roles that the heads of a site have: one search for each row of `ROLES`.

    Parameters
    ----------
    least_mass
        Smallest mass of a head that has a role, 0 to 1.
    unit
        Sampling unit of the tests (`sampling_units`).
    on_progress
        Called with roles done and planned.

    Raises
    ------
    ConfigError
        `least_mass` is not between 0 and 1.
    NotFoundError
        There is no such site or unit, or the store keeps no attention.
    """
    if not 0 <= least_mass <= 1:
        raise ConfigError(f"the least mass is {least_mass}; expected 0 to 1")
    site_spec = store.site(site)
    answers, left_out = [], []
    planned = list(answerable_roles(site_vocabulary(store, site_spec), site_spec))
    for done, (role, reason) in enumerate(planned):
        on_progress(done, len(planned))
        if not reason:
            result = search(store, role.pattern.filled, site_spec.name)
            reason = "" if result.rows else "no row has a matching key"
            if result.rows:
                answers.append(role_heads(role, result, least_mass=least_mass, unit=unit))
        if reason:
            left_out.append(f"{role.name}: {reason}")
    on_progress(len(planned), len(planned))
    return HeadRoles(site_spec, tuple(answers), sampling_units(store, unit), tuple(left_out))
