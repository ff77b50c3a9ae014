"""The corpus page: what the store holds, every head by one number, and the chosen head closely."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from headatlas.store.errors import HeadAtlasError

from ..components.card import Facts, HeadMap, Inspector
from ..answers import HeadValues
from ..data import SEARCH, DataSource
from ..quotes import snippet
from ..state import ViewState
from .facts import facts_frame
from .page import Page, grid, place

N_EXAMPLES = 4


class CorpusPage(Page):
    """Facts, head map, inspector."""

    name = "corpus"
    watches: ClassVar[frozenset[str]] = frozenset({"page", "site", "statistic", "pattern", "layer", "head"})

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        send = session.receive
        self.facts, self.map, self.inspector = Facts(send), HeadMap(send), Inspector(send)
        self.view = grid(
            place(self.facts, "1 / 3"),
            place(self.map),
            place(self.inspector),
            columns="minmax(0,1fr) 336px",
            rows="56px minmax(0,1fr)",
        )
        self.facts.frame = facts_frame(self.data)
        self._drawn: tuple[str, ...] = ()

    def refresh(self, changed: frozenset[str]) -> str:
        """Fill the map only where its number changed: a click on a head sends no values again."""
        state = self.state
        values = chosen_values(self.data, state)
        self.map.selected = f"{state.layer}.{state.head}"
        drawn = (state.site, values.name, state.pattern)
        if drawn != self._drawn:
            self.map.frame = map_frame(values, options(self.data, state), others(self.data, state, values.name), state.statistic)
            self._drawn = drawn
        self.inspector.frame = inspector_frame(self.data, state, values)
        return "a search" if values.name == SEARCH else "stored statistics"


def options(data: DataSource, state: ViewState) -> list[list[str]]:
    """What the map can be coloured by."""
    listed = [[name, data.head_values(state.site, name).label] for name in data.statistic_names]
    return [*listed, [SEARCH, f"search: {state.pattern[:40]}"]] if state.pattern else listed


def chosen_values(data: DataSource, state: ViewState) -> HeadValues:
    """The number that colours the map: a statistic, or the mass of the present search.

    A search that cannot be answered falls back to the first statistic: the search page says why.
    """
    if state.statistic == SEARCH and state.pattern:
        try:
            return data.search_values(state.pattern, state.site)
        except HeadAtlasError:
            pass
    name = state.statistic if state.statistic in data.statistic_names else data.statistic_names[0]
    return data.head_values(state.site, name)


def others(data: DataSource, state: ViewState, besides: str) -> list[dict[str, Any]]:
    """Two more statistics for the tooltip."""
    tables = [data.head_values(state.site, name) for name in data.statistic_names if name != besides]
    return [{"label": t.label, "values": t.values.ravel()} for t in tables[:2]]


def map_frame(values: HeadValues, listed: list[list[str]], beside: list[dict[str, Any]], choice: str, small: bool = False) -> dict[str, Any]:
    """The frame of a head map."""
    layers, heads = values.values.shape
    frame: dict[str, Any] = {
        "n_layers": layers,
        "n_heads": heads,
        "values": values.values.ravel(),
        "high": values.high,
        "title": values.label,
        "unit": values.unit,
        "options": listed,
        "choice": choice,
        "others": beside,
        "small": small,
    }
    return frame


def inspector_frame(data: DataSource, state: ViewState, values: HeadValues) -> dict[str, Any]:
    """The chosen head: statistics with ranks, strongest examples, heads like it."""
    site, spot = data.site(state.site), (state.layer, state.head)
    tables = [data.head_values(state.site, name) for name in data.statistic_names]
    tables += [values] if values.name == SEARCH else []
    sharing = site.n_heads // site.n_kv_heads
    examples = strongest_examples(data, state, values)
    opened = examples[0]["patch"] if examples else {"page": "views", "example": state.example}
    listed = {"page": "examples", "order": "strongest", "row": 0}
    return {
        "head": f"{state.layer}.{state.head}",
        "layer": state.layer,
        "index": state.head,
        "sub": f"layer {state.layer}, head {state.head}" + (f", key head {state.head // sharing}" if sharing > 1 else ""),
        "tag": site.name,
        "n": site.n_layers * site.n_heads,
        "statistics": [
            {
                "name": table.name,
                "label": table.label,
                "value": float(table.values[spot]),
                "rank": int(table.ranks[spot]),
                "of": int((table.ranks > 0).sum()),
                "values": table.values.ravel(),
                "high": table.high,
                "on": table.name == values.name,
            }
            for table in tables
        ],
        "examples": examples,
        "examples_of": values.label,
        "like": [{"head": f"{a}.{b}", "layer": a, "index": b, "score": score} for (a, b), score in data.like(state.site, *spot)],
        "open": {"query": state.to_query(**opened), "patch": opened} if data.n_examples else None,
        "list": {"query": state.to_query(**listed), "patch": listed},
    }


def strongest_examples(data: DataSource, state: ViewState, values: HeadValues) -> list[dict[str, Any]]:
    """The examples where the chosen number of the chosen head is highest, each with its strongest edge."""
    if values.name == SEARCH:
        found = data.search_examples(state.pattern, state.site, state.layer, state.head)[:N_EXAMPLES]
        ranked = [(hit.number, hit.score, hit.edge) for hit in found]
    else:
        scores = data.over_examples(state.site, values.name)[state.layer, state.head]
        order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")[:N_EXAMPLES]
        ranked = [(int(data.numbers[i]), float(scores[i]), None) for i in order if np.isfinite(scores[i])]
    rows = []
    for number, score, given in ranked:
        edge = given or data.strongest_edge(state.site, number, state.layer, state.head, values.name)
        patch = {"page": "views", "example": number, "pin": f"q{edge.query_pos}" if edge else ""}
        parts = snippet(data.example(number), data.site(state.site), edge) if edge else [[data.shown_text(number)[:60], "", 0.0]]
        rows.append({"query": state.to_query(**patch), "patch": patch, "parts": parts, "score": score})
    return rows
