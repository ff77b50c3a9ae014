"""The corpus page: what the store holds, every head by one number, and the chosen head closely."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn
from jaxtyping import Float32

from ..components.cards import (
    BookmarkText,
    Distribution,
    DistributionFrame,
    Facts,
    HeadMap,
    HeadMapFrame,
    HeadStatistic,
    Inspector,
    InspectorFrame,
    Scatter,
    ScatterFrame,
    Spread,
    StrongExample,
)  # fmt: skip
from ..data.edge_quotes import snippet
from ..data.search_answers import SEARCH, Edge, HeadValues, upper_end
from ..data.store_data import DataSource
from ..data.store_facts import facts_frame
from ..state.reader_state import ViewState
from ..theme.token_labels import visible_lines
from .layout import drawer, grid, place
from .page import Page
from .search_mass import answered

N_EXAMPLES = 4
N_BINS = 48


class CorpusPage(Page):
    """Facts, head map, inspector."""

    def layout(self) -> pn.Column:
        """Build the cards and their layout, once."""
        send = self.session.receive
        self.facts, self.map, self.inspector = Facts(send), HeadMap(send), Inspector(send)
        self.scatter, self.distribution = Scatter(send), Distribution(send)
        self.beside = HeadMap(send, visible=False)
        self.facts.frame = facts_frame(self.data)
        self._drawn: tuple[str, ...] = ()
        self._scattered: tuple[str, ...] = ()
        self._tabled: tuple[str, ...] = ()
        return grid(
            place(self.facts, "1 / -1"),
            place(self.map, "1", "2"),
            place(self.scatter, "2", "2"),
            place(self.beside, "2", "2"),
            drawer(self.inspector, "right", "3", "2 / 4"),
            place(self.distribution, "1 / 3", "3"),
            columns="minmax(300px,472fr) minmax(0,576fr) 336px",
            rows="56px minmax(0,1fr) 222px",
            narrow={"right": "minmax(300px,472fr) minmax(0,576fr)"},
        )

    def bookmarks_changed(self) -> None:
        """Draw the changed bookmark on the map and beside the head."""
        self._drawn = ()
        super().bookmarks_changed()

    def refresh(self, changed: frozenset[str]) -> str:
        """Fill a picture only where its numbers changed: a click on a head sends no values again."""
        state = self.state
        waits = waits_for_search(self, state.statistic, state.x, state.y)
        values = chosen_values(self.data, state)
        self.map.selected = f"{state.layer}.{state.head}"
        self.scatter.selected = ",".join(f"{layer}.{head}" for layer, head in state.heads_shown)
        beside = beside_frame(self.data, state, values)
        drawn = (state.site, values.name, state.pattern, state.heads, state.other_store)
        if drawn != self._drawn:
            self.map.frame = map_frame(
                values, options(self.data, state), others(self.data, state, values.name), values.name
            ) | {
                "bookmarks": self.data.head_bookmarks(state.site),
                "also": [f"{layer}.{head}" for layer, head in state.heads_shown[1:]],
                "stores": [name for name in self.data.stores if name != self.data.name],
                "beside": state.other_store if beside else "",
            }
            if beside:  # one scale for both, or they cannot be compared
                high = max(values.high, beside["high"])
                self.map.frame = {**self.map.frame, "high": high}
                self.beside.frame = beside | {"high": high}
            self.scatter.visible, self.beside.visible = not beside, bool(beside)
            self._drawn = drawn
        self.beside.selected = state.other_head or "0.0"
        searched = state.pattern if SEARCH in (state.x, state.y) else ""
        scattered = (state.site, state.x, state.y, searched, waits)
        if scattered != self._scattered:
            self.scatter.frame = scatter_frame(self.data, state)
            self._scattered = scattered
        if drawn != self._tabled:
            self.inspector.table = {
                table.name: table.values.ravel() for table in shown_tables(self.data, state, values)
            }
            self._tabled = drawn
        self.inspector.frame = inspector_frame(self.data, state, values)
        self.distribution.frame = distribution_frame(self.data, state, values)
        return "a search" if values.name == SEARCH else "stored statistics" + waits


def waits_for_search(page: Page, *names: str) -> str:
    """Ask for the search where it is one of `names`, and refresh the page when it is answered; says so meanwhile."""
    state = page.state
    if SEARCH not in names or not state.pattern:
        return ""

    def again() -> None:
        page.session.answered(page.refresh(frozenset()), 0.0)

    found = answered(page.data, state.pattern, state.site, again)
    return "" if found else ", while the search runs"


def options(data: DataSource, state: ViewState) -> list[list[str]]:
    """What the map can be coloured by."""
    listed = [[name, data.head_values(state.site, name).label] for name in known_names(data, state)]
    return [*listed, [SEARCH, f"search: {state.pattern[:40]}"]] if state.pattern else listed


def chosen_values(data: DataSource, state: ViewState) -> HeadValues:
    """The number that colours the map."""
    return named_values(data, state, state.statistic)


def named_values(data: DataSource, state: ViewState, name: str) -> HeadValues:
    """A statistic, or the mass of the present search; the first statistic where that has no answer (yet)."""
    if name == SEARCH and state.pattern and data.has_answer(state.pattern, state.site):
        return data.search_values(state.pattern, state.site)
    known = known_names(data, state)
    return data.head_values(state.site, name if name in known else known[0])


def known_names(data: DataSource, state: ViewState) -> list[str]:
    """The statistics that say anything at the chosen site: between two texts there is no previous token."""
    names = data.statistic_names
    return [n for n in names if np.isfinite(data.head_values(state.site, n).values).any()] or list(names)


def others(data: DataSource, state: ViewState, besides: str) -> list[HeadStatistic]:
    """Two more statistics for the tooltip."""
    tables = [data.head_values(state.site, name) for name in known_names(data, state) if name != besides]
    return [{"label": t.label, "values": t.values.ravel()} for t in tables[:2]]


def map_frame(
    values: HeadValues, listed: list[list[str]], beside: list[HeadStatistic], choice: str, small: bool = False
) -> HeadMapFrame:
    """The frame of a head map."""
    layers, heads = values.values.shape
    return {
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


def beside_frame(data: DataSource, state: ViewState, values: HeadValues) -> HeadMapFrame | None:
    """The head map of another store by the same statistic, or its first; None if none is chosen."""
    if data.served_with is None or state.other_store in ("", data.name):
        return None
    other = data.served_with[state.other_store]
    names = other.statistic_names
    if not names or not other.n_examples:
        return None
    found = other.head_values("", values.name if values.name in names else names[0])
    about = f"{found.label} over {other.n_examples:,} examples"
    frame = map_frame(found, [], [], found.name)
    frame["other"], frame["about"] = other.name, about
    return frame


def shown_tables(data: DataSource, state: ViewState, values: HeadValues) -> list[HeadValues]:
    """The statistics that the inspector lists; a search beside them while it colours the map."""
    tables = [data.head_values(state.site, name) for name in known_names(data, state)]
    return tables + ([values] if values.name == SEARCH else [])


def inspector_frame(data: DataSource, state: ViewState, values: HeadValues) -> InspectorFrame:
    """The chosen head: statistics with ranks, strongest examples, heads like it."""
    site, spot = data.site(state.site), (state.layer, state.head)
    tables = shown_tables(data, state, values)
    sharing = site.n_heads // site.n_kv_heads
    examples = strongest_examples(data, state, values)
    opened = examples[0]["patch"] if examples else {"page": "views", "example": state.example}
    listed = {"page": "examples", "order": "strongest", "row": 0}
    return {
        "head": f"{state.layer}.{state.head}",
        "sub": f"layer {state.layer}, head {state.head}"
        + (f", key head {state.head // sharing}" if sharing > 1 else ""),
        "tag": site.name,
        "n": site.n_layers * site.n_heads,
        "bookmark": bookmark_frame(data, state),
        "statistics": [
            {
                "name": table.name,
                "label": table.label,
                "value": float(table.values[spot]),
                "rank": int(table.ranks[spot]),
                "of": int((table.ranks > 0).sum()),
                "high": table.high,
                "on": table.name == values.name,
            }
            for table in tables
        ],
        "examples": examples,
        "examples_of": values.label,
        "like": [
            {"head": f"{a}.{b}", "layer": a, "index": b, "score": score}
            for (a, b), score in data.similar_heads(state.site, *spot)
        ],
        "open": {"query": state.to_query(**opened), "patch": opened} if data.n_examples else None,
        "list": {"query": state.to_query(**listed), "patch": listed},
    }


def bookmark_frame(data: DataSource, state: ViewState) -> BookmarkText | None:
    """Bookmark of the chosen head as the reader wrote it. None if the viewer keeps no bookmarks."""
    if data.bookmarks is None:
        return None
    bookmark = data.bookmarks.of(data.site(state.site).name, state.layer, state.head)
    return {"star": bookmark.star, "note": visible_lines(bookmark.note), "writable": data.bookmarks.is_writable}


def strongest_examples(data: DataSource, state: ViewState, values: HeadValues) -> list[StrongExample]:
    """The examples where the chosen number of the chosen head is highest, each with its strongest edge."""
    rows = []
    for quoted in data.cached(("strongest", *_which(data, state, values)), lambda: _quoted(data, state, values)):
        patch = {"page": "views", "example": quoted["example"], "pin": quoted["pin"]}
        row: StrongExample = {
            "query": state.to_query(**patch),
            "patch": patch,
            "parts": quoted["parts"],
            "score": quoted["score"],
        }
        rows.append(row)
    return rows


def _which(data: DataSource, state: ViewState, values: HeadValues) -> tuple[object, ...]:
    """What numbers of one head are of: its site, the head, the statistic or the pattern."""
    site = data.site(state.site).name
    return site, state.layer, state.head, values.name, state.pattern if values.name == SEARCH else ""


def _quoted(data: DataSource, state: ViewState, values: HeadValues) -> list[dict[str, Any]]:
    if values.name == SEARCH:
        found = data.search_examples(state.pattern, state.site, state.layer, state.head)[:N_EXAMPLES]
        ranked = [(hit.example, hit.score, Edge(hit.query_pos, hit.key_pos, hit.weight)) for hit in found]
    else:
        scores = scores_over_examples(data, state, values)
        order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")[:N_EXAMPLES]
        ranked = [(int(data.numbers[i]), float(scores[i]), None) for i in order if np.isfinite(scores[i])]
    rows = []
    for number, score, given in ranked:
        edge = given or data.strongest_edge(state.site, number, state.layer, state.head, values.name)
        parts = (
            snippet(data.example(number), data.site(state.site), edge)
            if edge
            else [[data.shown_text(number)[:60], "", 0.0]]
        )
        rows.append({"example": number, "pin": f"q{edge.query_pos}" if edge else "", "parts": parts, "score": score})
    return rows


def scatter_frame(data: DataSource, state: ViewState) -> ScatterFrame:
    """Every head by two statistics, shaded by layer."""
    across, up = (named_values(data, state, name) for name in (state.x, state.y))
    return {
        "n_heads": across.values.shape[1],
        "x": {
            "name": across.name,
            "label": across.label,
            "unit": across.unit,
            "high": across.high,
            "values": across.values.ravel(),
        },
        "y": {"name": up.name, "label": up.label, "unit": up.unit, "high": up.high, "values": up.values.ravel()},
        "options": options(data, state),
        "note": f"means over {data.n_examples:,} examples",
    }


def distribution_frame(data: DataSource, state: ViewState, values: HeadValues) -> DistributionFrame:
    """The chosen number of the chosen head over the examples: counts in bins, median and middle half."""
    patch = {"page": "examples", "order": "strongest", "row": 0}
    spread = data.cached(("spread", *_which(data, state, values)), lambda: _spread(data, state, values))
    return {
        "title": f"{values.label} of head {state.layer}.{state.head}",
        "unit": values.unit,
        **spread,
        "corpus": float(values.values[state.layer, state.head]),
        "n_all": data.n_examples,
        "query": state.to_query(**patch),
        "patch": patch,
    }


def _spread(data: DataSource, state: ViewState, values: HeadValues) -> Spread:
    scores = scores_over_examples(data, state, values)
    finite = scores[np.isfinite(scores)]
    high = upper_end(finite) if finite.size else values.high
    quartiles = np.percentile(finite, [25, 50, 75]) if finite.size else np.full(3, np.nan)
    return {
        "counts": np.histogram(finite, bins=N_BINS, range=(0, high))[0].tolist(),
        "high": high,
        "quartiles": [float(q) for q in quartiles],
        "n": int(finite.size),
    }


def scores_over_examples(data: DataSource, state: ViewState, values: HeadValues) -> Float32[np.ndarray, "example"]:
    """The chosen number of the chosen head on every example, by position; NaN where there is none."""
    if values.name == SEARCH:
        return data.search_scores(state.pattern, state.site, state.layer, state.head)
    return data.over_examples(state.site, values.name)[state.layer, state.head]
