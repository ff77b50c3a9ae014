"""The search page: a pattern, the heads that show it, the examples that show it best.

A search runs in a thread; until it has answered the last answer stays, dimmed and named as such. A mistake in the
expression is shown under the word at fault.
"""

from __future__ import annotations

from threading import Event
from typing import Any

import numpy as np
import panel as pn

from headatlas.store.errors import HeadAtlasError, PatternError
from headatlas.store.queries.pattern_search import SearchProgress, SearchResult

from ..components.background import background
from ..components.cards import (
    DrawnArcs,
    HeadBookmarks,
    HeadList,
    HeadListFrame,
    HeadMap,
    Kwic,
    Mistake,
    PatternBox,
    PatternFrame,
    StateCard,
    StateFrame,
    Summary,
    SummaryFrame,
)  # fmt: skip
from ..data.arc_guess import MAX_ARCS, Arc, guesses
from ..data.search_answers import SearchStoppedError, mass_of, upper_end
from ..data.store_data import DataSource
from ..data.store_facts import error_bound
from ..frames.view_frames import table_frame
from ..state.reader_state import ViewState
from ..theme.token_labels import visible
from .corpus_page import map_frame
from .layout import grid, place, show
from .page import Page
from .quoted_examples import kwic_frame

MAX_HEADS = 250
MAX_DRAWN = 256
"""Tokens of an example that arcs are drawn on."""
START = "previous_token"


class SearchPage(Page):
    """Pattern, map, summary, ranked heads, ranked examples."""

    def layout(self) -> pn.Column:
        """Build the cards and their layout, once."""
        send = self.session.receive
        self.box, self.map, self.summary = PatternBox(send), HeadMap(send), Summary(send)
        self.heads, self.examples, self.state_card = HeadList(send), Kwic(send), StateCard(send)
        top = grid(place(self.box), place(self.map), columns="minmax(0,1fr) 152px")
        self.results = grid(place(self.heads), place(self.examples), columns="minmax(420px,592fr) minmax(0,804fr)")
        cells = [
            place(top, "1", "1"),
            place(self.summary, "1", "2"),
            place(self.results, "1", "3"),
            place(self.state_card, "1", "3"),
        ]
        self._asked: tuple[str, str] | None = None
        self._answer: SearchResult | None = None
        self._error: HeadAtlasError | None = None
        self._took = 0.0
        self._busy = False
        self._progress: SearchProgress | None = None
        self._cancel = Event()
        if pn.state.curdoc is not None:
            pn.state.on_session_destroyed(lambda context: self._cancel.set())
        return grid(*cells, rows="158px 34px minmax(0,1fr)", gap="8px")

    def refresh(self, changed: frozenset[str]) -> str:
        """Ask where the pattern is new, and fill the cards from the last answer."""
        asked = (self.state.site, self.state.pattern)
        if asked != self._asked:
            self._asked = asked
            self._ask(asked)
        self._fill()
        return self._source()

    def heard(self, message: dict[str, Any]) -> None:
        """Stop a search, or take the arcs that were drawn."""
        if message.get("cancel"):
            self._cancel.set()
        elif "arcs" in message:
            self.session.go({"arcs": arcs_text(arcs_of(message["arcs"]))})

    def _ask(self, asked: tuple[str, str]) -> None:
        site, expression = asked
        self._cancel.set()  # the question before is no longer waited for
        self._cancel, self._progress = Event(), None
        if not expression:
            self._answer, self._error, self._busy = None, None, False
            return
        try:
            self.data.check_pattern(expression, site)  # a mistake is found before any work
        except HeadAtlasError as error:
            self._error, self._busy = error, False
            return
        self._error, self._busy = None, not self.data.has_answer(expression, site)
        cancel, document = self._cancel, pn.state.curdoc

        def told(progress: SearchProgress) -> None:
            if self._asked == asked and not cancel.is_set():
                self._progress = progress
                if document is not None and document.session_context is not None:
                    document.add_next_tick_callback(self._fill_box)

        def work() -> SearchResult | HeadAtlasError:
            try:
                return self.data.search(expression, site, told, cancel.is_set)
            except SearchStoppedError as stopped:
                return stopped.result
            except HeadAtlasError as error:
                return error

        def done(result: SearchResult | HeadAtlasError) -> None:
            if self._asked != asked:  # another question was asked meanwhile
                return
            self._busy, self._progress = False, None
            if isinstance(result, HeadAtlasError):
                self._error = result
            else:
                self._answer = result
                self._took = result.seconds
            self._fill()
            self._choose_head()
            self.session.answered(self._source(), self._took)

        if self._busy:
            background(work, done)
        else:
            done(work())

    def _choose_head(self) -> None:
        """Go to the strongest head where the search was asked without one."""
        if self._answer is None or self._error is not None or not self._answer.rows or not self.session.wants_best_head:
            return
        self.session.wants_best_head = False
        layer, head = mass_of(self._answer).best
        if (layer, head) != (self.state.layer, self.state.head):
            self.session.go({"layer": layer, "head": head}, push=False)

    def _source(self) -> str:
        return source(self.data, self._answer) if self._answer is not None else ""

    def _fill(self) -> None:
        state, answer = self.state, self._answer
        stale = answer is not None and (self._busy or answer.pattern.expression != state.pattern)
        self._fill_box()
        shown = answer is not None and answer.rows > 0
        show(self.results, shown)
        self.map.visible = shown
        self.box.styles = {**self.box.styles, "grid-column": "1" if shown else "1 / 3"}
        self.state_card.styles = {**self.state_card.styles, "grid-row": "3" if answer is not None else "2 / 4"}
        self.summary.visible = answer is not None
        self.state_card.visible = not shown
        if answer is None or not shown:
            self.state_card.frame = waiting_frame(self.data, state, self._busy, answer, self._error)
            if answer is None:
                return
        self.summary.frame = summary_frame(answer, self.data, self._took, stale)
        if shown:
            self.map.selected = f"{state.layer}.{state.head}"
            bookmarks = self.data.head_bookmarks(state.site)
            self.map.frame = map_frame(mass_of(answer), [], [], "search", small=True) | {"bookmarks": bookmarks}
            self.heads.frame = heads_frame(answer, state, stale, bookmarks)
            self.examples.frame = kwic_frame(self.data, state, answer, stale)

    def _fill_box(self) -> None:
        """The expression, the mistake, how far the search is, and what is drawn."""
        frame = box_frame(self.data, self.state, self._error, self._busy)
        progress = self._progress
        frame["progress"] = [progress.n_examples_done, progress.n_examples] if progress and self._busy else None
        arcs = arcs_of_text(self.state.arcs)
        frame["drawn"] = None if arcs is None else drawn_frame(self.data, self.state, arcs)
        self.box.frame = frame


def arcs_of(given: Any) -> list[Arc] | None:
    """Arcs as a browser names them; None where it draws none."""
    if not isinstance(given, list):
        return None
    arcs: list[Arc] = []
    for item in given[:MAX_ARCS]:
        if isinstance(item, list) and len(item) == 2:
            query, key = item
            if type(query) is int and type(key) is int and 0 <= query < MAX_DRAWN and 0 <= key < MAX_DRAWN:
                arcs.append((query, key))
    return arcs


def arcs_text(arcs: list[Arc] | None) -> str:
    """Arcs as the address names them."""
    return "" if arcs is None else ",".join(f"{query}>{key}" for query, key in arcs) or "none"


def arcs_of_text(text: str) -> list[Arc] | None:
    """The same read; None where nothing is drawn."""
    pairs = [arc.split(">") for arc in text.split(",")] if text not in ("", "none") else []
    return [(int(query), int(key)) for query, key in pairs] if text else None


def drawn_frame(data: DataSource, state: ViewState, arcs: list[Arc]) -> DrawnArcs:
    """The tokens that arcs are drawn on, the arcs, and what they may mean."""
    site, example = data.site(state.site), data.example(state.example)
    queries = table_frame(example.tokens(site.query_sequence))
    keys = queries if site.query_sequence == site.key_sequence else table_frame(example.tokens(site.key_sequence))
    n_queries, n_keys = (min(len(side["labels"]), MAX_DRAWN) for side in (queries, keys))
    arcs = [(query, key) for query, key in arcs if query < n_queries and key < n_keys]
    return {
        "id": visible(example.id),
        "queries": queries["labels"][:n_queries],
        "keys": None if keys is queries else keys["labels"][:n_keys],
        "arcs": [list(arc) for arc in arcs],
        "guesses": [[g.expression, g.n_matches] for g in guesses(data, state.example, state.site, arcs)],
    }


def box_frame(data: DataSource, state: ViewState, error: HeadAtlasError | None, busy: bool) -> PatternFrame:
    """The expression with the library and the mistake."""
    library = data.library
    picked = next((name for name, item in library.items() if state.pattern in (name, item.expression)), "")
    about = library[picked].description if picked else "fields: " + ", ".join(data.fields(state.site)[:14])
    mistake: Mistake | None = None
    if isinstance(error, PatternError):
        mistake = {
            "message": data.error_text(error),
            "start": error.start,
            "stop": error.stop,
            "expression": state.pattern,
        }
    elif error is not None:
        mistake = {"message": data.error_text(error), "start": 0, "stop": 0, "expression": state.pattern}
    return {
        "expression": state.pattern,
        "library": [
            {"name": item.name, "expression": item.expression, "description": item.description}
            for item in library.values()
        ],
        "fields": {
            side: list(fields)
            for side, fields in zip(("query", "key", "example"), _sides(data, state.site), strict=True)
        },
        "values": {field: [list(v) for v in found] for field, found in data.field_values(state.site).items()},
        "picked": picked,
        "description": about,
        "error": mistake,
        "busy": busy,
        "progress": None,
        "drawn": None,
    }


def _sides(data: DataSource, site: str) -> tuple[Any, Any, Any]:
    vocabulary = data.vocabulary(site)
    return vocabulary.query, vocabulary.key, vocabulary.example


def source(data: DataSource, answer: SearchResult) -> str:
    """Where an answer comes from, with its error."""
    if answer.basis == "edges":
        return "edges (mass is a lower bound)"
    if answer.basis == "rebuilt":
        return f"attention rebuilt from query and key ({data.store.spec.keep.query_key})"
    if "mass_upper" in answer.heads:
        return f"attention ({data.store.spec.keep.attention}: mass is a lower bound)"
    return f"attention, {error_bound(data.store.spec)}"


def waiting_frame(
    data: DataSource, state: ViewState, busy: bool, answer: SearchResult | None, error: HeadAtlasError | None
) -> StateFrame:
    """What stands where results would be."""
    if busy:
        return {"kind": "loading", "title": "Searching", "lines": [f"{data.n_examples:,} examples"], "loading": True}
    if error is not None:
        return {
            "kind": "mistake",
            "title": "Nothing was searched",
            "lines": ["Mend what is underlined above, then run it again."],
        }
    if answer is not None:
        return {
            "kind": "no-match",
            "title": "No match",
            "lines": [
                f"No row of {data.n_examples:,} examples has a key that matches.",
                *(visible(note) for note in answer.notes),
            ],
            "code": visible(state.pattern),
        }
    patch = (
        {"page": "search", "pattern": data.library[START].expression} if START in data.library else {"page": "search"}
    )
    return {
        "kind": "no-search",
        "title": "Which heads do this?",
        "lines": [
            "Write a condition on a query token and a key token, or pick one above. Every head is scored for it over all examples."
        ],
        "actions": [
            {"label": START.replace("_", " "), "query": state.to_query(**patch), "patch": patch, "primary": True}
        ],
    }


def summary_frame(answer: SearchResult, data: DataSource, seconds: float, stale: bool) -> SummaryFrame:
    """On what the answer rests."""
    above = int((answer.heads["lift"].values > 1).sum())
    beyond, offset = int((answer.evidence.heads["offset_lift"].values > 1).sum()), answer.evidence.offset_baseline
    figures = [
        [f"{answer.rows:,}", "query rows with a match"],
        [f"{answer.n_examples:,}", f"of {data.n_examples:,} examples"],
        [f"{answer.heads['mass'].size:,}", "heads"],
        [f"{above:,}", "above uniform attention"],
        *([[f"{beyond:,}", "above the best fixed offset"]] if np.isfinite(offset) else []),
    ]
    took = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    return {
        "figures": figures,
        "partial": ""
        if answer.is_complete
        else f"stopped after {answer.n_examples_searched:,} of {data.n_examples:,} examples",
        "right": [f"from {source(data, answer)}", took],
        "stale": "of the last valid pattern" if stale else "",
    }


def heads_frame(
    answer: SearchResult, state: ViewState, stale: bool, bookmarks: HeadBookmarks | None = None
) -> HeadListFrame:
    """Heads by the chosen measure, best first, each with its interval; the baselines are for all."""
    proof = answer.evidence
    table = {name: answer.heads[name].values for name in ("mass", "hit_rate", "baseline", "lift")}
    beside = {
        name: proof.heads[given].values
        for name, given in (
            ("low", "mass_low"),
            ("high", "mass_high"),
            ("offset_lift", "offset_lift"),
            ("q", "q_value"),
        )
    }
    order = np.argsort(-np.nan_to_num(table[state.measure], nan=-1.0), axis=None, kind="stable")[:MAX_HEADS]
    n_heads = table["mass"].shape[1]
    rows = []
    for rank, flat in enumerate(order.tolist(), 1):
        spot = divmod(flat, n_heads)
        figures = {name: float(values[spot]) for name, values in (table | beside).items()}
        chosen = spot == (state.layer, state.head)
        rows.append(
            {
                "head": f"{spot[0]}.{spot[1]}",
                "layer": spot[0],
                "index": spot[1],
                "rank": rank,
                **figures,
                "rows": answer.rows,
                "bookmark": (bookmarks or {}).get(f"{spot[0]}.{spot[1]}"),
                "on": chosen,
            }
        )
    offset = proof.offset_baseline
    scale = np.concatenate([table["mass"].ravel(), beside["high"].ravel(), table["baseline"].ravel(), [offset]])
    return {
        "rows": rows,
        "high": upper_end(scale.astype(np.float32)),
        "measure": state.measure,
        "n_heads": table["mass"].size,
        "stale": stale,
        "offset": offset if np.isfinite(offset) else None,
        "offsets": " and ".join(f"{step:+d}".replace("-", "\u2212") if step else "0" for step in proof.offsets),
        "ranked": proof.is_supported,
    }
