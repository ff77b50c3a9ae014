"""`TokenText`: one example as running text. A click pins a token, and weights shade the other tokens."""

from __future__ import annotations

from typing import ClassVar

import param

from ..frames.view_frames import TextFrame
from .esm_view import ESMView


class TokenText(ESMView):
    """Running text of one example.

    `views_page.text_frame` makes `frame`. `weights` is ``{}`` or ``{"q": float32 [query], "k": float32 [key]}``: the
    largest weight, over the shown heads, between the pinned token and each other token.
    """

    pin = param.String(default="", doc="'q14': query 14; 'k3': key 3; '': nothing")
    weights = param.Dict(default={})

    frame_types = (TextFrame,)

    _esm = _bundle = "tokentext.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]
