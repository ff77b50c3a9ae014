"""`HeadDetail`: one enlarged head of the model view, with its map, its statistics here and its strongest edges."""

from __future__ import annotations

from typing import ClassVar

import param

from ..frames.detail_frames import DetailFrame
from .esm_view import ESMView


class HeadDetail(ESMView):
    """Right side of the model view.

    `frame` is `detail_frames.detail_frame`. A click on a row of the map or on an edge pins its query. Messages for
    `on_msg`: ``{"go": "head"}`` and ``{"go": "neuron"}``.
    """

    pin = param.String(default="")
    hide_special = param.Boolean(default=True)
    scale = param.Selector(default="sqrt", objects=["linear", "sqrt", "log"])

    frame_types = (DetailFrame,)

    _esm = _bundle = "headdetail.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]
