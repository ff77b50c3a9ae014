"""The corpus page: facts of the store, a map of all heads by one number, and details of the chosen head."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn
from jaxtyping import Float32

from headatlas.store.schema.traces import head_index

from ..components.background import Check
from ..components.card import BookmarkText
from ..components.corpus_cards import (  # fmt: skip
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
)
from ..data.edge_quotes import snippet
from ..data.role_answers import main_roles
from ..data.search_answers import SEARCH, Edge, HeadValues, upper_end
from ..data.store_data import DataSource
from ..data.store_facts import facts_frame
from ..state.reader_state import ViewState
from ..theme.token_labels import visible_lines
from .layout import drawer, grid, in_cell
from .page import Page
from .quoted_examples import are_long
from .role_list import RoleList
from .search_mass import mass_or_search

N_EXAMPLES = 4
N_BINS = 48


class CorpusPage(Page):
    """Page with facts, head map and inspector."""

    def layout(self) -> pn.Column:
        """Build the cards and their layout, once."""
        send = self.session.receive
        self.facts, self.map, self.inspector = Facts(send), HeadMap(send), Inspector(send)
        self.scatter, self.distribution = Scatter(send), Distribution(send)
        self.roles = RoleList(self)
        self.second_map = HeadMap(send, visible=False)
        self.facts.frame = facts_frame(self.data)
        self._map_key: tuple[str, ...] = ()
        self._scatter_key: tuple[str, ...] = ()
        self._table_key: tuple[str, ...] = ()
        return grid(
            in_cell(self.facts, "1 / -1"),
            in_cell(self.map, "1", "2"),
            in_cell(self.roles.card, "2", "2"),
            in_cell(self.second_map, "2", "2"),
            drawer(self.inspector, "right", "3", "2 / 4"),
            in_cell(self.distribution, "1", "3"),
            in_cell(self.scatter, "2", "3"),
            columns="minmax(300px,472fr) minmax(0,576fr) 336px",
            rows="30px minmax(0,5fr) minmax(0,4fr)",
            narrow={"right": "minmax(300px,472fr) minmax(0,576fr)"},
            stack="56px 300px 340px 222px",
        )

    def bookmarks_changed(self) -> None:
        """Draw the changed bookmark on the map and in the inspector."""
        self._map_key = ()
        super().bookmarks_changed()

    def refresh(self, changed: frozenset[str]) -> str:
        """Fill the cards. A picture is sent again only if its numbers have changed, not for every chosen head."""
        state = self.state
        self.roles.fill()
        waits = waits_for_search(self, state.statistic, state.x, state.y)
        values = chosen_values(self.data, state)
        self.map.selected = f"{state.layer}.{state.head}"
        self.scatter.selected = ",".join(f"{layer}.{head}" for layer, head in state.heads_shown)
        second_frame = second_map_frame(self.data, state, values)
        map_key = (state.site, values.name, state.pattern, state.heads, state.other_store, f"{len(self.roles.answers)}")
        if map_key != self._map_key:
            self.map.frame = map_frame(
                values,
                statistic_options(self.data, state),
                tooltip_statistics(self.data, state, values.name),
                values.name,
            ) | {
                "bookmarks": self.data.head_bookmarks(state.site),
                "roles": main_roles(self.roles.answers),
                "also": [f"{layer}.{head}" for layer, head in state.heads_shown[1:]],
                "stores": [name for name in self.data.stores if name != self.data.name],
                "beside": state.other_store if second_frame else "",
            }
            if second_frame:  # both maps need the same scale to be comparable
                high = max(values.high, second_frame["high"])
                self.map.frame = {**self.map.frame, "high": high}
                self.second_map.frame = second_frame | {"high": high}
            self.roles.card.visible, self.second_map.visible = not second_frame, bool(second_frame)
            self._map_key = map_key
        self.second_map.selected = state.other_head
        pattern = state.pattern if SEARCH in (state.x, state.y) else ""
        scatter_key = (state.site, state.x, state.y, pattern, waits)
        if scatter_key != self._scatter_key:
            self.scatter.frame = scatter_frame(self.data, state)
            self._scatter_key = scatter_key
        if map_key != self._table_key:
            self.inspector.table = {
                table.name: table.values.ravel() for table in shown_tables(self.data, state, values)
            }
            self._table_key = map_key
        self._inspect(values)
        return "a search" if values.name == SEARCH else "stored statistics" + waits

    def stop(self) -> bool:
        """End the search for roles, and what else is being read."""
        is_searching = self.roles.searches.stop()
        return super().stop() or is_searching

    def _inspect(self, values: HeadValues) -> None:
        """Fill the inspector and the distribution. Of long or of many examples their numbers come later."""
        data, state = self.data, self.state
        key = _values_key(data, state, values)
        is_cached = data.has_cached(("strongest", *key)) and data.has_cached(("spread", *key))
        at_once = is_cached or (
            not are_long(data, state.site) and (data.is_small or data.has_scores(state.site, values.name))
        )
        if not at_once:
            self.inspector.frame = inspector_frame(data, state, values, [])

        def work(check: Check) -> tuple[list[StrongExample], DistributionFrame]:
            examples = strongest_examples(data, state, values, check)
            return examples, distribution_frame(data, state, values)

        def done(frames: tuple[list[StrongExample], DistributionFrame]) -> None:
            self.inspector.frame = inspector_frame(data, state, values, frames[0])
            self.distribution.frame = frames[1]

        self.reads.start(key, work, done, self.failed, at_once=at_once)


def waits_for_search(page: Page, *names: str) -> str:
    """Start the search if it is one of `names`, and refresh the page when it is complete.

    Returns a note for the status line while the search runs, else an empty string.
    """
    state, searched = page.state, page.data.searched_statistics(page.state.site)
    patterns = [state.pattern if name == SEARCH else searched.get(name, "") for name in names]
    waiting = [pattern for pattern in patterns if pattern and not page.data.has_answer(pattern, state.site)]
    if not waiting:
        return ""

    def refresh() -> None:
        page.session.report_source(page.refresh(frozenset()), 0.0)

    mass = mass_or_search(page.data, waiting[0], state.site, page.searches, refresh)
    return "" if mass else ", while the search runs"


def statistic_options(data: DataSource, state: ViewState) -> list[list[str]]:
    """Return the numbers that can colour the map, as [name, label]."""
    statistics = [[name, data.head_values(state.site, name).label] for name in informative_statistics(data, state)]
    return [*statistics, [SEARCH, f"search: {state.pattern[:40]}"]] if state.pattern else statistics


def chosen_values(data: DataSource, state: ViewState) -> HeadValues:
    """Return the values that colour the map."""
    return named_values(data, state, state.statistic)


def named_values(data: DataSource, state: ViewState, name: str) -> HeadValues:
    """Return a statistic or the mass of the current search. Falls back to the first statistic without a result."""
    if name == SEARCH and state.pattern and data.has_answer(state.pattern, state.site):
        return data.search_values(state.pattern, state.site)
    names = informative_statistics(data, state)
    return data.head_values(state.site, name if name in names else names[0])


def informative_statistics(data: DataSource, state: ViewState) -> list[str]:
    """Return the statistics that are not NaN everywhere at the site. Cross-attention has no previous token."""
    names = data.statistics_of(state.site)
    return [n for n in names if np.isfinite(data.head_values(state.site, n).values).any()] or list(names)


def tooltip_statistics(data: DataSource, state: ViewState, besides: str) -> list[HeadStatistic]:
    """Return two more statistics for the tooltip."""
    tables = [data.head_values(state.site, name) for name in informative_statistics(data, state) if name != besides]
    return [{"label": t.label, "values": t.values.ravel()} for t in tables[:2]]


def map_frame(
    values: HeadValues, options: list[list[str]], others: list[HeadStatistic], choice: str, small: bool = False
) -> HeadMapFrame:
    """Build the frame of a head map."""
    return {
        "layers": list(values.site.layers),
        "n_heads": values.site.n_heads,
        "values": values.values.ravel(),
        "high": values.high,
        "title": values.label,
        "unit": values.unit,
        "options": options,
        "choice": choice,
        "others": others,
        "small": small,
    }


def second_map_frame(data: DataSource, state: ViewState, values: HeadValues) -> HeadMapFrame | None:
    """Build the head map of another store by the same statistic, or by its first. None if no store is chosen."""
    if data.served_with is None or state.other_store in ("", data.name):
        return None
    other = data.served_with[state.other_store]
    names = other.statistics_of("")
    if not names or not other.n_examples:
        return None
    table = other.head_values("", values.name if values.name in names else names[0])
    description = f"{table.label} over {other.n_examples:,} examples"
    frame = map_frame(table, [], [], table.name)
    frame["other"], frame["about"] = other.name, description
    return frame


def shown_tables(data: DataSource, state: ViewState, values: HeadValues) -> list[HeadValues]:
    """Return the statistics that the inspector lists, and the search if it colours the map."""
    tables = [data.head_values(state.site, name) for name in informative_statistics(data, state)]
    return tables + ([values] if values.name == SEARCH else [])


def inspector_frame(
    data: DataSource, state: ViewState, values: HeadValues, examples: list[StrongExample]
) -> InspectorFrame:
    """Build the frame of the chosen head: statistics with ranks, strongest examples, similar heads."""
    site, head = data.site(state.site), (state.layer, state.head)
    index, tables = head_index(site, *head), shown_tables(data, state, values)
    n_sharing = site.n_heads // site.n_kv_heads
    view_patch = examples[0]["patch"] if examples else {"page": "views", "example": state.example}
    list_patch = {"page": "examples", "order": "strongest", "row": 0}
    return {
        "head": f"{state.layer}.{state.head}",
        "sub": f"layer {state.layer}, head {state.head}"
        + (f", key head {state.head // n_sharing}" if n_sharing > 1 else ""),
        "tag": site.name,
        "n": site.n_layers * site.n_heads,
        "bookmark": bookmark_frame(data, state),
        "statistics": [
            {
                "name": table.name,
                "label": table.label,
                "value": float(table.values[index]),
                "rank": int(table.ranks[index]),
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
            for (a, b), score in data.similar_heads(state.site, *head)
        ],
        "open": {"query": state.to_query(**view_patch), "patch": view_patch} if data.n_examples else None,
        "list": {"query": state.to_query(**list_patch), "patch": list_patch},
    }


def bookmark_frame(data: DataSource, state: ViewState) -> BookmarkText | None:
    """Return the bookmark of the chosen head as the reader wrote it. None if the viewer has no bookmarks."""
    if data.bookmarks is None:
        return None
    bookmark = data.bookmarks.of(data.site(state.site).name, state.layer, state.head)
    return {"star": bookmark.star, "note": visible_lines(bookmark.note), "writable": data.bookmarks.is_writable}


def strongest_examples(
    data: DataSource, state: ViewState, values: HeadValues, check: Check = lambda: None
) -> list[StrongExample]:
    """Return the examples with the highest values of the chosen head, each with its strongest edge."""
    rows = []
    for quote in data.cached(
        ("strongest", *_values_key(data, state, values)), lambda: _quote_examples(data, state, values, check)
    ):
        patch = {"page": "views", "example": quote["example"], "pin": quote["pin"]}
        row: StrongExample = {
            "query": state.to_query(**patch),
            "patch": patch,
            "parts": quote["parts"],
            "score": quote["score"],
        }
        rows.append(row)
    return rows


def _values_key(data: DataSource, state: ViewState, values: HeadValues) -> tuple[object, ...]:
    """Return a key for values of one head: site, layer, head, statistic, and the pattern of a search."""
    site = data.site(state.site).name
    return site, state.layer, state.head, values.name, state.pattern if values.name == SEARCH else ""


def _quote_examples(data: DataSource, state: ViewState, values: HeadValues, check: Check) -> list[dict[str, Any]]:
    expression = state.pattern if values.name == SEARCH else data.searched_statistics(state.site).get(values.name, "")
    if expression:
        result = data.search(expression, state.site)
        hits = data.hits_of(result, state.layer, state.head, n=N_EXAMPLES, check=check)
        ranked = [(hit.example, hit.score, Edge(hit.query_pos, hit.key_pos, hit.weight)) for hit in hits]
    else:
        scores = scores_over_examples(data, state, values)
        order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")[:N_EXAMPLES]
        ranked = [(int(data.numbers[i]), float(scores[i]), None) for i in order if np.isfinite(scores[i])]
    rows = []
    for number, score, hit_edge in ranked:
        check()
        edge = hit_edge or data.strongest_edge(state.site, number, state.layer, state.head, values.name)
        parts = (
            snippet(data.example(number), data.site(state.site), edge)
            if edge
            else [[data.shown_text(number, 60), "", 0.0]]
        )
        rows.append({"example": number, "pin": f"q{edge.query_pos}" if edge else "", "parts": parts, "score": score})
    return rows


def scatter_frame(data: DataSource, state: ViewState) -> ScatterFrame:
    """Build the scatter of all heads by two statistics, shaded by layer."""
    across, up = (named_values(data, state, name) for name in (state.x, state.y))
    return {
        "layers": list(across.site.layers),
        "n_heads": across.site.n_heads,
        "x": {
            "name": across.name,
            "label": across.label,
            "unit": across.unit,
            "high": across.high,
            "values": across.values.ravel(),
        },
        "y": {"name": up.name, "label": up.label, "unit": up.unit, "high": up.high, "values": up.values.ravel()},
        "options": statistic_options(data, state),
        "note": f"means over {data.n_examples:,} examples",
    }


def distribution_frame(data: DataSource, state: ViewState, values: HeadValues) -> DistributionFrame:
    """Build the distribution of the chosen head's values over the examples: histogram and quartiles."""
    patch = {"page": "examples", "order": "strongest", "row": 0}
    spread = data.cached(("spread", *_values_key(data, state, values)), lambda: _spread(data, state, values))
    return {
        "title": f"{values.label} of head {state.layer}.{state.head}",
        "unit": values.unit,
        **spread,
        "corpus": float(values.values[head_index(values.site, state.layer, state.head)]),
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
    """Return the values of the chosen head on every example, by position. NaN for examples without a value."""
    if values.name == SEARCH:
        return data.search_scores(state.pattern, state.site, state.layer, state.head)
    return data.over_examples(state.site, values.name)[head_index(values.site, state.layer, state.head)]
