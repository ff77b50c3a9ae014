"""Roles of heads for the corpus page: one cached search for each role, and the frame of their list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np

from headatlas.store.errors import HeadAtlasError, NotFoundError
from headatlas.store.queries.head_roles import ROLES, Role, RoleHeads, role_heads

from ..state.reader_state import ViewState
from .search_answers import SEARCH
from .store_data import DataSource


class RoleRow(TypedDict):
    """One role, the heads that have it, and the best head."""

    name: str
    label: str
    description: str
    colour: int
    """Index of the role's colour on the map; -1: grey."""
    n: int
    """Heads that have the role, -1 until it is computed."""
    heads: list[str]
    """The best heads that have it."""
    best: str
    """Head with the largest mass, whether it has the role or not."""
    mass: float
    expected: float
    """Mass that the role's null expects of the best head."""
    on: bool
    patch: dict[str, Any]
    query: str


class RolesFrame(TypedDict):
    """Roles of all heads."""

    rows: list[RoleRow]
    done: int
    of: int
    busy: bool
    n_heads: int
    """Heads with a role."""
    note: str


Answers = dict[str, RoleHeads | str]
"""Result of each role by name, or the reason why there is none."""


def roles_of(data: DataSource, site: str) -> list[Role]:
    """Return the roles whose pattern this store can answer at a site."""
    site_ = data.site(site)
    is_one_text = site_.query_sequence == site_.key_sequence
    return [role for role in ROLES if role.name in data.library(site) and (is_one_text or not role.is_one_text)]


def cached_roles(data: DataSource, site: str) -> Answers:
    """Return the roles whose search is cached."""
    names = {role: data.library(site)[role.name].expression for role in roles_of(data, site)}
    return {
        role.name: _answer(data, site, role, expression)
        for role, expression in names.items()
        if data.has_cached(_key(data, site, role)) and data.has_answer(expression, site)
    }


def compute_roles(
    data: DataSource, site: str, stop: Callable[[], bool], on_role: Callable[[], None] = lambda: None
) -> Answers:
    """Search for every role and compare its heads with its null. `on_role` is called after each one.

    A search that fails gives its reason. It ends early if `stop` returns True.
    """
    answers: Answers = {}
    for role in roles_of(data, site):
        if stop():
            break
        try:
            if not data.can_search(site):
                raise NotFoundError("this store keeps no attention and no edges")
            data.search(data.library(site)[role.name].expression, site, stop=stop)
            answers[role.name] = _answer(data, site, role, data.library(site)[role.name].expression)
        except HeadAtlasError as error:
            if stop():
                break
            answers[role.name] = data.error_text(error)
        on_role()
    return answers


def _key(data: DataSource, site: str, role: Role) -> tuple[object, ...]:
    return "role", data.site(site).name, role.name


def _answer(data: DataSource, site: str, role: Role, expression: str) -> RoleHeads | str:
    result = data.search(expression, site)
    if not result.rows:
        return "no row has a matching key"
    return data.cached(_key(data, site, role), lambda: role_heads(role, result))


def main_roles(answers: Answers) -> dict[str, int]:
    """Return the main role of each head that has one, by head (``5.8``): its index in the table of roles; -1 for sinks."""
    roles: dict[str, int] = {}
    for role in ROLES:
        answer = answers.get(role.name)
        for layer, head in answer.ranked() if isinstance(answer, RoleHeads) else ():
            roles.setdefault(f"{layer}.{head}", colour_of(role))
    return roles


def colour_of(role: Role) -> int:
    """Return the index of a role's colour; -1 for sinks, which are drawn in grey."""
    return -1 if role.is_sink else ROLES.index(role)


def roles_frame(data: DataSource, state: ViewState, answers: Answers, *, is_busy: bool) -> RolesFrame:
    """Build the list of roles: how many heads have each, the best head, and what a click shows."""
    rows: list[RoleRow] = []
    roles = roles_of(data, state.site)
    mains = main_roles(answers)
    for role in roles:
        answer, item = answers.get(role.name), data.library(state.site)[role.name]
        if isinstance(answer, str):
            continue
        row: RoleRow = {
            "name": role.name, "label": item.label, "description": item.description, "colour": colour_of(role),
            "n": -1, "heads": [], "best": "", "mass": 0.0, "expected": 0.0, "on": False, "patch": {},
            "query": "",
        }  # fmt: skip
        if answer is not None:
            best = answer.ranked(found=False)[0]
            index = answer.result.site.layer_index(best[0]), best[1]
            shown = (
                {"statistic": role.statistic}
                if role.statistic in data.statistics_of(state.site)
                else {"statistic": SEARCH, "pattern": item.expression}
            )
            patch = {**shown, "layer": best[0], "head": best[1]}
            is_on = all(getattr(state, name) == value for name, value in shown.items())
            heads = [f"{layer}.{head}" for layer, head in answer.ranked()]
            row.update({
                "n": len(heads), "heads": heads[:6],
                "best": f"{best[0]}.{best[1]}", "mass": float(answer.mass[index]),
                "expected": float(np.nan_to_num(answer.evidence.heads["expected"].to_numpy()[index])), "on": is_on,
                "patch": patch, "query": state.to_query(**patch),
            })  # fmt: skip
        rows.append(row)
    reasons = {reason for reason in answers.values() if isinstance(reason, str)}
    note = "" if rows or is_busy else f"No role can be found: {'; '.join(sorted(reasons))}."
    return {"rows": rows, "done": len(answers), "of": len(roles), "busy": is_busy, "n_heads": len(mains), "note": note}
