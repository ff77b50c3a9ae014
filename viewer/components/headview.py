"""`HeadView`: lines from each query token to its strongest keys, for up to twelve heads at once, or the maximum or mean of more."""

from __future__ import annotations

from typing import Any, ClassVar

import param

from ..frames.view_frames import HeadFrame, MessageFrame
from .esm_view import ESMView


class HeadView(ESMView):
    """Bipartite lines of one example (or of a window of a long one).

    `frame` is `view_frames.head_frame` or `view_frames.message_frame`; `tokens` is `view_frames.sides_frame`
    with the same `id`. The browser chooses the edges by the rule of `geometry.strongest_edges`.
    """

    tokens: Any = param.Dict(default={})
    pin = param.String(default="", doc="'q14': query 14; 'k3': key 3; '': nothing")
    share = param.Number(default=0.75, bounds=(0, 1))
    keys = param.Integer(default=8, bounds=(1, 64))
    hide_special = param.Boolean(default=True)
    renormalise = param.Boolean(default=False, doc="True if the shown weights of each row are scaled to a sum of 1.")
    pooling = param.Selector(
        default="maximum", objects=["maximum", "mean"], doc="How more than twelve heads are drawn."
    )
    layout = param.Selector(default="columns", objects=["columns", "rows"])
    note = param.String(default="", doc="Text beside the title.")

    frame_types = (HeadFrame, MessageFrame)

    _esm = _bundle = "headview.js"
    _priority_changes: ClassVar[list[str]] = ["pin", "pooling"]
