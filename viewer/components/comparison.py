"""What stands beside two compared views: what is compared, which heads change, the difference as a picture."""

from __future__ import annotations

from typing import ClassVar, NotRequired, TypedDict

import param

from ..frames.alignment import DifferenceFrame, HeadChange
from .esm_view import ESMView


class ComparisonFrame(TypedDict):
    """What is compared."""

    compare: str
    a: str
    b: str
    """Text or name of each side."""
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
    why: str
    """Reason for an empty list of heads."""


class Comparison(ESMView):
    """The left side: examples, heads or models; what A and B are; the heads that change.

    `on_msg` tells of ``{"compare": ...}``, ``{"b": value}``, ``{"head": "5.8"}`` and
    ``{"swap": true}``.
    """

    frame_types = (ComparisonFrame,)

    _esm = _bundle = "comparison.js"


class Difference(ESMView):
    """The right side: B less A as a signed map, and the pinned row of both. `frame` is `compare.difference_frame`.

    `pin` is the aligned row, as text; empty for none.
    """

    pin = param.String(default="")

    frame_types = (DifferenceFrame,)

    _esm = _bundle = "difference.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]
