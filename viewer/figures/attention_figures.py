"""Figures of attention in one example: lines between tokens, the map of one head, small maps of all heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from ..frames.geometry import MAX_WINDOW, strongest_edges, window
from ..frames.view_frames import TokensFrame
from ..theme.colours import HEADS, TOKENS
from .drawing import INK, Drawing, shortened, text_width
from .figure_parts import (
    BODY,
    SCALES,
    SMALL,
    Caption,
    Figure,
    colours,
    finish,
    map_cells,
    number,
    ramp,
    shown,
    title,
)

MAX_ROWS = 100
"""Most tokens of a side in a figure of lines, which must fit on a page."""
MAX_LABELS = 90
"""Most tokens of a side whose labels a map shows."""
MAX_HEIGHT = 620.0
"""Largest height of a grid of maps in points: a page holds it with its caption."""
MIN_LISTED = 0.02
"""Smallest weight that is written beside a token."""
_MORE_HEADS = ("#6B7280",)


@dataclass(frozen=True)
class LineChoices:
    """Choices of the head view: which edges are drawn. `pin` is ``q14``, ``k3`` or empty, counted in shown units."""

    pin: str = ""
    share: float = 0.75
    keys: int = 8
    hide_special: bool = True
    renormalise: bool = False
    causal: bool = False
    tint: str = ""


def lines_figure(
    maps: Float32[np.ndarray, "n_heads query_pos key_pos"],
    heads: Sequence[str],
    queries: TokensFrame,
    keys: TokensFrame,
    choices: LineChoices,
    caption: Caption,
    width_mm: float,
) -> Figure:
    """Draw lines from each query to its strongest keys, by the rule of the head view."""
    pin = (choices.pin[0], int(choices.pin[1:])) if choices.pin else None
    drawing = Drawing(width_mm)
    spans = [
        window(len(side["labels"]), pin[1] if pin and pin[0] == letter else 0, MAX_ROWS)
        for letter, side in (("q", queries), ("k", keys))
    ]
    maps = maps[:, spans[0], spans[1]]
    sides = [
        (side["labels"][span], np.asarray(side["special"], bool)[span])
        for side, span in zip((queries, keys), spans, strict=True)
    ]
    is_shown = [~special if choices.hide_special else np.ones(len(labels), bool) for labels, special in sides]
    if choices.renormalise:
        sums = maps[:, :, is_shown[1]].sum(axis=-1, keepdims=True)
        maps = np.divide(maps, sums, out=np.zeros_like(maps), where=sums > 0)
    inks = [_ink(index, choices.tint) for index in range(len(heads))]
    names = ", ".join(heads[:8]) + (", \u2026" if len(heads) > 8 else "")
    y = title(
        drawing,
        f"{'Heads' if len(heads) > 1 else 'Head'} {names}",
        caption,
        [caption.sentence] if caption.sentence else [],
    )
    y = _head_legend(drawing, y, heads, inks)
    n = max(len(labels) for labels, _ in sides)
    pitch = 9.4 if n <= 60 else max(7.0, 564 / n)
    size = min(BODY, pitch * 0.86)
    room = drawing.width * 0.3
    left, right = (
        min(room, 1.1 * max((text_width(label, size) for label in labels), default=0)) for labels, _ in sides
    )
    x1 = 2 + left + 3
    x2 = min(drawing.width - 2 - right - 3 - (26 if pin else 0), x1 + 260)
    drawing.text(x1 - 3, y + 4, "query", SMALL, "right", INK["ink-3"])
    drawing.text(x2 + 3, y + 4, "key", SMALL, "left", INK["ink-3"])
    top = y + 10
    rows = [top + pitch * (i + 0.5) for i in range(n)]
    partners = _links(drawing, maps, is_shown, choices, _local(pin, spans), inks, (x1, x2), rows)
    for side, (labels, _) in enumerate(sides):
        for i, label in enumerate(labels):
            is_pin = pin is not None and pin[0] == "qk"[side] and pin[1] - spans[side].start == i
            other = partners.get(i) if pin and pin[0] != "qk"[side] else None
            ink = INK["accent-ink"] if is_pin else INK["ink"] if is_shown[side][i] else INK["line-2"]
            x, align = (x1 - 3, "right") if side == 0 else (x2 + 3, "left")
            text = shortened(label, room, size)
            drawing.text(x, rows[i], text, size, align, ink, bold=is_pin or bool(other and other > 0.15))  # type: ignore[arg-type]
            if other is not None and other >= MIN_LISTED:
                across = 3 + text_width(text, size) * (1.12 if other > 0.15 else 1)
                beside = x + across if side else x - across
                drawing.text(beside, rows[i], number(other), SMALL, align, INK["ink-2"])  # type: ignore[arg-type]
    y = _weight_legend(drawing, top + pitch * n + 4, inks[0])
    notes = [_lines_note(choices, pin is not None)]
    notes += [
        f"{what} {span.start}\u2013{span.stop - 1} of {len(side['labels']):,}"
        for what, span, side in zip(("queries", "keys"), spans, (queries, keys), strict=True)
        if span.stop - span.start < len(side["labels"])
    ]
    return finish(drawing, y, caption.with_notes(*notes), "attention-lines")


def _local(pin: tuple[str, int] | None, spans: Sequence[slice]) -> tuple[str, int] | None:
    if pin is None:
        return None
    span = spans["qk".index(pin[0])]
    return (pin[0], pin[1] - span.start) if span.start <= pin[1] < span.stop else None


def _ink(index: int, tint: str) -> str:
    if tint:
        return TOKENS["light"][tint]
    palette = HEADS["light"]
    return palette[index] if index < len(palette) else _MORE_HEADS[0]


def _links(
    drawing: Drawing,
    maps: Float32[np.ndarray, "n_heads query_pos key_pos"],
    is_shown: Sequence[np.ndarray],
    choices: LineChoices,
    pin: tuple[str, int] | None,
    inks: Sequence[str],
    xs: tuple[float, float],
    rows: Sequence[float],
) -> dict[int, float]:
    """Draw the lines. Returns the largest weight between the pinned token and each token of the other side."""
    partners: dict[int, float] = {}
    for index, map_ in enumerate(maps):
        shift = (index - (len(maps) - 1) / 2) * 0.6
        edges = strongest_edges(
            map_, share=choices.share, keys=choices.keys, causal=choices.causal, query_shown=is_shown[0],
            key_shown=is_shown[1],
        )  # fmt: skip
        for q, k, w in sorted(zip(edges.query_pos.tolist(), edges.key_pos.tolist(), edges.weight.tolist(), strict=True), key=lambda e: e[2]):  # fmt: skip
            ink = INK["line"] if pin else inks[index]
            opacity = 1.0 if pin else min(0.95, 0.12 + 0.83 * w)
            drawing.link(xs[0], rows[q] + shift, xs[1], rows[k] + shift, ink, 0.4 if pin else 0.35 + 1.75 * w, opacity)
    if pin is None:
        return partners
    side, position = pin
    for index, map_ in enumerate(maps):
        weights = map_[position] if side == "q" else map_[:, position]
        for other in np.argsort(weights).tolist():
            w = float(weights[other])
            if w < 0.01 or not is_shown[side == "q"][other]:
                continue
            q, k = (position, other) if side == "q" else (other, position)
            drawing.link(xs[0], rows[q], xs[1], rows[k], inks[index], 0.35 + 1.75 * w, min(1, 0.35 + 0.65 * w))
            partners[other] = max(w, partners.get(other, 0.0))
    return partners


def _head_legend(drawing: Drawing, y: float, heads: Sequence[str], inks: Sequence[str]) -> float:
    if len(heads) < 2:
        return y
    x = 2.0
    for name, ink in zip(heads, inks, strict=True):
        step = 12 + text_width(name, SMALL) + 6
        if x + step > drawing.width:
            x, y = 2.0, y + 9
        drawing.line(x, y + 3, x + 9, y + 3, ink, 1.8)
        drawing.text(x + 12, y + 3, name, SMALL)
        x += step
    return y + 11


def _weight_legend(drawing: Drawing, y: float, ink: str) -> float:
    """Draw sample lines of the weights .1, .5 and 1."""
    drawing.text(2, y + 4, "weight", SMALL, fill=INK["ink-2"])
    x = 6 + text_width("weight", SMALL)
    for weight in (0.1, 0.5, 1.0):
        drawing.link(x, y + 4, x + 16, y + 4, ink, 0.35 + 1.75 * weight, min(0.95, 0.12 + 0.83 * weight))
        label = number(weight, 0 if weight == 1 else 1)
        drawing.text(x + 19, y + 4, label, SMALL, fill=INK["ink-2"])
        x += 26 + text_width(label, SMALL)
    return y + 11


def _lines_note(choices: LineChoices, is_pinned: bool) -> str:
    parts = ["all weights of the pinned token from .01 on" if is_pinned else ""]
    edges = (
        f"the strongest keys of each row, up to {round(100 * choices.share)} % of its weight and at most {choices.keys}"
    )
    parts.append(f"grey: {edges}" if is_pinned else edges)
    parts.append("special tokens hidden" if choices.hide_special else "")
    parts.append("rows scaled to 1" if choices.renormalise else "")
    return "; ".join(filter(None, parts))


@dataclass(frozen=True)
class MapChoices:
    """Choices of a map. `head` begins the title; `kind` begins the file name.

    With `is_signed` the values may be negative and the scale is symmetric. `ends` are the labels of its ends.
    """

    head: str
    kind: str = "attention-map"
    hide_special: bool = True
    scale: str = "sqrt"
    is_signed: bool = False
    label: str = "attention weight"
    ends: tuple[str, str] = ("0", "1")
    sentences: tuple[str, ...] | None = None
    origin: tuple[int, int] = (0, 0)
    """Position of the first query and of the first key."""
    block: int = 1
    """Number of tokens that a row or column covers."""


def map_figure(
    weights: Float32[np.ndarray, "query_pos key_pos"],
    queries: TokensFrame,
    keys: TokensFrame,
    choices: MapChoices,
    caption: Caption,
    width_mm: float,
) -> Figure:
    """Draw the map of one head, or a signed difference: rows are queries, columns are keys."""
    drawing = Drawing(width_mm)
    rows, columns = (shown(side["special"], choices.hide_special) for side in (queries, keys))
    sentences = [caption.sentence] if choices.sentences is None else choices.sentences
    y = title(drawing, choices.head, caption, [sentence for sentence in sentences if sentence])
    most = float(np.abs(weights[np.ix_(rows, columns)]).max(initial=0.0)) if choices.is_signed else 1.0
    values = weights[np.ix_(rows, columns)] / (most or 1.0)
    scaled = np.sign(values) * SCALES[choices.scale](np.abs(values))
    labels = [[side["labels"][i] for i in part.tolist()] for side, part in ((queries, rows), (keys, columns))]
    room = min(drawing.width * 0.26, 64.0)
    is_labelled = [len(names) <= MAX_LABELS for names in labels]
    left = 4 + (min(room, max(map(text_width, labels[0]), default=0)) if is_labelled[0] else 18)
    size = min(9.6, (drawing.width - left - 12) / max(1, len(columns)))
    font = min(BODY, size * 0.9)
    above = min(room, max((text_width(name, font) for name in labels[1]), default=0)) if is_labelled[1] else 8
    y += above * 0.75 + 4
    font_rows = max(3.5, font)
    for i, name in enumerate(labels[0] if is_labelled[0] else []):
        drawing.text(left - 2, y + (i + 0.5) * size, shortened(name, room, font_rows), font_rows, "right")
    for j, name in enumerate(labels[1] if is_labelled[1] else []):
        drawing.text(left + (j + 0.5) * size, y - 3, shortened(name, room, font_rows), font_rows, "left", turn=-45)
    for side, (part, has_labels) in enumerate(zip((rows, columns), is_labelled, strict=True)):
        if not has_labels:
            _ticks(drawing, choices.origin[side] + part * choices.block, left, y, size, side)
    map_cells(drawing, scaled, left, y, (size, size), is_signed=choices.is_signed)
    drawing.rect(left, y, size * len(columns), size * len(rows), stroke=INK["line-2"], line=0.4)
    y += size * len(rows) + 4
    ends = (choices.ends[0], choices.ends[1]) if not choices.is_signed else tuple(f"{end} +{number(most)}" for end in choices.ends)  # fmt: skip
    y = ramp(drawing, y, choices.label, ends, is_signed=choices.is_signed, scale=choices.scale)  # type: ignore[arg-type]
    hidden = len(queries["labels"]) - len(rows), len(keys["labels"]) - len(columns)
    note = f"special tokens hidden: {hidden[0]} rows, {hidden[1]} columns" if any(hidden) else ""
    return finish(drawing, y, caption.with_notes("rows: queries; columns: keys", note), choices.kind)


def _ticks(drawing: Drawing, positions: np.ndarray, left: float, top: float, size: float, side: int) -> None:
    """Write the positions of some tokens beside a map whose labels do not fit."""
    step = next(s for s in (10, 20, 50, 100, 200, 500, 1000, 5000) if len(positions) / s <= 8)
    for i in range(0, len(positions), step):
        text = f"{int(positions[i])}"
        if side == 0:
            drawing.text(left - 2, top + (i + 0.5) * size, text, SMALL, "right", INK["ink-2"])
        else:
            drawing.text(left + (i + 0.5) * size, top - 5, text, SMALL, "center", INK["ink-2"])


def grid_figure(
    weights: Float32[np.ndarray, "layer head row column"],
    layers: Sequence[int],
    heads: Sequence[int],
    hidden: tuple[np.ndarray, np.ndarray],
    scale: str,
    caption: Caption,
    width_mm: float,
) -> Figure:
    """Draw the maps of all heads as small pictures: rows are layers, columns are heads.

    `hidden` are the rows and columns of each map that are left out, as bool.
    """
    drawing = Drawing(width_mm)
    weights = weights[:, :, ~hidden[0]][:, :, :, ~hidden[1]]
    y = title(drawing, "All heads", caption, [caption.sentence] if caption.sentence else [])
    left = 16.0
    ratio = weights.shape[2] / max(1, weights.shape[3])
    step = min((drawing.width - left - 2) / len(heads), MAX_HEIGHT / (len(layers) * max(ratio, 1e-3)))
    tall = step * ratio
    every = 1 if step >= 12 else 4 if step >= 4 else 8
    for column in range(0, len(heads), every):
        drawing.text(left + (column + 0.46) * step, y + 4, str(heads[column]), SMALL, "center", INK["ink-2"])
    drawing.text(2, y + 4, "L\\H", SMALL, fill=INK["ink-3"])
    y += 9
    scaled = SCALES[scale](weights)
    n_drawn = int((colours(scaled) < 250).any(axis=-1).sum())
    for row, layer in enumerate(layers):
        if row % (1 if tall >= 7 else 4) == 0:
            drawing.text(left - 3, y + (row + 0.46) * tall, str(layer), SMALL, "right", INK["ink-2"])
        for column in range(len(heads)):
            x, top, side = left + column * step, y + row * tall, step * 0.92
            cell = (side / max(1, weights.shape[3]), tall * 0.92 / max(1, weights.shape[2]))
            map_cells(drawing, scaled[row, column], x, top, cell, max_cells=4096 if n_drawn <= 4096 else 0)
            drawing.rect(x, top, side, tall * 0.92, stroke=INK["line-2"], line=0.25)
    y = ramp(drawing, y + len(layers) * tall + 3, "attention weight", ("0", "1"), scale=scale)
    note = f"{int(hidden[0].sum())} rows and {int(hidden[1].sum())} columns of special tokens hidden" if hidden[0].any() or hidden[1].any() else ""  # fmt: skip
    notes = ["rows of pictures: layers; columns: heads; in a picture rows are queries", note]
    return finish(drawing, y, replace(caption, head="").with_notes(*notes), "all-heads")


assert MAX_ROWS <= MAX_WINDOW
