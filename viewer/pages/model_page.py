"""The model view of one example: every head as a small map; the chosen head large at the side."""

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
from .layout import three
from .search_mass import answered


class ModelViewPage(ExampleView):
    """Picker, thumbnails, one head."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.maps, self.detail = ModelView(), HeadDetail()
        self._shown = ""
        self.picker.lines = False
        self.maps.document = lambda: self.document("model")
        self.link(self.detail, pin="pin")
        self.link(self.maps, arrange="arrange")
        self.maps.param.watch(self._enlarge, "enlarged")
        self.maps.param.watch(self._selected, "selected")
        self.listen(self.detail)
        return three(self.picker, self.maps, self.detail)

    def _enlarge(self, event: Any) -> None:
        layer, _, head = str(event.new).partition(".")
        if event.new != head_name(self.heads[0]):
            self.tell(layer=layer, head=head)

    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill the components; choosing another head sends only that head's map."""
        chosen = self.heads[0]
        if reader.id != self._shown:
            self.maps.tokens = sides_frame(reader.queries, None if reader.same_text else reader.keys, reader.id)
            self.maps.frame = model_frame(reader.codes(), id=reader.id)
            self._shown = reader.id
        self.maps.give(enlarged=head_name(chosen), selected=self._selection, hide_special=self.hide_special)
        if changed & {"site", "example", "layer", "head", "specials", "view", "page"}:
            self.detail.frame = detail_frame(
                reader.maps([chosen])[0], chosen, reader.queries, reader.keys,
                causal=reader.site.causal, facts=self._facts(reader), hide_special=self.hide_special,
            )  # fmt: skip
        self.detail.give(pin=self.state.pin, hide_special=self.hide_special)
        self.pick(reader)
        self._rank()

    def _rank(self) -> None:
        """Hand over the scores that order the maps: the picker's weights, or the search of the address."""
        state, picked = self.state, self.picker.frame
        ranking: dict[str, Any] = {}
        if state.arrange == "weight":
            ranking = {"scores": picked["values"].ravel(), "title": picked["title"]}
        elif state.arrange == "search" and state.pattern:
            found = answered(self.data, state.pattern, state.site, self._rank)
            if found is not None:
                ranking = {"scores": np.nan_to_num(found.values).ravel(), "title": f"mass of {state.pattern[:40]}"}
        self.maps.give(arrange=state.arrange, searched=bool(state.pattern), ranking=ranking)

    def _facts(self, reader: Reader) -> list[tuple[str, float, str]]:
        """Statistics of the chosen head on this example."""
        if not reader.keep.statistics:
            return []
        layer, head = self.heads[0]
        data = reader.example.statistics(reader.site.name)
        known = [(STATISTICS[str(name)], data[name].values[layer, head]) for name in data if str(name) in STATISTICS]
        return [
            (statistic.label, float(value), "" if statistic.unit == "share" else statistic.unit)
            for statistic, value in known
        ]

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        self._shown = ""
        self.maps.frame = message_frame(title, reason)
        self.detail.frame = {}
