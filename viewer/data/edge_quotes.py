"""Quotes of an edge in its example: the query token, the key token and the words around them, cut to fit a row.

Parts are ``[text, kind, weight]`` with kind ``"query"``, ``"key"`` or ``""``. All characters are visible
(`theme/token_labels.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from headatlas.store.reading.example import Example
from headatlas.store.schema.traces import Site

from ..theme.token_labels import running_text
from .search_answers import Edge

Part = list[Any]
NEAR = 56
"""Most characters between key and query. A longer text is cut in the middle."""
REACH_TOKENS = 512
"""Most tokens around query and key that a quote is cut from."""


class QuotedEdge(TypedDict):
    """A quote of an edge around its query token."""

    before: list[Part]
    token: str
    """The query token."""
    after: list[Part]
    self: bool
    """True if the key is the query token itself."""


def sequence_text(example: Example, sequence: str, positions: Sequence[int]) -> list[tuple[str, int]]:
    """Return the running text of one sequence near some tokens as (characters, token index or -1).

    Tokens more than `REACH_TOKENS` away from all positions are left out.
    """
    tokens = example.tokens(sequence)
    spans: list[list[int]] = []
    for position in sorted(positions):
        start, stop = max(0, position - REACH_TOKENS), min(len(tokens), position + REACH_TOKENS + 1)
        if spans and start <= spans[-1][1]:
            spans[-1][1] = stop
        else:
            spans.append([start, stop])
    texts = (example.target_text or "", None) if sequence == "target" else (example.text, example.text_pair)
    return [part for start, stop in spans for part in running_text(tokens, *texts, slice(start, stop))]


def quote_edge(example: Example, site: Site, edge: Edge, reach: int = 160) -> QuotedEdge:
    """Quote an edge around its query, with at most `reach` characters before and after both tokens."""
    is_one_text = site.query_sequence == site.key_sequence
    near = (edge.query_pos, edge.key_pos) if is_one_text else (edge.query_pos,)
    parts = _without_special(sequence_text(example, site.query_sequence, near), example, site, edge)
    part_of_token = {token: index for index, (_, token) in enumerate(parts) if token >= 0}
    query_part = part_of_token[edge.query_pos]
    token, lead = _split_lead(parts[query_part][0])
    if not is_one_text:
        keys = {t: text for text, t in sequence_text(example, site.key_sequence, (edge.key_pos,))}
        key_quote: list[Part] = [[_split_lead(keys[edge.key_pos])[0], "key", edge.weight], ["  \u27f5 ", "", 0.0]]
        return {
            "before": key_quote,
            "token": token,
            "after": _cut_tail(_plain_parts(parts[query_part + 1 :]), reach),
            "self": False,
        }
    before, after = parts[:query_part] + ([(lead, -1)] if lead else []), parts[query_part + 1 :]
    key_part = part_of_token[edge.key_pos]
    if key_part < query_part:
        between = "".join(text for text, _ in before[key_part + 1 :])
        start = _plain_parts(before[:key_part])
        middle = between if len(between) <= NEAR else f" \u2026 {between[-NEAR + 12 :]}"
        front = [*_cut_head(start, reach), *_key_parts(before[key_part][0], edge.weight), [middle, "", 0.0]]
        return {
            "before": _compact(front),
            "token": token,
            "after": _cut_tail(_plain_parts(after), reach),
            "self": False,
        }
    if key_part > query_part:
        between = "".join(text for text, _ in parts[query_part + 1 : key_part])
        middle = between if len(between) <= NEAR // 2 else f"{between[: NEAR // 2 - 10]} \u2026 "
        back = [[middle, "", 0.0], *_key_parts(parts[key_part][0], edge.weight), *_plain_parts(parts[key_part + 1 :])]
        return {
            "before": _cut_head(_plain_parts(before), reach),
            "token": token,
            "after": _cut_tail(_compact(back), reach),
            "self": False,
        }
    return {
        "before": _cut_head(_plain_parts(before), reach),
        "token": token,
        "after": _cut_tail(_plain_parts(after), reach),
        "self": True,
    }


def snippet(example: Example, site: Site, edge: Edge, width: int = 40) -> list[Part]:
    """Quote an edge in about `width` characters, in the order of the text."""
    row = quote_edge(example, site, edge)
    query: Part = [row["token"], "key" if row["self"] else "query", edge.weight]
    before, after = row["before"], row["after"]
    key_part = next((i for i, part in enumerate(before) if part[1] == "key"), None)
    if key_part is not None:
        inner = _shorten(before[key_part + 1 :], 18)
        n_used = len(before[key_part][0]) + len(row["token"]) + sum(len(p[0]) for p in inner)
        return _compact(
            [
                *_last(before[:key_part], max(4, (width - n_used) // 2)),
                before[key_part],
                *inner,
                query,
                *_first(after, max(4, width // 3)),
            ]
        )
    key_part = next((i for i, part in enumerate(after) if part[1] == "key"), None)
    if key_part is not None:
        return _compact(
            [
                *_last(before, 10),
                query,
                *_shorten(after[:key_part], 18),
                after[key_part],
                *_first(after[key_part + 1 :], 12),
            ]
        )
    return _compact([*_last(before, width // 2), query, *_first(after, width // 2)])


def _without_special(parts: list[tuple[str, int]], example: Example, site: Site, edge: Edge) -> list[tuple[str, int]]:
    """Drop the special tokens that are neither the query nor the key of the edge."""
    special = example.tokens(site.query_sequence).special
    edge_tokens = {edge.query_pos, edge.key_pos if site.query_sequence == site.key_sequence else -1}
    return [(text, token) for text, token in parts if token < 0 or token in edge_tokens or not special[token]]


def _split_lead(text: str) -> tuple[str, str]:
    stripped = text.strip(" ")
    return (stripped, text[: len(text) - len(text.lstrip(" "))]) if stripped else (text.replace(" ", "\u2423"), "")


def _key_parts(text: str, weight: float) -> list[Part]:
    stripped, lead = _split_lead(text)
    return ([[lead, "", 0.0]] if lead else []) + [[stripped, "key", weight]]


def _plain_parts(parts: list[tuple[str, int]]) -> list[Part]:
    text = "".join(text for text, _ in parts)
    return [[text, "", 0.0]] if text else []


def _compact(parts: list[Part]) -> list[Part]:
    """Join neighbouring parts of plain text and drop empty parts."""
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
