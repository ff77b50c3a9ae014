"""Compare: the chosen head on two examples, two heads on one example, or one example in two models.

A is what the address chose everywhere else; B is named by `other_example`, `other_head` and `other_store`. Without a
choice B is the other member of a minimal pair or the next example, the next head, the next store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import panel as pn
from jaxtyping import Float32

from headatlas.store.errors import ConfigError, NotFoundError

from ..components.comparison import Comparison, ComparisonFrame, Difference
from ..components.headview import HeadView
from ..data.example_reader import Reader, reader_of
from ..data.store_data import DataSource
from ..frames.alignment import Alignment, HeadChange, align, change_list, changes, difference, difference_frame
from ..frames.geometry import MAX_WINDOW
from ..frames.picture_units import Units, merged, units_of
from ..frames.view_frames import Head, head_frame, head_name, message_frame, sides_frame
from ..theme.token_labels import visible
from .example_view import ExampleView
from .layout import grid, place, three

ALL_WEIGHTS = 24 << 20
"""Up to this many weights every head of both sides is compared."""
_LISTS = {"examples": "Heads that change", "heads": "Heads least like A", "models": "Heads of B most like A"}


@dataclass(frozen=True)
class Side:
    """One of the two: an example of a store, one head, its units."""

    reader: Reader
    head: Head
    queries: Units
    keys: Units
    name: str

    def map(self) -> Float32[np.ndarray, "query_unit key_unit"]:
        """The head's weights between units."""
        return merged(self.reader.maps([self.head]), self.queries, self.keys)[0]

    def all_maps(self) -> Float32[np.ndarray, "layer head query_unit key_unit"]:
        """Weights of all heads between units, within the rounding of a picture."""
        codes = self.reader.codes()
        n_layers, n_heads = codes.shape[:2]
        weights = ((codes.reshape(-1, *codes.shape[2:]) / np.float32(255)) ** 2).astype(np.float32)
        units = merged(weights, self.queries, self.keys)
        return units.reshape(n_layers, n_heads, *units.shape[1:])


class CompareViewPage(ExampleView):
    """What is compared, both views, the difference."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.choices, self.delta = Comparison(), Difference()
        self.first, self.second = HeadView(), HeadView()
        self._alignment: tuple[Alignment, Alignment] | None = None
        self._sides: tuple[Side, Side] | None = None
        self._listed: tuple[Any, list[HeadChange]] = ((), [])
        for index, view in enumerate((self.first, self.second)):
            view.param.watch(lambda event, index=index: self._pin(index, str(event.new)), "pin")
        self.delta.param.watch(lambda event: self._pin_row(str(event.new)), "pin")
        self.listen(self.choices)
        middle = grid(place(self.first), place(self.second), columns="minmax(0,1fr) minmax(0,1fr)")
        return three(self.choices, middle, self.delta)

    # choices

    def heard(self, message: dict[str, Any]) -> None:
        """Handle a choice on the left side: what is compared, what B is, a head, or a swap of A and B."""
        kind = self.state.compare
        if isinstance(compare := message.get("compare"), str):
            self.tell(compare=compare)
        elif isinstance(value := message.get("b"), str):
            field = {"examples": "other_example", "heads": "other_head", "models": "other_store"}[kind]
            self.tell(**{field: value, **({"other_head": ""} if kind == "models" else {})})
        elif isinstance(head := message.get("head"), str) and self._sides:
            layer, _, index = head.partition(".")
            self.tell(**({"layer": layer, "head": index} if kind == "examples" else {"other_head": head}))
        elif message.get("swap") and self._sides:
            self._swap(*self._sides)

    def _swap(self, a: Side, b: Side) -> None:
        if self.state.compare == "examples":
            self.tell(example=b.reader.example.index, other_example=str(a.reader.example.index), pin="")
        elif self.state.compare == "heads":
            self.tell(layer=b.head[0], head=b.head[1], other_head=head_name(a.head))

    def _sides_of(self, reader: Reader) -> tuple[Side, Side]:
        """A and B."""
        state, kind = self.state, self.state.compare
        unit = "word" if kind == "models" else "token"
        head, other = (state.layer, state.head), _head_of(state.other_head)
        data, name = self.data, self.data.store.name
        if kind == "examples":
            number = int(state.other_example) if state.other_example else self._partner(reader)
            second = reader_of(data, number, reader.site.name)
            spots, names = (
                (head, head),
                tuple(f"{one.example.index} \u00b7 {visible(one.example.id)}" for one in (reader, second)),
            )
        elif kind == "heads":
            second, other = reader, other or _next_head(reader, head)
            spots, names = (head, other), (f"head {head_name(head)}", f"head {head_name(other)}")
        else:
            beside = self._other_store()
            second, name = self._same_example(beside, reader), beside.name
            limit = second.site.n_layers, second.site.n_heads
            if other is None or other[0] >= limit[0] or other[1] >= limit[1]:
                other = (min(head[0], limit[0] - 1), min(head[1], limit[1] - 1))
            spots, names = (head, other), (f"{data.name} {head_name(head)}", f"{name} {head_name(other)}")
        made = []
        for found, spot, label in zip((reader, second), spots, names, strict=True):
            site = found.site
            queries = units_of(found.example, site.query_sequence, unit)
            keys = queries if found.same_text else units_of(found.example, site.key_sequence, unit)
            longest = max(len(side.frame["labels"]) for side in (queries, keys))
            if longest > MAX_WINDOW:
                raise NotFoundError(f"{longest:,} {unit}s; two maps are compared up to {MAX_WINDOW}.")
            made.append(Side(found, spot, queries, keys, label))
        if spots[1][0] >= made[1].reader.site.n_layers or spots[1][1] >= made[1].reader.site.n_heads:
            raise ConfigError(f"head {head_name(spots[1])} is not in {name}.")
        return made[0], made[1]

    def _partner(self, reader: Reader) -> int:
        members = self.data.pair_members(reader.example.index)
        if members:
            return members[0]
        before, after = self.data.neighbours(reader.example.index)
        return next((n for n in (after, before) if n is not None), reader.example.index)

    def _other_store(self) -> DataSource:
        together = self.data.served_with
        names = [name for name in self.data.stores if name != self.data.name]
        if together is None or not names:
            raise NotFoundError(
                "only one store is open. Open two that hold the same examples: headatlas view STORE OTHER."
            )
        return together[self.state.other_store if self.state.other_store in names else names[0]]

    def _same_example(self, beside: DataSource, reader: Reader) -> Reader:
        example = reader.example
        if example.id not in beside.positions:
            raise NotFoundError(f"{beside.name} has no example with the id {visible(example.id)}.")
        found = reader_of(beside, beside.number_of(example.id), "")
        if found.example.text != example.text:
            raise NotFoundError(f"example {visible(example.id)} of {beside.name} has another text.")
        return found

    # pictures

    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill all four components."""
        a, b = self._sides_of(reader)
        queries = align(a.queries.frame["pieces"], b.queries.frame["pieces"])
        keys = align(a.keys.frame["pieces"], b.keys.frame["pieces"])
        self._sides, self._alignment = (a, b), (queries, keys)
        maps = a.map(), b.map()
        for view, side, map_, tint, letter in (
            (self.first, a, maps[0], "pos", "A"), (self.second, b, maps[1], "neg", "B"),
        ):  # fmt: skip
            self._draw(view, side, map_, tint, letter)
        row = self._row()
        self.first.pin = "" if row is None else f"q{queries.first[row]}"
        self.second.pin = "" if row is None else f"q{queries.second[row]}"
        self._show_difference(maps, row)
        self.choices.frame = self._choices_frame(reader)

    def _draw(self, view: HeadView, side: Side, map_: Float32[np.ndarray, "q k"], tint: str, letter: str) -> None:
        assert self._alignment is not None
        queries, keys = self._alignment
        index = 0 if letter == "A" else 1
        shape = map_.shape
        rows = [(pairs.first, pairs.second)[index] for pairs in (queries, keys)]
        numbered = []
        for positions, n in zip(rows, shape, strict=True):
            number = np.full(n, -1)
            number[positions] = np.arange(len(positions))
            numbered.append(number.tolist())
        id = f"{side.name} {side.reader.id} {self.state.compare}"
        view.give(share=self.state.share, keys=self.state.keys, hide_special=self.hide_special)
        view.tokens = sides_frame(side.queries.frame, None if side.reader.same_text else side.keys.frame, id)
        frame = head_frame(map_[None], [side.head], causal=side.reader.site.causal, id=id)
        view.frame = {
            **frame, "title": f"{letter}  {side.name}", "tint": tint, "group": "compare",
            "rows": {"q": numbered[0], "k": numbered[1]},
        }  # fmt: skip

    def _row(self) -> int | None:
        """The aligned row of the pinned query of A."""
        pin = self.state.pinned
        if pin is None or pin[0] != "q" or self._alignment is None or self._sides is None:
            return None
        of_token = self._sides[0].queries.of_token
        unit = int(of_token[pin[1]]) if pin[1] < len(of_token) else -1
        found = np.flatnonzero(self._alignment[0].first == unit)
        return int(found[0]) if len(found) else None

    def _pin(self, index: int, pin: str) -> None:
        if self._alignment is None or pin == (self.first, self.second)[index].pin == self._pin_of(index):
            return
        if not pin:
            self.tell(pin="")
            return
        queries, keys = self._alignment
        pairs = queries if pin[0] == "q" else keys
        positions = (pairs.first, pairs.second)[index]
        found = np.flatnonzero(positions == int(pin[1:])) if pin[1:].isdigit() else positions[:0]
        if pin[0] == "q":
            self._pin_row(str(int(found[0])) if len(found) else "")

    def _pin_of(self, index: int) -> str:
        row = self._row()
        if row is None or self._alignment is None:
            return ""
        return f"q{(self._alignment[0].first, self._alignment[0].second)[index][row]}"

    def _pin_row(self, row: str) -> None:
        if self._alignment is None or self._sides is None:
            return
        queries = self._alignment[0]
        at = int(row) if row.isdigit() and int(row) < len(queries) else None
        token = None if at is None else int(self._sides[0].queries.first_token[queries.first[at]])
        self.tell(pin="" if token is None else f"q{token}")

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

    def _changes(self) -> list[HeadChange]:
        """The heads of the list on the left; empty where the maps are too many."""
        assert self._sides is not None
        assert self._alignment is not None
        (a, b), kind = self._sides, self.state.compare
        if max(a.reader.n_weights, b.reader.n_weights) > ALL_WEIGHTS:
            return []
        shown = [~self._hidden(*pair) for pair in zip(self._alignment, (a.queries, a.keys), strict=True)]
        if kind == "examples":
            delta = difference(a.all_maps(), b.all_maps(), *self._alignment)
        else:  # every head of B against the one head of A
            every = b.all_maps()
            delta = difference(np.broadcast_to(a.map(), (*every.shape[:2], *a.map().shape)), every, *self._alignment)
        values = changes(delta, *shown)
        if kind == "heads":
            values[a.head] = 0
        return change_list(values, least=kind == "models")

    def _choices_frame(self, reader: Reader) -> ComparisonFrame:
        assert self._sides is not None
        (a, b), state, kind = self._sides, self.state, self.state.compare
        key = (kind, a.name, b.name, a.reader.id, b.reader.id, self.hide_special, a.head if kind != "examples" else ())
        if self._listed[0] != key:
            self._listed = key, self._changes()
        choices: list[list[str]] = []
        if kind == "examples":
            members = self.data.pair_members(reader.example.index)
            choices = [[str(n), f"{visible(self.data.example(n).id)}: {self.data.shown_text(n)[:60]}"] for n in members]
            choice = str(b.reader.example.index)
        elif kind == "heads":
            site = reader.site
            heads = [(layer, head) for layer in range(site.n_layers) for head in range(site.n_heads)]
            choices, choice = [[head_name(h), f"head {head_name(h)}"] for h in heads if h != a.head], head_name(b.head)
        else:
            choices = [[name, name] for name in self.data.stores if name != self.data.name]
            choice = state.other_store or choices[0][0]
        texts = [visible(side.reader.example.text)[:140] if kind == "examples" else side.name for side in (a, b)]
        frame: ComparisonFrame = {
            "compare": kind, "a": texts[0], "b": texts[1], "choices": choices, "choice": choice,
            "heads": self._listed[1], "list": _LISTS[kind], "head": head_name(b.head),
            "why": "too many weights to compare all heads",
        }  # fmt: skip
        if kind == "examples":
            frame["number"] = choice
        return frame

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture, and leave the choices."""
        self._sides = self._alignment = None
        self.first.frame = message_frame(title, reason)
        self.second.frame = self.delta.frame = {}
        self.choices.frame = {
            "compare": self.state.compare, "a": "", "b": "", "choices": [], "choice": "", "heads": [], "list": "",
            "head": "", "why": "",
        }  # fmt: skip


def _head_of(text: str) -> Head | None:
    layer, _, head = text.partition(".")
    return (int(layer), int(head)) if text else None


def _next_head(reader: Reader, head: Head) -> Head:
    flat = (head[0] * reader.site.n_heads + head[1] + 1) % (reader.site.n_layers * reader.site.n_heads)
    return flat // reader.site.n_heads, flat % reader.site.n_heads
