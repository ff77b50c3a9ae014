"""An edge quoted in its example: the query token, the key token and the words around them, cut to what a row shows.

Parts are ``[text, kind, weight]`` with kind ``"query"``, ``"key"`` or ``""``. All text is visible text (`labels.py`).
"""

from __future__ import annotations

from typing import Any, TypedDict

from headatlas.store.reading.example import Example
from headatlas.store.schema.traces import Site

from ..theme.token_labels import running_text
from .search_answers import Edge

Part = list[Any]
NEAR = 56
"""Characters between key and query that are shown; a longer way is cut in the middle."""


class QuotedEdge(TypedDict):
    """An edge around its query token."""

    before: list[Part]
    token: str
    """The query token."""
    after: list[Part]
    self: bool
    """True if the key is the query token itself."""


def running(example: Example, sequence: str) -> list[tuple[str, int]]:
    """One sequence of an example as it reads: (characters, token index or -1)."""
    if sequence == "target":
        return running_text(example.tokens("target"), example.target_text or "")
    return running_text(example.tokens("source"), example.text, example.text_pair)


def around(example: Example, site: Site, edge: Edge, reach: int = 160) -> QuotedEdge:
    """Quote an edge around its query: `before`, the query's `token`, `after`, and whether the key is the query itself."""
    parts = _without_special(running(example, site.query_sequence), example, site, edge)
    at = {token: place for place, (_, token) in enumerate(parts) if token >= 0}
    place = at[edge.query_pos]
    token, lead = _bare(parts[place][0])
    if site.query_sequence != site.key_sequence:
        keys = {t: text for text, t in running(example, site.key_sequence)}
        other: list[Part] = [[_bare(keys[edge.key_pos])[0], "key", edge.weight], ["  \u27f5 ", "", 0.0]]
        return {"before": other, "token": token, "after": _cut_tail(_plain(parts[place + 1 :]), reach), "self": False}
    before, after = parts[:place] + ([(lead, -1)] if lead else []), parts[place + 1 :]
    key_place = at[edge.key_pos]
    if key_place < place:
        between = "".join(text for text, _ in before[key_place + 1 :])
        shown = _plain(before[:key_place])
        middle = between if len(between) <= NEAR else f" \u2026 {between[-NEAR + 12 :]}"
        front = [*_cut_head(shown, reach), *_key(before[key_place][0], edge.weight), [middle, "", 0.0]]
        return {"before": _compact(front), "token": token, "after": _cut_tail(_plain(after), reach), "self": False}
    if key_place > place:
        between = "".join(text for text, _ in parts[place + 1 : key_place])
        middle = between if len(between) <= NEAR // 2 else f"{between[: NEAR // 2 - 10]} \u2026 "
        back = [[middle, "", 0.0], *_key(parts[key_place][0], edge.weight), *_plain(parts[key_place + 1 :])]
        return {
            "before": _cut_head(_plain(before), reach),
            "token": token,
            "after": _cut_tail(_compact(back), reach),
            "self": False,
        }
    return {
        "before": _cut_head(_plain(before), reach),
        "token": token,
        "after": _cut_tail(_plain(after), reach),
        "self": True,
    }


def snippet(example: Example, site: Site, edge: Edge, width: int = 40) -> list[Part]:
    """Quote an edge in about `width` characters, in reading order."""
    row = around(example, site, edge)
    query: Part = [row["token"], "key" if row["self"] else "query", edge.weight]
    before, after = row["before"], row["after"]
    keyed = next((i for i, part in enumerate(before) if part[1] == "key"), None)
    if keyed is not None:
        inner = _shorten(before[keyed + 1 :], 18)
        used = len(before[keyed][0]) + len(row["token"]) + sum(len(p[0]) for p in inner)
        return _compact(
            [
                *_last(before[:keyed], max(4, (width - used) // 2)),
                before[keyed],
                *inner,
                query,
                *_first(after, max(4, width // 3)),
            ]
        )
    keyed = next((i for i, part in enumerate(after) if part[1] == "key"), None)
    if keyed is not None:
        return _compact(
            [*_last(before, 10), query, *_shorten(after[:keyed], 18), after[keyed], *_first(after[keyed + 1 :], 12)]
        )
    return _compact([*_last(before, width // 2), query, *_first(after, width // 2)])


def _without_special(parts: list[tuple[str, int]], example: Example, site: Site, edge: Edge) -> list[tuple[str, int]]:
    """Leave out what the tokenizer added, unless the edge is about it."""
    special = example.tokens(site.query_sequence).special
    about = {edge.query_pos, edge.key_pos if site.query_sequence == site.key_sequence else -1}
    return [(text, token) for text, token in parts if token < 0 or token in about or not special[token]]


def _bare(text: str) -> tuple[str, str]:
    bare = text.strip(" ")
    return (bare, text[: len(text) - len(text.lstrip(" "))]) if bare else (text.replace(" ", "\u2423"), "")


def _key(text: str, weight: float) -> list[Part]:
    bare, lead = _bare(text)
    return ([[lead, "", 0.0]] if lead else []) + [[bare, "key", weight]]


def _plain(parts: list[tuple[str, int]]) -> list[Part]:
    text = "".join(text for text, _ in parts)
    return [[text, "", 0.0]] if text else []


def _compact(parts: list[Part]) -> list[Part]:
    """Join neighbours that are plain text; drop what is empty."""
    joined: list[Part] = []
    for part in parts:
        if part[0] == "":
            continue
        if joined and part[1] == "" and joined[-1][1] == "":
            joined[-1] = [joined[-1][0] + part[0], "", 0.0]
        else:
            joined.append(part)
    return joined


def _cut_head(parts: list[Part], limit: int) -> list[Part]:
    return (
        [["\u2026" + parts[0][0][-limit:], *parts[0][1:]], *parts[1:]] if parts and len(parts[0][0]) > limit else parts
    )


def _cut_tail(parts: list[Part], limit: int) -> list[Part]:
    if not parts or parts[-1][1] or len(parts[-1][0]) <= limit:
        return parts
    return [*parts[:-1], [parts[-1][0][:limit] + "\u2026", "", 0.0]]


def _last(parts: list[Part], limit: int) -> list[Part]:
    text = "".join(part[0] for part in parts)
    return [[text if len(text) <= limit else "\u2026" + text[-limit:], "", 0.0]]


def _first(parts: list[Part], limit: int) -> list[Part]:
    text = "".join(part[0] for part in parts)
    return [[text if len(text) <= limit else text[:limit] + "\u2026", "", 0.0]]


def _shorten(parts: list[Part], limit: int) -> list[Part]:
    text = "".join(part[0] for part in parts)
    return [[text if len(text) <= limit else f"{text[: limit // 2]}\u2026{text[-limit // 2 :]}", "", 0.0]]
