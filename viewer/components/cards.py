"""Cards and bars of the pages. Python sends frames down; the browser sends messages up, mostly ``{"go": {field: value}}``.

A message comes from a browser. `Card` checks that it is a dict with text keys and passes it to one function of the
session; `ViewState.apply` checks the values. Panel adds the lower-case class name of a component to its element as a
CSS class, so a component's style sheet must not use the name of a component as a class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

import numpy as np
import param
from panel.io.state import state

from ..data.edge_quotes import QuotedEdge
from ..data.store_facts import FactsFrame
from ..state.page_table import Drawer
from .esm_view import ESMView
from .wire import open_outbox

Send = Callable[[dict[str, Any]], None]
Patch = dict[str, Any]
"""Fields of the state with new values."""
HeadBookmarks = dict[str, dict[str, str | bool]]
"""Star and note of heads, by head (``5.8``)."""


class Card(ESMView):
    """Component that sends messages. `send` receives each of them."""

    __abstract = True

    def __init__(self, send: Send, **params: Any) -> None:
        super().__init__(**params)
        self._send = send

    def _handle_msg(self, data: Any) -> None:
        if isinstance(data, dict) and "download" in data:
            super()._handle_msg(data)
        elif isinstance(data, dict) and all(isinstance(key, str) for key in data):
            self._send(data)


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


class TopBarFrame(TypedDict):
    """Pages and stores to choose from."""

    page: str
    pages: list[PageLink]
    store: str
    stores: list[list[str]]
    """[name, query]."""
    drawers: list[Drawer]


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


class StateFrame(TypedDict):
    """Reason for a page without a picture."""

    kind: str
    title: str
    lines: list[str]
    code: NotRequired[str]
    loading: NotRequired[bool]
    actions: NotRequired[list[Action]]


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


class Tabs(Card):
    """Tabs of the views of one example, with their keys."""

    frame_types = (TabsFrame,)

    _esm = _bundle = "tabs.js"


class Facts(Card):
    """Facts about the store."""

    frame_types = (FactsFrame,)

    _esm = _bundle = "facts.js"


class HeadStatistic(TypedDict):
    """Statistic that only the tooltip shows."""

    label: str
    values: np.ndarray


class HeadMapFrame(TypedDict):
    """Map of one number of every head."""

    n_layers: int
    n_heads: int
    values: np.ndarray
    """float32 [layer * head]."""
    high: float
    title: str
    unit: str
    options: list[list[str]]
    """Statistics to choose from as [value, label]."""
    choice: str
    others: list[HeadStatistic]
    small: bool
    bookmarks: NotRequired[HeadBookmarks]
    also: NotRequired[list[str]]
    """Further selected heads."""
    stores: NotRequired[list[str]]
    """Stores that can be shown beside this one."""
    beside: NotRequired[str]
    """Store that is shown beside this one."""
    other: NotRequired[str]
    """Name of the store, if this is the second map."""
    about: NotRequired[str]


class HeadMap(Card):
    """Layers × heads, coloured by one number. `selected` is not part of the frame, so that a click sends four bytes back."""

    selected = param.String(default="0.0", doc="layer.head")

    frame_types = (HeadMapFrame,)

    _esm = _bundle = "headmap.js"


class Axis(TypedDict):
    """Axis of a scatter plot: one statistic of every head."""

    name: str
    label: str
    unit: str
    high: float
    values: np.ndarray


class ScatterFrame(TypedDict):
    """Every head by two statistics."""

    n_heads: int
    x: Axis
    y: Axis
    options: list[list[str]]
    note: str


class Scatter(Card):
    """Scatter plot of the heads by two statistics."""

    selected = param.String(default="0.0", doc="layer.head")

    frame_types = (ScatterFrame,)

    _esm = _bundle = "scatter.js"


class Spread(TypedDict):
    """Counts of a number in bins from 0 to `high`, and its quartiles."""

    counts: list[int]
    high: float
    quartiles: list[float]
    n: int
    """Number of examples that have the number."""


class DistributionFrame(Spread):
    """Distribution of one number of one head over the examples."""

    title: str
    unit: str
    corpus: float
    """Mean over the corpus."""
    n_all: int
    query: str
    patch: Patch


class Distribution(Card):
    """Histogram of one number of one head over the examples."""

    frame_types = (DistributionFrame,)

    _esm = _bundle = "distribution.js"


class Link(TypedDict):
    """Link to a choice: its address and the change of the state."""

    query: str
    patch: Patch


class StatisticRow(TypedDict):
    """One statistic of the selected head."""

    name: str
    label: str
    value: float
    rank: int
    of: int
    high: float
    on: bool


class StrongExample(Link):
    """Example with its strongest edge."""

    parts: list[list[Any]]
    """[text, kind, weight]."""
    score: float


class SimilarHead(TypedDict):
    """Head with a similar profile of statistics."""

    head: str
    layer: int
    index: int
    score: float


class BookmarkText(TypedDict):
    """Bookmark of the selected head."""

    star: bool
    note: str
    writable: bool


class InspectorFrame(TypedDict):
    """Statistics, examples and similar heads of the selected head."""

    head: str
    sub: str
    tag: str
    n: int
    """Number of heads."""
    bookmark: BookmarkText | None
    statistics: list[StatisticRow]
    examples: list[StrongExample]
    examples_of: str
    like: list[SimilarHead]
    open: Link | None
    list: Link


class Inspector(Card):
    """Card of one head: its statistics, its strongest examples and similar heads.

    `table` holds every head's values by statistic. It is not part of the frame, because each click on a head sends a
    new frame.
    """

    table = param.Dict(default={})

    frame_types = (InspectorFrame,)

    _esm = _bundle = "inspector.js"


class NamedPattern(TypedDict):
    """Pattern of the library."""

    name: str
    expression: str
    description: str


class Mistake(TypedDict):
    """Error in an expression and its position."""

    message: str
    start: int
    stop: int
    expression: str


class DrawnArcs(TypedDict):
    """Arcs drawn on an example, and expressions that match them."""

    id: str
    queries: list[str]
    keys: list[str] | None
    arcs: list[list[int]]
    guesses: list[list[Any]]
    """[expression, number of matches]."""


class PatternFrame(TypedDict):
    """Expression of a search, its state, and the library of patterns."""

    expression: str
    library: list[NamedPattern]
    fields: dict[str, list[str]]
    """Field names of query, key and example, for completion."""
    values: dict[str, list[list[Any]]]
    """Frequent values of each field as [value, count]."""
    picked: str
    description: str
    error: Mistake | None
    busy: bool
    progress: list[int] | None
    """Examples searched, and all examples."""
    drawn: DrawnArcs | None


class PatternBox(Card):
    """Box for the expression of a search, with the library and the error message."""

    frame_types = (PatternFrame,)

    _esm = _bundle = "pattern.js"


class SummaryFrame(TypedDict):
    """Figures that a search rests on."""

    figures: list[list[str]]
    partial: str
    right: list[str]
    stale: str


class Summary(Card):
    """Bar with the figures that a search rests on: rows, examples, heads, source and time."""

    frame_types = (SummaryFrame,)

    _esm = _bundle = "summary.js"


class RankedHead(TypedDict):
    """One head of a search."""

    head: str
    layer: int
    index: int
    rank: int
    mass: float
    hit_rate: float
    baseline: float
    lift: float
    low: float
    high: float
    offset_lift: float
    q: float
    rows: int
    bookmark: dict[str, str | bool] | None
    on: bool


class HeadListFrame(TypedDict):
    """Heads ranked by the selected measure."""

    rows: list[RankedHead]
    high: float
    measure: str
    n_heads: int
    stale: bool
    offset: float | None
    """Mass of the best fixed offset."""
    offsets: str
    ranked: bool
    """True if there are enough rows to rank heads."""


class HeadList(Card):
    """List of the heads that a search ranked."""

    frame_types = (HeadListFrame,)

    _esm = _bundle = "headlist.js"


class QuotedExample(QuotedEdge):
    """Excerpt of one example around its strongest matching edge."""

    id: str
    score: float
    weight: float
    rank: int
    query: str
    patch: Patch


class KwicFrame(TypedDict):
    """Part of a head's ranking of examples."""

    title: str
    sub: str
    rows: list[QuotedExample]
    n: int
    sample: str
    samples: list[str]
    told: str
    """Description of the part that is listed."""
    stale: bool
    note: str


class Kwic(Card):
    """Keyword in context: ranked examples, aligned on the query token."""

    frame_types = (KwicFrame,)

    _esm = _bundle = "kwic.js"


class Histogram(TypedDict):
    """Counts in even bins between two values."""

    counts: np.ndarray
    first: float
    last: float


class Facet(TypedDict):
    """Frequent values of an annotation as [value, count]."""

    name: str
    values: list[list[Any]]


class ExampleRow(TypedDict):
    """One example of the list."""

    id: str
    text: str
    columns: list[str]
    tokens: int
    value: float
    on: bool
    query: str
    patch: Patch


class ExampleListFrame(TypedDict):
    """One page of examples, and facts about all examples that match the filter."""

    rows: list[ExampleRow]
    columns: list[str]
    start: int
    page_rows: int
    n_found: int
    n_all: int
    text: str
    order: str
    statistics: list[list[str]]
    statistic: str
    label: str
    high: float
    head: str
    lengths: Histogram
    spread: Histogram
    spans: dict[str, str]
    facets: list[Facet]
    where: dict[str, str]
    note: str


class ExampleList(Card):
    """List of examples, one page at a time, with filter and order."""

    frame_types = (ExampleListFrame,)

    _esm = _bundle = "examplelist.js"
