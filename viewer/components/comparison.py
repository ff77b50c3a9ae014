"""Cards beside two compared views: the choice of the comparison, the heads that change, and the difference as a picture."""

from __future__ import annotations

from typing import ClassVar, NotRequired, TypedDict

import numpy as np
import param

from headatlas.store.errors import NotFoundError

from ..figures.attention_figures import MapChoices, map_figure
from ..figures.figure_parts import Caption, Figure
from ..frames.alignment import DifferenceFrame, HeadChange
from ..frames.view_frames import tokens_frame
from .esm_view import ESMView


class ComparisonFrame(TypedDict):
    """Two sides of a comparison, and the heads that change between them."""

    compare: str
    a: str
    b: str
    """Text or name of side B, as `a` is of side A."""
    choices: list[list[str]]
    """Choices of B as [value, label]."""
    choice: str
    heads: list[HeadChange]
    list: str
    """Title of the list of heads."""
    head: str
    """Head of B, marked in the list."""
    number: NotRequired[str]
    """Number of B, if examples are compared."""
    search: NotRequired[str]
    """Text that examples were searched for, to choose B."""
    matches: NotRequired[list[list[str]]]
    """First examples with this text as [number, label]."""
    n_matches: NotRequired[int]
    pairs: NotRequired[str]
    """Pairs that rank the heads: empty for the shown one, if A and B are a minimal pair."""
    scopes: NotRequired[list[list[str]]]
    """Choices of `pairs` as [value, label]."""
    about: NotRequired[str]
    """Description of the pairs that ranked the heads."""
    why: str
    """Reason why the list of heads is empty."""


class Comparison(ESMView):
    """Left side: the kind of comparison (examples, heads or models), A and B, and the heads that change.

    Messages for `on_msg`: ``{"compare": ...}``, ``{"b": value}``, ``{"find": text}``, ``{"pairs": scope}``,
    ``{"head": "5.8"}`` and ``{"swap": true}``.
    """

    frame_types = (ComparisonFrame,)

    _esm = _bundle = "comparison.js"


class Difference(ESMView):
    """Right side: B minus A as a signed map, and the pinned row of both. `frame` is `alignment.difference_frame`.

    `pin` is the index of the aligned row as text, or empty.
    """

    pin = param.String(default="")

    frame_types = (DifferenceFrame,)

    picture = "difference"
    _esm = _bundle = "difference.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the difference. Tokens that differ between A and B carry both labels."""
        frame = self.frame
        if not frame.get("shape"):
            raise NotFoundError("nothing is compared, so there is no figure. Choose A and B first.")
        sides = [
            tokens_frame([a if a == b else f"{a}/{b}" for a, b in zip(*labels, strict=True)], hidden)
            for labels, hidden in zip(zip(*frame["labels"], strict=True), frame["hidden"], strict=True)
        ]
        choices = MapChoices(
            f"B \u2212 A, {caption.head}", "difference", hide_special=True, is_signed=True, label="difference",
            ends=("B", "A"), sentences=tuple(caption.sentence.split("\n")),
        )  # fmt: skip
        delta = -np.asarray(frame["delta"], np.float32).reshape(frame["shape"])  # blue is more in A, as on the page
        return map_figure(delta, sides[0], sides[1], choices, caption.with_notes(frame["title"]), width_mm)
