"""Bars around the pages: address, top bar, path bar, notices, status line and tabs."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from panel.io.state import state

from ..state.page_table import Drawer
from .card import BookmarkText, Card, Patch
from .wire import open_outbox


class RouterFrame(TypedDict):
    """Address and title of the page."""

    query: str
    pushes: int
    """Number of history entries so far. The browser may receive two frames as one."""
    title: str
    theme: str
    heard: int
    """Number of Back and Forward steps that Python has answered."""
    reload: NotRequired[bool]


class Router(Card):
    """Address bar, title and theme of the document. After its first message the changes of all components go through it."""

    frame_types = (RouterFrame,)

    _esm = _bundle = "router.js"

    def _handle_msg(self, data: Any) -> None:
        document = state.curdoc
        if isinstance(data, dict) and data.get("listens") is True and document is not None:
            open_outbox(document, self._send_msg)
        else:
            super()._handle_msg(data)


class PageLink(TypedDict):
    """One page of the top bar."""

    page: str
    label: str
    query: str


class FoundFrame(TypedDict):
    """Meanings of the text in the search box."""

    text: str
    items: list[list[str]]
    """[kind, label, detail], the likeliest first. Enter chooses the first one."""


class TopBarFrame(TypedDict):
    """Pages and stores to choose from."""

    page: str
    pages: list[PageLink]
    store: str
    stores: list[list[str]]
    """[name, query]."""
    drawers: list[Drawer]
    found: NotRequired[FoundFrame]


class TopBar(Card):
    """Bar with the pages, the search box, the name of the store and the theme switch."""

    frame_types = (TopBarFrame,)

    _esm = _bundle = "topbar.js"


class PathItem(TypedDict):
    """One part of the path."""

    name: str
    value: str
    on: bool
    off: bool
    query: str
    patch: Patch
    previous: NotRequired[Patch | None]
    next: NotRequired[Patch | None]


class PathFrame(TypedDict):
    """Current choice at each part of the path."""

    path: list[PathItem]
    site: NotRequired[str]
    sites: NotRequired[list[str]]
    """Sites to choose from, if there are several."""


class PathBar(Card):
    """Path bar: Corpus › Head › Example › Edge › Dimension."""

    frame_types = (PathFrame,)

    _esm = _bundle = "pathbar.js"


class ProblemText(TypedDict):
    """Rejected value and the reason."""

    field: str
    value: str
    reason: str


class Banner(TypedDict):
    """Fact about the whole store."""

    kind: str
    text: str
    label: NotRequired[str]
    """Label of the button that refreshes the store."""


class NoticeFrame(TypedDict):
    """Rejected values and banners."""

    title: str
    problems: list[ProblemText]
    banners: list[Banner]


class Notice(Card):
    """Rejected values of the address, and banners."""

    frame_types = (NoticeFrame,)

    _esm = _bundle = "notice.js"


class StatusFrame(TypedDict):
    """Source and time of the numbers."""

    good: bool
    parts: list[str]
    right: list[str]


class StatusLine(Card):
    """Bar with the source, error bound and time of the numbers."""

    frame_types = (StatusFrame,)

    _esm = _bundle = "statusline.js"


class Action(TypedDict):
    """Button that changes the state."""

    label: str
    query: str
    patch: Patch
    primary: bool


class StateItem(TypedDict):
    """Pattern to choose from."""

    group: str
    name: str
    label: str
    text: str
    run: str
    """Expression."""


class StateFrame(TypedDict):
    """Reason for a page without a picture."""

    kind: str
    title: str
    lines: list[str]
    code: NotRequired[str]
    loading: NotRequired[bool]
    actions: NotRequired[list[Action]]
    items: NotRequired[list[StateItem]]
    """Patterns of the library that the store can answer."""


class StateCard(Card):
    """Card of a page without a picture. It gives the reason and what the reader can do."""

    frame_types = (StateFrame,)

    _esm = _bundle = "statecard.js"


class ViewLink(TypedDict):
    """One tab."""

    view: str
    label: str
    query: str


class TabsFrame(TypedDict):
    """Views of an example, and the changes that the keys h, l, j and k make."""

    view: str
    views: list[ViewLink]
    steps: dict[str, Patch | None]
    visible: bool
    bookmark: BookmarkText | None
    """Star and note of the example."""


class Tabs(Card):
    """Tabs of the views of one example, with their keys."""

    frame_types = (TabsFrame,)

    _esm = _bundle = "tabs.js"
