"""Figures of the heads of a model: the map of one number, two numbers against each other, ranked heads, a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..theme.colours import HEADS, sequential
from .drawing import INK, Drawing, cell_path, hex_colour, shortened, text_width
from .figure_parts import BODY, SMALL, Caption, Figure, finish, number, ramp, title

LABELLED = 8
"""Heads of the largest values that carry their value or name."""
LISTED = 25
"""Most heads in a figure of ranked heads."""


def head_map_figure(
    values: Float[np.ndarray, "layer head"],
    layers: Sequence[int],
    high: float,
    name: str,
    caption: Caption,
    width_mm: float,
) -> Figure:
    """Draw one number of every head: rows are layers, columns are heads. The largest values are written into cells."""
    drawing = Drawing(width_mm)
    n_layers, n_heads = values.shape
    y = title(drawing, name[:1].upper() + name[1:], caption, [caption.corpus])
    left = 16.0
    cell = min(18.0, (drawing.width - left - 44) / n_heads)
    every = 1 if cell >= 11 else 4 if cell >= 3.2 else 8
    drawing.text(2, y + 4, "L\\H", SMALL, fill=INK["ink-3"])
    for head in range(0, n_heads, every):
        drawing.text(left + (head + 0.5) * cell, y + 4, str(head), SMALL, "center", INK["ink-2"])
    mean_x = left + n_heads * cell + 6
    drawing.text(mean_x, y + 4, "layer mean", SMALL, fill=INK["ink-2"])
    y += 9
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=None, kind="stable")[:LABELLED]
    top = {(int(i) // n_heads, int(i) % n_heads) for i in order}
    share = np.clip(np.nan_to_num(values) / (high or 1.0), 0, 1)
    rgb = sequential(share)
    gap = 0.8 if cell >= 9 else 0.3
    for row in range(n_layers):
        middle = y + (row + 0.5) * cell
        if row % (1 if cell >= 7 else 4) == 0:
            drawing.text(left - 3, middle, str(layers[row]), SMALL, "right", INK["ink-2"])
        for head in range(n_heads):
            x = left + head * cell
            drawing.cells(cell_path([(x, y + row * cell, cell - gap, cell - gap)]), hex_colour(rgb[row, head]))
            if cell >= 9 and share[row, head] < 0.12:
                drawing.rect(x, y + row * cell, cell - gap, cell - gap, stroke=INK["line"], line=0.3)
            if cell >= 14 and (row, head) in top:
                ink = "#FFFFFF" if share[row, head] > 0.5 else "#000000"
                drawing.text(x + (cell - gap) / 2, middle - gap / 2, number(values[row, head]), SMALL, "center", ink)
        mean = float(np.nanmean(values[row])) if np.isfinite(values[row]).any() else 0.0
        bar = min(5.0, cell * 0.6)
        drawing.rect(mean_x, middle - bar / 2, 36, bar, INK["surface-3"])
        drawing.rect(mean_x, middle - bar / 2, 36 * min(1.0, max(0.0, mean / (high or 1))), bar, INK["accent"])
    y = ramp(drawing, y + n_layers * cell + 4, name, ("0", number(high)))
    missing = int((~np.isfinite(values)).sum())
    note = f"{missing} heads without a value" if missing else ""
    return finish(drawing, y, caption.with_notes(f"{n_layers} layers (rows) of {n_heads} heads", note), "head-map")


@dataclass(frozen=True)
class AxisValues:
    """One axis of a scatter plot: its label, the value of each head, and the end of the axis."""

    label: str
    values: Float[np.ndarray, "head"]
    high: float


def scatter_figure(
    x: AxisValues, y: AxisValues, names: Sequence[str], marked: Sequence[str], caption: Caption, width_mm: float
) -> Figure:
    """Draw every head by two numbers. The heads at the ends of both axes, and the `marked` ones, carry their names."""
    drawing = Drawing(width_mm)
    top = title(drawing, f"{y.label} by {x.label}", caption, [caption.corpus]) + 4
    left, side = 30.0, min(drawing.width - 36, 220.0)
    tall = min(side, 180.0)
    bottom = top + tall

    def spot(index: int) -> tuple[float, float]:
        return left + side * float(x.values[index]) / (x.high or 1), bottom - tall * float(y.values[index]) / (y.high or 1)  # fmt: skip

    for part in np.linspace(0, 1, 5):
        drawing.line(left, bottom - tall * part, left + side, bottom - tall * part, INK["line"], 0.3)
        drawing.text(left - 3, bottom - tall * part, number(y.high * part), SMALL, "right", INK["ink-2"])
        drawing.text(left + side * part, bottom + 6, number(x.high * part), SMALL, "center", INK["ink-2"])
    drawing.line(left, bottom, left + side, bottom, INK["ink-3"])
    drawing.line(left, top, left, bottom, INK["ink-3"])
    finite = np.flatnonzero(np.isfinite(x.values) & np.isfinite(y.values)).tolist()
    for index in finite:
        drawing.dot(*spot(index), 1.9, INK["accent"], opacity=0.55)
    ends = [np.argsort(-np.nan_to_num(axis.values, nan=-np.inf), kind="stable")[:4].tolist() for axis in (x, y)]
    own = [i for i, name in enumerate(names) if name in marked]
    labels: list[tuple[float, float, float, float]] = []
    for index in dict.fromkeys(index for part in (own, *ends) for index in part):
        if index not in finite:
            continue
        cx, cy = spot(index)
        width = text_width(names[index], SMALL)
        for dx, dy in ((3, -4), (3, 5), (-3 - width, -4), (-3 - width, 5), (3, -10), (3, 11)):
            box = (cx + dx, cy + dy - 3, cx + dx + width, cy + dy + 3)
            inside = left <= box[0] and box[2] <= drawing.width and top - 3 <= box[1] and box[3] <= bottom
            clear = all(box[2] < t[0] or box[0] > t[2] or box[3] < t[1] or box[1] > t[3] for t in labels)
            if inside and clear:
                labels.append(box)
                drawing.text(box[0], cy + dy, names[index], SMALL)
                break
    drawing.text(left + side / 2, bottom + 15, x.label, BODY, "center")
    drawing.text(8, top + tall / 2, y.label, BODY, "center", turn=-90)
    n_left_out = len(names) - len(finite)
    note = f"{n_left_out} heads without a value" if n_left_out else ""
    return finish(drawing, bottom + 21, caption.with_notes(f"each dot is one of {len(finite)} heads", note), "heads-by-two-statistics")  # fmt: skip


@dataclass(frozen=True)
class RankedBar:
    """One head of a ranking: value, 95 % interval, and the value that the null expects. NaN if there is none."""

    head: str
    value: float
    low: float
    high: float
    null: float
    is_above: bool


def ranking_figure(
    bars: Sequence[RankedBar], measure: str, null: str, pattern: str, high: float, caption: Caption, width_mm: float
) -> Figure:
    """Draw ranked heads as bars with their intervals, and a tick for what the null expects."""
    drawing = Drawing(width_mm)
    y = title(drawing, f"Heads by {measure}", caption, [f"pattern: {pattern}", caption.corpus])
    listed = bars[:LISTED]
    left = 6 + max((text_width(bar.head, BODY) for bar in listed), default=0)
    span = min(drawing.width - left - 34, 240.0)
    most = high or 1.0
    for bar in listed:
        middle = y + 4.5
        drawing.text(left - 3, middle, bar.head, BODY, "right", bold=True)
        drawing.rect(left, middle - 2.6, span * min(1, max(0, bar.value / most)), 5.2, INK["accent"] if bar.is_above else INK["line-2"])  # fmt: skip
        if np.isfinite(bar.low) and np.isfinite(bar.high):
            low, top = (left + span * min(1.0, max(0.0, end / most)) for end in (bar.low, bar.high))
            drawing.line(low, middle, top, middle, INK["ink"], 0.7)
            for end in (low, top):
                drawing.line(end, middle - 1.6, end, middle + 1.6, INK["ink"], 0.7)
        if np.isfinite(bar.null):
            x = left + span * min(1.0, max(0.0, bar.null / most))
            drawing.line(x, middle - 4, x, middle + 4, INK["neg"], 1.0)
        drawing.text(left + span + 26, middle, number(bar.value), BODY, "right")
        y += 10.5
    drawing.line(left, y, left + span, y, INK["ink-3"])
    for part in (0, 0.5, 1):
        drawing.text(left + span * part, y + 6, number(most * part), SMALL, "center", INK["ink-2"])
    notes = [f"bar: {measure}; black: 95 % interval; orange tick: {shortened(null, 200, SMALL)}"]
    notes.append("grey: not above the null" if any(not bar.is_above for bar in listed) else "")
    notes.append(f"the first {len(listed)} of {len(bars)} heads" if len(listed) < len(bars) else "")
    return finish(drawing, y + 12, caption.with_notes(*notes), "ranked-heads")


def histogram_figure(
    counts: Sequence[int], high: float, mean: float, name: str, n: int, caption: Caption, width_mm: float
) -> Figure:
    """Draw the distribution of one number over the examples, with its corpus mean."""
    drawing = Drawing(width_mm)
    y = title(drawing, name[:1].upper() + name[1:], caption, [caption.corpus]) + 4
    left, tall, side = 30.0, 90.0, min(drawing.width - 36, 220.0)
    bottom, most = y + tall, max(1, max(counts, default=1))
    for part in (0, 0.5, 1):
        drawing.line(left, bottom - tall * part, left + side, bottom - tall * part, INK["line"], 0.3)
        drawing.text(left - 3, bottom - tall * part, f"{round(most * part):,}", SMALL, "right", INK["ink-2"])
        drawing.text(left + side * part, bottom + 6, number(high * part), SMALL, "center", INK["ink-2"])
    width = side / max(1, len(counts))
    for index, count in enumerate(counts):
        drawing.rect(left + index * width + 0.3, bottom - tall * count / most, width - 0.6, tall * count / most, INK["accent"])  # fmt: skip
    x = left + side * min(1.0, mean / (high or 1))
    drawing.line(x, y, x, bottom, INK["neg"], 1.0)
    drawing.text(left + side / 2, bottom + 15, name, BODY, "center")
    drawing.text(8, y + tall / 2, "examples", BODY, "center", turn=-90)
    notes = [f"{n:,} examples; orange: corpus mean {number(mean)}"]
    return finish(drawing, bottom + 21, caption.with_notes(*notes), "distribution")


def space_figure(
    query: Float[np.ndarray, "token 2"], key: Float[np.ndarray, "token 2"], groups: tuple[Sequence[str], np.ndarray],
    shade: str, facts: str, caption: Caption, width_mm: float,
) -> Figure:  # fmt: skip
    """Draw queries (rings) and keys (dots) in one plane, coloured by side, position or the group of each token."""
    drawing = Drawing(width_mm)
    names, group_of = groups
    y = title(drawing, f"Queries and keys of {caption.head}", caption, [facts, caption.corpus]) + 2
    query, key = (np.asarray(side, np.float64).reshape(-1, 2) for side in (query, key))
    points = np.concatenate([query, key])
    low, high = points.min(axis=0, initial=np.inf), points.max(axis=0, initial=-np.inf)
    side = min(drawing.width - 8, 300.0)
    scale = side / max(1e-9, float((high - low).max(initial=1e-9)))
    tall = max(30.0, float(high[1] - low[1]) * scale)
    drawing.rect(4, y, side, tall + 6, stroke=INK["line-2"], line=0.4)
    for index, (px, py) in enumerate(points.tolist()):
        is_query, group = index < len(query), int(group_of[index % len(query)])
        if shade == "side":
            ink = INK["neg" if is_query else "pos"]
        elif shade == "position":
            ink = hex_colour(sequential(np.array([0.2 + 0.8 * group / 255]))[0])
        else:
            ink = INK["line-2"] if group < 0 else HEADS["light"][group % len(HEADS["light"])]
        x, top = 4 + (px - low[0]) * scale, y + 3 + (high[1] - py) * scale
        drawing.dot(x, top, 1.3, "none" if is_query else ink, ink if is_query else None)
    y += tall + 12
    x = 2.0
    for index, name in enumerate(names):
        step = 10 + text_width(name, SMALL) + 6
        if x + step > drawing.width:
            x, y = 2.0, y + 9
        drawing.dot(x + 3, y, 2, HEADS["light"][index % len(HEADS["light"])])
        drawing.text(x + 8, y, name, SMALL)
        x += step
    note = "rings: queries (orange); dots: keys (blue)" if shade == "side" else f"rings: queries; dots: keys; colour: {shade}"  # fmt: skip
    return finish(drawing, y + 5, caption.with_notes(note), "query-key-space")
