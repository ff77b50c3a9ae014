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

from ..components.background import Check, Newest
from ..components.esm_view import MAX_DOWNLOAD, ESMView
from ..components.headpicker import HeadPicker
from ..components.keylist import KeyList
from ..data.example_reader import AT_ONCE_BYTES, READ_BYTES, Reader, reader_of
from ..data.key_weights import KeyWeights, ReadPlan
from ..data.store_data import DataSource
from ..export import Kind, make_view
from ..frames.view_frames import FIRST, Head, head_name, picker_frame
from ..frames.whole_example import FileLimit, example_part, neuron_part, vectors_facts
from ..state.page_table import PageRow
from ..state.reader_state import ViewState
from .page import Page, PageSession

logger = logging.getLogger(__name__)
PICK_WEIGHTS = 32 << 20
"""Most weights of all maps that are read to colour the picker while no token is pinned."""


class ExampleView(Page):
    """Base of the views of one example. `draw` fills a view."""

    def __init__(self, session: PageSession, row: PageRow) -> None:
        self.picker, self.picks = HeadPicker(), Newest()
        self._picker_key: tuple[Any, ...] = ()
        super().__init__(session, row)
        self.link(self.picker, share="share", keys="keys", weights="weights")
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
        reader = self.reader
        self.picker.give(
            share=self.state.share, keys=self.state.keys, hide_special=self.hide_special, weights=self.state.weights,
            hides_first=bool((reader.queries["special"] == FIRST).any()),
        )  # fmt: skip
        self.picker.selected = self._selection
        self.draw(reader, changed)
        return attention_source(self.data)

    @property
    def heads(self) -> list[Head]:
        """The shown heads, in the order of their colours."""
        return list(self.state.heads_shown)

    @property
    def hide_special(self) -> bool:
        """True if the pictures hide special tokens, and the first token of a causal site."""
        return self.state.specials == "hide"

    @property
    def reader(self) -> Reader:
        """The reader of the chosen example. Its rows are renormalised if the state says so and tokens are hidden."""
        return reader_of(self.data, self.state.example, self.state.site, renormalise=is_renormalised(self.state))

    def stop(self) -> bool:
        """End what is being read for the picture and for the grid of heads."""
        is_picking = self.picks.stop()
        return super().stop() or is_picking

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

    def document(self, kind: Kind, check: Check) -> str:
        """Return the view as a standalone HTML document with every head of the example.

        Raises
        ------
        BudgetError
            It would hold more than `MAX_DOWNLOAD` bytes of numbers. Nothing was read.
        """
        state = self.state
        reader = self.reader
        layers = reader.site.layers
        make = neuron_part if kind == "neuron" else example_part
        limit = FileLimit(MAX_DOWNLOAD, f"headatlas.viewer.{kind}_view saves it from Python", check)
        part = make(reader.example, reader.site, layers, limit)
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

    def fill_picker(self, reader: Reader, keys: KeyList | None = None, listed: KeyWeights | None = None) -> None:
        """Fill the grid with the largest weight of each head to or from the pinned token, and the list of keys.

        `listed` holds what the list of keys needs. Weights of all heads that take long to read come later, and the
        list is shown without them until then.
        """
        pin, bookmarks = self.pinned(reader), self.data.head_bookmarks(self.state.site)
        key = reader.id, pin, self.state.pin, pin and self.heads[0], self.hide_special, bookmarks
        plan = self._picker_plan(reader, pin)
        edge = None if keys is None or listed is None else listed.edge_plan(reader, plan.is_row, self.hide_special)
        if keys is not None and listed is not None and not (plan.at_once and (edge is None or edge.at_once)):
            keys.give(frame=listed.frame(None, self.hide_special), pin=listed.pin_text)
        is_same = key == self._picker_key
        if is_same and keys is None:
            return

        def work(check: Check) -> tuple[Any, Any]:
            values = None if is_same else plan.read(check)
            return values, None if edge is None else edge.read(check)

        def done(result: tuple[Any, Any]) -> None:
            picked, all_heads = result
            if picked is not None:
                values, title = picked
                self.picker.frame = {**picker_frame(values, title, reader.site.layers), "bookmarks": bookmarks}
                self._picker_key = key
            if keys is not None and listed is not None:
                keys.give(frame=listed.frame(all_heads, self.hide_special), pin=listed.pin_text)

        at_once = (is_same or plan.at_once) and (edge is None or edge.at_once)
        self.picks.start((key, None if listed is None else listed.key), work, done, self.failed, at_once=at_once)

    def _picker_plan(self, reader: Reader, pin: tuple[str, int] | None) -> ReadPlan:
        """Decide which weights of all heads colour the grid, before anything is read.

        They are the weights of the pinned edge: the one of the address, or the strongest edge that the chosen head has at
        the pinned token. The plan reads (weights, title).
        """
        zeros = np.zeros((reader.site.n_layers, reader.site.n_heads), np.float32)
        hide_special, edge = self.hide_special, self.edge(reader)
        if not reader.has_attention:
            return ReadPlan(lambda check: (zeros, "attention was not kept"))
        if pin is None:
            if reader.n_weights > PICK_WEIGHTS:
                return ReadPlan(lambda check: (zeros, "pin a token for weights"))
            return ReadPlan(
                lambda check: (mean_strongest(reader.codes(check), reader, hide_special), "mean strongest key"),
                at_once=reader.has_codes,
            )  # fmt: skip
        side, position = pin
        head = self.heads[0]
        cost = reader.row_cost(side, position) if edge is None else reader.row_cost("q", edge[0])
        if cost > READ_BYTES:
            title = "pin a query for weights" if side == "k" else "too long for all heads"
            return ReadPlan(lambda check: (zeros, title))

        def read(check: Check) -> tuple[Float32[np.ndarray, "layer head"], str]:
            ends = edge or reader.edge(head, pin, hide=hide_special, check=check)
            if ends is None:
                return zeros, "no edge of the pinned token is shown"
            query, key = ends
            row = reader.row("q", query, check)[:, :, key] if edge else reader.row(side, position, check)
            labels = f"{reader.queries['labels'][query]} \u2192 {reader.keys['labels'][key]}"
            return row if edge else row[:, :, key if side == "q" else query], f"weight of {labels}"

        return ReadPlan(read, at_once=cost <= AT_ONCE_BYTES, is_row=edge is None or side == "q")

    def edge(self, reader: Reader) -> tuple[int, int] | None:
        """Return (query, key) of the edge in the address. None if it names none, or one that the example lacks."""
        edge = self.state.pinned_edge
        return edge if edge and all(i < n for i, n in zip(edge, reader.shape, strict=True)) else None


def attention_source(data: DataSource) -> str:
    """Return the name of the stored traces, with the largest error of a weight."""
    spec = data.store.spec
    if spec.keep.attention is None:
        return "query and key"
    bound = spec.attention_error
    return "attention, " + (f"within {bound:.4f}".replace("0.", ".", 1) if bound else "exact")


def is_renormalised(state: ViewState) -> bool:
    """Return True if the shown weights of each row are scaled to a sum of 1, because some keys are hidden."""
    return state.weights == "renormalised" and state.specials == "hide"


def mean_strongest(codes: np.ndarray, reader: Reader, hide_special: bool) -> Float32[np.ndarray, "layer head"]:
    """Return the mean over rows of the largest weight in each row, for every head."""
    rows, columns = (
        ~np.asarray(side["special"], bool) if hide_special else np.ones(len(side["labels"]), bool)
        for side in (reader.queries, reader.keys)
    )
    if not rows.any() or not columns.any():
        return np.zeros(codes.shape[:2], np.float32)
    return ((codes[:, :, rows][:, :, :, columns].max(axis=-1) / 255.0) ** 2).mean(axis=-1).astype(np.float32)
