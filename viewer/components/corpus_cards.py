"""Cards of the corpus page: facts, head map, scatter, distribution, and the selected head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NotRequired, TypedDict

import numpy as np
import param

from headatlas.store.errors import NotFoundError

from ..data.role_answers import RolesFrame
from ..data.store_facts import FactsFrame
from ..figures.figure_parts import Caption, Figure
from ..figures.head_figures import AxisValues, head_map_figure, histogram_figure, scatter_figure
from .card import BookmarkText, Card, HeadBookmarks, Patch


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

    layers: list[int]
    """Numbers of the layers in the model."""
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
    roles: NotRequired[dict[str, int]]
    """Main role of each head that has one: the index of its colour, -1 for sinks."""
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

    selected = param.String(default="", doc="layer.head; the first head by default")

    frame_types = (HeadMapFrame,)

    picture = "head map"
    _esm = _bundle = "headmap.js"

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the map of heads."""
        frame = self.frame
        if not frame:
            raise NotFoundError("the map has no numbers yet. Wait until they are read.")
        values = np.asarray(frame["values"]).reshape(len(frame["layers"]), frame["n_heads"])
        name = frame["title"] + (f" ({frame['unit']})" if frame["unit"] else "")
        of_store = replace(caption, head="", example="", model=frame.get("other") or caption.model)
        return head_map_figure(values, frame["layers"], frame["high"], name, of_store, width_mm)


class Roles(Card):
    """List of the roles that heads have. A click colours the map by the role and selects its best head."""

    frame_types = (RolesFrame,)

    _esm = _bundle = "roles.js"


class Axis(TypedDict):
    """Axis of a scatter plot: one statistic of every head."""

    name: str
    label: str
    unit: str
    high: float
    values: np.ndarray


class ScatterFrame(TypedDict):
    """Every head by two statistics."""

    layers: list[int]
    """Numbers of the layers in the model."""
    n_heads: int
    x: Axis
    y: Axis
    options: list[list[str]]
    note: str


class Scatter(Card):
    """Scatter plot of the heads by two statistics."""

    selected = param.String(default="", doc="layer.head; the first head by default")

    frame_types = (ScatterFrame,)

    picture = "heads by two statistics"
    _esm = _bundle = "scatter.js"

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw all heads by two statistics."""
        frame = self.frame
        if not frame:
            raise NotFoundError("the scatter plot has no numbers yet. Wait until they are read.")
        names = [f"{layer}.{head}" for layer in frame["layers"] for head in range(frame["n_heads"])]
        x, y = (
            AxisValues(axis["label"] + (f" ({axis['unit']})" if axis["unit"] else ""), np.asarray(axis["values"]), axis["high"])
            for axis in (frame["x"], frame["y"])
        )  # fmt: skip
        return scatter_figure(x, y, names, [self.selected], replace(caption, head="", example=""), width_mm)


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

    picture = "distribution"
    _esm = _bundle = "distribution.js"

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the histogram."""
        frame = self.frame
        if not frame:
            raise NotFoundError("the distribution has no numbers yet. Wait until they are read.")
        name = frame["title"] + (f" ({frame['unit']})" if frame["unit"] else "")
        return histogram_figure(
            frame["counts"], frame["high"], frame["corpus"], name, frame["n"], replace(caption, example=""), width_mm
        )  # fmt: skip


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
