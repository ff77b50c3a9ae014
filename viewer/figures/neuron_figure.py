"""Figure of one row of attention: query, keys, products by dimension, scores and attention."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int64

from ..frames.geometry import dimension_parts, rescaled_row
from ..frames.view_frames import NeuronFrame, TokensFrame
from .drawing import INK, Drawing, shortened, text_width
from .figure_parts import BODY, SMALL, Caption, Figure, finish, map_cells, number, ramp, title

MAX_KEYS = 40
"""Most keys in the figure, the strongest ones in the order of the text."""


def neuron_figure(
    frame: NeuronFrame,
    queries: TokensFrame,
    keys: TokensFrame,
    *,
    order: Int64[np.ndarray, "d_head"],
    factors: Mapping[int, float],
    measured: int,
    hide_special: bool,
    caption: Caption,
    width_mm: float,
) -> Figure:
    """Draw one row with its dimensions in `order`, scaled by `factors`, and their parts in the score of key `measured`."""
    drawing = Drawing(width_mm)
    row = rescaled_row(frame, factors)
    before = frame["stored"] if len(frame["stored"]) else frame["rebuilt"]
    special = np.asarray(keys["special"], bool)
    positions = np.flatnonzero(np.asarray(frame["seen"], bool) & ~(special & hide_special))
    n_keys = len(positions)
    if n_keys > MAX_KEYS:
        positions = np.sort(positions[np.argsort(-before[positions], kind="stable")[:MAX_KEYS]])
    query_label, measured_label = queries["labels"][frame["query_pos"]], keys["labels"][measured]
    sentences = [f"query {query_label} (position {frame['query_pos']})", caption.sentence]
    y = title(drawing, f"Head {frame['head']}, one row", caption, sentences)
    room = min(60.0, drawing.width * 0.2)
    left = 6 + min(room, 1.1 * max(text_width(keys["labels"][k]) for k in positions.tolist()) if n_keys else 20)
    numbers = 34.0 + 46.0
    span = max(40.0, (drawing.width - left - numbers - 14) / 2)
    x_key, x_product = left, left + span + 7
    x_score, x_attention = x_product + span + 24, x_product + span + 30
    scale = np.array([factors.get(int(d), 1.0) for d in order], np.float64)
    vectors = frame["keys"].astype(np.float64)[np.ix_(positions, order)]
    products = vectors * frame["query"].astype(np.float64)[order] * scale
    for x, text in ((x_key, "key vectors"), (x_product, "query \u00d7 key"), (x_score - 22, "score"), (x_attention, "attention")):  # fmt: skip
        drawing.text(x, y + 4, text, SMALL, bold=True)
    y = _parts(drawing, y + 9, frame, order, scale, measured, x_product, span, measured_label)
    drawing.text(left - 2, y + 4, shortened(query_label, room), BODY, "right", INK["accent-ink"], bold=True)
    most_query = float(np.abs(frame["query"]).max(initial=1e-9))
    map_cells(drawing, _toned(frame["query"][order][None] / most_query), x_key, y, (span / len(order), 8), is_signed=True)  # fmt: skip
    drawing.rect(x_key, y, span, 8, stroke=INK["accent"], line=0.6)
    y += 13
    pitch = 9.4
    for x, values in ((x_key, vectors), (x_product, products)):
        most = float(np.abs(values).max(initial=1e-9))
        map_cells(drawing, _toned(values / most).astype(np.float32), x, y, (span / len(order), pitch), is_signed=True)  # fmt: skip
        drawing.rect(x, y, span, pitch * len(positions), stroke=INK["line-2"], line=0.4)
    for index, k in enumerate(positions.tolist()):
        middle = y + pitch * (index + 0.5)
        drawing.text(left - 2, middle, shortened(keys["labels"][k], room), BODY, "right", bold=k == measured)
        drawing.text(x_score, middle, number(float(row.scores[k]), 1), SMALL, "right", INK["ink-2"])
        weight = float(row.attention[k]) if len(row.attention) else float(before[k])
        drawing.rect(x_attention, middle - 2.4, 30, 4.8, INK["surface-3"])
        drawing.rect(x_attention, middle - 2.4, 30 * min(1.0, weight), 4.8, INK["accent"])
        if row.is_changed:
            tick = x_attention + 30 * min(1.0, float(before[k]))
            drawing.line(tick, middle - 3.6, tick, middle + 3.6, INK["ink"], 0.9)
        drawing.text(drawing.width - 2, middle, number(weight), SMALL, "right")
    y += pitch * len(positions) + 5
    y = ramp(drawing, y, "each picture has its own scale", ("\u2212", "+"), is_signed=True)
    changed = "+".join(f"{dimension}:{factor:g}" for dimension, factor in factors.items())
    notes = [
        f"part: what a dimension adds to the score of {measured_label}, against the mean of the other keys",
        f"dimensions scaled: {changed}; tick: attention before" if row.is_changed else "",
        f"the {MAX_KEYS} strongest of {n_keys} keys" if n_keys > MAX_KEYS else "",
        f"{int((special & np.asarray(frame['seen'], bool)).sum())} special tokens hidden"
        if hide_special and special.any()
        else "",
    ]
    return finish(drawing, y, caption.with_notes(*notes), "one-row")


def _toned(values: np.ndarray) -> np.ndarray:
    """Return values with the small ones made visible, as the neuron view shows them."""
    return np.sign(values) * np.abs(values) ** 0.7


def _parts(
    drawing: Drawing, y: float, frame: NeuronFrame, order: np.ndarray, scale: Float64[np.ndarray, "d_head"],
    measured: int, x: float, span: float, label: str,
) -> float:  # fmt: skip
    """Draw the part of each dimension as bars above and below a line."""
    mask = np.asarray(frame["seen"], bool)
    parts = dimension_parts(frame["query"], frame["keys"], scaling=frame["scaling"], focus=measured, mask=mask)
    values = parts[order] * scale
    most, tall = float(np.abs(parts).max(initial=1e-9)), 15.0
    base, width = y + tall, span / len(order)
    drawing.line(x, base, x + span, base, INK["line-2"], 0.4)
    for index, value in enumerate(values.tolist()):
        height = tall * min(1.0, abs(value) / most)
        top = base - height if value > 0 else base
        drawing.rect(x + index * width, top, max(0.3, width * 0.9), height, INK["pos" if value > 0 else "neg"])
    drawing.text(x - 4, base, shortened(f"part in {label}", 90, SMALL), SMALL, "right", INK["ink-2"])
    best = int(np.argmax(np.abs(values)))
    middle = min(x + span - 8, max(x + 8, x + (best + 0.5) * width))
    drawing.text(middle, base + tall + 4, f"dim {int(order[best])}", SMALL, "center")
    return y + 2 * tall + 9
