"""The head view of one example: lines of the chosen heads, with the picker on the left and the keys on the right.

Lines join tokens, words or sentences. The address holds the pinned token. A click on a unit pins its first token.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import panel as pn
from jaxtyping import Float32

from headatlas.store.errors import NotFoundError, PatternError

from ..components.background import Check
from ..components.headview import HeadView
from ..components.keylist import KeyList
from ..data.example_reader import AT_ONCE_BYTES, Reader
from ..data.key_weights import KeyWeights, Part, key_weights
from ..frames.geometry import MAX_WINDOW, renormalised, window
from ..frames.picture_units import UnitKind, Units, merged
from ..frames.view_frames import Head, HeadFrame, head_frame, head_name, message_frame, sides_frame
from ..frames.whole_example import SentenceRange, sentence_ranges
from ..theme.token_labels import visible
from .example_view import ExampleView, is_renormalised
from .layout import three_columns

_MAPS = {"site", "example", "layer", "head", "heads", "unit", "segments", "weights", "pattern"}
_LISTED = {"pin", "specials", "page", "view"}
MAX_DRAWN = 8 << 20
"""Most weights of all heads together that are drawn. A long text shows fewer heads than chosen."""
MAX_WHOLE, MAX_MERGED = 12 << 20, 2 << 20
"""Most weights of all heads together of which complete maps are read, and most weights of a map that is merged."""
END = re.compile(r"([qk])([0-9]+)")
"""One end of a pinned edge."""
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
        self.lines.document = partial(self.document, "head")
        self.link(self.picker, unit="unit", segments="segments", layout="layout")
        self.link(self.lines, pooling="pooling")
        self.lines.param.watch(self._pin_unit, "pin")
        self.keys.param.watch(self._pin_unit, "pin")
        self.listen(self.keys)
        self.listen(self.lines)
        return three_columns(self.picker, self.lines, self.keys)

    @property
    def heads(self) -> list[Head]:
        """The shown heads, in the order of their colours, limited for a long text."""
        return super().heads[: self._max_heads]

    @property
    def _selection(self) -> str:
        return ",".join(head_name(head) for head in self.state.heads_shown)

    def _pin_unit(self, event: Any) -> None:
        """Pin the first token of a unit, or the edge between the first tokens of two units."""
        pin = str(event.new)
        if self._units is None or not pin or pin == self._unit_pin():
            if not pin and self._unit_pin():
                self.change(pin="")
            return
        first = {side: units.first_token for side, units in zip("qk", self._units, strict=True)}
        ends = [(side, int(unit)) for side, unit in END.findall(pin)]
        if all(unit < len(first[side]) for side, unit in ends):
            pin = "".join(f"{side}{first[side][unit]}" for side, unit in ends)
        self.change(pin=pin)

    def on_message(self, message: dict[str, Any]) -> None:
        """Handle a message: of a side panel, or ``{"pattern": ""}`` of the lines, which lets no pattern stand out."""
        if message.get("pattern") == "":
            self.change(pattern="")
        super().on_message(message)

    def _unit_pin(self) -> str:
        """Return the pin of the state, counted in units."""
        if self._units is None:
            return self.state.pin
        text = ""
        for side, token in END.findall(self.state.pin):
            of_token = self._units[side == "k"].of_token
            unit = int(of_token[int(token)]) if int(token) < len(of_token) else -1
            if unit < 0:
                break
            text += f"{side}{unit}"
        return text

    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill the components. A new pin sends no maps again if the example fits the window."""
        state, unit = self.state, self._unit_kind()
        self._units = units = reader.units(unit)
        n_units = [len(side.frame["labels"]) for side in units]
        ranges = sentence_ranges(n_units[0], n_units[1], units[0].second if reader.same_text else None)
        sentence_range = ranges[_RANGES[state.segments]] if len(ranges) > 1 else ranges[0]
        part, spans = self._plan(reader, units, sentence_range)
        heads, id_ = self.heads, f"{reader.id} {unit} {sentence_range['label']}"
        key = (id_, spans[0].start, spans[1].start)
        self.picker.give(
            unit=state.unit,
            segments=state.segments,
            layout=state.layout,
            pairs=len(ranges) > 1,
        )
        self.lines.give(
            share=state.share, keys=state.keys, hide_special=self.hide_special, pin=self._unit_pin(),
            layout=state.layout, pooling=state.pooling, renormalised=is_renormalised(state),
        )  # fmt: skip
        is_new = bool(changed & _MAPS) or key != self._lines_key
        if not is_new and not changed & _LISTED:
            return
        (pin, partner), hide_special = parse_pin(self._unit_pin()), self.hide_special
        read_key = (key, heads, pin, partner, hide_special, state.pattern)

        def work(check: Check) -> tuple[HeadFrame | None, KeyWeights]:
            maps = _part_maps(reader, heads, part, check)
            frame = _lines_frame(reader, heads, maps, part, spans, id_, sentence_range["name"]) if is_new else None
            if frame is not None and state.pattern:
                frame |= self._matches(state.pattern, units, spans)
            return frame, key_weights(
                reader, heads, maps, part, pin, read_key, hide_special=hide_special, check=check, partner=partner
            )  # fmt: skip

        def done(result: tuple[HeadFrame | None, KeyWeights]) -> None:
            frame, listed = result
            if frame is not None:
                if id_ != self._lines_key[0]:
                    queries, keys = (side.frame for side in units)
                    self.lines.tokens = sides_frame(queries, None if reader.same_text else keys, id_)
                self._lines_key = key
                self.lines.frame = frame
                self.lines.note = self._note(reader, unit)
            self.fill_picker(reader, self.keys, listed)

        self.picks.stop()  # its weights belong to the last picture
        at_once = self._cost(reader, heads, part) <= AT_ONCE_BYTES
        if not at_once and id_ != self._lines_key[0]:
            self._lines_key = ("", -1, -1)
            self.lines.frame = message_frame(
                "Reading the weights", f"{reader.shape[0]:,} \u00d7 {reader.shape[1]:,} tokens."
            )
        self.reads.start(read_key, work, done, self.failed, at_once=at_once)

    def _unit_kind(self) -> UnitKind:
        return {"word": "word", "sentence": "sentence"}.get(self.state.unit, "token")  # type: ignore[return-value]

    def _plan(
        self, reader: Reader, units: tuple[Units, Units], sentence_range: SentenceRange
    ) -> tuple[Part, tuple[slice, slice]]:
        """Decide which part of the maps is read, of how many heads, and which units of it are drawn.

        The maps of a short text are read completely. Of a long text `MAX_WINDOW` tokens around the pin are read.
        """
        n_queries, n_keys = reader.shape
        n_drawn = min(n_queries, MAX_WINDOW) * min(n_keys, MAX_WINDOW)
        self._max_heads = max(1, MAX_DRAWN // max(1, n_drawn))
        n_heads, n_pairs = len(self.heads), n_queries * n_keys
        is_token = all(side.are_tokens for side in units)
        if n_heads * n_pairs <= MAX_WHOLE and (is_token or n_pairs <= MAX_MERGED):
            whole = tuple(slice(0, len(side.frame["labels"])) for side in units)
            return Part(units, whole), self._window(sentence_range)  # type: ignore[arg-type]
        self._max_heads = min(self._max_heads, reader.heads_within(min(n_queries, MAX_WINDOW)))
        center = self._center(units)
        queries, keys = (
            units_within(side, slice(*sentence_range[name]), center) for side, name in zip(units, ("q", "k"), strict=True)
        )  # fmt: skip
        return Part(units, (queries, keys)), (queries, keys)

    def _center(self, units: tuple[Units, Units]) -> int | None:
        """Return the token that the shown part of a long text lies around."""
        pin = self.state.pinned
        return None if pin is None or pin[1] >= len(units[pin[0] == "k"].of_token) else pin[1]

    def _cost(self, reader: Reader, heads: list[Head], part: Part) -> int:
        n_rows = reader.shape[0] if part.is_whole else min(reader.shape[0], MAX_WINDOW)
        return reader.cost(len(heads), n_rows)

    def _window(self, sentence_range: SentenceRange) -> tuple[slice, slice]:
        """Return the shown range of each side: the chosen range, or a window of it around the pin."""
        pin = self._unit_pin()
        center = int(END.findall(pin)[0][1]) if pin else None
        spans = []
        for side in ("q", "k"):
            start, stop = sentence_range[side]
            part = window(stop - start, None if center is None else min(max(center, start), stop - 1) - start)
            spans.append(slice(start + part.start, start + part.stop))
        return spans[0], spans[1]

    def _matches(self, pattern: str, units: tuple[Units, Units], spans: tuple[slice, slice]) -> HeadFrame:
        """Return the entries of the frame that mark the edges of a pattern. Empty if the pattern has a mistake."""
        data, state = self.data, self.state
        try:
            tokens = data.matches(pattern, state.site, state.example)
        except PatternError:
            return {}  # type: ignore[return-value]
        ends = [side.of_token[positions] for side, positions in zip(units, tokens, strict=True)]
        is_shown = np.logical_and.reduce(
            [(end >= span.start) & (end < span.stop) for end, span in zip(ends, spans, strict=True)]
        )
        pairs = np.unique(np.stack([end[is_shown] - span.start for end, span in zip(ends, spans, strict=True)]), axis=1)
        library = data.library(state.site)
        name = next((item.label for item in library.values() if pattern in (item.name, item.expression)), pattern)
        return {
            "pattern": visible(name), "matches": {"query": pairs[0].astype(np.int32), "key": pairs[1].astype(np.int32)},
        }  # type: ignore[return-value]  # fmt: skip

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


def parse_pin(text: str) -> tuple[tuple[str, int] | None, int | None]:
    """Return side and position of a pin such as ``q14`` or ``q14k3``, and the other end of its edge; None for none."""
    ends = [(side, int(position)) for side, position in END.findall(text)]
    return ends[0] if ends else None, ends[1][1] if len(ends) > 1 else None


def units_within(side: Units, units: slice, center: int | None) -> slice:
    """Return the units whose tokens all lie within `MAX_WINDOW` tokens around a token, or at the start of `units`.

    Raises
    ------
    NotFoundError
        The unit there has more tokens.
    """
    tokens = np.flatnonzero((side.of_token >= units.start) & (side.of_token < units.stop))
    if not len(tokens):
        return slice(units.start, units.start)
    start, stop = int(tokens[0]), int(tokens[-1]) + 1
    span = window(stop - start, None if center is None else min(max(center, start), stop - 1) - start)
    inside = side.of_token[start + span.start : start + span.stop]
    before, after = side.of_token[: start + span.start], side.of_token[start + span.stop :]
    inside = np.unique(inside[inside >= 0])
    first, last = int(inside[0]), int(inside[-1])
    first += bool((before == first).any()) and last > first
    last -= bool((after == last).any()) and last > first
    if (side.of_token == first).sum() > MAX_WINDOW:
        raise NotFoundError(f"a unit of this text has more than {MAX_WINDOW} tokens. Choose words or tokens as units.")
    return slice(first, last + 1)


def _part_maps(
    reader: Reader, heads: list[Head], part: Part, check: Check
) -> Float32[np.ndarray, "n_heads query_unit key_unit"]:
    """Read the part of the maps, between units. Rows of words and sentences are renormalised after merging."""
    is_scaled = reader.renormalise and not all(side.are_tokens for side in part.units)
    source = reader.as_stored if is_scaled else reader
    if part.is_whole:
        maps = merged(source.maps(heads, check), *part.units)
    else:
        (queries, rows), (keys, columns) = (side.part(span) for side, span in zip(part.units, part.spans, strict=True))
        maps = merged(source.maps(heads, check, query=rows, key=columns), queries, keys)
    return renormalised(maps, np.asarray(part.units[1].frame["special"], bool)[part.spans[1]]) if is_scaled else maps


def _lines_frame(
    reader: Reader,
    heads: list[Head],
    maps: Float32[np.ndarray, "n_heads query_unit key_unit"],
    part: Part,
    spans: tuple[slice, slice],
    id: str,
    name: str,
) -> HeadFrame:
    """Build the frame of the lines between the units of `spans`."""
    queries, keys = (
        slice(span.start - read.start, span.stop - read.start) for span, read in zip(spans, part.spans, strict=True)
    )
    n_queries, n_keys = (len(side.frame["labels"]) for side in part.units)
    frame = head_frame(
        maps[:, queries, keys], heads, causal=reader.site.causal, query_start=spans[0].start,
        key_start=spans[1].start, n_queries=n_queries, n_keys=n_keys, id=id,
    )  # fmt: skip
    if name:
        frame["part"] = name
    return frame
