"""`ExampleView`, the base of the views of one example, with the picker of heads and the list of keys.

Components write choices through `ViewState.apply`, which checks them, because they come from a browser.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

import numpy as np
import param
from jaxtyping import Float32

from ..components.esm_view import ESMView
from ..components.headpicker import HeadPicker
from ..components.keylist import KeyList
from ..data.example_reader import Reader, reader_of
from ..data.store_data import DataSource
from ..export import Kind, make_view
from ..frames.detail_frames import PinnedRow, pinned_frame, strongest_frame
from ..frames.picture_units import Units
from ..frames.view_frames import Head, head_name, picker_frame
from ..frames.whole_example import example_part, neuron_part, vectors_facts
from ..state.page_table import PageRow
from .page import Page, PageSession

logger = logging.getLogger(__name__)
PICK_WEIGHTS = 32 << 20
"""Most weights of all maps that are read to colour the picker while no token is pinned."""


class ExampleView(Page):
    """Base of the views of one example. `draw` fills a view."""

    def __init__(self, session: PageSession, row: PageRow) -> None:
        self.picker = HeadPicker()
        self._picker_key: tuple[Any, ...] = ()
        super().__init__(session, row)
        self.link(self.picker, share="share", keys="keys")
        self.picker.param.watch(lambda event: self.change(specials="hide" if event.new else "show"), "hide_special")
        self.picker.param.watch(self._selected, "selected")

    @abstractmethod
    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill the components after some fields have changed."""

    @abstractmethod
    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""

    def refresh(self, changed: frozenset[str]) -> str:
        """Fill the picker and the view. Returns the source of the numbers with its largest error."""
        reader = reader_of(self.data, self.state.example, self.state.site)
        self.picker.give(share=self.state.share, keys=self.state.keys, hide_special=self.hide_special)
        self.picker.selected = self._selection
        self.draw(reader, changed)
        return attention_source(self.data)

    @property
    def heads(self) -> list[Head]:
        """The shown heads, in the order of their colours."""
        return list(self.state.heads_shown)

    @property
    def hide_special(self) -> bool:
        """True if the pictures hide special tokens."""
        return self.state.specials == "hide"

    def change(self, **patch: Any) -> None:
        """Change fields of the state. Rejected values are logged."""
        for problem in self.state.apply(patch):
            logger.debug("%s: %s", self.row.route, problem)

    def link(self, component: param.Parameterized, **fields: str) -> None:
        """Copy changes of a component's parameters to fields of the state. `refresh` copies the fields back."""
        for name, field in fields.items():
            component.param.watch(lambda e, field=field: self.change(**{field: e.new}), name)

    def _selected(self, event: Any) -> None:
        first, *others = [part for part in str(event.new).split(",") if part] or [""]
        layer, _, head = first.partition(".")
        if first and event.new != self._selection:
            self.change(layer=layer, head=head, heads=",".join(others))

    @property
    def _selection(self) -> str:
        return ",".join(head_name(head) for head in self.heads)

    def add_head(self, name: str) -> None:
        """Show one more head. Does nothing if the head is shown already."""
        names = [head_name(head) for head in self.heads]
        if name not in names:
            self.change(heads=",".join([*names[1:], name]))

    def listen(self, component: ESMView) -> None:
        """Pass the messages of a component to `on_message`."""
        component.on_msg(lambda event: self.on_message(event.data) if isinstance(event.data, dict) else None)

    def on_message(self, message: dict[str, Any]) -> None:
        """Handle a message of a side panel: ``{"add": "5.8"}`` or ``{"go": "neuron"}``."""
        if isinstance(view := message.get("go"), str):
            self.change(view=view)
        if isinstance(head := message.get("add"), str):
            self.add_head(head)

    def document(self, kind: Kind) -> str:
        """Return the view as a standalone HTML document with every head of the example."""
        state = self.state
        reader = reader_of(self.data, state.example, state.site)
        layers = range(reader.site.n_layers)
        make = neuron_part if kind == "neuron" else example_part
        part = make(reader.example, reader.site, layers)
        facts = vectors_facts(part, reader.site) if kind == "neuron" else ()
        settings = {
            "selected": self._selection, "hide_special": self.hide_special, "pin": state.pin, "share": state.share,
            "keys": state.keys,
        }  # fmt: skip
        return make_view(kind, reader.example.text, [part], settings, facts=facts).data

    def pinned(self, reader: Reader) -> tuple[str, int] | None:
        """Return side and position of the pin. None if the example has no such token."""
        pin = self.state.pinned
        if pin is None or pin[1] >= reader.shape[0 if pin[0] == "q" else 1]:
            return None
        return pin

    def fill_picker(self, reader: Reader) -> None:
        """Fill the grid of heads with the largest weight of each head to or from the pinned token."""
        pin, bookmarks = self.pinned(reader), self.data.head_bookmarks(self.state.site)
        key = reader.id, pin, self.hide_special, bookmarks
        if key == self._picker_key:
            return
        zeros = np.zeros((reader.site.n_layers, reader.site.n_heads), np.float32)
        if not reader.has_attention:
            values, title = zeros, "attention was not kept"
        elif pin is None and reader.n_weights > PICK_WEIGHTS:
            values, title = zeros, "pin a token for weights"
        elif pin is None:
            values, title = mean_strongest(reader.codes(), reader, self.hide_special), "mean strongest key"
        else:
            side, position = pin
            row, others = reader.row(side, position), reader.keys if side == "q" else reader.queries
            is_shown = ~np.asarray(others["special"], bool) if self.hide_special else np.ones(row.shape[2], bool)
            if reader.same_text:
                is_shown = is_shown & (np.arange(row.shape[2]) != position)
            values = row[:, :, is_shown].max(axis=-1, initial=0)
            title = f"weight {'from' if side == 'q' else 'to'} the pinned token"
        self.picker.frame = {**picker_frame(values, title), "bookmarks": bookmarks}
        self._picker_key = key

    def fill_keys(
        self,
        reader: Reader,
        keys: KeyList,
        maps: Float32[np.ndarray, "n_heads query_pos key_pos"],
        units: tuple[Units, Units] | None = None,
    ) -> None:
        """Fill the list of the pinned token's keys, or of the strongest edges. `maps` are between `units`."""
        sides = (reader.queries, reader.keys) if units is None else (units[0].frame, units[1].frame)
        pin = self.pinned(reader)
        all_weights = reader.row(*pin) if pin is not None else None
        if pin is not None and units is not None:
            side, token = pin
            position = int(units[side == "k"].of_token[token])
            pin, all_weights = (
                (side, position) if position >= 0 else None,
                self._unit_row(reader, side, position, units),
            )
        if pin is None or all_weights is None:
            frame = strongest_frame(maps, self.heads, *sides, hide_special=self.hide_special)
            pin = None
        else:
            side, position = pin
            weights = maps[:, position] if side == "q" else maps[:, :, position]
            back = np.zeros((len(maps), 0), np.float32)
            if reader.same_text:
                back = maps[:, :, position] if side == "q" else maps[:, position]
            side_frame, others = sides if side == "q" else sides[::-1]
            frame = pinned_frame(
                PinnedRow(side, position, weights, back, all_weights), self.heads, side_frame, others,
                n=8 if len(maps) < 3 else 6, hide_special=self.hide_special,
            )  # fmt: skip
        keys.give(frame=frame, pin="" if pin is None else f"{pin[0]}{pin[1]}")

    def _unit_row(
        self, reader: Reader, side: str, position: int, units: tuple[Units, Units]
    ) -> Float32[np.ndarray, "layer head other"] | None:
        """Return the weights of all heads between one unit and every unit of the other side."""
        if position < 0:
            return None
        tokens = np.flatnonzero(units[side == "k"].of_token == position)
        rows = np.stack([reader.row(side, int(token)) for token in tokens], axis=-1)  # [layer, head, other, token]
        n_layers, n_heads = rows.shape[:2]
        flat = rows.reshape(n_layers * n_heads, *rows.shape[2:])
        return _merge_row(flat, side, units[side == "q"]).reshape(n_layers, n_heads, -1)


def _merge_row(
    rows: Float32[np.ndarray, "map other token"], side: str, others: Units
) -> Float32[np.ndarray, "map other_unit"]:
    """Merge the rows of one unit's tokens: queries are averaged, keys are summed."""
    n, in_unit = len(others.frame["labels"]), others.of_token >= 0
    merged_rows = rows.mean(axis=2) if side == "q" else rows.sum(axis=2)
    sums = np.zeros((len(rows), n), np.float32)
    np.add.at(sums.T, others.of_token[in_unit], merged_rows[:, in_unit].T)
    if side == "q":
        return sums
    return sums / np.maximum(np.bincount(others.of_token[in_unit], minlength=n), 1).astype(np.float32)


def attention_source(data: DataSource) -> str:
    """Return the name of the stored traces, with the largest error of a weight."""
    spec = data.store.spec
    if spec.keep.attention is None:
        return "query and key"
    bound = spec.attention_error
    return "attention, " + (f"within {bound:.4f}".replace("0.", ".", 1) if bound else "exact")


def mean_strongest(codes: np.ndarray, reader: Reader, hide_special: bool) -> Float32[np.ndarray, "layer head"]:
    """Return the mean over rows of the largest weight in each row, for every head."""
    rows, columns = (
        ~np.asarray(side["special"], bool) if hide_special else np.ones(len(side["labels"]), bool)
        for side in (reader.queries, reader.keys)
    )
    if not rows.any() or not columns.any():
        return np.zeros(codes.shape[:2], np.float32)
    return ((codes[:, :, rows][:, :, :, columns].max(axis=-1) / 255.0) ** 2).mean(axis=-1).astype(np.float32)
