"""`Space`: queries and keys of one head in one plane, with a lasso that selects tokens."""

from __future__ import annotations

from typing import ClassVar

import param

from ..data.vector_space import SpaceFrame
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

    _esm = _bundle = "space.js"
    _priority_changes: ClassVar[list[str]] = ["shade", "method"]
