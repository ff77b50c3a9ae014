"""`NeuronView`: the computation of one row of attention: query, keys, products by dimension, scores and softmax."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import param

from ..figures.figure_parts import Caption, Figure
from ..figures.neuron_figure import neuron_figure
from ..frames.geometry import dimension_order, dimension_parts
from ..frames.view_frames import MessageFrame, NeuronFrame
from ..state.address_values import read_factors
from ..state.reader_state import DIMENSION_ORDERS
from .esm_view import ESMView, shown_frame


class NeuronView(ESMView):
    """One row of one head, computed from the stored vectors, with the list of its dimensions beside it.

    `frame` is `view_frames.neuron_frame` or `view_frames.message_frame`; `tokens` is that of `HeadView`. The browser
    scales dimensions, and computes the parts of the score of the selected key.
    """

    tokens: Any = param.Dict(default={})
    pin = param.String(default="", doc="'q14': query 14 is the shown row")
    order = param.Selector(default="dimension", objects=list(DIMENSION_ORDERS))
    factors = param.String(default="", doc="'12,44:0+7:0.5': factors of dimensions, as `headatlas what-if` takes them")
    dim = param.String(default="", doc="'12': the marked dimension; '': the one with the largest part")
    measured = param.String(default="", doc="'3': parts are those of the score of key 3; '': of the strongest key")
    hide_special = param.Boolean(default=True)
    renormalised = param.Boolean(default=False, doc="True if the weights of the shown keys are scaled to a sum of 1.")

    frame_types = (MessageFrame, NeuronFrame)

    picture = "neuron view"
    _esm = _bundle = "neuronview.js"
    _priority_changes: ClassVar[list[str]] = ["pin", "order", "factors", "dim", "measured"]

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the row with its factors."""
        shown, queries, keys = shown_frame(self)
        frame: NeuronFrame = shown  # type: ignore[assignment]
        before = frame["stored"] if len(frame["stored"]) else frame["rebuilt"]
        is_shown = np.asarray(frame["seen"], bool) & ~(np.asarray(keys["special"], bool) & self.hide_special)
        measured = int(self.measured or frame["focus"])
        if measured >= len(is_shown) or not is_shown[measured]:  # a hidden key cannot be measured
            measured = int(np.argmax(np.where(is_shown, before, -1)))
        factors = read_factors(self.factors)
        parts = dimension_parts(
            frame["query"], frame["keys"], scaling=frame["scaling"], focus=measured, mask=np.asarray(frame["seen"], bool)
        )  # fmt: skip
        order = dimension_order(self.order, parts, frame["pairs"])
        return neuron_figure(
            frame, queries, keys, order=order, factors=factors, measured=measured, hide_special=self.hide_special,
            caption=caption, width_mm=width_mm,
        )  # fmt: skip
