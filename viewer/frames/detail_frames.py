"""Frames of the views beside a picture: the keys of a pinned token, the strongest edges, one enlarged head.

Pure functions, as in `view_frames.py`. The listed numbers are those of the arrays; nothing is renormalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Float, Int64

from .view_frames import Head, TokensFrame, head_name


class HeadWeight(TypedDict):
    """Weight that one head gives to an edge."""

    head: str
    weight: float


class EdgeHeads(TypedDict):
    """Heads that give the largest weight to one edge."""

    title: list[str]
    """Labels of the query and the key."""
    heads: list[HeadWeight]


class KeyRow(TypedDict):
    """One token that is linked to the pinned token."""

    label: str
    position: int
    weights: list[float]
    """Weight in each of the shown heads."""


class PinnedFrame(TypedDict):
    """Keys (or queries) of a pinned token: frame of `KeyList`."""

    side: str
    position: int
    label: str
    heads: list[str]
    rows: list[KeyRow]
    rest: list[float]
    """Weight of each head on the tokens that are not listed. Empty if every token is listed."""
    hidden: list[float]
    """Weight of each head on hidden special tokens. Empty if none is hidden."""
    back: list[KeyRow]
    turns: bool
    """True if the same token can also be pinned on the other side."""
    edge: EdgeHeads | dict[str, list[str]]
    """Heads with the pinned edge, or with the strongest edge of the pinned token. Empty if no token is listed."""
    partner: int
    """Position of the token at the other end of that edge, -1 for none."""
    note: NotRequired[str]
    """Part of a long text that the list is of."""
    alone: NotRequired[bool]
    """True in a standalone file, where no other view can be opened."""


class Edge(TypedDict):
    """One edge of one of the shown heads."""

    slot: int
    """Index of the head among the shown heads."""
    query: int
    key: int
    labels: list[str]
    weight: float


class StrongestFrame(TypedDict):
    """Strongest edges of the shown heads: frame of `KeyList` while no token is pinned."""

    heads: list[str]
    edges: list[Edge]
    note: NotRequired[str]
    alone: NotRequired[bool]


class DetailFrame(TypedDict):
    """One enlarged head: frame of `HeadDetail`."""

    head: str
    attention: np.ndarray
    shape: list[int]
    causal: bool
    labels: list[list[str]]
    """Labels of the queries and of the keys."""
    special: list[np.ndarray]
    facts: list[list[str | float]]
    """[label, value, unit]."""
    edges: list[Edge]
    start: NotRequired[list[int]]
    """First query and first key of the map, if it is a part of a long text."""
    note: NotRequired[str]
    """Words for that part."""
    alone: NotRequired[bool]


@dataclass(frozen=True)
class PinnedRow:
    """Weights around a pinned token.

    Attributes
    ----------
    side, position
        The pinned token: ``"q"`` lists keys, ``"k"`` lists the queries that attend to it.
    weights, all_heads
        Weight between the pinned token and each token of the other side, for the shown heads and for all heads.
        `all_heads` is None if the text is too long to read it.
    back
        Weight between each token of the pinned side and the token at the same position of the other side. For a
        pinned query these are the tokens that attend to it; for a pinned key the tokens that it attends to. Empty if
        the sides are different texts; negative where the weight was not read.
    read
        Tokens of the other side whose weights were read; None if all were.
    """

    side: str
    position: int
    weights: Float[np.ndarray, "n_heads other"]
    back: Float[np.ndarray, "n_heads same"]
    all_heads: Float[np.ndarray, "layer head other"] | None
    read: slice | None = None
    layers: Sequence[int] | None = None
    """Numbers of the layers of `all_heads`, by default from 0."""
    partner: int | None = None
    """Other end of the pinned edge; None if only a token is pinned."""

    def order(self, others: TokensFrame, *, hide_special: bool) -> Int64[np.ndarray, "shown"]:
        """Return the tokens of the other side that were read and are shown, strongest first."""
        is_read = np.zeros(self.weights.shape[1], bool)
        is_read[self.read or slice(None)] = True
        shown = np.flatnonzero(is_read & ~np.asarray(others["special"], bool) if hide_special else is_read)
        return shown[np.argsort(-self.weights[:, shown].max(axis=0, initial=0.0), kind="stable")]


def edge_frame(
    weight: Float[np.ndarray, "layer head"], query: str, key: str, layers: Sequence[int] | None = None, n: int = 5
) -> EdgeHeads:
    """List the `n` heads that give the largest weight to one edge. `layers` are the numbers of the layers."""
    layers = range(len(weight)) if layers is None else layers
    order = np.argsort(-weight.ravel(), kind="stable")[:n]
    return {
        "title": [query, key],
        "heads": [
            {
                "head": head_name((layers[int(i) // weight.shape[1]], int(i) % weight.shape[1])),
                "weight": float(weight.ravel()[i]),
            }
            for i in order
        ],
    }


def pinned_frame(
    pin: PinnedRow,
    heads: Sequence[Head],
    tokens: TokensFrame,
    others: TokensFrame,
    *,
    hide_special: bool = False,
    n: int = 8,
) -> PinnedFrame:
    """Make the frame of a pinned token: its keys (or queries), the heads of its strongest edge, its reverse edges.

    `tokens` are those of the pinned side, `others` those of the other side.
    """
    side, position, weights, back = pin.side, pin.position, pin.weights, pin.back
    special = np.asarray(others["special"], bool)
    order = pin.order(others, hide_special=hide_special)
    n_rows = min(n, max(3, int((weights[:, order].max(axis=0, initial=0.0) >= 0.01).sum())))
    top, remainder = order[:n_rows], order[n_rows:]
    hidden = np.flatnonzero(special) if hide_special else np.zeros(0, np.int64)
    rows = [_key_row(others, int(i), weights[:, i]) for i in top]
    frame: PinnedFrame = {
        "side": side,
        "position": position,
        "label": tokens["labels"][position],
        "heads": [head_name(head) for head in heads],
        "rows": rows,
        "rest": _total(weights[:, remainder]) if len(remainder) else [],
        "hidden": _total(weights[:, hidden]) if len(hidden) else [],
        "back": [],
        "turns": bool(back.size),
        "edge": {},
        "partner": -1,
    }
    best = int(top[0]) if pin.partner is None and len(top) else -1 if pin.partner is None else pin.partner
    frame["partner"] = best
    if best >= 0 and pin.all_heads is not None:
        query, key = tokens["labels"][position], others["labels"][best]
        if side == "k":
            query, key = key, query
        frame["edge"] = edge_frame(pin.all_heads[:, :, best], query, key, pin.layers)
    if back.size:
        reverse = back.max(axis=0)
        reverse[position] = -1.0
        if hide_special:
            reverse[np.asarray(tokens["special"], bool)] = -1.0
        strongest = [int(i) for i in np.argsort(-reverse, kind="stable")[:3] if reverse[i] >= 0]
        frame["back"] = [_key_row(tokens, i, back[:, i].max(keepdims=True)) for i in strongest]
    return frame


def _key_row(tokens: TokensFrame, position: int, weights: Float[np.ndarray, "n_heads"]) -> KeyRow:
    return {"label": tokens["labels"][position], "position": position, "weights": [float(w) for w in weights]}


def _total(weights: Float[np.ndarray, "n_heads some"]) -> list[float]:
    return [float(w) for w in weights.sum(axis=1)]


def strongest_frame(
    attention: Float[np.ndarray, "n_heads query_pos key_pos"],
    heads: Sequence[Head],
    queries: TokensFrame,
    keys: TokensFrame,
    *,
    hide_special: bool,
    n: int = 9,
) -> StrongestFrame:
    """Make the list that is shown while no token is pinned: the strongest edges of the shown heads."""
    weight = np.array(attention, np.float32)
    if hide_special:
        weight[:, np.asarray(queries["special"], bool), :] = -1
        weight[:, :, np.asarray(keys["special"], bool)] = -1
    flat = weight.ravel()
    limit = max(float(np.partition(flat, -n)[-n]) if flat.size > n else -1.0, np.finfo(np.float32).tiny)
    largest = np.flatnonzero(flat >= limit)
    order = largest[np.argsort(-flat[largest], kind="stable")[:n]]
    positions = zip(*np.unravel_index(order, weight.shape), strict=True)
    return {
        "heads": [head_name(head) for head in heads],
        "edges": [
            {
                "slot": int(h),
                "query": int(q),
                "key": int(k),
                "labels": [queries["labels"][q], keys["labels"][k]],
                "weight": float(weight[h, q, k]),
            }
            for h, q, k in positions
            if weight[h, q, k] > 0
        ],
    }


def detail_frame(
    attention: Float[np.ndarray, "query_pos key_pos"],
    head: Head,
    queries: TokensFrame,
    keys: TokensFrame,
    *,
    causal: bool = False,
    facts: Sequence[tuple[str, float, str]] = (),
    hide_special: bool = False,
) -> DetailFrame:
    """Make the frame of one enlarged head. `facts` are (label, value, unit) of this head in this example."""
    strongest = strongest_frame(attention[None], [head], queries, keys, hide_special=hide_special, n=6)
    return {
        "head": head_name(head),
        "attention": np.ascontiguousarray(attention, np.float32),
        "shape": list(attention.shape),
        "causal": causal,
        "labels": [queries["labels"], keys["labels"]],
        "special": [queries["special"], keys["special"]],
        "facts": [[label, float(value), unit] for label, value, unit in facts if np.isfinite(value)],
        "edges": strongest["edges"],
    }
