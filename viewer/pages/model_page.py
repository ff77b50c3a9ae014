"""The model view of one example: every head as a small map, and the chosen head enlarged beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn

from headatlas.store.schema.capture_statistics import STATISTICS

from ..components.headdetail import HeadDetail
from ..components.modelview import ModelView
from ..data.example_reader import Reader
from ..frames.detail_frames import detail_frame
from ..frames.view_frames import head_name, message_frame, model_frame, sides_frame
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
        self.maps.document = lambda: self.document("model")
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
        head = self.heads[0]
        if reader.id != self._maps_id:
            self.maps.tokens = sides_frame(reader.queries, None if reader.same_text else reader.keys, reader.id)
            self.maps.frame = model_frame(reader.codes(), id=reader.id)
            self._maps_id = reader.id
        self.maps.give(enlarged=head_name(head), selected=self._selection, hide_special=self.hide_special)
        if changed & {"site", "example", "layer", "head", "specials", "view", "page"}:
            self.detail.frame = detail_frame(
                reader.maps([head])[0], head, reader.queries, reader.keys,
                causal=reader.site.causal, facts=self._facts(reader), hide_special=self.hide_special,
            )  # fmt: skip
        self.detail.give(pin=self.state.pin, hide_special=self.hide_special)
        self.fill_picker(reader)
        self._rank()

    def _rank(self) -> None:
        """Set the scores that order the maps: the weights of the picker, or the mass of the current search."""
        state, picker_frame = self.state, self.picker.frame
        ranking: dict[str, Any] = {}
        if state.arrange == "weight":
            ranking = {"scores": picker_frame["values"].ravel(), "title": picker_frame["title"]}
        elif state.arrange == "search" and state.pattern:
            mass = mass_or_search(self.data, state.pattern, state.site, self._rank)
            if mass is not None:
                ranking = {"scores": np.nan_to_num(mass.values).ravel(), "title": f"mass of {state.pattern[:40]}"}
        self.maps.give(arrange=state.arrange, searched=bool(state.pattern), ranking=ranking)

    def _facts(self, reader: Reader) -> list[tuple[str, float, str]]:
        """Return the statistics of the chosen head on this example as (label, value, unit)."""
        if not reader.keep.statistics:
            return []
        layer, head = self.heads[0]
        data = reader.example.statistics(reader.site.name)
        statistics = [
            (STATISTICS[str(name)], data[name].values[layer, head]) for name in data if str(name) in STATISTICS
        ]
        return [
            (statistic.label, float(value), "" if statistic.unit == "share" else statistic.unit)
            for statistic, value in statistics
        ]

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        self._maps_id = ""
        self.maps.frame = message_frame(title, reason)
        self.detail.frame = {}
