"""Session of one reader: the state, the frame around the pages, and the handler of all messages from cards.

A change of the state refreshes the current page and then the bars. A hidden page catches up when it is shown.
`ViewState.apply` checks all values from the browser. The notice shows the values that it rejects.
"""

from __future__ import annotations

import logging
import re
from time import perf_counter
from typing import Any
from urllib.parse import quote

import numpy as np
import panel as pn

from headatlas.store.errors import HeadAtlasError

from ..components.background import WAITING, Check, Newest
from ..components.bars import Banner, Notice, PathBar, Router, StateCard, StatusLine, TopBar
from ..components.bookmarklist import BookmarkList
from ..data.bookmarks import Bookmark
from ..data.store_data import DataSource
from ..state.address_values import MAX_TEXT
from ..state.page_table import PAGES, PageRow, row_of
from ..state.reader_state import Problem, ViewState
from ..theme.token_labels import visible
from .bookmark_list import BookmarkWriter, list_frame
from .find_text import Suggestion, is_expression, suggestions
from .layout import grid, in_cell
from .page import Page, PageStack, page_class
from .path_bar import path_frame
from .report import make_report

logger = logging.getLogger(__name__)
BOOKMARKS_MS = 2_000
"""Interval at which a session checks the file of bookmarks for changes by others."""
GROWING_MS = 3_000
"""Interval at which a session checks a store for new segments."""
REMOTE_MS = 60_000
"""The same for a complete store behind a URL."""


class Session:
    """The app of one reader. `view` is the root of the document.

    Parameters
    ----------
    data
        Data source, shared by all sessions.
    query
        Query of the address that opened this session.
    """

    def __init__(self, data: DataSource, query: str = "") -> None:
        self.data, self.state = data, ViewState(data.bounds, store=data.name)
        self.problems: list[Problem] = self.state.from_query(query)
        self.wants_best_head = bool(self.state.pattern) and not re.search(r"(^|&)(layer|head)=", query)
        """True if the search chooses the head: the address or the search box names none."""
        self._new_segments, self._checks = 0, Newest(WAITING)
        self._writer = BookmarkWriter(self.data, self._bookmarks_changed)
        self._history_step, self._pushes, self._push, self._answer = 0, 0, False, ("", 0.0)
        send = self.receive
        self.router, self.top, self.path = Router(send), TopBar(send), PathBar(send)
        self.notice, self.status = Notice(send, visible=False), StatusLine(send)
        self.marks = BookmarkList(send, self._report)
        self.body = pn.Column(
            styles={"padding": "12px 16px", "min-height": "0", "height": "100%", "overflow": "auto"},
            sizing_mode="stretch_both",
            margin=0,
            css_classes=["page-area"],
        )
        self.pages = PageStack(self, PAGES, self.body, load=self._load)
        rows = "48px 38px auto minmax(0,1fr) 26px"
        parts = [
            in_cell(self.top),
            in_cell(self.path),
            in_cell(self.notice),
            self.body,
            in_cell(self.status),
            self.marks,
            self.router,
        ]
        for row, part in enumerate(parts[:5], 1):
            part.styles = {**part.styles, "grid-row": str(row)}
        for part in (self.marks, self.router):
            part.param.update(width=0, height=0, margin=0, styles={"position": "absolute"})
        self.view = pn.Column(
            *parts,
            styles={
                "display": "grid",
                "grid-template-rows": rows,
                "height": "100vh",
                "min-width": "720px",
                "min-height": "680px",
                "gap": "0",
            },
            sizing_mode="stretch_width",
            margin=0,
        )
        self.state.param.watch(self._changed, list(ViewState.FIELDS))  # a page may choose a head while it is shown
        self._show(frozenset(ViewState.FIELDS))
        self._push = True
        self._bookmarks: dict[str, Bookmark] = {}
        self.marks.frame = list_frame(data, self.state) if data.n_examples else {}
        if data.bookmarks is not None and pn.state.curdoc is not None:
            pn.state.add_periodic_callback(self._check_bookmarks, period=BOOKMARKS_MS)
        if data.served_with is not None and pn.state.curdoc is not None:  # a complete store may be extended
            is_quick = not data.store.is_complete or data.store.source.folder is not None
            pn.state.add_periodic_callback(self._check_for_segments, period=GROWING_MS if is_quick else REMOTE_MS)

    # messages

    def receive(self, message: dict[str, Any]) -> None:
        """Handle a message of a card. Unknown messages are ignored."""
        if isinstance(patch := message.get("go"), dict):
            self.go(patch)
        elif isinstance(query := message.get("travel"), str):
            self._history_step = step if isinstance(step := message.get("step"), int) else self._history_step
            self.report(self.state.from_query(query))
            self._fill_bars()
        elif isinstance(text := message.get("find"), str):
            if len(text) > MAX_TEXT:  # the time of `looks_like_pattern` grows with the square of the text
                reason = f"{len(text):,} characters; at most {MAX_TEXT:,} are allowed"
                self.report([Problem("find", text[:80], reason)])
            else:
                self.find(text, message.get("pick"))
        elif isinstance(text := message.get("suggest"), str):
            self.suggest(text)
        elif isinstance(expression := message.get("run"), str):
            self.run(expression.strip())
        elif isinstance(change := message.get("bookmark"), dict):
            self._writer.save(self.state, change)
        elif message.get("refresh"):
            self.refresh_store()
        elif message.get("dismiss"):
            self.report([])
            self.go({problem.field: "" for problem in self._impossible_values()}, push=False)
        else:
            self.pages[self.state.page].on_message(message)

    def go(self, patch: dict[str, Any], push: bool = True) -> None:
        """Change the state. With ``push=False`` the browser's history gets no new entry."""
        before, self._push = self._push, push
        try:
            problems = self.state.apply(patch)
            if push or problems:  # a change that no reader made leaves the notice
                self.report(problems)
        finally:
            self._push = before

    def find(self, text: str, pick: object = None) -> None:
        """Show a meaning of the text in the search box: the suggestion with the number `pick`, or the likeliest."""
        items = suggestions(self.data, self.state, text[:MAX_TEXT])
        index = pick if type(pick) is int and 0 <= pick < len(items) else 0
        if items:
            self._choose(items[index])

    def suggest(self, text: str) -> None:
        """Show the meanings of the text in the search box."""
        items = [[item.kind, item.label, item.detail] for item in suggestions(self.data, self.state, text[:MAX_TEXT])]
        self.top.frame = {**self.top.frame, "found": {"text": text, "items": items}}

    def run(self, text: str) -> None:
        """Search for an expression. Words that are none are understood as in the search box: a head, a token, a name."""
        if text and not is_expression(text, self.data.library(self.state.site)):
            first = suggestions(self.data, self.state, text[:MAX_TEXT])[:1]
            if first and first[0].kind != "text":
                self._choose(first[0])
                return
        self._search(text)

    def _choose(self, item: Suggestion) -> None:
        if item.pattern:
            self._search(item.pattern)
        else:
            self.go(item.patch)

    def _search(self, expression: str) -> None:
        self.wants_best_head = True
        self.go({"page": "search", "pattern": expression})

    def report(self, problems: list[Problem]) -> None:
        """Show problems in the notice. An empty list clears it."""
        if problems or self.problems:
            self.problems = problems
            self._fill_notice()

    # changes of the state

    def _changed(self, *events: Any) -> None:
        names = frozenset(event.name for event in events)
        self._show(names)

    def _show(self, names: frozenset[str]) -> None:
        self.pages.mark(names)
        start = perf_counter()
        self._answer = (self._refresh(), perf_counter() - start)
        self._pushes += bool(names & ViewState.HISTORY) and self._push
        self._fill_bars()

    def _refresh(self) -> str:
        try:
            source = self.pages.refresh(self.state.page)
        except HeadAtlasError as error:  # the page could not be built
            logger.warning("%s: %s", self.state.page, error)
            self.report([Problem(self.state.page, "", self.data.error_text(error))])
            return "no data: see the notice"
        return self._answer[0] if source is None else source

    def _load(self, row: PageRow) -> type[Page]:
        """Return the class of a page. In an empty store every page explains that it is empty."""
        return page_class(row) if self.data.n_examples else EmptyPage

    def report_source(self, source: str, seconds: float) -> None:
        """Show the source and the duration of background work in the status line."""
        self._answer = (source, seconds)
        self._fill_bars()

    def _fill_bars(self) -> None:
        state = self.state
        self.router.frame = {
            "query": state.to_query(),
            "pushes": self._pushes,
            "title": self._title(),
            "theme": state.theme,
            "heard": self._history_step,
        }
        self.top.frame = {
            "page": state.page,
            "pages": [
                {"page": row.route, "label": row.label, "query": state.to_query(page=row.route)} for row in PAGES
            ],
            "store": self.data.name,
            "stores": [[name, f"store={quote(name)}&page={state.page}&view={state.view}"] for name in self.data.stores],
            "drawers": list(row_of(state.page, state.view).drawers),
        }
        self.path.frame = path_frame(self.data, state)
        source, seconds = self._answer
        store = self.data.store
        parts = [f"manifest {store.manifest.number}, {len(store.segments)} segments"]
        parts += [f"answered from {source}", duration_text(seconds)] if source else []
        can_write = self.data.bookmarks is not None and self.data.bookmarks.is_writable
        stars = "stars and notes can be written" if can_write else "read only: stars and notes cannot be written"
        self.status.frame = {"good": store.is_complete, "parts": parts, "right": [stars]}
        self._fill_notice()

    def _fill_notice(self) -> None:
        banners, problems = self._banners(), [*self.problems, *self._impossible_values()]
        frame = {
            "title": "Problem:" if len(problems) == 1 else "Problems:",
            "problems": [
                {"field": visible(p.field), "value": visible(p.value[:200]), "reason": visible(p.reason)}
                for p in problems
            ],
            "banners": banners,
        }
        if frame != self.notice.frame:  # sending a frame takes about 1 ms, and a click changes up to ten frames
            self.notice.give(frame=frame, visible=bool(problems or banners))

    def _impossible_values(self) -> list[Problem]:
        """Return the pin and the window of the matrix if they lie outside the shown example."""
        data, state = self.data, self.state
        if state.page != "views" or not data.n_examples:
            return []
        site, position = data.site(state.site), int(np.searchsorted(data.numbers, state.example))
        n_queries, n_keys = (int(data.lengths(name)[position]) for name in (site.query_sequence, site.key_sequence))
        problems = []
        if state.pinned is not None:
            side, token = state.pinned
            n_tokens = n_queries if side == "q" else n_keys
            if token >= n_tokens:
                reason = f"this example has {n_tokens} tokens, 0 to {n_tokens - 1}. Nothing is pinned."
                problems.append(Problem("pin", state.pin, reason))
        if state.zoom:
            row, column, _ = map(float, state.zoom.split(","))
            if row >= n_queries or column >= n_keys:
                reason = f"the matrix has {n_queries} rows and {n_keys} columns. Another window is shown."
                problems.append(Problem("zoom", state.zoom, reason))
        return problems

    def _banners(self) -> list[Banner]:
        """Return the banners about the store: deleted, damaged segments, segments committed since it was opened."""
        folder = self.data.store.source.folder
        if folder is not None and not folder.is_dir():
            text = (
                f"The folder of {self.data.name} was deleted or moved. Numbers that were read before are still shown; "
                "everything else fails. Put the folder back and load the page again."
            )
            return [{"kind": "deleted", "text": text}]
        banners: list[Banner] = [
            {
                "kind": "damaged",
                "text": f"Damaged and excluded from all numbers: {self.data.error_text(HeadAtlasError(message))}",
            }
            for message in self.data.damaged
        ]
        if self._new_segments:
            n = self._new_segments
            text = f"{n} new segment{'s' if n > 1 else ''} {'were' if n > 1 else 'was'} committed."
            banners.append({"kind": "growing", "text": text, "label": "Show them"})
        return banners

    def _check_for_segments(self) -> None:
        """Show a banner if new segments were committed. An empty store is reloaded at once."""
        stores = self.data.served_with
        self._fill_notice()  # the folder may be gone, or back

        def done(n_new: int) -> None:
            if n_new and not self.data.n_examples:
                self.refresh_store()
            elif n_new != self._new_segments:
                self._new_segments = n_new
                self._fill_notice()

        if stores is not None:
            self._checks.start(
                "segments", lambda check: stores.new_segments(self.data), done, lambda error: None, at_once=False
            )  # fmt: skip

    def refresh_store(self) -> None:
        """Reload the page with the newest snapshot of the store."""
        if self.data.served_with is not None:
            self.data.served_with.refresh(self.data.name)
        self.router.frame = {**self.router.frame, "reload": True}

    def _bookmarks_changed(self, problems: list[Problem]) -> None:
        """Show the bookmarks after one was saved, and why it was not."""
        self.report(problems)
        self._check_bookmarks()

    def _check_bookmarks(self) -> None:
        """Draw the bookmarks again if they changed, here, in another session or in another viewer of the same file."""
        try:
            bookmarks = self.data.bookmarks.all() if self.data.bookmarks else {}
            if bookmarks != self._bookmarks:
                self._bookmarks = bookmarks
                self.marks.frame = list_frame(self.data, self.state) if self.data.n_examples else {}
                for page in self.pages:
                    page.bookmarks_changed()
                self._fill_bars()
        except HeadAtlasError as error:
            logger.warning("bookmarks: %s", error)

    def _report(self, kind: str, check: Check) -> str:
        return make_report(self.data, self.state, kind, check)

    def _title(self) -> str:
        state = self.state
        subject = f"example {state.example}, {state.view}" if state.page == "views" else state.page
        return f"{subject} \u00b7 headatlas"


class EmptyPage(Page):
    """Page of a store without a committed segment."""

    def layout(self) -> pn.Column:
        """Build the card, once."""
        self.card = StateCard(self.session.receive)
        return grid(in_cell(self.card))

    def refresh(self, changed: frozenset[str]) -> str:
        """Show what is missing, and the command that adds it."""
        store = self.data.store
        self.card.frame = {
            "kind": "empty",
            "title": "Empty store",
            "lines": [
                f"{self.data.name} has no committed segment yet; {store.manifest.n_segments_planned} are planned."
                if not self.data.damaged
                else f"Every segment of {self.data.name} is damaged; see the notice.",
                "Run the job of this store. The page reloads when the first segment is committed.",
            ],
            "code": f"headatlas verify {self.data.name}"
            if self.data.damaged
            else f"headatlas run CONFIG --out {self.data.name}",
        }
        return ""


def duration_text(seconds: float) -> str:
    """Format a duration in milliseconds or seconds."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
