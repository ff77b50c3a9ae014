"""Cards of the search page: pattern box, summary, ranked heads, and quoted examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypedDict

from headatlas.store.errors import NotFoundError

from ..data.edge_quotes import QuotedEdge
from ..figures.figure_parts import Caption, Figure
from ..figures.head_figures import RankedBar, ranking_figure
from .card import Card, Patch


class NamedPattern(TypedDict):
    """Pattern of the library."""

    name: str
    label: str
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
    dim: list[list[int]]
    """Queries and keys that the switch for special tokens hides."""
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
    expected: float
    """Mass that the null expects."""
    above: float
    """Mass / expected mass."""
    above_high: float
    """Upper end of the 95 % interval of `above`."""
    is_explained: bool
    """True if the null explains the head; a head that is neither above it nor explained by it is undecided."""
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
    null: str
    """Null that heads are compared with."""
    sentence: str
    ranked: bool
    """True if there are enough rows to rank heads."""


class HeadList(Card):
    """List of the heads that a search ranked."""

    frame_types = (HeadListFrame,)

    picture = "ranked heads"
    _esm = _bundle = "headlist.js"

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the ranked heads as bars with intervals, by mass."""
        frame = self.frame
        if not frame or not frame["rows"]:
            raise NotFoundError("no head is ranked, so there is no figure. Run a search that matches.")
        bars = [
            RankedBar(row["head"], row["mass"], row["low"], row["high"], row["expected"], not frame["ranked"] or row["q"] < 0.05)
            for row in frame["rows"]
        ]  # fmt: skip
        pattern = replace(caption, head="", example="")
        return ranking_figure(bars, "mass", frame["null"], caption.sentence, frame["high"], pattern, width_mm)


class QuotedExample(QuotedEdge):
    """Excerpt of one example around its strongest matching edge."""

    id: str
    score: float
    weight: float
    rank: int
    count: int
    """Number of examples with this quote."""
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
    description: str
    """Description of the part that is listed."""
    stale: bool
    note: str


class Kwic(Card):
    """Keyword in context: ranked examples, aligned on the query token."""

    frame_types = (KwicFrame,)

    _esm = _bundle = "kwic.js"
