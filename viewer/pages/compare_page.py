"""The compare view: the chosen head on two examples, two heads on one example, or one example in two models.

A is the example, head and store that the address chooses for all views. `other_example`, `other_head` and `other_store`
choose B. By default B is the other member of a minimal pair or the next example, the next head, or the next store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import panel as pn
from jaxtyping import Float32

from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.schema.traces import head_index

from ..components.background import Check
from ..components.comparison import Comparison, ComparisonFrame, Difference
from ..components.headview import HeadView
from ..data.example_reader import AT_ONCE_BYTES, Reader, reader_of
from ..data.store_data import DataSource
from ..frames.alignment import Alignment, HeadChange, align, change_list, changes, difference, difference_frame
from ..frames.geometry import MAX_WINDOW
from ..frames.picture_units import Units, merged
from ..frames.view_frames import Head, head_frame, head_name, message_frame, sides_frame
from ..theme.token_labels import visible
from .example_view import ExampleView
from .layout import grid, in_cell, three_columns

AT_ONCE_PAIRS = 1 << 16
"""Most pairs of units of a side that are compared in one step."""
ALL_WEIGHTS = 24 << 20
"""Most weights of a side for which all heads are compared."""
_LISTS = {
    "examples": "Heads that change",
    "heads": "Heads least similar to A",
    "models": "Heads of B most similar to A",
}


@dataclass(frozen=True)
class Side:
    """One side of the comparison: an example of a store, a head, and the units of both sequences."""

    reader: Reader
    head: Head
    queries: Units
    keys: Units
    name: str

    def map(self, check: Check) -> Float32[np.ndarray, "query_unit key_unit"]:
        """Return the weights of the head between units."""
        return merged(self.reader.maps([self.head], check), self.queries, self.keys)[0]

    def layer_maps(self, layer: int, check: Check) -> Float32[np.ndarray, "head query_unit key_unit"]:
        """Return the weights of all heads of a layer between units, rounded as in a picture."""
        codes = self.reader.codes(check)[self.reader.site.layer_index(layer)]
        return merged(((codes / np.float32(255)) ** 2).astype(np.float32), self.queries, self.keys)


@dataclass(frozen=True)
class Compared:
    """Content of a comparison, read and computed for its two sides."""

    alignment: tuple[Alignment, Alignment]
    maps: tuple[Float32[np.ndarray, "q1 k1"], Float32[np.ndarray, "q2 k2"]]


class CompareViewPage(ExampleView):
    """View with the choices, both head views and their difference."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.choices, self.delta = Comparison(), Difference()
        self.first, self.second = HeadView(), HeadView()
        self._alignment: tuple[Alignment, Alignment] | None = None
        self._sides: tuple[Side, Side] | None = None
        self._change_list: tuple[Any, list[HeadChange]] = ((), [])
        for index, view in enumerate((self.first, self.second)):
            view.param.watch(lambda event, index=index: self._pin(index, str(event.new)), "pin")
        self.delta.param.watch(lambda event: self._pin_row(str(event.new)), "pin")
        self.listen(self.choices)
        middle = grid(in_cell(self.first), in_cell(self.second), columns="minmax(0,1fr) minmax(0,1fr)")
        return three_columns(self.choices, middle, self.delta)

    # choices

    def on_message(self, message: dict[str, Any]) -> None:
        """Handle a choice on the left: the kind of comparison, B, a head, or a swap of A and B."""
        kind = self.state.compare
        if isinstance(compare := message.get("compare"), str):
            self.change(compare=compare)
        elif isinstance(value := message.get("b"), str):
            field = {"examples": "other_example", "heads": "other_head", "models": "other_store"}[kind]
            self.change(**{field: value, **({"other_head": ""} if kind == "models" else {})})
        elif isinstance(head := message.get("head"), str) and self._sides:
            layer, _, index = head.partition(".")
            self.change(**({"layer": layer, "head": index} if kind == "examples" else {"other_head": head}))
        elif message.get("swap") and self._sides:
            self._swap(*self._sides)

    def _swap(self, a: Side, b: Side) -> None:
        if self.state.compare == "examples":
            self.change(example=b.reader.example.index, other_example=str(a.reader.example.index), pin="")
        elif self.state.compare == "heads":
            self.change(layer=b.head[0], head=b.head[1], other_head=head_name(a.head))

    def _sides_of(self, reader: Reader) -> tuple[Side, Side]:
        """Return the sides A and B."""
        state, kind = self.state, self.state.compare
        unit = "word" if kind == "models" else "token"
        head, other_head = (state.layer, state.head), _head_of(state.other_head)
        data, name = self.data, self.data.store.name
        if kind == "examples":
            number = int(state.other_example) if state.other_example else self._partner(reader)
            second = reader_of(data, number, reader.site.name, renormalise=reader.renormalise)
            heads, names = (
                (head, head),
                tuple(
                    f"{side_reader.example.index} \u00b7 {visible(side_reader.example.id)}"
                    for side_reader in (reader, second)
                ),
            )
        elif kind == "heads":
            second, other_head = reader, other_head or _next_head(reader, head)
            heads, names = (head, other_head), (f"head {head_name(head)}", f"head {head_name(other_head)}")
        else:
            other_data = self._other_store()
            second, name = self._same_example(other_data, reader), other_data.name
            if other_head not in second.site.heads:
                layers = second.site.layers
                layer = max((layer for layer in layers if layer <= head[0]), default=layers[0])
                other_head = (layer, min(head[1], second.site.n_heads - 1))
            heads, names = (head, other_head), (f"{data.name} {head_name(head)}", f"{name} {head_name(other_head)}")
        sides = []
        for side_reader, side_head, label in zip((reader, second), heads, names, strict=True):
            queries, keys = side_reader.units(unit)
            longest = max(len(side.frame["labels"]) for side in (queries, keys))
            if longest > MAX_WINDOW:
                raise NotFoundError(
                    f"{label} has {longest:,} {unit}s; at most {MAX_WINDOW} can be compared. Choose another example, or "
                    "open the head view, which shows a part of the text."
                )
            sides.append(Side(side_reader, side_head, queries, keys, label))
        if heads[1] not in sides[1].reader.site.heads:
            raise ConfigError(f"head {head_name(heads[1])} is not in {name}.")
        return sides[0], sides[1]

    def _partner(self, reader: Reader) -> int:
        members = self.data.pair_members(reader.example.index)
        if members:
            return members[0]
        before, after = self.data.neighbours(reader.example.index)
        return next((n for n in (after, before) if n is not None), reader.example.index)

    def _other_store(self) -> DataSource:
        stores = self.data.served_with
        names = [name for name in self.data.stores if name != self.data.name]
        if stores is None or not names:
            raise NotFoundError(
                "only one store is open. Open two stores with the same examples: headatlas view STORE OTHER."
            )
        return stores[self.state.other_store if self.state.other_store in names else names[0]]

    def _same_example(self, other_data: DataSource, reader: Reader) -> Reader:
        example = reader.example
        if example.id not in other_data.positions:
            raise NotFoundError(f"{other_data.name} has no example with the id {visible(example.id)}.")
        other_reader = reader_of(other_data, other_data.number_of(example.id), "", renormalise=reader.renormalise)
        if other_reader.example.text != example.text:
            raise NotFoundError(f"example {visible(example.id)} of {other_data.name} has a different text.")
        return other_reader

    # pictures

    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill all four components."""
        a, b = sides = self._sides_of(reader)

        def work(check: Check) -> Compared:
            queries = align(a.queries.frame["pieces"], b.queries.frame["pieces"])
            is_one_text = a.reader.same_text and b.reader.same_text
            keys = queries if is_one_text else align(a.keys.frame["pieces"], b.keys.frame["pieces"])
            return Compared((queries, keys), (a.map(check), b.map(check)))

        def done(compared: Compared) -> None:
            self._sides, self._alignment = sides, compared.alignment
            self._show(reader, compared)

        n_pairs = max(len(side.queries.frame["labels"]) * len(side.keys.frame["labels"]) for side in sides)
        key = (self.state.compare, a.name, b.name, a.reader.id, b.reader.id, self.hide_special, self.state.pin)
        self.reads.start(key, work, done, self.failed, at_once=n_pairs <= AT_ONCE_PAIRS)

    def _show(self, reader: Reader, compared: Compared) -> None:
        """Fill the components with what was read."""
        assert self._sides is not None
        (a, b), (queries, _), maps = self._sides, compared.alignment, compared.maps
        high = self._high(maps)
        for view, side, map_, tint, letter in (
            (self.first, a, maps[0], "pos", "A"), (self.second, b, maps[1], "neg", "B"),
        ):  # fmt: skip
            self._draw(view, side, map_, tint, letter, high)
        row = self._row()
        self.first.pin = "" if row is None else f"q{queries.first[row]}"
        self.second.pin = "" if row is None else f"q{queries.second[row]}"
        self._show_difference(maps, row)
        self._show_changes(reader, maps[0])

    def _draw(
        self, view: HeadView, side: Side, map_: Float32[np.ndarray, "q k"], tint: str, letter: str, high: float
    ) -> None:
        assert self._alignment is not None
        queries, keys = self._alignment
        index = 0 if letter == "A" else 1
        shape = map_.shape
        rows = [(pairs.first, pairs.second)[index] for pairs in (queries, keys)]
        row_numbers = []
        for positions, n in zip(rows, shape, strict=True):
            number = np.full(n, -1)
            number[positions] = np.arange(len(positions))
            row_numbers.append(number.tolist())
        id = f"{side.name} {side.reader.id} {self.state.compare}"
        view.give(
            share=self.state.share, keys=self.state.keys, hide_special=self.hide_special, high=high,
            renormalised=side.reader.renormalise,
        )  # fmt: skip
        view.tokens = sides_frame(side.queries.frame, None if side.reader.same_text else side.keys.frame, id)
        frame = head_frame(map_[None], [side.head], causal=side.reader.site.causal, id=id)
        view.frame = {
            **frame, "title": f"{letter}  {side.name}", "tint": tint, "group": "compare",
            "rows": {"q": row_numbers[0], "k": row_numbers[1]},
        }  # fmt: skip

    def _high(self, maps: tuple[np.ndarray, np.ndarray]) -> float:
        """Return the largest weight between shown units of both sides: one scale for both pictures."""
        assert self._sides is not None
        if not self.hide_special:
            return 1.0
        highs = []
        for side, map_ in zip(self._sides, maps, strict=True):
            queries, keys = (~np.asarray(units.frame["special"], bool) for units in (side.queries, side.keys))
            highs.append(float(map_[queries][:, keys].max(initial=0.0)))
        return max(highs) or 1.0

    def _row(self) -> int | None:
        """Return the aligned row of the pinned query of A. None if no query is pinned, or it has no partner in B."""
        pin = self.state.pinned
        if pin is None or pin[0] != "q" or self._alignment is None or self._sides is None:
            return None
        of_token = self._sides[0].queries.of_token
        unit = int(of_token[pin[1]]) if pin[1] < len(of_token) else -1
        rows = np.flatnonzero(self._alignment[0].first == unit)
        return int(rows[0]) if len(rows) else None

    def _pin(self, index: int, pin: str) -> None:
        pin = pin[: pin.find("k")] if "k" in pin[1:] else pin  # an edge is shown as its query
        if self._alignment is None or pin == (self.first, self.second)[index].pin == self._pin_of(index):
            return
        if not pin:
            self.change(pin="")
            return
        queries, keys = self._alignment
        pairs = queries if pin[0] == "q" else keys
        positions = (pairs.first, pairs.second)[index]
        rows = np.flatnonzero(positions == int(pin[1:])) if pin[1:].isdigit() else positions[:0]
        if pin[0] == "q":
            self._pin_row(str(int(rows[0])) if len(rows) else "")

    def _pin_of(self, index: int) -> str:
        row = self._row()
        if row is None or self._alignment is None:
            return ""
        return f"q{(self._alignment[0].first, self._alignment[0].second)[index][row]}"

    def _pin_row(self, row: str) -> None:
        if self._alignment is None or self._sides is None:
            return
        queries = self._alignment[0]
        index = int(row) if row.isdigit() and int(row) < len(queries) else None
        token = None if index is None else int(self._sides[0].queries.first_token[queries.first[index]])
        self.change(pin="" if token is None else f"q{token}")

    def _show_difference(self, maps: tuple[np.ndarray, np.ndarray], row: int | None) -> None:
        assert self._alignment is not None
        assert self._sides is not None
        (a, b), (queries, keys) = self._sides, self._alignment
        labels = tuple(
            ([side.queries.frame["labels"][i] for i in q.tolist()], [side.keys.frame["labels"][i] for i in k.tolist()])
            for side, q, k in ((a, queries.first, keys.first), (b, queries.second, keys.second))
        )
        hidden = self._hidden(queries, a.queries), self._hidden(keys, a.keys)
        delta = difference(*maps, queries, keys)
        weights = None
        if row is not None:
            weights = maps[0][queries.first[row], keys.first], maps[1][queries.second[row], keys.second]
        title = f"{len(queries)} of {maps[0].shape[0]} rows align"
        self.delta.frame = difference_frame(
            delta, labels, title=title, row=row, weights=weights, hidden=hidden,  # type: ignore[arg-type]
        )  # fmt: skip
        self.delta.pin = "" if row is None else str(row)

    def _hidden(self, pairs: Alignment, units: Units) -> np.ndarray:
        special = np.asarray(units.frame["special"], bool)[pairs.first]
        return special if self.hide_special else np.zeros(len(pairs), bool)

    def _show_changes(self, reader: Reader, first: Float32[np.ndarray, "q1 k1"]) -> None:
        """Fill the choices with the heads that change most. If all maps are many weights, they come later."""
        assert self._sides is not None
        (a, b), kind = self._sides, self.state.compare
        key = (kind, a.name, b.name, a.reader.id, b.reader.id, self.hide_special, a.head if kind != "examples" else ())
        n_weights = max(a.reader.n_weights, b.reader.n_weights)
        if self._change_list[0] == key or n_weights > ALL_WEIGHTS:
            changes_list = self._change_list[1] if self._change_list[0] == key else []
            self._change_list = key, changes_list
            self.picks.stop()
            self.choices.frame = self._choices_frame(reader, "too many weights to compare all heads")
            return
        sides, alignment = self._sides, self._alignment
        assert alignment is not None
        is_shown = [~self._hidden(*pair) for pair in zip(alignment, (a.queries, a.keys), strict=True)]

        def done(change_list: list[HeadChange]) -> None:
            self._change_list = key, change_list
            self.choices.frame = self._choices_frame(reader, "")

        at_once = a.reader.has_codes and b.reader.has_codes and n_weights <= AT_ONCE_BYTES // 4
        if not at_once:
            self._change_list = (), []
            self.choices.frame = self._choices_frame(reader, "reading all heads")
        self.picks.start(
            key, lambda check: _changes(sides, alignment, is_shown, first, kind, check), done, self.failed,
            at_once=at_once,
        )  # fmt: skip

    def _choices_frame(self, reader: Reader, why: str) -> ComparisonFrame:
        assert self._sides is not None
        (a, b), kind = self._sides, self.state.compare
        texts = [visible(side.reader.example.text[:140])[:140] if kind == "examples" else side.name for side in (a, b)]
        choice = {"examples": str(b.reader.example.index), "heads": head_name(b.head)}.get(kind, "")
        frame: ComparisonFrame = {
            **self._open_choices(choice), "a": texts[0], "b": texts[1], "heads": self._change_list[1],
            "list": _LISTS[kind], "head": head_name(b.head), "why": why,
        }  # fmt: skip
        return frame

    def _open_choices(self, choice: str) -> ComparisonFrame:
        """Return the choices of B, of which `choice` is chosen, without anything about the sides."""
        state, kind, data = self.state, self.state.compare, self.data
        if kind == "examples":
            members = data.pair_members(state.example)
            choices = [[str(n), f"{visible(data.example(n).id)}: {data.shown_text(n, 60)}"] for n in members]
        elif kind == "heads":
            heads = data.site(state.site).heads
            choices = [
                [head_name(head), f"head {head_name(head)}"] for head in heads if head != (state.layer, state.head)
            ]
        else:
            choices = [[name, name] for name in data.stores if name != data.name]
            choice = state.other_store or (choices[0][0] if choices else "")
        frame: ComparisonFrame = {
            "compare": kind, "a": "", "b": "", "choices": choices, "choice": choice, "heads": [], "list": "", "head": "",
            "why": "",
        }  # fmt: skip
        if kind == "examples":
            frame["number"] = choice
        return frame

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture, and keep the choices, so that the reader can choose another B."""
        self._sides = self._alignment = None
        self.first.frame = message_frame(title, reason)
        self.second.frame = self.delta.frame = {}
        state = self.state
        self.choices.frame = self._open_choices(
            {"examples": state.other_example, "heads": state.other_head}.get(state.compare, "")
        )


def _changes(
    sides: tuple[Side, Side],
    alignment: tuple[Alignment, Alignment],
    is_shown: list[np.ndarray],
    first: Float32[np.ndarray, "q1 k1"],
    kind: str,
    check: Check,
) -> list[HeadChange]:
    """Return the heads of the list on the left, computed layer by layer."""
    a, b = sides
    layers = []
    for layer in b.reader.site.layers:
        check()
        maps = b.layer_maps(layer, check)
        # the same heads of A, or the head of A for all heads of B
        others = a.layer_maps(layer, check) if kind == "examples" else np.broadcast_to(first, (len(maps), *first.shape))
        layers.append(changes(difference(others, maps, *alignment)[None], *is_shown)[0])
    values = np.stack(layers)
    if kind == "heads":
        values[head_index(b.reader.site, *a.head)] = 0
    return change_list(values, b.reader.site.layers, least=kind == "models")


def _head_of(text: str) -> Head | None:
    layer, _, head = text.partition(".")
    return (int(layer), int(head)) if text else None


def _next_head(reader: Reader, head: Head) -> Head:
    return reader.all_heads[(reader.all_heads.index(head) + 1) % len(reader.all_heads)]
