"""The search page: a pattern, the heads that show it, the examples that show it best.

A search runs in a thread; until it has answered the last answer stays, dimmed and named as such. A mistake in the
expression is shown under the word at fault.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from headatlas.store.errors import HeadAtlasError, PatternError

from ..components.card import HeadList, HeadMap, Kwic, PatternBox, StateCard, Summary
from ..answers import SearchAnswer
from ..data import DataSource
from ..labels import visible
from ..quotes import around
from ..state import ViewState
from .corpus import map_frame
from .page import Page, grid, place

MAX_HEADS, MAX_ROWS = 250, 200
START = "previous_token"


class SearchPage(Page):
    """Pattern, map, summary, ranked heads, ranked examples."""

    name = "search"
    watches: ClassVar[frozenset[str]] = frozenset({"page", "site", "pattern", "measure", "layer", "head"})

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        send = session.receive
        self.box, self.map, self.summary = PatternBox(send), HeadMap(send), Summary(send)
        self.heads, self.examples, self.state_card = HeadList(send), Kwic(send), StateCard(send)
        top = grid(place(self.box), place(self.map), columns="minmax(0,1fr) 152px")
        self.results = grid(place(self.heads), place(self.examples), columns="minmax(420px,592fr) minmax(0,804fr)")
        self.view = grid(place(top), place(self.summary), place(self.results), place(self.state_card), rows="150px 34px minmax(0,1fr)", gap="8px")
        self._asked: tuple[str, str] | None = None
        self._answer: SearchAnswer | None = None
        self._error: HeadAtlasError | None = None
        self._took = 0.0
        self._busy = False

    def refresh(self, changed: frozenset[str]) -> str:
        """Ask where the pattern is new, and fill the cards from the last answer."""
        asked = (self.state.site, self.state.pattern)
        if asked != self._asked:
            self._asked = asked
            self._ask(asked)
        self._fill()
        return self._source()

    def _ask(self, asked: tuple[str, str]) -> None:
        site, expression = asked
        if not expression:
            self._answer, self._error, self._busy = None, None, False
            return
        try:
            self.data.check_pattern(expression, site)  # a mistake is found before any work
        except HeadAtlasError as error:
            self._error, self._busy = error, False
            return
        self._error, self._busy = None, True
        started = perf_counter()

        def work() -> SearchAnswer | HeadAtlasError:
            try:
                return self.data.search(expression, site)
            except HeadAtlasError as error:
                return error

        def done(result: SearchAnswer | HeadAtlasError) -> None:
            if self._asked != asked:  # another question was asked meanwhile
                return
            self._busy, self._took = False, perf_counter() - started
            if isinstance(result, HeadAtlasError):
                self._error = result
            else:
                self._answer = result
            self._fill()
            self.session.answered(self._source(), self._took)

        self.session.background(work, done)

    def _source(self) -> str:
        return self._answer.source if self._answer is not None else ""

    def _fill(self) -> None:
        state, answer = self.state, self._answer
        stale = answer is not None and (self._busy or answer.expression != state.pattern)
        self.box.frame = box_frame(self.data, state, self._error, self._busy)
        shown = answer is not None and answer.n_rows > 0
        self.results.visible = self.map.visible = shown
        self.summary.visible = answer is not None
        self.state_card.visible = not shown
        if answer is None or not shown:
            self.state_card.frame = waiting_frame(self.data, state, self._busy, no_match=answer is not None)
            if answer is None:
                return
        self.summary.frame = summary_frame(answer, self.data, self._took, stale)
        if shown:
            self.map.selected = f"{state.layer}.{state.head}"
            self.map.frame = map_frame(answer.values, [], [], "search", small=True)
            self.heads.frame = heads_frame(answer, state, stale)
            self.examples.frame = kwic_frame(self.data, state, answer, stale)


def box_frame(data: DataSource, state: ViewState, error: HeadAtlasError | None, busy: bool) -> dict[str, Any]:
    """The expression with the library and the mistake."""
    library = data.library
    picked = next((name for name, item in library.items() if state.pattern in (name, item.expression)), "")
    about = library[picked].description if picked else "fields: " + ", ".join(data.fields(state.site)[:14])
    mistake = None
    if isinstance(error, PatternError):
        mistake = {"message": visible(str(error)), "start": error.start, "stop": error.stop, "expression": state.pattern}
    elif error is not None:
        mistake = {"message": visible(str(error)), "start": 0, "stop": 0, "expression": state.pattern}
    return {
        "expression": state.pattern,
        "library": [{"name": item.name, "expression": item.expression, "description": item.description} for item in library.values()],
        "picked": picked,
        "description": about,
        "error": mistake,
        "busy": busy,
    }


def waiting_frame(data: DataSource, state: ViewState, busy: bool, no_match: bool) -> dict[str, Any]:
    """What stands where results would be."""
    if busy:
        return {"kind": "loading", "title": "Searching", "lines": [f"{data.n_examples:,} examples"], "loading": True}
    if no_match:
        return {
            "kind": "no-match",
            "title": "No match",
            "lines": [f"No row of {data.n_examples:,} examples has a key that matches."],
            "code": visible(state.pattern),
        }
    patch = {"page": "search", "pattern": data.library[START].expression} if START in data.library else {"page": "search"}
    return {
        "kind": "no-search",
        "title": "Which heads do this?",
        "lines": ["Write a condition on a query token and a key token, or pick one above. Every head is scored for it over all examples."],
        "actions": [{"label": START.replace("_", " "), "query": state.to_query(**patch), "patch": patch, "primary": True}],
    }


def summary_frame(answer: SearchAnswer, data: DataSource, seconds: float, stale: bool) -> dict[str, Any]:
    """On what the answer rests."""
    above = int((answer.lift > 1).sum())
    figures = [
        [f"{answer.n_rows:,}", "query rows with a match"],
        [f"{answer.n_examples:,}", f"of {data.n_examples:,} examples"],
        [f"{answer.mass.size:,}", "heads"],
        [f"{above:,}", "above baseline"],
    ]
    took = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    return {"figures": figures, "right": [f"from {answer.source}", took], "stale": "of the last valid pattern" if stale else ""}


def heads_frame(answer: SearchAnswer, state: ViewState, stale: bool) -> dict[str, Any]:
    """Heads by the chosen measure, best first."""
    measure = {"mass": answer.mass, "hit_rate": answer.hit_rate, "lift": answer.lift}[state.measure]
    order = np.argsort(-np.nan_to_num(measure, nan=-1.0), axis=None, kind="stable")[:MAX_HEADS]
    n_heads = answer.mass.shape[1]
    rows = []
    for rank, flat in enumerate(order.tolist(), 1):
        spot = divmod(flat, n_heads)
        rows.append(
            {
                "head": f"{spot[0]}.{spot[1]}",
                "layer": spot[0],
                "index": spot[1],
                "rank": rank,
                "mass": float(answer.mass[spot]),
                "hit_rate": float(answer.hit_rate[spot]),
                "baseline": float(answer.baseline[spot]),
                "uniform": float(answer.uniform),
                "lift": float(answer.lift[spot]),
                "rows": int(answer.n_rows),
                "on": spot == (state.layer, state.head),
            }
        )
    return {"rows": rows, "high": answer.values.high, "measure": state.measure, "n_heads": answer.mass.size, "stale": stale, "has_offset": answer.has_offset}


def kwic_frame(data: DataSource, state: ViewState, answer: SearchAnswer, stale: bool) -> dict[str, Any]:
    """The examples that show the pattern best in the chosen head, with their strongest matching edge."""
    site = data.site(state.site)
    hits = data.search_examples(answer.expression, state.site, state.layer, state.head)
    rows = []
    for hit in hits[:MAX_ROWS]:
        patch = {"page": "views", "view": "head", "example": hit.number, "pin": f"q{hit.edge.query_pos}"}
        example = data.example(hit.number)
        quoted = around(example, site, hit.edge)
        rows.append({"id": visible(example.id), "score": hit.score, "weight": hit.edge.weight, "query": state.to_query(**patch), "patch": patch, **quoted})
    return {
        "title": f"Examples for head {state.layer}.{state.head}",
        "sub": f"{answer.n_examples:,} with a match",
        "rows": rows,
        "stale": stale,
        "note": "No example has a match in this head.",
    }


