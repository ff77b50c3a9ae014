"""The search page: a pattern, the heads that match it, and the examples with the best matches.

A search runs in a thread. Until it is complete the page shows the last result, dimmed and labelled. A mistake in the
expression is marked under the word that causes it.
"""

from __future__ import annotations

from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import panel as pn

from headatlas.store.errors import HeadAtlasError, PatternError
from headatlas.store.patterns import LibraryPattern
from headatlas.store.patterns.token_fields import EXAMPLE_FIELDS, TOKEN_FIELDS
from headatlas.store.queries.evidence.nulls import NULLS
from headatlas.store.queries.pattern_search import SearchProgress, SearchResult

from ..components.background import SEARCHING, Check, Newest, background
from ..components.bars import StateCard, StateFrame, StateItem
from ..components.card import HeadBookmarks
from ..components.corpus_cards import HeadMap
from ..components.search_cards import (
    HeadList,
    HeadListFrame,
    Kwic,
    KwicFrame,
    Mistake,
    PatternBox,
    PatternFrame,
    Summary,
    SummaryFrame,
)
from ..data.arc_guess import Arc, Guess, guesses
from ..data.search_answers import SearchStoppedError, mass_of, upper_end
from ..data.store_data import DataSource
from ..data.store_facts import error_bound
from ..state.reader_state import ViewState
from ..theme.token_labels import visible
from .corpus_page import map_frame
from .drawn_arcs import arcs_of, arcs_of_text, arcs_text, drawn_frame
from .layout import grid, in_cell, show
from .page import Page
from .quoted_examples import are_long, kwic_frame

MAX_HEADS = 250


class SearchPage(Page):
    """Page with pattern, map, summary, ranked heads and ranked examples."""

    def layout(self) -> pn.Column:
        """Build the cards and their layout, once."""
        send = self.session.receive
        self.box, self.map, self.summary = PatternBox(send), HeadMap(send), Summary(send)
        self.heads, self.examples, self.state_card = HeadList(send), Kwic(send), StateCard(send)
        self.heads.caption = lambda: replace(self.caption(), sentence=visible(self.state.pattern))
        top = grid(in_cell(self.box), in_cell(self.map), columns="minmax(0,1fr) 152px")
        self.results = grid(
            in_cell(self.heads),
            in_cell(self.examples),
            columns="minmax(420px,592fr) minmax(0,804fr)",
            stack="360px 460px",
        )
        cells = [
            in_cell(top, "1", "1"),
            in_cell(self.summary, "1", "2"),
            in_cell(self.results, "1", "3"),
            in_cell(self.state_card, "1", "3"),
        ]
        self.guesses = Newest()
        self._request: tuple[str, str] | None = None
        self._result: SearchResult | None = None
        self._error: HeadAtlasError | None = None
        self._took = 0.0
        self._busy = False
        self._progress: SearchProgress | None = None
        self._cancel = Event()
        if pn.state.curdoc is not None:
            pn.state.on_session_destroyed(lambda context: self._cancel.set())
        return grid(
            *cells, rows="minmax(132px,auto) 34px minmax(0,1fr)", gap="8px", stack="minmax(132px,auto) 34px auto"
        )

    def refresh(self, changed: frozenset[str]) -> str:
        """Start a search if the pattern is new, and fill the cards from the last result."""
        request = (self.state.site, self.state.pattern)
        if request != self._request:
            self._request = request
            self._start_search(request)
        self._fill()
        return self._source()

    def on_message(self, message: dict[str, Any]) -> None:
        """Stop a search, or store the arcs that the reader has drawn."""
        if message.get("cancel"):
            self._cancel.set()
        elif "arcs" in message:
            self.session.go({"arcs": arcs_text(arcs_of(message["arcs"]))})

    def _start_search(self, request: tuple[str, str]) -> None:
        site, expression = request
        self._cancel.set()  # stops the previous search
        self._cancel, self._progress = Event(), None
        if not expression:
            self._result, self._error, self._busy = None, None, False
            return
        try:
            self.data.check_pattern(expression, site)  # reports a mistake before the search starts
        except HeadAtlasError as error:
            self._error, self._busy = error, False
            return
        self._error, self._busy = None, not self.data.has_answer(expression, site)
        cancel, document = self._cancel, pn.state.curdoc

        def report_progress(progress: SearchProgress) -> None:
            if self._request == request and not cancel.is_set():
                self._progress = progress
                if document is not None and document.session_context is not None:
                    document.add_next_tick_callback(self._fill_box)

        def work() -> SearchResult | HeadAtlasError:
            try:
                return self.data.search(expression, site, report_progress, cancel.is_set)
            except SearchStoppedError as error:
                return error.result
            except HeadAtlasError as error:
                return error

        def done(result: SearchResult | HeadAtlasError) -> None:
            if self._request != request:  # the reader has started another search meanwhile
                return
            self._busy, self._progress = False, None
            if isinstance(result, HeadAtlasError):
                self._error = result
            else:
                self._result = result
                self._took = result.seconds
            self._fill()
            self._choose_head()
            self.session.report_source(self._source(), self._took)

        if self._busy:
            background(work, done, SEARCHING)
        else:
            done(work())

    def _choose_head(self) -> None:
        """Choose the strongest head if the search was started without a chosen head."""
        if self._result is None or self._error is not None or not self._result.rows or not self.session.wants_best_head:
            return
        self.session.wants_best_head = False
        layer, head = mass_of(self._result).best
        if (layer, head) != (self.state.layer, self.state.head):
            self.session.go({"layer": layer, "head": head}, push=False)

    def _source(self) -> str:
        return source(self.data, self._result) if self._result is not None else ""

    def _fill(self) -> None:
        state, result = self.state, self._result
        stale = result is not None and (self._busy or result.pattern.expression != state.pattern)
        self._fill_box()
        has_rows = result is not None and result.rows > 0
        show(self.results, has_rows)
        self.map.visible = has_rows
        self.box.styles = {**self.box.styles, "grid-column": "1" if has_rows else "1 / 3"}
        self.state_card.styles = {**self.state_card.styles, "grid-row": "3" if result is not None else "2 / 4"}
        self.summary.visible = result is not None
        self.state_card.visible = not has_rows
        if result is None or not has_rows:
            self.state_card.frame = waiting_frame(self.data, state, self._busy, result, self._error)
            if result is None:
                return
        self.summary.frame = summary_frame(result, self.data, self._took, stale)
        if has_rows:
            self.map.selected = f"{state.layer}.{state.head}"
            bookmarks = self.data.head_bookmarks(state.site)
            self.map.frame = map_frame(mass_of(result), [], [], "search", small=True) | {"bookmarks": bookmarks}
            self.heads.frame = heads_frame(result, state, stale, bookmarks)
            self._quote(result, stale)

    def _quote(self, result: SearchResult, stale: bool) -> None:
        """Fill the list of quoted examples. Those of long or of many examples come later."""
        state, site = self.state, result.site.name
        key = (site, result.pattern.expression, result.n_examples_searched, stale)
        key += (state.layer, state.head, state.sample)

        def done(frame: KwicFrame) -> None:
            self.examples.frame = frame

        self.reads.start(
            key, lambda check: kwic_frame(self.data, state, result, stale, check), done, self.failed,
            at_once=self.data.is_small and not are_long(self.data, site),
        )  # fmt: skip

    def _fill_box(self) -> None:
        """Fill the box of the pattern: expression, mistake, progress and drawn arcs."""
        frame = box_frame(self.data, self.state, self._error, self._busy)
        progress = self._progress
        frame["progress"] = [progress.n_examples_done, progress.n_examples] if progress and self._busy else None
        arcs = arcs_of_text(self.state.arcs)
        frame["drawn"] = None if arcs is None else drawn_frame(self.data, self.state, arcs, self._guess(arcs))
        self.box.frame = frame

    def _guess(self, arcs: list[Arc]) -> list[Guess]:
        """Return the guesses of the pattern of drawn arcs. Those of a long example come later; empty until then."""
        data, number, site = self.data, self.state.example, self.state.site
        key = ("guesses", number, site, *arcs)
        at_once = not arcs or data.has_cached(key) or not are_long(data, site)
        if at_once:
            self.guesses.stop()
            return data.cached(key, lambda: guesses(data, number, site, arcs))

        def work(check: Check) -> list[Guess]:
            return data.cached(key, lambda: guesses(data, number, site, arcs))

        self.guesses.start(key, work, lambda _: self._fill_box(), self.failed, at_once=False)
        return []

    def stop(self) -> bool:
        """End the reading of quotes and the guess of a pattern."""
        is_guessing = self.guesses.stop()
        return super().stop() or is_guessing


def box_frame(data: DataSource, state: ViewState, error: HeadAtlasError | None, busy: bool) -> PatternFrame:
    """Build the frame of the pattern box: the expression, the library and the mistake."""
    library = data.library(state.site)
    library_name = next((name for name, item in library.items() if state.pattern in (name, item.expression)), "")
    description = library[library_name].description if library_name else fields_text(data, state.site)
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
            {"name": item.name, "label": item.label, "expression": item.expression, "description": item.description}
            for item in library.values()
        ],
        "fields": dict(zip(("query", "key", "example"), _sides(data, state.site), strict=True)),
        "values": {field: [list(v) for v in counts] for field, counts in data.field_values(state.site).items()},
        "picked": library_name,
        "description": description,
        "error": mistake,
        "busy": busy,
        "progress": None,
        "drawn": None,
    }


def fields_text(data: DataSource, site: str) -> str:
    """Return the columns of the corpus and some fields of every token, as patterns name them."""
    query, _, example = _sides(data, site)
    columns = [f"example.{visible(name)}" for name in example if name not in EXAMPLE_FIELDS]
    columns += [f"query.{visible(name)}" for name in query if name not in TOKEN_FIELDS]
    fields = f"of every token: {', '.join(TOKEN_FIELDS)}"
    return f"fields of this corpus: {', '.join(columns)}; {fields}" if columns else fields


def _sides(data: DataSource, site: str) -> tuple[list[str], ...]:
    """Return the field names of query, key and example, those of the corpus first."""
    vocabulary = data.vocabulary(site)
    sides = ((vocabulary.query, TOKEN_FIELDS), (vocabulary.key, TOKEN_FIELDS), (vocabulary.example, EXAMPLE_FIELDS))
    return tuple(sorted(fields, key=lambda name, known=known: name in known) for fields, known in sides)


def source(data: DataSource, result: SearchResult) -> str:
    """Return the traces that a result is computed from, with their error."""
    if result.basis == "edges":
        return "edges (mass is a lower bound)"
    if result.basis == "rebuilt":
        return f"attention rebuilt from query and key ({data.store.spec.keep.query_key})"
    if "mass_upper" in result.heads:
        return f"attention ({data.store.spec.keep.attention}: mass is a lower bound)"
    return f"attention, {error_bound(data.store.spec)}"


def waiting_frame(
    data: DataSource, state: ViewState, busy: bool, result: SearchResult | None, error: HeadAtlasError | None
) -> StateFrame:
    """Build the card that is shown without results."""
    if busy:
        return {"kind": "loading", "title": "Searching", "lines": [f"{data.n_examples:,} examples"], "loading": True}
    if error is not None:
        return {
            "kind": "mistake",
            "title": "The search did not run",
            "lines": [
                "Correct the underlined part of the pattern, then run the search again."
                if isinstance(error, PatternError)
                else data.error_text(error)
            ],
        }
    if result is not None:
        return {
            "kind": "no-match",
            "title": "No match",
            "lines": [
                f"No row of {data.n_examples:,} examples has a matching key.",
                *(visible(note) for note in result.notes),
            ],
            "code": visible(state.pattern),
        }
    library = data.library(state.site)
    return {
        "kind": "no-search",
        "title": "Search for heads",
        "lines": [
            "Write a condition on a query token and a key token, or choose a pattern. "
            "The search scores every head over all examples."
        ],
        "items": [_item(state, item) for item in library.values()],
    }


def _item(state: ViewState, item: LibraryPattern) -> StateItem:
    return {
        "group": item.group,
        "name": item.name,
        "label": item.label,
        "text": item.description,
        "run": item.expression,
    }


NULL_LABELS: dict[str, str] = {
    "uniform": "uniform attention",
    "sink_free": "uniform attention without sinks",
    "habit": "the head's habit",
    "matched": "matched keys",
    "labels": "permuted labels",
    "mismatched": "mismatched pairs",
    "offset": "the best offset",
}


def summary_frame(result: SearchResult, data: DataSource, seconds: float, stale: bool) -> SummaryFrame:
    """Build the summary of a result: numbers of rows, examples and heads."""
    null = result.evidence.null
    figures = [
        [f"{result.rows:,}", "query rows with a match"],
        [f"{result.n_examples:,}", f"of {data.n_examples:,} examples"],
        [f"{result.heads['mass'].size:,}", "heads"],
        [f"{null.n_above:,}", f"above {NULL_LABELS[null.name]} (q < 0.05)"],
        [f"{result.evidence.n_units:,}", f"sampling units: {visible(result.evidence.units.name)}"],
    ]
    duration = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    return {
        "figures": figures,
        "partial": ""
        if result.is_complete
        else f"stopped after {result.n_examples_searched:,} of {data.n_examples:,} examples",
        "right": [*map(visible, result.notes), f"from {source(data, result)}", duration],
        "stale": "of the last valid pattern" if stale else "",
    }


def heads_frame(
    result: SearchResult, state: ViewState, stale: bool, bookmarks: HeadBookmarks | None = None
) -> HeadListFrame:
    """Build the list of heads by the chosen measure, best first, each with its interval and the baselines."""
    evidence = result.evidence
    table = {name: result.heads[name].values for name in ("mass", "hit_rate", "baseline", "lift")}
    evidence_table = {
        name: evidence.heads[column].values
        for name, column in (
            ("low", "mass_low"),
            ("high", "mass_high"),
        )
    }
    null_table = {name: evidence.null.heads[name].values for name in ("expected", "above", "above_high", "q_value")}
    evidence_table |= {"q": null_table.pop("q_value"), **null_table}
    is_explained = evidence.null.is_explained
    descending = -np.nan_to_num(table[state.measure], nan=-1.0).ravel()
    order = np.argsort(descending, kind="stable")[:MAX_HEADS]
    ranks = 1 + np.searchsorted(descending[order], descending[order])  # equal heads share a rank
    rows = []
    for rank, flat in zip(ranks.tolist(), order.tolist(), strict=True):
        head = result.site.heads[flat]
        figures = {name: float(values.flat[flat]) for name, values in (table | evidence_table).items()}
        is_chosen = head == (state.layer, state.head)
        rows.append(
            {
                "head": f"{head[0]}.{head[1]}",
                "layer": head[0],
                "index": head[1],
                "rank": rank,
                **figures,
                "is_explained": bool(is_explained.flat[flat]),
                "rows": int(result.example_rows[flat // result.site.n_heads].sum()),
                "bookmark": (bookmarks or {}).get(f"{head[0]}.{head[1]}"),
                "on": is_chosen,
            }
        )
    columns = table["mass"], evidence_table["high"], table["baseline"], evidence_table["expected"]
    scale = np.concatenate([column.ravel() for column in columns])
    return {
        "rows": rows,
        "high": upper_end(scale.astype(np.float32)),
        "measure": state.measure,
        "n_heads": table["mass"].size,
        "stale": stale,
        "null": NULL_LABELS[evidence.null.name],
        "sentence": evidence.null.note or NULLS[evidence.null.name].sentence,
        "ranked": evidence.is_supported,
    }
