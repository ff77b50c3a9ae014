"""The list of stars and notes of a store."""

from __future__ import annotations

from ..components.bookmarklist import BookmarkListFrame, BookmarkRow
from ..components.card import BookmarkText
from ..data.bookmarks import Bookmark
from ..data.store_data import DataSource
from ..state.reader_state import ViewState
from ..theme.token_labels import visible, visible_lines


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
