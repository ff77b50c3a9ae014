"""The model view of one example: every head as a small map, and the chosen head enlarged beside them.

The small maps of a long text come from its stored edges. Of the chosen head it shows a part around the pinned token.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import panel as pn

from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.traces import head_index

from ..components.background import Check
from ..components.headdetail import HeadDetail
from ..components.modelview import ModelView
from ..data.edge_maps import edge_maps, edge_rows
from ..data.example_reader import MAX_CODES_BYTES, Reader
from ..frames.detail_frames import DetailFrame, detail_frame
from ..frames.geometry import MAX_WINDOW, window
from ..frames.view_frames import (
    Head,
    ModelFrame,
    cut_tokens,
    head_name,
    message_frame,
    model_frame,
    sides_frame,
)
from .example_view import ExampleView
from .layout import three_columns
from .search_mass import mass_or_search


class ModelViewPage(ExampleView):
    """View with picker, thumbnails and one enlarged head."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.maps, self.detail = ModelView(), HeadDetail()
        self._maps_id = ""
        self._detail_spans: tuple[slice, slice] | None = None
        self.picker.lines = False
        self.maps.document = partial(self.document, "model")
        self.link(self.detail, pin="pin")
        self.link(self.maps, arrange="arrange")
        self.maps.param.watch(self._enlarge, "enlarged")
        self.maps.param.watch(self._selected, "selected")
        self.listen(self.detail)
        return three_columns(self.picker, self.maps, self.detail)

    def _enlarge(self, event: Any) -> None:
        layer, _, head = str(event.new).partition(".")
        if event.new != head_name(self.heads[0]):
            self.change(layer=layer, head=head)

    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill the components. Another chosen head sends only the map of that head."""
        if reader.n_weights > MAX_CODES_BYTES and reader.has_attention and reader.keep.edges:
            self._draw_long(reader, changed)
            return
        head, hide_special = self.heads[0], self.hide_special
        self._detail_spans = None
        self.maps.give(enlarged=head_name(head), selected=self._selection, hide_special=hide_special)
        is_new = reader.id != self._maps_id
        is_detail = is_new or bool(
            changed & {"site", "example", "layer", "head", "specials", "weights", "view", "page"}
        )

        def work(check: Check) -> tuple[ModelFrame | None, DetailFrame | None]:
            codes = reader.codes(check)  # raises an error for a long text, before anything is read
            detail = None
            if is_detail:
                detail = detail_frame(
                    reader.maps([head], check)[0], head, reader.queries, reader.keys,
                    causal=reader.site.causal, facts=self._facts(reader, head), hide_special=hide_special,
                )  # fmt: skip
            return model_frame(codes, reader.site.layers, id=reader.id) if is_new else None, detail

        def done(result: tuple[ModelFrame | None, DetailFrame | None]) -> None:
            maps, detail = result
            if maps is not None:
                self.maps.tokens = sides_frame(reader.queries, None if reader.same_text else reader.keys, reader.id)
                self.maps.frame = maps
                self._maps_id = reader.id
            if detail is not None:
                self.detail.frame = detail
            self._rest(reader)

        self.picks.stop()
        at_once = reader.has_codes
        if is_new and not at_once and reader.has_attention and reader.n_weights <= MAX_CODES_BYTES:
            self._maps_id = ""
            self.maps.frame = message_frame("Reading the maps", f"{reader.n_weights:,} weights of all heads.")
            self.detail.frame = {}
        if reader.n_weights > MAX_CODES_BYTES:
            self.detail.frame = {}
            self._rest(reader)
            at_once = True  # says that the text is too long
        self.reads.start((reader.id, head, hide_special, is_new, is_detail), work, done, self.failed, at_once=at_once)

    def _draw_long(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill the components for a long text."""
        head, hide_special, pin = self.heads[0], self.hide_special, self.pinned(reader)
        self.maps.give(enlarged=head_name(head), selected=self._selection, hide_special=hide_special)
        rows = edge_rows(reader, None if pin is None else pin[1])
        id_ = f"{reader.id} edges {rows.start}"
        spans = detail_spans(reader, None if pin is None else pin[1])
        is_new = id_ != self._maps_id
        is_detail = is_new or spans != self._detail_spans or bool(changed - {"pin", "arrange", "pattern"})
        if is_new:
            self._maps_id, self.detail.frame = "", {}
            self.maps.frame = message_frame("Reading the strongest keys", f"{reader.shape[0]:,} queries of all heads.")

        def work(check: Check) -> tuple[ModelFrame | None, DetailFrame | None]:
            maps = self._edge_frame(reader, rows, id_, check) if is_new else None
            return maps, self._detail_part(reader, head, spans, hide_special, check) if is_detail else None

        def done(result: tuple[ModelFrame | None, DetailFrame | None]) -> None:
            maps, detail = result
            if maps is not None:
                queries = cut_tokens(reader.queries, rows.start, rows.stop - rows.start)
                self.maps.tokens = sides_frame(queries, reader.keys, id_)
                self.maps.frame, self._maps_id = maps, id_
            if detail is not None:
                self.detail.frame, self._detail_spans = detail, spans
            self._rest(reader)

        self.picks.stop()
        self.reads.start(
            (id_, head, hide_special, str(spans), is_new, is_detail), work, done, self.failed, at_once=False
        )

    def _edge_frame(self, reader: Reader, rows: slice, id: str, check: Check) -> ModelFrame:
        codes, n_queries = edge_maps(reader, rows, check), reader.shape[0]
        frame = model_frame(codes, reader.site.layers, id=id)
        notes = [f"the {reader.keep.edges} strongest keys of each query, as stored"]
        if rows.stop - rows.start < n_queries:
            notes.insert(0, f"queries {rows.start:,}\u2013{rows.stop - 1:,} of {n_queries:,}")
        return {
            **frame, "n_queries": rows.stop - rows.start, "n_keys": reader.shape[1], "query_start": rows.start,
            "note": ", ".join(notes),
        }  # fmt: skip

    def _detail_part(
        self, reader: Reader, head: Head, spans: tuple[slice, slice], hide_special: bool, check: Check
    ) -> DetailFrame:
        query, key = spans
        queries, keys = (
            cut_tokens(side, span.start, span.stop - span.start)
            for side, span in zip((reader.queries, reader.keys), spans, strict=True)
        )
        frame = detail_frame(
            reader.maps([head], check, query=query, key=key)[0], head, queries, keys,
            causal=reader.site.causal, facts=self._facts(reader, head), hide_special=hide_special,
        )  # fmt: skip
        for edge in frame["edges"]:
            edge["query"] += query.start
            edge["key"] += key.start
        return {
            **frame, "start": [query.start, key.start],
            "note": f"Queries {query.start:,}\u2013{query.stop - 1:,} of {reader.shape[0]:,}, keys {key.start:,}\u2013"
            f"{key.stop - 1:,} of {reader.shape[1]:,}. Pin a token to see those around it; the matrix shows all.",
        }  # fmt: skip

    def _rest(self, reader: Reader) -> None:
        """Fill what depends on the pin, and the order of the maps."""
        self.detail.give(pin=self.state.pin, hide_special=self.hide_special)
        self.fill_picker(reader)
        self._rank()

    def _rank(self) -> None:
        """Set the scores that order the maps: the weights of the picker, or the mass of the current search."""
        state, picker_frame = self.state, self.picker.frame
        ranking: dict[str, Any] = {}
        if state.arrange == "weight" and picker_frame:
            ranking = {"scores": picker_frame["values"].ravel(), "title": picker_frame["title"]}
        elif state.arrange == "search" and state.pattern:
            mass = mass_or_search(self.data, state.pattern, state.site, self.searches, self._rank)
            if mass is not None:
                ranking = {"scores": np.nan_to_num(mass.values).ravel(), "title": f"mass of {state.pattern[:40]}"}
        self.maps.give(arrange=state.arrange, searched=bool(state.pattern), ranking=ranking)

    def _facts(self, reader: Reader, head: Head) -> list[tuple[str, float, str]]:
        """Return the statistics of the chosen head on this example as (label, value, unit)."""
        if not reader.keep.statistics:
            return []
        data = reader.example.statistics(reader.site.name)
        index = head_index(reader.site, *head)
        statistics = [(STATISTICS[str(name)], data[name].values[index]) for name in data if str(name) in STATISTICS]
        return [
            (statistic.label, float(value), "" if statistic.unit == "share" else statistic.unit)
            for statistic, value in statistics
        ]

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        self._maps_id, self._detail_spans = "", None
        self.maps.frame = message_frame(title, reason)
        self.detail.frame = {}


def detail_spans(reader: Reader, position: int | None) -> tuple[slice, slice]:
    """Return the queries and keys of the enlarged head of a long text: some `MAX_WINDOW` around a token.

    Tokens of one half of the part have the same part, so that a click on a row beside the last one moves nothing.
    """
    half = MAX_WINDOW // 2
    center = None if position is None else position // half * half + half // 2
    n_queries, n_keys = reader.shape
    return window(n_queries, center), window(n_keys, center)
