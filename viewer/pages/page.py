"""`Page`, the base of every page and view, and `PageStack`, the pages that share one area of a session."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib import import_module
from typing import Any, Protocol

import panel as pn

from headatlas.store.errors import HeadAtlasError

from ..components.background import SEARCHING, Newest
from ..components.esm_view import ESMView
from ..data.store_data import DataSource
from ..data.store_facts import names_of
from ..figures.figure_parts import Caption
from ..frames.view_frames import head_name
from ..state.page_table import PageRow
from ..state.reader_state import Problem, ViewState
from ..theme.token_labels import visible
from .layout import in_cell, show

logger = logging.getLogger(__name__)


class PageSession(Protocol):
    """The part of a session that pages use."""

    state: ViewState
    data: DataSource
    wants_best_head: bool

    def receive(self, message: dict[str, Any]) -> None:
        """Handle a message of a card."""
        ...

    def go(self, patch: dict[str, Any], push: bool = True) -> None:
        """Change the state."""
        ...

    def report_source(self, source: str, seconds: float) -> None:
        """Show the source and the duration of background work in the status line."""
        ...

    def report(self, problems: list[Problem]) -> None:
        """Show problems in the notice."""
        ...


class Page(ABC):
    """One page, or one view of an example. `view` is its layout.

    A page is built when it is first shown. Then `refresh` is called whenever a field that its row watches has changed,
    but only while the page is shown. A page that was hidden catches up when it is shown again.
    """

    def __init__(self, session: PageSession, row: PageRow) -> None:
        self.session, self.row = session, row
        self.state: ViewState = session.state
        self.data: DataSource = session.data
        self.reads = Newest()
        """Reading of the picture. A new picture ends the reading of the last one."""
        self.searches = Newest(SEARCHING)
        """Search whose mass the page shows."""
        self.view: pn.Column = self.layout()

    @abstractmethod
    def layout(self) -> pn.Column:
        """Build the cards and their layout, once."""

    @abstractmethod
    def refresh(self, changed: frozenset[str]) -> str:
        """Fill the cards after some fields have changed. Returns the source of the numbers for the status line."""

    def stop(self) -> bool:
        """End what is being read in the background. Returns True if there was any."""
        is_searching = self.searches.stop()
        return self.reads.stop() or is_searching

    def caption(self) -> Caption:
        """Return the subject of the page's figures: the model, the chosen head, the example and the corpus."""
        state, data = self.state, self.data
        model, corpus = names_of(data)
        example = data.example(state.example)
        text = "  |  ".join(filter(None, (example.text, example.text_pair, example.target_text)))
        site = f", {data.site(state.site).name}" if len(data.store.sites) > 1 else ""
        return Caption(
            model, f"head {head_name((state.layer, state.head))}{site}", visible(text), visible(example.id),
            f"{corpus}, n = {data.n_examples:,} examples",
        )  # fmt: skip

    def failed(self, error: HeadAtlasError) -> None:
        """Show the error of a reading in the background."""
        self.fail("This cannot be shown", self.data.error_text(error))

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        logger.warning("%s: %s: %s", self.row.route, title, reason)
        self.session.report([Problem(self.row.route, "", reason)])

    def on_message(self, message: dict[str, Any]) -> None:  # noqa: B027 (most pages need no messages)
        """Handle a message of a card on this page. Unknown messages are ignored."""

    def on_hide(self) -> None:  # noqa: B027 (most pages do nothing)
        """Handle that another page is shown instead."""

    def bookmarks_changed(self) -> None:
        """Draw a changed bookmark."""
        self.refresh(frozenset())


def page_class(row: PageRow) -> type[Page]:
    """Load the class that a row names."""
    module, name = row.class_path.split(":")
    return getattr(import_module(f".{module}", __package__), name)


def load_classes(rows: Iterable[PageRow]) -> None:
    """Load the classes of all rows, before the first document is made.

    The browser learns the types of all components with its page. It cannot use a component whose class is made later.
    """
    for row in rows:
        page_class(row)


class PageStack:
    """Pages that share one area: one is shown, the others are hidden.

    Parameters
    ----------
    rows
        Rows of the pages that can be shown.
    column
        Layout that the pages are added to when they are built.
    cell
        Grid column and row of each page.
    load
        Function that returns the class of a row.
    """

    def __init__(
        self,
        session: PageSession,
        rows: Iterable[PageRow],
        column: pn.Column,
        cell: tuple[str, str] = ("auto", "auto"),
        load: Callable[[PageRow], type[Page]] = page_class,
    ) -> None:
        self._session, self._column, self._cell, self._load = session, column, cell, load
        self._rows = {row.route: row for row in rows}
        self._pages: dict[str, Page] = {}
        self._stale = {route: set(row.watches) for route, row in self._rows.items()}
        self._shown_route = ""

    def __getitem__(self, route: str) -> Page:
        """Return a page, built on first use."""
        if route not in self._pages:
            row = self._rows[route]
            self._pages[route] = page = self._load(row)(self._session, row)
            for part in page.view.select(ESMView):
                if isinstance(part, ESMView) and part.caption is Caption:
                    part.caption = page.caption
            self._column.append(in_cell(page.view, *self._cell))
        return self._pages[route]

    def __iter__(self) -> Iterator[Page]:
        """Iterate over the pages that are built."""
        return iter(self._pages.values())

    def mark(self, fields: Collection[str]) -> None:
        """Record that fields of the state have changed."""
        for route, row in self._rows.items():
            self._stale[route] |= row.watches.intersection(fields)

    def hide(self) -> None:
        """Tell the shown page that it is hidden. What it was reading ends, and is read again when it is shown."""
        page = self._pages.get(self._shown_route)
        if page is not None:
            page.on_hide()
            if page.stop():
                self._stale[self._shown_route] = set(page.row.watches)

    def refresh(self, route: str) -> str | None:
        """Show one page, and refresh it if fields that it watches have changed.

        Returns the source of its numbers, or None if no field has changed.
        """
        page = self[route]
        for name, stacked_page in self._pages.items():
            show(stacked_page.view, name == route)
        if self._shown_route not in ("", route):
            self.hide()
        self._shown_route = route
        changed, self._stale[route] = frozenset(self._stale[route]), set()
        if not changed:
            return None
        try:
            return page.refresh(changed)
        except HeadAtlasError as error:
            page.reads.stop()
            self._stale[route] = set(page.row.watches)
            page.fail("This cannot be shown", page.data.error_text(error))
            return "no data: see the notice"
