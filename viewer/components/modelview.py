"""`ModelView`: small maps of every head of a model on one example, with one colour scale."""

from __future__ import annotations

from typing import Any, ClassVar

import param

from ..frames.view_frames import MessageFrame, ModelFrame
from ..state.reader_state import ARRANGEMENTS
from .esm_view import ESMView


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

    _esm = _bundle = "modelview.js"
    _priority_changes: ClassVar[list[str]] = ["enlarged", "selected", "hide_special", "arrange"]
