"""Table of the pages and of the views of one example. The address, tabs, path bar and drawers are derived from it.

To add a page or a view, write its class in `pages/`, its component in `components/` (one Python and one JavaScript
file), and a row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PathPart = Literal["corpus", "example", "dimension"]
Drawer = Literal["left", "right"]


@dataclass(frozen=True)
class PageRow:
    """Row of the table: one page, or one view of an example.

    Attributes
    ----------
    route
        Value of the fields `page` or `view` in the address.
    label
        Name on the tab.
    class_path
        Module and class below `headatlas.viewer.pages`, loaded when the server starts.
    watches
        Fields of the state that change the page.
    drawers
        Sides whose cards become drawers in a narrow window.
    path_part
        Part of the path bar that is marked while the page is shown.
    path_value
        Value of the path bar's first part while the page is shown. If empty, the bar shows the name of the store.
    picture
        Picture that `headatlas figure` draws by default. Empty if the page has none.
    """

    route: str
    label: str
    class_path: str
    watches: frozenset[str]
    drawers: tuple[Drawer, ...] = ()
    path_part: PathPart = "corpus"
    path_value: str = ""
    picture: str = ""


_HEADS = frozenset({"page", "site", "statistic", "pattern", "layer", "head"})
_EXAMPLE = frozenset({"page", "view", "site", "example", "layer", "head", "heads", "pin", "specials", "weights"})
_LINES = _EXAMPLE | {"share", "keys", "unit", "segments", "layout", "pattern"}
_DIMENSIONS = frozenset({"dimension_order", "dimension", "measured", "factors"})
_OTHERS = frozenset({"compare", "pairs", "other_example", "other_head", "other_store"})

VIEWS = (
    PageRow(
        "head", "Head view", "head_page:HeadViewPage", _LINES | {"pooling"}, ("left", "right"), "example",
        picture="head view",
    ),
    PageRow(
        "model", "Model view", "model_page:ModelViewPage", _LINES | {"arrange", "pattern"}, ("left", "right"), "example",
        picture="model view",
    ),
    PageRow(
        "neuron", "Neuron view", "neuron_page:NeuronViewPage", _LINES | _DIMENSIONS, ("left",), "dimension",
        picture="neuron view",
    ),
    PageRow(
        "matrix", "Matrix", "matrix_page:MatrixViewPage", _LINES | {"zoom", "pooling", "scale"}, ("left", "right"),
        "example", picture="matrix",
    ),
    PageRow(
        "compare", "Compare", "compare_page:CompareViewPage", _LINES | _OTHERS, ("left", "right"), "example",
        picture="difference",
    ),
    PageRow(
        "space", "Query\u2013key space", "space_page:SpaceViewPage", (_EXAMPLE - {"heads"}) | {"shade"}, ("left",),
        "example", picture="query-key space",
    ),
)  # fmt: skip
"""Views of one example, in the order of their tabs."""

PAGES = (
    PageRow(
        "corpus", "Corpus", "corpus_page:CorpusPage", _HEADS | {"x", "y", "heads", "other_store", "other_head"},
        ("right",), picture="head map",
    ),
    PageRow(
        "search", "Search", "search_page:SearchPage",
        frozenset({"page", "site", "pattern", "measure", "layer", "head", "example", "sample", "arcs"}),
        path_value="search", picture="ranked heads",
    ),
    PageRow(
        "examples", "Examples", "examples_page:ExamplesPage",
        _HEADS | {"text", "order", "row", "example", "where", "lengths", "scores"}, path_value="examples",
    ),
    PageRow(
        "views", "Views", "views_page:ViewsPage", frozenset().union(*(row.watches for row in VIEWS)), (), "example"
    ),
)  # fmt: skip
"""Pages, in the order of the top bar. The page `views` holds the views of one example."""


def row_of(page: str, view: str) -> PageRow:
    """Return the row of a page, or the row of the view if the page is `views`."""
    rows, route = (VIEWS, view) if page == "views" else (PAGES, page)
    return next(row for row in rows if row.route == route)
