"""`HeadPicker`: every head as a cell, the selected heads as chips in their colours, and the options of the lines."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import param

from headatlas.store.errors import NotFoundError

from ..figures.figure_parts import Caption, Figure
from ..figures.head_figures import head_map_figure
from ..frames.view_frames import PickerFrame
from .esm_view import ESMView


class HeadPicker(ESMView):
    """Left side of a view.

    `frame` is `view_frames.picker_frame`. `selected` lists heads as ``"5.8,5.10"`` in the order of their colours. A
    click selects one head, Shift click adds or removes one, a double click on a chip removes all others.
    """

    selected = param.String(default="")
    single = param.Boolean(default=False, doc="True if only one head can be selected.")
    lines = param.Boolean(default=True, doc="True if the sliders for lines are shown.")
    specials = param.Boolean(default=True, doc="True if the box for special tokens is shown.")
    share = param.Number(default=0.75, bounds=(0, 1))
    keys = param.Integer(default=8, bounds=(1, 64))
    hide_special = param.Boolean(default=True)
    hides_first = param.Boolean(default=False, doc="True if the box hides the first token too.")
    choices = param.Boolean(default=False, doc="True if the choices of the head view are shown.")
    pairs = param.Boolean(default=False, doc="True if the example has two texts.")
    unit = param.Selector(default="token", objects=["token", "word", "sentence"])
    segments = param.Selector(default="all", objects=["all", "aa", "ab", "ba", "bb"])
    weights = param.Selector(default="stored", objects=["stored", "renormalised"])
    layout = param.Selector(default="columns", objects=["columns", "rows"])
    facts = param.List(default=[], item_type=tuple, doc="(title, text) sections below the heads.")

    frame_types = (PickerFrame,)

    picture = "heads"
    _esm = _bundle = "headpicker.js"
    _priority_changes: ClassVar[list[str]] = [
        "selected", "share", "keys", "hide_special", "unit", "segments", "weights", "layout",
    ]  # fmt: skip

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the number of each head in this example."""
        frame = self.frame
        if not frame.get("shape"):
            raise NotFoundError("the heads have no numbers yet. Wait until they are read.")
        values, layers = frame["values"].reshape(frame["shape"]), frame.get("layers", range(frame["shape"][0]))
        of_example = replace(caption, corpus=caption.sentence, head="")
        return head_map_figure(values, layers, float(np.nanmax(values, initial=1e-6)), frame["title"], of_example, width_mm)  # fmt: skip
