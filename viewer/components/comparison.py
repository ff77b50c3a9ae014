"""Cards beside two compared views: the choice of the comparison, the heads that change, and the difference as a picture."""

from __future__ import annotations

from typing import ClassVar, NotRequired, TypedDict

import param

from ..frames.alignment import DifferenceFrame, HeadChange
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
    why: str
    """Reason why the list of heads is empty."""


class Comparison(ESMView):
    """Left side: the kind of comparison (examples, heads or models), A and B, and the heads that change.

    Messages for `on_msg`: ``{"compare": ...}``, ``{"b": value}``, ``{"head": "5.8"}`` and ``{"swap": true}``.
    """

    frame_types = (ComparisonFrame,)

    _esm = _bundle = "comparison.js"


class Difference(ESMView):
    """Right side: B minus A as a signed map, and the pinned row of both. `frame` is `alignment.difference_frame`.

    `pin` is the index of the aligned row as text, or empty.
    """

    pin = param.String(default="")

    frame_types = (DifferenceFrame,)

    _esm = _bundle = "difference.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]
