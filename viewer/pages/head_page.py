"""The head view of one example: lines of the chosen heads, with the picker on the left and the keys on the right.

Lines join tokens, words or sentences. The address holds the pinned token. A click on a unit pins its first token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn
from jaxtyping import Float32

from ..components.headview import HeadView
from ..components.keylist import KeyList
from ..data.example_reader import Reader
from ..frames.geometry import MAX_WINDOW, window
from ..frames.picture_units import UnitKind, Units, merged, units_of
from ..frames.view_frames import Head, HeadFrame, head_frame, head_name, message_frame, sides_frame
from ..frames.whole_example import SentenceRange, sentence_ranges
from .example_view import ExampleView
from .layout import three_columns

_MAPS = {"site", "example", "layer", "head", "heads", "unit", "segments"}
MAX_DRAWN, MAX_READ = 8 << 20, 64 << 20
"""Most weights of all heads together that are drawn, and that are read. A long text shows fewer heads than chosen."""
_RANGES = {"all": 0, "aa": 1, "ab": 2, "ba": 3, "bb": 4}


class HeadViewPage(ExampleView):
    """View with picker, lines and keys."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.lines, self.keys = HeadView(), KeyList()
        self._lines_key: tuple[str, int, int] = ("", -1, -1)
        self._units: tuple[Units, Units] | None = None
        self._max_heads = 1
        self.picker.choices = True
        self.lines.document = lambda: self.document("head")
        self.link(self.picker, unit="unit", segments="segments", weights="weights", layout="layout")
        self.lines.param.watch(self._pin_unit, "pin")
        self.keys.param.watch(self._pin_unit, "pin")
        self.listen(self.keys)
        return three_columns(self.picker, self.lines, self.keys)

    @property
    def heads(self) -> list[Head]:
        """The shown heads, in the order of their colours, limited for a long text."""
        return super().heads[: self._max_heads]

    @property
    def _selection(self) -> str:
        return ",".join(head_name(head) for head in self.state.heads_shown)

    def _pin_unit(self, event: Any) -> None:
        """Pin the first token of a unit."""
        pin = str(event.new)
        if self._units is None or not pin or pin == self._unit_pin():
            if not pin and self._unit_pin():
                self.change(pin="")
            return
        first = self._units[pin[0] == "k"].first_token
        unit = int(pin[1:]) if pin[1:].isdigit() else len(first)
        self.change(pin=f"{pin[0]}{first[unit]}" if unit < len(first) else pin)

    def _unit_pin(self) -> str:
        """Return the pin of the state, counted in units."""
        pin = self.state.pinned
        if pin is None or self._units is None:
            return self.state.pin
        of_token = self._units[pin[0] == "k"].of_token
        unit = int(of_token[pin[1]]) if pin[1] < len(of_token) else -1
        return f"{pin[0]}{unit}" if unit >= 0 else ""

    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill the components. A new pin sends no maps again if the example fits the window."""
        state, site, unit = self.state, reader.site, self._unit_kind()
        queries = units_of(reader.example, site.query_sequence, unit)
        keys = queries if reader.same_text else units_of(reader.example, site.key_sequence, unit)
        self._units = units = (queries, keys)
        n_queries, n_keys = reader.shape
        n_drawn = min(n_queries, MAX_WINDOW) * min(n_keys, MAX_WINDOW)
        self._max_heads = max(1, min(MAX_DRAWN // max(1, n_drawn), MAX_READ // max(1, n_queries * n_keys)))
        maps = merged(reader.maps(self.heads), queries, keys)
        ranges = sentence_ranges(maps.shape[1], maps.shape[2], queries.second if reader.same_text else None)
        sentence_range = ranges[_RANGES[state.segments]] if len(ranges) > 1 else ranges[0]
        spans, pin = self._window(sentence_range), self._unit_pin()
        key = (f"{reader.id} {unit} {sentence_range['label']}", spans[0].start, spans[1].start)
        self.picker.give(
            unit=state.unit,
            segments=state.segments,
            weights=state.weights,
            layout=state.layout,
            pairs=len(ranges) > 1,
        )
        self.lines.give(
            share=state.share, keys=state.keys, hide_special=self.hide_special, pin=pin, layout=state.layout,
            renormalise=state.weights == "renormalised",
        )  # fmt: skip
        if changed & _MAPS or key != self._lines_key:
            if key[0] != self._lines_key[0]:
                self.lines.tokens = sides_frame(queries.frame, None if reader.same_text else keys.frame, key[0])
            self._lines_key = key
            self.lines.frame = self._lines_frame(reader, maps, spans, sentence_range["name"])
            self.lines.note = self._note(reader, unit)
        self.fill_picker(reader)
        self.fill_keys(reader, self.keys, maps, units)

    def _unit_kind(self) -> UnitKind:
        return {"word": "word", "sentence": "sentence"}.get(self.state.unit, "token")  # type: ignore[return-value]

    def _window(self, sentence_range: SentenceRange) -> tuple[slice, slice]:
        """Return the shown range of each side: the chosen range, or a window of it around the pin."""
        pin = self._unit_pin()
        center = int(pin[1:]) if pin else None
        spans = []
        for side in ("q", "k"):
            start, stop = sentence_range[side]
            part = window(stop - start, None if center is None else min(max(center, start), stop - 1) - start)
            spans.append(slice(start + part.start, start + part.stop))
        return spans[0], spans[1]

    def _lines_frame(
        self,
        reader: Reader,
        maps: Float32[np.ndarray, "n_heads query_pos key_pos"],
        spans: tuple[slice, slice],
        part: str,
    ) -> HeadFrame:
        n_queries, n_keys = maps.shape[1:]
        frame = head_frame(
            maps[:, spans[0], spans[1]], self.heads, causal=reader.site.causal, query_start=spans[0].start,
            key_start=spans[1].start, n_queries=n_queries, n_keys=n_keys, id=self._lines_key[0],
        )  # fmt: skip
        if part:
            frame["part"] = part
        return frame

    def _note(self, reader: Reader, unit: UnitKind) -> str:
        notes = [] if unit == "token" else [f"between {unit}s"]
        if (n := len(self.state.heads_shown)) > self._max_heads:
            notes.append(f"{self._max_heads} of {n} heads: the text is long")
        if reader.is_rebuilt:
            notes.append("rebuilt from query and key")
        elif len(self.data.store.sites) > 1:
            notes.append(reader.site.name)
        return ", ".join(notes)

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        self._lines_key = ("", -1, -1)
        self.lines.frame = message_frame(title, reason)
        self.keys.frame = {}
