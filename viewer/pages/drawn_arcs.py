"""Arcs that a reader draws on an example: in messages of the browser, in the address, and in the frame of the box."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..components.search_cards import DrawnArcs
from ..data.arc_guess import MAX_ARCS, Arc, Guess
from ..data.example_reader import reader_of
from ..data.store_data import DataSource
from ..state.reader_state import ViewState
from ..theme.token_labels import token_labels, visible

MAX_DRAWN = 512
"""Most tokens of an example that arcs can be drawn on."""


def arcs_of(message: Any) -> list[Arc] | None:
    """Parse the arcs of a browser's message. None if the message turns drawing off."""
    if not isinstance(message, list):
        return None
    arcs: list[Arc] = []
    for item in message[:MAX_ARCS]:
        if isinstance(item, list) and len(item) == 2:
            query, key = item
            if type(query) is int and type(key) is int and 0 <= query < MAX_DRAWN and 0 <= key < MAX_DRAWN:
                arcs.append((query, key))
    return arcs


def arcs_text(arcs: list[Arc] | None) -> str:
    """Format arcs for the address."""
    return "" if arcs is None else ",".join(f"{query}>{key}" for query, key in arcs) or "none"


def arcs_of_text(text: str) -> list[Arc] | None:
    """Parse the arcs of the address. None if drawing is off."""
    pairs = [arc.split(">") for arc in text.split(",")] if text not in ("", "none") else []
    return [(int(query), int(key)) for query, key in pairs] if text else None


def drawn_frame(data: DataSource, state: ViewState, arcs: list[Arc], guessed: list[Guess]) -> DrawnArcs:
    """Build the tokens that arcs are drawn on, the arcs, and the guesses of their pattern."""
    site, example = data.site(state.site), data.example(state.example)
    tokens = [example.tokens(name) for name in (site.query_sequence, site.key_sequence)]
    queries, keys = (token_labels(side, slice(MAX_DRAWN)) for side in tokens)
    n_queries, n_keys = len(queries), len(keys)
    reader = reader_of(data, state.example, state.site)
    arcs = [(query, key) for query, key in arcs if query < n_queries and key < n_keys]
    return {
        "id": visible(example.id),
        "queries": queries,
        "keys": None if site.query_sequence == site.key_sequence else keys,
        "dim": [
            np.flatnonzero(reader.hidden[side][:MAX_DRAWN]).tolist() if state.specials == "hide" else []
            for side in "qk"
        ],
        "arcs": [list(arc) for arc in arcs],
        "guesses": [[g.expression, g.n_matches] for g in guessed],
    }
