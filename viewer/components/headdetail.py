"""`HeadDetail`: one enlarged head of the model view, with its map, its statistics here and its strongest edges."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import param

from headatlas.store.errors import NotFoundError

from ..figures.attention_figures import MapChoices, map_figure
from ..figures.figure_parts import Caption, Figure
from ..frames.detail_frames import DetailFrame
from ..frames.view_frames import tokens_frame
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

    picture = "one head"
    _esm = _bundle = "headdetail.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the map of the head."""
        frame = self.frame
        if not frame.get("shape"):
            raise NotFoundError("no head is shown, so there is no figure. Choose an example with attention.")
        sides = [tokens_frame(labels, special) for labels, special in zip(frame["labels"], frame["special"], strict=True)]  # fmt: skip
        weights = np.asarray(frame["attention"], np.float32).reshape(frame["shape"])
        choices = MapChoices(f"Head {frame['head']}", hide_special=self.hide_special, scale=self.scale)
        return map_figure(weights, sides[0], sides[1], choices, caption.with_notes(frame.get("note", "")), width_mm)
