"""Base of the cards and bars of the pages. Python sends frames down; the browser sends messages up, mostly ``{"go": {field: value}}``.

A message comes from a browser. `Card` checks that it is a dict with text keys and passes it to one function of the
session; `ViewState.apply` checks the values. Panel adds the lower-case class name of a component to its element as a
CSS class, so a component's style sheet must not use the name of a component as a class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from .esm_view import ESMView

Send = Callable[[dict[str, Any]], None]
Patch = dict[str, Any]
"""Fields of the state with new values."""
HeadBookmarks = dict[str, dict[str, str | bool]]
"""Star and note of heads, by head (``5.8``)."""


class BookmarkText(TypedDict):
    """Bookmark of the chosen head or example."""

    star: bool
    note: str
    writable: bool


class Card(ESMView):
    """Component that sends messages. `send` receives each of them."""

    __abstract = True

    def __init__(self, send: Send, **params: Any) -> None:
        super().__init__(**params)
        self._send = send

    def _handle_msg(self, data: Any) -> None:
        if isinstance(data, dict) and ("download" in data or "figure" in data):
            super()._handle_msg(data)
        elif isinstance(data, dict) and all(isinstance(key, str) for key in data):
            self._send(data)
