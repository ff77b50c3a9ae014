"""`Space`: queries and keys of one head in one plane; a lasso chooses tokens."""

from __future__ import annotations

from typing import ClassVar

import param

from ..data.vector_space import SpaceFrame
from ..frames.view_frames import MessageFrame
from .esm_view import ESMView


class Space(ESMView):
    """Two clouds: queries are outlined, keys are filled. `frame` is `vector_space.space_frame` or `view_frames.message_frame`.

    `shade` says what colours the dots, `method` how they were placed. `on_msg` tells of
    ``{"open": [example, position, side]}``.
    """

    shade = param.String(default="side")
    method = param.Selector(default="pca", objects=["pca", "umap"])

    frame_types = (SpaceFrame, MessageFrame)

    _esm = _bundle = "space.js"
    _priority_changes: ClassVar[list[str]] = ["shade", "method"]
