"""`NeuronView`: the computation of one row of attention: query, keys, products by dimension, scores and softmax."""

from __future__ import annotations

from typing import Any, ClassVar

import param

from ..frames.view_frames import MessageFrame, NeuronFrame
from .esm_view import ESMView


class NeuronView(ESMView):
    """One row of one head, computed from the stored vectors, with the list of its dimensions beside it.

    `frame` is `view_frames.neuron_frame` or `view_frames.message_frame`; `tokens` is that of `HeadView`. The browser
    scales dimensions, and computes the parts of the score of the selected key.
    """

    tokens: Any = param.Dict(default={})
    pin = param.String(default="", doc="'q14': query 14 is the shown row")
    order = param.Selector(default="dimension", objects=["dimension", "part", "pairs"])
    hide_special = param.Boolean(default=True)
    renormalised = param.Boolean(default=False, doc="True if the weights of the shown keys are scaled to a sum of 1.")

    frame_types = (MessageFrame, NeuronFrame)

    _esm = _bundle = "neuronview.js"
    _priority_changes: ClassVar[list[str]] = ["pin", "order"]
