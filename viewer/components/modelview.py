"""`ModelView`: small maps of every head of a model on one example, with one colour scale."""

from __future__ import annotations

from typing import Any, ClassVar

import param

from ..figures.attention_figures import grid_figure
from ..figures.figure_parts import Caption, Figure
from ..frames.view_frames import MessageFrame, ModelFrame, hidden_cells, unpack
from ..state.reader_state import ARRANGEMENTS
from .esm_view import ESMView, shown_frame


class ModelView(ESMView):
    """Thumbnails of all heads: rows are layers, columns are heads.

    `frame` is `view_frames.model_frame` or `view_frames.message_frame`; `tokens` is that of `HeadView`. `enlarged` names
    the head that `HeadDetail` shows (a click sets it). `selected` lists the heads of the head view, marked in their
    colours (Shift click adds one). `arrange` is the order: by layer, or by the scores of `ranking`
    (``{scores: float32 [layer * head], title}``), best first. ``"search"`` is available if `searched` is True.
    """

    tokens: Any = param.Dict(default={})
    enlarged = param.String(default="")
    selected = param.String(default="")
    hide_special = param.Boolean(default=True)
    arrange = param.Selector(default="layer", objects=list(ARRANGEMENTS))
    ranking = param.Dict(default={})
    searched = param.Boolean(default=False)
    scale = param.Selector(default="sqrt", objects=["linear", "sqrt", "log"])

    frame_types = (MessageFrame, ModelFrame)

    picture = "model view"
    _esm = _bundle = "modelview.js"
    _priority_changes: ClassVar[list[str]] = ["enlarged", "selected", "hide_special", "arrange"]

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw all maps, always by layer and head. In a long text a cell is the largest weight that it covers."""
        frame, queries, keys = shown_frame(self)
        weights = unpack(frame["codes"], "sqrt8").reshape(frame["shape"])
        n_layers, n_heads, n_rows, n_columns = frame["shape"]
        hidden = tuple(
            hidden_cells(side["special"], n_cells, self.hide_special)
            for side, n_cells in ((queries, n_rows), (keys, n_columns))
        )
        pooled = f"a cell is the largest of {frame['n_queries'] / n_rows:.1f} \u00d7 {frame['n_keys'] / n_columns:.1f} weights" if n_rows < frame["n_queries"] or n_columns < frame["n_keys"] else ""  # fmt: skip
        return grid_figure(
            weights, frame.get("layers", range(n_layers)), frame.get("columns", range(n_heads)), hidden,  # type: ignore[arg-type]
            self.scale, caption.with_notes(pooled, frame.get("note", "")), width_mm,
        )  # fmt: skip
