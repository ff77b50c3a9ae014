"""`HeadView`: lines from each query token to its strongest keys, for up to twelve heads at once."""

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
    pin = param.String(default="", doc="'q14': query 14; 'k3': key 3; 'q14k3': an edge; '': nothing")
    share = param.Number(default=0.75, bounds=(0, 1))
    keys = param.Integer(default=8, bounds=(1, 64))
    hide_special = param.Boolean(default=True)
    renormalised = param.Boolean(default=False, doc="True if the shown weights of each row were scaled to a sum of 1.")
    high = param.Number(default=0.0, bounds=(0, None), doc="Weight of the widest line; 0: the largest shown weight.")
    layout = param.Selector(default="columns", objects=["columns", "rows"])
    note = param.String(default="", doc="Text beside the title.")

    frame_types = (HeadFrame, MessageFrame)

    _esm = _bundle = "headview.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]
