"""The cards and bars of the pages. A frame goes down; messages come up: ``{"go": {field: value}}`` and few others.

A message comes from a browser, so it is checked to be a dict with text keys and handed to one function of the session;
the values are checked where they are used (`ViewState.apply`). Panel gives the element of a component its class's name
in small letters as a CSS class: no rule of a component may be called like one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import param
from panel.io.state import state

from .esm_view import ESMView
from .wire import open_outbox

Send = Callable[[dict[str, Any]], None]


class Card(ESMView):
    """A component that sends messages; `send` receives each."""

    __abstract = True

    def __init__(self, send: Send, **params: Any) -> None:
        super().__init__(**params)
        self._send = send

    def _handle_msg(self, data: Any) -> None:
        if isinstance(data, dict) and "download" in data:
            super()._handle_msg(data)
        elif isinstance(data, dict) and all(isinstance(key, str) for key in data):
            self._send(data)


class Router(Card):
    """The address bar, the document's title and theme; once it says that it listens, changes of all components."""

    _esm = _bundle = "router.js"

    def _handle_msg(self, data: Any) -> None:
        document = state.curdoc
        if isinstance(data, dict) and data.get("listens") is True and document is not None:
            open_outbox(document, self._send_msg)
        else:
            super()._handle_msg(data)


class TopBar(Card):
    """Pages, search box, name of the store, theme switch."""

    _esm = _bundle = "topbar.js"


class PathBar(Card):
    """Corpus › Head › Example › Edge › Dimension."""

    _esm = _bundle = "pathbar.js"


class Notice(Card):
    """Values of the address that were not taken."""

    _esm = _bundle = "notice.js"


class StatusLine(Card):
    """What answered, its error bound, its time."""

    _esm = _bundle = "statusline.js"


class StateCard(Card):
    """A page without a picture: why, and what to do."""

    _esm = _bundle = "statecard.js"


class Tabs(Card):
    """The views of one example and their keys."""

    _esm = _bundle = "tabs.js"


class Facts(Card):
    """What the store holds."""

    _esm = _bundle = "facts.js"


class HeadMap(Card):
    """Layers × heads, coloured by one number. `selected` is apart from the frame: a click sends four bytes back."""

    selected = param.String(default="0.0", doc="layer.head")

    _esm = _bundle = "headmap.js"


class Scatter(Card):
    """Heads by two statistics."""

    selected = param.String(default="0.0", doc="layer.head")

    _esm = _bundle = "scatter.js"


class Distribution(Card):
    """One number of one head over the examples."""

    _esm = _bundle = "distribution.js"


class Inspector(Card):
    """The statistics of one head, its strongest examples, heads like it.

    `table` holds every head's values by statistic; it is apart from the frame, which each click on a head sends anew.
    """

    table = param.Dict(default={})

    _esm = _bundle = "inspector.js"


class PatternBox(Card):
    """The expression of a search, the library, the mistake."""

    _esm = _bundle = "pattern.js"


class Summary(Card):
    """On what a search rests."""

    _esm = _bundle = "summary.js"


class HeadList(Card):
    """Heads ranked by a search."""

    _esm = _bundle = "headlist.js"


class Kwic(Card):
    """Ranked examples, aligned on the query token."""

    _esm = _bundle = "kwic.js"


class ExampleList(Card):
    """A page of examples with filter and order."""

    _esm = _bundle = "examplelist.js"
