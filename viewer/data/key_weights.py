"""Weights for the list of keys beside a picture: those of the pinned token, or the strongest of the shown part.

A row of weights is read completely, also in a long text. A column (the queries that attend to a key) is read in the
shown part only, because it takes all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from ..frames.detail_frames import PinnedFrame, PinnedRow, StrongestFrame, pinned_frame, strongest_frame
from ..frames.picture_units import Units
from ..frames.view_frames import Head, TokensFrame
from .example_reader import AT_ONCE_BYTES, READ_BYTES, Check, Reader


@dataclass(frozen=True)
class ReadPlan:
    """Weights of all heads that are to be read, decided before the read."""

    read: Callable[[Check], Any]
    at_once: bool = True
    is_row: bool = False
    """True if the read ends with the pinned token's row of all heads in the cache."""


@dataclass(frozen=True)
class Part:
    """Shown part of the maps: units of both sides, and their tokens."""

    units: tuple[Units, Units]
    """Units of the complete text."""
    spans: tuple[slice, slice]
    """Units of the part."""

    @property
    def is_whole(self) -> bool:
        """True if the part is the complete text."""
        lengths = [len(side.frame["labels"]) for side in self.units]
        return [(span.start, span.stop) for span in self.spans] == [(0, n) for n in lengths]

    @property
    def note(self) -> str:
        """Words for what the part is of. Empty if it is complete."""
        if self.is_whole:
            return ""
        names = ("queries", "keys")
        return " and ".join(
            f"{name} {span.start:,}\u2013{span.stop - 1:,} of {len(side.frame['labels']):,}"
            for name, span, side in zip(names, self.spans, self.units, strict=True)
        )


@dataclass(frozen=True)
class KeyWeights:
    """Content of the list of keys, without the weights of all heads."""

    heads: list[Head]
    part: Part
    key: Hashable
    pin: PinnedRow | None
    strongest: StrongestFrame | None
    n_rows: int

    @property
    def pin_text(self) -> str:
        """Pin of the list, counted in units: a token, or an edge."""
        if self.pin is None:
            return ""
        other = "" if self.pin.partner is None else f"{'k' if self.pin.side == 'q' else 'q'}{self.pin.partner}"
        return f"{self.pin.side}{self.pin.position}{other}"

    def frame(self, all_heads: Float32[np.ndarray, "layer head other"] | None, hide_special: bool) -> Any:
        """Return the frame of the list."""
        if self.pin is None:
            assert self.strongest is not None
            return self.strongest
        sides = [side.frame for side in self.part.units]
        tokens, others = sides if self.pin.side == "q" else sides[::-1]
        pin = replace(self.pin, all_heads=all_heads)
        frame: PinnedFrame = pinned_frame(pin, self.heads, tokens, others, n=self.n_rows, hide_special=hide_special)
        if not self.part.is_whole:
            span = self.part.spans[0]
            total = len(self.part.units[0].frame["labels"])
            frame["note"] = f"Attended by: queries {span.start:,}\u2013{span.stop - 1:,} of {total:,}"
        return frame

    def edge_plan(self, reader: Reader, has_row: bool, hide_special: bool) -> ReadPlan | None:
        """Decide how the weights of all heads at the pinned token's strongest edge are read. None if they are not."""
        if self.pin is None:
            return None
        side, units = self.pin.side, self.part.units
        others = units[side == "q"].frame
        if has_row or self.part.is_whole:
            tokens = np.flatnonzero(units[side == "k"].of_token == self.pin.position).tolist()
            cost = sum(reader.row_cost(side, token) for token in tokens)
            if cost > READ_BYTES:
                return None
            return ReadPlan(lambda check: unit_row(reader, side, tokens, units, check), cost <= AT_ONCE_BYTES)
        order = self.pin.order(others, hide_special=hide_special)
        best, position = (int(order[0]) if len(order) else -1), self.pin.position
        best = best if self.pin.partner is None else self.pin.partner
        is_token = all(unit.are_tokens for unit in units)
        if best < 0 or not is_token or (cost := reader.row_cost("q", best)) > READ_BYTES:
            return None

        def read(check: Check) -> np.ndarray:
            weights = reader.row("q", best, check)[:, :, position : position + 1]
            return np.broadcast_to(weights, (*weights.shape[:2], len(others["labels"])))

        return ReadPlan(read, cost <= AT_ONCE_BYTES)


def unit_row(
    reader: Reader, side: str, tokens: Sequence[int], units: tuple[Units, Units], check: Check
) -> Float32[np.ndarray, "layer head other"]:
    """Return the weights of all heads between one unit, given by its tokens, and every unit of the other side."""
    total = np.zeros(0, np.float32)
    for token in tokens:
        row = reader.row(side, token, check)
        total = row if not total.size else total + row
    if side == "q" and len(tokens) > 1:
        total = total / np.float32(len(tokens))
    n_layers, n_heads, n_other = total.shape  # type: ignore[misc]  (a unit has one token or more)
    others = units[side == "q"]
    if others.are_tokens:
        return total
    return merge_row(total.reshape(-1, n_other), side, others).reshape(n_layers, n_heads, -1)


def merge_row(
    rows: Float32[np.ndarray, "map other"], side: str, others: Units
) -> Float32[np.ndarray, "map other_unit"]:
    """Merge the tokens of the other side: keys are summed for a pinned query, queries are averaged for a pinned key."""
    n, in_unit = len(others.frame["labels"]), others.of_token >= 0
    sums = np.zeros((len(rows), n), np.float32)
    np.add.at(sums.T, others.of_token[in_unit], rows[:, in_unit].T)
    if side == "q":
        return sums
    return sums / np.maximum(np.bincount(others.of_token[in_unit], minlength=n), 1).astype(np.float32)


def key_weights(
    reader: Reader,
    heads: list[Head],
    maps: Float32[np.ndarray, "n_heads query_unit key_unit"],
    part: Part,
    pin: tuple[str, int] | None,
    key: Hashable,
    *,
    hide_special: bool,
    check: Check,
    partner: int | None = None,
) -> KeyWeights:
    """Read the weights of the shown heads for the list of keys. `maps` are those of `part`, `pin` is a unit.

    `partner` is the unit at the other end of the pinned edge, if an edge is pinned.
    """
    n_rows = 8 if len(heads) < 3 else 6
    if pin is None:
        strongest = _strongest(maps, heads, part, hide_special)
        return KeyWeights(heads, part, key, None, strongest, n_rows)
    side, position = pin
    none = np.zeros((len(heads), 0), np.float32)
    if part.is_whole:
        row, column = maps[:, position] if position < maps.shape[1] else none, none
        if side == "k" or reader.same_text:
            column = maps[:, :, position]
    else:
        is_one_text = reader.same_text
        row = _row(reader, heads, position, part, check) if side == "q" or is_one_text else none
        column = _column(reader, heads, position, part, check) if side == "k" or is_one_text else none
    weights, back = (row, column) if side == "q" else (column, row)
    read = None if side == "q" or part.is_whole else part.spans[0]
    pinned = PinnedRow(
        side, position, weights, back if reader.same_text else none, None, read, reader.site.layers, partner
    )  # fmt: skip
    return KeyWeights(heads, part, key, pinned, None, n_rows)


def _strongest(maps: np.ndarray, heads: list[Head], part: Part, hide_special: bool) -> StrongestFrame:
    sides = [_cut(side.frame, span) for side, span in zip(part.units, part.spans, strict=True)]
    frame = strongest_frame(maps, heads, sides[0], sides[1], hide_special=hide_special)
    if not part.is_whole:
        for edge in frame["edges"]:
            edge["query"] += part.spans[0].start
            edge["key"] += part.spans[1].start
        frame["note"] = f"Of {part.note}."
    return frame


def _cut(frame: TokensFrame, span: slice) -> TokensFrame:
    return {"labels": frame["labels"][span], "special": frame["special"][span], "pieces": frame["pieces"][span]}


def _row(
    reader: Reader, heads: list[Head], unit: int, part: Part, check: Check
) -> Float32[np.ndarray, "n_heads key_unit"]:
    """Read the row of a unit: its tokens are averaged, the tokens of each key unit are summed."""
    _, tokens = part.units[0].part(slice(unit, unit + 1))
    rows = reader.maps(heads, check, query=tokens).mean(axis=1)
    return merge_row(rows, "q", part.units[1])


def _column(
    reader: Reader, heads: list[Head], unit: int, part: Part, check: Check
) -> Float32[np.ndarray, "n_heads query_unit"]:
    """Read the column of a unit within the part; -1 for all other queries."""
    (queries, rows), (_, tokens) = part.units[0].part(part.spans[0]), part.units[1].part(slice(unit, unit + 1))
    weights = reader.maps(heads, check, query=rows, key=tokens).sum(axis=2)
    column = np.full((len(heads), len(part.units[0].frame["labels"])), -1, np.float32)
    n_units = part.spans[0].stop - part.spans[0].start
    column[:, part.spans[0]] = merge_row(weights, "k", queries)[:, :n_units]
    return column
