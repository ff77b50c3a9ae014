"""`BookmarkList`: a dialog with all stars and notes of a store, and the buttons that save them as a report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from .background import Check
from .card import Card, Patch, Send


class BookmarkRow(TypedDict):
    """One starred or noted head or example."""

    kind: str
    name: str
    star: bool
    note: str
    text: str
    """Text of an example."""
    query: str
    patch: Patch


class BookmarkListFrame(TypedDict):
    """All bookmarks of a store, heads first."""

    rows: list[BookmarkRow]
    n_left_out: int
    writable: bool


class BookmarkList(Card):
    """Dialog with a filter. The top bar's star or the key b opens it.

    `report` makes the document of a format (``html`` or ``md``).
    """

    frame_types = (BookmarkListFrame,)

    _esm = _bundle = "bookmarklist.js"

    def __init__(self, send: Send, report: Callable[[str, Check], str], **params: Any) -> None:
        super().__init__(send, **params)
        self._report = report

    def _handle_msg(self, data: Any) -> None:
        if isinstance(data, dict) and (kind := data.get("download")) in ("html", "md"):
            self.document = lambda check: self._report(str(kind), check)
        super()._handle_msg(data)
