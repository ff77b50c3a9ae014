"""The list of stars and notes of a store, and how a session saves them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from headatlas.store.errors import HeadAtlasError
from headatlas.store.schema.traces import head_index

from ..components.background import WAITING, background
from ..components.bookmarklist import BookmarkListFrame, BookmarkRow
from ..components.card import BookmarkText
from ..data.bookmarks import Bookmark
from ..data.store_data import DataSource
from ..state.reader_state import Problem, ViewState
from ..theme.token_labels import visible, visible_lines

MAX_UNSAVED = 64
"""Most changes of one session that wait to be saved. Others are refused."""
_HEAD = re.compile(r"\s*([0-9]{1,6})\.([0-9]{1,6})\s*")


class BookmarkWriter:
    """Saves the bookmarks of one session in a thread, because another viewer may have locked their file.

    `done` is called after each change with the problems: none if it was saved.
    """

    def __init__(self, data: DataSource, done: Callable[[list[Problem]], None]) -> None:
        self._data, self._done, self._n_unsaved = data, done, 0

    def save(self, state: ViewState, message: dict[str, Any]) -> None:
        """Save a star or a note of the shown example, or of the head that the message names (by default the chosen one)."""
        data, bookmarks, star, note = self._data, self._data.bookmarks, message.get("star"), message.get("note")
        if bookmarks is None or not bookmarks.is_writable:
            self._done([_problem("the bookmarks cannot be written. Start the viewer with --bookmarks PATH.")])
            return
        if self._n_unsaved >= MAX_UNSAVED:
            self._done([_problem(f"{MAX_UNSAVED} changes are being saved. Wait a moment, then try again.")])
            return
        if not isinstance(star, bool | None) or not isinstance(note, str | None):
            return
        name = _HEAD.fullmatch(str(message.get("head", f"{state.layer}.{state.head}")))
        site, example = data.site(state.site), data.example(state.example).id if message.get("example") else None

        def work() -> list[Problem]:
            try:
                if example is not None:
                    bookmarks.update_example(example, star=star, note=note)
                elif name:
                    layer, head = int(name[1]), int(name[2])
                    head_index(site, layer, head)
                    bookmarks.update(site.name, layer, head, star=star, note=note)
            except HeadAtlasError as error:
                return [_problem(data.error_text(error))]
            return []

        def done(problems: list[Problem]) -> None:
            self._n_unsaved -= 1
            self._done(problems)

        self._n_unsaved += 1
        background(work, done, WAITING)


def _problem(reason: str) -> Problem:
    return Problem("bookmark", "", reason)


def example_bookmark(data: DataSource, number: int) -> BookmarkText | None:
    """Return the bookmark of one example. None if the viewer has no bookmarks."""
    if data.bookmarks is None:
        return None
    bookmark = data.bookmarks.examples().get(data.example(number).id, Bookmark())
    return {"star": bookmark.star, "note": visible_lines(bookmark.note), "writable": data.bookmarks.is_writable}


def bookmark_rows(data: DataSource, state: ViewState) -> tuple[list[BookmarkRow], int]:
    """Return the bookmarks of the store, heads first, and the number of those whose head or example it does not have."""
    bookmarks = data.bookmarks.all() if data.bookmarks else {}
    rows: list[BookmarkRow] = []
    for name, site in data.store.sites.items():
        heads = data.bookmarks.heads(name) if data.bookmarks else {}
        for layer, head in site.heads:
            if (bookmark := heads.get(f"{layer}.{head}")) is not None:
                patch = {"page": "corpus", "site": name, "layer": layer, "head": head}
                label = f"{layer}.{head}" if len(data.store.sites) == 1 else f"{name} {layer}.{head}"
                rows.append(_row("head", label, bookmark, "", state, patch))
    for name, bookmark in (data.bookmarks.examples() if data.bookmarks else {}).items():
        if name in data.positions:
            number = data.number_of(name)
            patch = {"page": "views", "example": number, "pin": ""}
            rows.append(_row("example", visible(name), bookmark, data.shown_text(number, 200), state, patch))
    return rows, len(bookmarks) - len(rows)


def list_frame(data: DataSource, state: ViewState) -> BookmarkListFrame:
    """Build the frame of the list."""
    rows, n_left_out = bookmark_rows(data, state)
    return {
        "rows": rows, "n_left_out": n_left_out,
        "writable": data.bookmarks is not None and data.bookmarks.is_writable,
    }  # fmt: skip


def _row(
    kind: str, name: str, bookmark: Bookmark, text: str, state: ViewState, patch: dict[str, object]
) -> BookmarkRow:
    return {
        "kind": kind, "name": name, "star": bookmark.star, "note": visible_lines(bookmark.note), "text": text,
        "query": state.to_query(**patch), "patch": patch,
    }  # fmt: skip
