"""The compare view: the chosen head on two examples, two heads on one example, or one example in two models.

A is the example, head and store that the address chooses for all views. `other_example`, `other_head` and `other_store`
choose B. By default B is the other member of a minimal pair, else the same example in another store. If there is
neither, the view asks for an example. It starts at the head that changes most, unless a head was chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn

from headatlas.store.errors import ConfigError, HeadAtlasError, NotFoundError
from headatlas.store.queries.minimal_pairs import Contrast

from ..components.background import SEARCHING, Check, Newest
from ..components.comparison import Comparison, Difference
from ..components.headview import HeadView
from ..data.example_reader import AT_ONCE_BYTES, Reader, reader_of
from ..data.store_data import DataSource
from ..frames.alignment import Alignment, HeadChange, difference, difference_frame
from ..frames.picture_units import Units
from ..frames.view_frames import Head, head_name, message_frame
from ..theme.token_labels import visible
from .compared_sides import (
    Compared,
    Side,
    aligned,
    all_pairs,
    changes_of_pair,
    changes_of_pairs,
    compared_parts,
    show_side,
)
from .comparison_choices import ComparisonChoices
from .layout import grid, in_cell, three_columns

AT_ONCE_PAIRS = 1 << 16
"""Most pairs of units of a side that are compared in one step."""
ALL_WEIGHTS = 24 << 20
"""Most weights of a side for which all heads are compared."""


class CompareViewPage(ComparisonChoices):
    """View with the choices, both head views and their difference."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.choices, self.delta = Comparison(), Difference()
        self.delta.caption = self._difference_caption
        self.rankings, self.finds = Newest(SEARCHING), Newest(SEARCHING)
        self._contrast: tuple[Any, Contrast | None, str] = ((), None, "")
        self._matches: tuple[str, int, list[list[str]]] = ("", 0, [])
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

    def stop(self) -> bool:
        """End what is read for the pair, for the ranking over all pairs, and the search for B."""
        is_reading = [work.stop() for work in (self.rankings, self.finds)]
        return super().stop() or any(is_reading)

    def _sides_of(self, reader: Reader) -> tuple[Side, Side]:
        """Return the sides A and B."""
        state, kind = self.state, self.kind
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
        if heads[1] not in second.site.heads:
            raise ConfigError(f"head {head_name(heads[1])} is not in {name}.")
        readers, units = (reader, second), (reader.units(unit), second.units(unit))
        parts = compared_parts(readers, units, self.pinned(reader))
        first_side, second_side = (
            Side(side_reader, side_head, *part.units, label, part)
            for side_reader, side_head, part, label in zip(readers, heads, parts, names, strict=True)
        )
        return first_side, second_side

    def _partner(self, reader: Reader) -> int:
        members = self.data.pair_members(reader.example.index)
        return members[0]

    def _other_store(self) -> DataSource:
        stores = self.data.served_with
        names = [name for name in self.data.stores if name != self.data.name]
        if stores is None or not names:
            raise NotFoundError(
                "only one store is open. Open two stores with the same examples: headatlas view STORE OTHER."
            )
        return stores[self._other_name(names)]

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
        state = self.state
        if self.kind == "examples" and not state.other_example and not self.data.pair_members(state.example):
            self.fail("Choose an example", "This example has no minimal pair. Search for another example by its text.")
            return
        a, b = sides = self._sides_of(reader)

        def work(check: Check) -> Compared:
            return Compared(aligned(a, b), (a.map(check), b.map(check)))

        def done(compared: Compared) -> None:
            self._sides, self._alignment = sides, compared.alignment
            self._show(reader, compared)

        n_pairs = max(len(side.queries.frame["labels"]) * len(side.keys.frame["labels"]) for side in sides)
        key = (
            self.kind,
            a.head,
            b.head,
            a.name,
            b.name,
            a.reader.id,
            b.reader.id,
            self.hide_special,
            self.state.pin,
            self.state.pairs,
        )
        self.reads.start(key, work, done, self.failed, at_once=n_pairs <= AT_ONCE_PAIRS)

    def _show(self, reader: Reader, compared: Compared) -> None:
        """Fill the components with what was read."""
        assert self._sides is not None
        (a, b), (queries, _), maps = self._sides, compared.alignment, compared.maps
        high = self._high(maps)
        row = self._row()
        self.first.pin = "" if row is None else f"q{queries.first[row]}"
        self.second.pin = "" if row is None else f"q{queries.second[row]}"
        for view, side, map_, tint, letter in (
            (self.first, a, maps[0], "pos", "A"), (self.second, b, maps[1], "neg", "B"),
        ):  # fmt: skip
            rows = [(pairs.first, pairs.second)["AB".index(letter)] for pairs in compared.alignment]
            view.give(
                share=self.state.share, keys=self.state.keys, hide_special=self.hide_special, high=high,
                renormalised=side.reader.renormalise,
            )  # fmt: skip
            show_side(view, side, map_, rows, tint, letter, self.kind)
        self._show_difference(compared, row)
        self._show_changes(reader, compared)

    def _high(self, maps: tuple[np.ndarray, np.ndarray]) -> float:
        """Return the largest weight between shown units of both sides: one scale for both pictures."""
        assert self._sides is not None
        if not self.hide_special:
            return 1.0
        highs = []
        for side, map_ in zip(self._sides, maps, strict=True):
            queries, keys = (
                ~np.asarray(units.frame["special"], bool)[span]
                for units, span in zip(side.part.units, side.part.spans, strict=True)
            )
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

    def _show_difference(self, compared: Compared, row: int | None) -> None:
        assert self._sides is not None
        (a, b), (queries, keys), maps = self._sides, compared.alignment, compared.maps
        rows, columns = compared.in_parts(a, b)
        labels = tuple(
            ([side.queries.frame["labels"][i] for i in q.tolist()], [side.keys.frame["labels"][i] for i in k.tolist()])
            for side, q, k in ((a, queries.first, keys.first), (b, queries.second, keys.second))
        )
        hidden = self._hidden(queries, a.queries), self._hidden(keys, a.keys)
        delta = difference(*maps, rows, columns)
        weights = None
        if row is not None:
            weights = maps[0][rows.first[row], columns.first], maps[1][rows.second[row], columns.second]
        title = f"{len(queries)} of {maps[0].shape[0]} rows align"
        title += "".join(
            f", {letter}: {side.part.note}" for letter, side in zip("AB", (a, b), strict=True) if side.part.note
        )
        self.delta.frame = difference_frame(
            delta, labels, title=title, row=row, weights=weights, hidden=hidden,  # type: ignore[arg-type]
        )  # fmt: skip
        self.delta.pin = "" if row is None else str(row)

    def _hidden(self, pairs: Alignment, units: Units) -> np.ndarray:
        special = np.asarray(units.frame["special"], bool)[pairs.first]
        return special if self.hide_special else np.zeros(len(pairs), bool)

    def _show_changes(self, reader: Reader, compared: Compared) -> None:
        """Fill the choices with the heads that change most. If all maps are many weights, they come later."""
        first, alignment = compared.maps[0], compared.alignment
        assert self._sides is not None
        (a, b), kind = self._sides, self.kind
        if self.state.pairs and kind == "examples":
            self._show_ranking(reader)
            return
        self.rankings.stop()
        key = (kind, a.name, b.name, a.reader.id, b.reader.id, self.hide_special, a.head if kind != "examples" else ())
        n_weights = max(a.reader.n_weights, b.reader.n_weights)
        is_part = not (a.part.is_whole and b.part.is_whole)
        if self._change_list[0] == key or n_weights > ALL_WEIGHTS or is_part:
            changes_list = self._change_list[1] if self._change_list[0] == key else []
            self._change_list = key, changes_list
            self.picks.stop()
            self.choices.frame = self._choices_frame(reader, "too many weights to compare all heads")
            return
        sides = self._sides
        is_shown = [~self._hidden(*pair) for pair in zip(alignment, (a.queries, a.keys), strict=True)]

        def done(change_list: list[HeadChange]) -> None:
            self._change_list = key, change_list
            self.choices.frame = self._choices_frame(reader, "")
            self._start_at(change_list)

        at_once = a.reader.has_codes and b.reader.has_codes and n_weights <= AT_ONCE_BYTES // 4
        if not at_once:
            self._change_list = (), []
            self.choices.frame = self._choices_frame(reader, "reading all heads")
        self.picks.start(
            key, lambda check: changes_of_pair(sides, alignment, is_shown, first, kind, check), done, self.failed,
            at_once=at_once,
        )  # fmt: skip

    def _start_at(self, heads: list[HeadChange]) -> None:
        """Choose the head that changes most, if neither the address nor the reader chose one."""
        if self.kind == "examples" and heads and "head" not in self.state.named:
            layer, head = map(int, heads[0]["head"].split("."))
            self.session.go({"layer": layer, "head": head}, push=False)

    def _show_ranking(self, reader: Reader) -> None:
        """Fill the list with the heads that change most over all pairs, or over those of a label."""
        assert self._sides is not None
        a, b = self._sides
        scope, site = self.state.pairs, reader.site.name
        members = self.data.pair_members(a.reader.example.index)
        key = (site, a.reader.id, b.reader.id, scope)
        self.picks.stop()
        self._change_list = (), []
        if b.reader.example.index not in members:
            self.choices.frame = self._choices_frame(reader, "A and B are no minimal pair of this store")
            return

        def work(check: Check) -> tuple[Contrast, list[HeadChange], str]:
            contrast = all_pairs(self.data, site, a.reader.example.index, b.reader.example.index, check)
            return contrast, *changes_of_pairs(self.data, contrast, scope)

        def done(result: tuple[Contrast, list[HeadChange], str]) -> None:
            contrast, heads, about = result
            self._contrast, self._change_list = (key, contrast, about), (key, heads)
            self.choices.frame = self._choices_frame(reader, "")
            self._start_at(heads)

        def failed(error: HeadAtlasError) -> None:
            self.choices.frame = self._choices_frame(reader, self.data.error_text(error))

        self.choices.frame = self._choices_frame(reader, "comparing all pairs")
        self.rankings.start(key, work, done, failed, at_once=False)

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture, and keep the choices, so that the reader can choose another B."""
        self._sides = self._alignment = None
        self.first.frame = message_frame(title, reason)
        self.second.frame = self.delta.frame = {}
        state = self.state
        self.choices.frame = self._open_choices(
            {"examples": state.other_example, "heads": state.other_head}.get(self.kind, "")
        )


def _head_of(text: str) -> Head | None:
    layer, _, head = text.partition(".")
    return (int(layer), int(head)) if text else None


def _next_head(reader: Reader, head: Head) -> Head:
    return reader.all_heads[(reader.all_heads.index(head) + 1) % len(reader.all_heads)]
