"""The model view of one example: every head as a small map, and the chosen head enlarged beside them."""

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
from ..data.example_reader import MAX_CODES_BYTES, Reader
from ..frames.detail_frames import DetailFrame, detail_frame
from ..frames.view_frames import Head, ModelFrame, head_name, message_frame, model_frame, sides_frame
from .example_view import ExampleView
from .layout import three_columns
from .search_mass import mass_or_search


class ModelViewPage(ExampleView):
    """View with picker, thumbnails and one enlarged head."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.maps, self.detail = ModelView(), HeadDetail()
        self._maps_id = ""
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
        head, hide_special = self.heads[0], self.hide_special
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
        self._maps_id = ""
        self.maps.frame = message_frame(title, reason)
        self.detail.frame = {}
