"""`NeuronView`: why a token attends where it does: query, keys, their product dimension by dimension, score, softmax."""

from __future__ import annotations

from typing import Any, ClassVar

import param

from ..frames.view_frames import MessageFrame, NeuronFrame
from .esm_view import ESMView


class NeuronView(ESMView):
    """One row of one head, from the stored vectors, with the list of its dimensions at the side.

    `frame` is `view_frames.neuron_frame` or `view_frames.message_frame`; `tokens` as in `HeadView`. Scaling a dimension and
    choosing the key that parts are measured for happen in the browser.
    """

    tokens: Any = param.Dict(default={})
    pin = param.String(default="", doc="A query, 'q14': the row shown.")
    order = param.Selector(default="dimension", objects=["dimension", "part", "pairs"])
    hide_special = param.Boolean(default=True)

    frame_types = (MessageFrame, NeuronFrame)

    _esm = _bundle = "neuronview.js"
    _priority_changes: ClassVar[list[str]] = ["pin", "order"]
