"""`TokenText`: one example as running text; a click pins a token, weights from the pin shade the others."""

from __future__ import annotations

from typing import ClassVar

import param

from ..frames.view_frames import TextFrame
from .esm_view import ESMView


class TokenText(ESMView):
    """Running text.

    `frame` is made by `views_page.text_frame`; `weights` is ``{}`` or ``{"q": float32 [query], "k": float32 [key]}``:
    how strongly the pinned token and each other token are linked (the strongest of the heads shown).
    """

    pin = param.String(default="", doc="'q14': query 14; 'k3': key 3; '': nothing")
    weights = param.Dict(default={})

    frame_types = (TextFrame,)

    _esm = _bundle = "tokentext.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]
