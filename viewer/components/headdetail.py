"""`HeadDetail`: one head of the model view, large: its map, its statistics here, its strongest edges."""

from __future__ import annotations

from typing import ClassVar

import param

from ..frames.detail_frames import DetailFrame
from .esm_view import ESMView


class HeadDetail(ESMView):
    """The right side of the model view.

    `frame` is `detail_frames.detail_frame`; a click on a row of the map or on an edge pins its query. `on_msg` tells of
    ``{"go": "head"}`` or ``{"go": "neuron"}``.
    """

    pin = param.String(default="")
    hide_special = param.Boolean(default=True)
    scale = param.Selector(default="sqrt", objects=["linear", "sqrt", "log"])

    frame_types = (DetailFrame,)

    _esm = _bundle = "headdetail.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]
