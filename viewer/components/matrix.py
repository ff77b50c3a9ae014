"""`Matrix`: the map of one head at any scale, from 8,192 tokens down to one weight, with margins and token labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import param

from ..data.map_pyramid import MatrixFrame
from ..figures.figure_parts import Caption, Figure
from ..frames.view_frames import MessageFrame
from .esm_view import ESMView, shown_frame


class Matrix(ESMView):
    """Heat map with zoom and pan.

    `frame` is `map_pyramid.matrix_frame` or `view_frames.message_frame`; `tokens` is that of `HeadView`. A message
    requests finer tiles, ``{"tiles": [[level, row, column, kind], ...], "id": ...}``; the answer is a message of the
    same shape with codes. `zoom` is ``"row,column,span"``: the first shown row and column, and the number of columns
    that fit the width.
    """

    tokens: Any = param.Dict(default={})
    pin = param.String(default="", doc="'q14': query 14; 'k3': key 3; '': nothing")
    zoom = param.String(default="", doc="'row,column,span'; '': the whole map")
    pooling = param.Selector(default="maximum", objects=["maximum", "mean"])
    scale = param.Selector(default="sqrt", objects=["sqrt", "linear", "log"])
    hide_special = param.Boolean(default=True)

    frame_types = (MatrixFrame, MessageFrame)

    picture = "matrix"
    _esm = _bundle = "matrix.js"
    _priority_changes: ClassVar[list[str]] = ["pin", "zoom", "pooling", "scale"]
    draw_part: Callable[[Caption, float], Figure] | None = None
    """Function that draws the shown part from the store: the frame of a long text holds only some of its weights."""

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the shown part of the map."""
        shown_frame(self)
        if self.draw_part is None:
            return super().figure(caption, width_mm)
        return self.draw_part(caption, width_mm)
