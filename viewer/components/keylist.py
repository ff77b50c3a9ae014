"""`KeyList`: what hovering says, kept as text: keys with weights, heads with the same edge, the way back."""

from __future__ import annotations

from typing import ClassVar

import param

from ..frames.detail_frames import PinnedFrame, StrongestFrame
from ..frames.view_frames import MessageFrame
from .esm_view import ESMView


class KeyList(ESMView):
    """The right side of a view.

    `frame` is `detail_frames.pinned_frame`, or `detail_frames.strongest_frame` while nothing is pinned. `on_msg`
    tells of ``{"add": "5.8"}`` (a head was clicked) and ``{"go": "neuron"}`` (a view was asked for).
    """

    pin = param.String(default="", doc="'q14': query 14; 'k3': key 3; '': nothing")

    frame_types = (PinnedFrame, StrongestFrame, MessageFrame)

    _esm = _bundle = "keylist.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]
