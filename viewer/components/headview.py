"""`HeadView`: lines from each query token to its strongest keys, for up to twelve heads at once, or the maximum or mean of more."""

from __future__ import annotations

from typing import Any, ClassVar

import param

from ..figures.attention_figures import LineChoices, lines_figure
from ..figures.figure_parts import Caption, Figure
from ..frames.view_frames import HeadFrame, MessageFrame, cut_tokens, unpack
from .esm_view import ESMView, shown_frame


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
    pooling = param.Selector(
        default="maximum", objects=["maximum", "mean"], doc="How more than twelve heads are drawn."
    )
    layout = param.Selector(default="columns", objects=["columns", "rows"])
    note = param.String(default="", doc="Text beside the title.")

    frame_types = (HeadFrame, MessageFrame)

    picture = "head view"
    _esm = _bundle = "headview.js"
    _priority_changes: ClassVar[list[str]] = ["pin", "pooling"]

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the lines. The tokens of a long text that are not in the frame are not drawn."""
        frame, queries, keys = shown_frame(self)
        first = {"q": frame["query_start"], "k": frame["key_start"]}
        cut = [cut_tokens(side, first[name], n) for name, side, n in zip("qk", (queries, keys), frame["shape"][1:], strict=True)]  # fmt: skip
        position = int(self.pin[1:]) - first[self.pin[0]] if self.pin else -1
        is_inside = self.pin and 0 <= position < frame["shape"][1 if self.pin[0] == "q" else 2]
        choices = LineChoices(
            f"{self.pin[0]}{position}" if is_inside else "", self.share, self.keys, self.hide_special, self.renormalised,
            frame["causal"] and not frame.get("part"), frame.get("tint", ""),
        )  # fmt: skip
        maps = unpack(frame["attention"], frame["codec"]).reshape(frame["shape"])
        n_left_out = frame["n_queries"] - frame["shape"][1]
        notes = [self.note, f"queries {first['q']}\u2013{first['q'] + frame['shape'][1] - 1} of {frame['n_queries']:,}" if n_left_out else ""]  # fmt: skip
        return lines_figure(maps, frame["heads"], cut[0], cut[1], choices, caption.with_notes(*notes), width_mm)
