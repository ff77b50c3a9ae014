"""The examples page: all examples in pages, filtered by text and ordered by a statistic of the chosen head."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn
from jaxtyping import Int64

from ..components.background import Check
from ..components.example_cards import ExampleList, ExampleListFrame, ExampleRow, Facet, Histogram
from ..data.bookmarks import Bookmark
from ..data.search_answers import SEARCH, HeadValues, upper_end
from ..data.store_data import DataSource
from ..state.reader_state import ViewState
from ..theme.token_labels import visible
from .corpus_page import chosen_values, scores_over_examples, statistic_options, waits_for_search
from .layout import grid, in_cell
from .page import Page

PAGE_ROWS = 22
MAX_COLUMNS, MAX_FACET_VALUES = 2, 6


class ExamplesPage(Page):
    """Page with filters and a list of examples."""

    def layout(self) -> pn.Column:
        """Build the cards and their layout, once."""
        self.list = ExampleList(self.session.receive)
        return grid(in_cell(self.list))

    def refresh(self, changed: frozenset[str]) -> str:
        """Fill the current page of rows. Of many examples it comes later, and the last page is shown until then."""
        waits = waits_for_search(self, self.state.statistic)
        values = chosen_values(self.data, self.state)

        def done(frame: ExampleListFrame) -> None:
            self.list.frame = frame

        self.reads.start(
            (self.state.to_query(), values.name), lambda check: list_frame(self.data, self.state, values, check),
            done, self.failed, at_once=self.data.is_small,
        )  # fmt: skip
        return "a search" if values.name == SEARCH else "stored statistics" + waits


def sort_positions(scores: np.ndarray, positions: Int64[np.ndarray, "match"], order: str) -> Int64[np.ndarray, "match"]:
    """Sort positions in corpus order or by score. Positions without a score come last."""
    if order == "corpus":
        return positions
    value = scores[positions].astype(np.float64)
    rank = np.where(np.isfinite(value), -value if order == "strongest" else value, np.inf)
    return positions[np.argsort(rank, kind="stable")]


def list_frame(data: DataSource, state: ViewState, values: HeadValues, check: Check = lambda: None) -> ExampleListFrame:
    """Build the frame of the list: one page of rows, and facts about all matching rows."""
    scores = scores_over_examples(data, state, values)
    check()
    positions = data.containing(state.text, check)
    if state.where:
        positions = np.intersect1d(positions, data.having(state.facets), assume_unique=True)
    lengths = data.lengths(data.site(state.site).query_sequence)
    positions = positions[in_span(lengths[positions], state.length_span) & in_span(scores[positions], state.score_span)]
    positions = sort_positions(scores, positions, state.order)
    start = min(state.row, max(0, len(positions) - 1)) // PAGE_ROWS * PAGE_ROWS
    columns = text_columns(data)
    rows: list[ExampleRow] = []
    bookmarks = data.bookmarks.examples() if data.bookmarks else {}
    for position in positions[start : start + PAGE_ROWS].tolist():
        check()
        number = int(data.numbers[position])
        patch = {"page": "views", "example": number, "pin": ""}
        bookmark = bookmarks.get(data.ids[position], Bookmark())
        rows.append(
            {
                "id": visible(data.ids[position]),
                "text": data.shown_text(number, 300),
                "columns": [
                    visible(str(column[position])) if column[position] is not None else ""
                    for column in columns.values()
                ],
                "tokens": int(lengths[position]),
                "value": float(scores[position]),
                "on": number == state.example,
                "star": bookmark.star,
                "remark": visible(bookmark.note),
                "query": state.to_query(**patch),
                "patch": patch,
            }
        )
    counts, edges = (
        np.histogram(lengths[positions], bins=24) if len(positions) else (np.zeros(24, np.int64), np.array([0, 0]))
    )
    finite = scores[np.isfinite(scores)]
    return {
        "rows": rows,
        "columns": [visible(name) for name in columns],
        "start": start,
        "page_rows": PAGE_ROWS,
        "n_found": len(positions),
        "n_all": data.n_examples,
        "text": visible(state.text),
        "order": state.order,
        "statistics": statistic_options(data, state),
        "statistic": values.name,
        "label": values.label,
        "high": max(values.high, upper_end(finite)) if finite.size else values.high,
        "head": f"{state.layer}.{state.head}",
        "lengths": {"counts": counts.astype(np.int32), "first": int(edges[0]), "last": int(edges[-1])},
        "spread": score_histogram(scores[positions]),
        "spans": {"lengths": state.lengths, "scores": state.scores},
        "facets": facets(columns, positions),
        "where": state.facets,
        "note": "No example has "
        + " and ".join(
            [f"\u201c{visible(state.text)}\u201d in its text or id"] * bool(state.text)
            + ["these annotations"] * bool(state.where)
            + [f"{state.lengths} tokens"] * bool(state.lengths)
            + [f"{values.label} {state.scores}"] * bool(state.scores)
        )
        + ".",
    }


def in_span(values: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Return a mask of the values in a span, ends included. Without a span all values count, also NaN."""
    if span == (-np.inf, np.inf):
        return np.ones(len(values), bool)
    return (values >= span[0]) & (values <= span[1])


def score_histogram(scores: np.ndarray) -> Histogram:
    """Return a histogram of the scores that are not NaN."""
    finite = scores[np.isfinite(scores)].astype(np.float64)
    counts, edges = np.histogram(finite, bins=24) if finite.size else (np.zeros(24, np.int64), np.zeros(2))
    return {"counts": counts.astype(np.int32), "first": float(edges[0]), "last": float(edges[-1])}


def text_columns(data: DataSource) -> dict[str, list[Any]]:
    """Return the first annotations of examples that have few enough values for a column."""
    columns = {}
    for name, column in data.store.example_columns().items():
        if column.values is not None and len(column.values) <= max(50, data.n_examples // 10):
            columns[name] = column.to_list()
        if len(columns) == MAX_COLUMNS:
            break
    return columns


def facets(columns: dict[str, list[Any]], positions: Int64[np.ndarray, "match"]) -> list[Facet]:
    """Return the most frequent values of each column among the matching rows."""
    facet_list: list[Facet] = []
    for name, rows in columns.items():
        counts: dict[str, int] = {}
        for position in positions.tolist():
            value = rows[position]
            if value is not None:
                counts[value] = counts.get(value, 0) + 1
        top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_FACET_VALUES]
        if top:
            facet_list.append({"name": visible(name), "values": [[visible(value), n] for value, n in top]})
    return facet_list
