"""`Space`: queries and keys of one head in one plane, with a lasso that selects tokens."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import param

from headatlas.store.errors import NotFoundError

from ..data.vector_space import SpaceFrame
from ..figures.figure_parts import Caption, Figure
from ..figures.head_figures import space_figure
from ..frames.view_frames import MessageFrame
from .esm_view import ESMView


class Space(ESMView):
    """Two clouds of dots: queries are outlined, keys are filled.

    `frame` is `vector_space.space_frame` or `view_frames.message_frame`. `shade` is the property that colours the dots,
    `method` the projection. Message for `on_msg`: ``{"open": [example, position, side]}``.
    """

    shade = param.String(default="side")
    method = param.Selector(default="pca", objects=["pca", "umap"])

    frame_types = (SpaceFrame, MessageFrame)

    picture = "query-key space"
    _esm = _bundle = "space.js"
    _priority_changes: ClassVar[list[str]] = ["shade", "method"]

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw queries and keys as two clouds of dots."""
        frame = self.frame
        if "query" not in frame:
            raise NotFoundError("there is no picture of queries and keys, so there is no figure of them.")
        groups = (frame["groups"], frame["group_of"]) if frame["shade"] not in ("side", "position") else ([], frame["group_of"])  # fmt: skip
        return space_figure(
            np.reshape(frame["query"], (-1, 2)), np.reshape(frame["key"], (-1, 2)), groups, frame["shade"], frame["facts"], caption, width_mm
        )  # fmt: skip
