"""Frames of what stands beside a picture: the keys of a pinned token, the strongest edges, one head large.

Pure functions, as in `frames.py`; the numbers listed are those of the arrays, never renormalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Float

from .view_frames import Head, TokensFrame, head_name


class HeadWeight(TypedDict):
    """Weight that one head gives to an edge."""

    head: str
    weight: float


class EdgeHeads(TypedDict):
    """The heads that have one edge strongest."""

    title: list[str]
    """Query and key of the edge."""
    heads: list[HeadWeight]


class KeyRow(TypedDict):
    """One token that is linked to the pinned token."""

    label: str
    position: int
    weights: list[float]
    """Weight in each head that is shown."""


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
    """True if the same token has another side to look at."""
    edge: EdgeHeads | dict[str, list[str]]
    """Heads with the strongest edge of the pinned token. Empty if no token is listed."""
    alone: NotRequired[bool]
    """True in a file of its own, where no other view can be opened."""


class Edge(TypedDict):
    """One edge of the heads that are shown."""

    slot: int
    """Index of the head among those shown."""
    query: int
    key: int
    labels: list[str]
    weight: float


class StrongestFrame(TypedDict):
    """Strongest edges of the heads that are shown: frame of `KeyList` while nothing is pinned."""

    heads: list[str]
    edges: list[Edge]
    alone: NotRequired[bool]


class DetailFrame(TypedDict):
    """One head, large: frame of `HeadDetail`."""

    head: str
    attention: np.ndarray
    shape: list[int]
    causal: bool
    labels: list[list[str]]
    """Of queries and of keys."""
    special: list[np.ndarray]
    facts: list[list[str | float]]
    """[label, value, unit]."""
    edges: list[Edge]
    alone: NotRequired[bool]


@dataclass(frozen=True)
class PinnedRow:
    """Weights around a pinned token.

    Attributes
    ----------
    side, position
        The pin: ``"q"`` lists keys, ``"k"`` lists the queries that attend to it.
    weights, all_heads
        Weight between the pinned token and each token of the other side, for the heads shown and for all heads.
    back
        Weight between each token of the pinned side and the token at the same position of the other side: what
        attends to a pinned query, or what a pinned key attends to. Empty if the sides are different texts.
    """

    side: str
    position: int
    weights: Float[np.ndarray, "n_heads other"]
    back: Float[np.ndarray, "n_heads same"]
    all_heads: Float[np.ndarray, "layer head other"]


def edge_frame(weight: Float[np.ndarray, "layer head"], query: str, key: str, n: int = 5) -> EdgeHeads:
    """The `n` heads that have one edge strongest."""
    order = np.argsort(-weight.ravel(), kind="stable")[:n]
    return {
        "title": [query, key],
        "heads": [
            {
                "head": head_name((int(i) // weight.shape[1], int(i) % weight.shape[1])),
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
    """List the keys (or queries) of a pinned token, the heads with its strongest edge, and the way back.

    `tokens` are those of the pinned side, `others` those of the other side.
    """
    side, position, weights, back = pin.side, pin.position, pin.weights, pin.back
    special = np.asarray(others["special"], bool)
    shown = np.flatnonzero(~special) if hide_special else np.arange(len(special))
    peak = weights[:, shown].max(axis=0, initial=0.0)
    order = shown[np.argsort(-peak, kind="stable")]
    n_listed = min(n, max(3, int((peak >= 0.01).sum())))
    listed, rest = order[:n_listed], order[n_listed:]
    hidden = np.flatnonzero(special) if hide_special else np.zeros(0, np.int64)
    rows = [_listed(others, int(i), weights[:, i]) for i in listed]
    frame: PinnedFrame = {
        "side": side,
        "position": position,
        "label": tokens["labels"][position],
        "heads": [head_name(head) for head in heads],
        "rows": rows,
        "rest": _total(weights[:, rest]) if len(rest) else [],
        "hidden": _total(weights[:, hidden]) if len(hidden) else [],
        "back": [],
        "turns": bool(back.size),
        "edge": {},
    }
    if len(listed):
        best = int(listed[0])
        query, key = tokens["labels"][position], others["labels"][best]
        if side == "k":
            query, key = key, query
        frame["edge"] = edge_frame(pin.all_heads[:, :, best], query, key)
    if back.size:
        reach = back.max(axis=0)
        reach[position] = -1.0
        if hide_special:
            reach[np.asarray(tokens["special"], bool)] = -1.0
        strongest = [int(i) for i in np.argsort(-reach, kind="stable")[:3] if reach[i] >= 0]
        frame["back"] = [_listed(tokens, i, back[:, i].max(keepdims=True)) for i in strongest]
    return frame


def _listed(tokens: TokensFrame, position: int, weights: Float[np.ndarray, "n_heads"]) -> KeyRow:
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
    """What is written while nothing is pinned: the strongest edges of the heads shown."""
    weight = np.array(attention, np.float32)
    if hide_special:
        weight[:, np.asarray(queries["special"], bool), :] = -1
        weight[:, :, np.asarray(keys["special"], bool)] = -1
    order = np.argsort(-weight.ravel(), kind="stable")[:n]
    found = zip(*np.unravel_index(order, weight.shape), strict=True)
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
            for h, q, k in found
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
    """One head, large. `facts` are (label, value, unit) of this head on this example."""
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
