"""What stands beside two compared views: what is compared, which heads change, the difference as a picture."""

from __future__ import annotations

from typing import ClassVar

import param

from .esm_view import ESMView


class Comparison(ESMView):
    """The left side: examples, heads or models; what A and B are; the heads that change.

    `frame` has `compare`, `a` and `b` (lines of text), `choices` (what B may be, ``[[value, label], ...]``), `choice`,
    `heads` and what their list means. `on_msg` tells of ``{"compare": ...}``, ``{"b": value}``, ``{"head": "5.8"}`` and
    ``{"swap": true}``.
    """

    _esm = _bundle = "comparison.js"


class Difference(ESMView):
    """The right side: B less A as a signed map, and the pinned row of both. `frame` is `compare.difference_frame`.

    `pin` is the aligned row, as text; empty for none.
    """

    pin = param.String(default="")

    _esm = _bundle = "difference.js"
    _priority_changes: ClassVar[list[str]] = ["pin"]
