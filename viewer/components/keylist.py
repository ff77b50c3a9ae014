"""`KeyList`: the keys of a pinned token with their weights, the heads with the same edge, and the reverse edges."""

from __future__ import annotations

from typing import ClassVar

import param

from ..frames.detail_frames import PinnedFrame, StrongestFrame
from ..frames.view_frames import MessageFrame
from .esm_view import ESMView


class KeyList(ESMView):
    """Right side of a view.

    `frame` is `detail_frames.pinned_frame`, or `detail_frames.strongest_frame` while no token is pinned. Messages for
    `on_msg`: ``{"add": "5.8"}`` (click on a head) and ``{"go": "neuron"}`` (click on a view).
    """

    pin = param.String(default="", doc="'q14': query 14; 'k3': key 3; '': nothing")

    frame_types = (PinnedFrame, StrongestFrame, MessageFrame)

    _esm = _bundle = "keylist.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]
