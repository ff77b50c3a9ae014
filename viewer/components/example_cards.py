"""Card of the examples page: the list of examples with its filters."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np

from .card import Card, Patch


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
    star: bool
    remark: str
    """Note on the example."""
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
