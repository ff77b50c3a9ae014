"""`ESMView`: what every component shares. A component is a Python class beside a plain JavaScript file of its own.

Data travel down as a `frame` (a dict of scalars, strings and NumPy arrays; arrays go as binary buffers, never as lists:
a JSON list of 512 × 512 numbers takes two seconds) and choices travel up as small parameters (`pin`, `heads`, ...).
There is no build step and no dependency: on a server each file is served from this folder and imports its neighbours;
where there is no server (a notebook) the imports are spliced in.

Two members of Panel that are not public are used, each with a test: `_bundle` (the file is served by URL instead of
being inlined into every session) and `_priority_changes` (skips the 50 ms wait of changes that come from the browser).
"""

from __future__ import annotations

from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from ..colours import THEMES, palette
from .splice import FOLDER, IMPORT, splice

__all__ = ["FOLDER", "ESMView", "splice"]


class ESMView(JSComponent):
    """Base of all components. A subclass sets ``_esm = _bundle = "name.js"`` and lists what the browser may change.

    The JavaScript exports ``render({model, el})``. It imports shared code as ``import { el } from "../_js/dom.js"``
    (names in braces, one file an import; the shared files are those of `_js`, and `_js` lists a file after those that
    it imports).
    """

    frame = param.Dict(default={}, doc="What to draw: scalars, strings and arrays; {} draws nothing.")
    theme = param.Selector(default="auto", objects=["auto", *THEMES], doc="auto: as the page around it.")
    label = param.String(default="", doc="Accessible name of the picture.")

    _js: ClassVar[list[str]] = ["paint.js", "dom.js", "style.js"]  # served under ../_js/, shared by all
    _constants: ClassVar[dict[str, Any]] = {"palette": palette()}
    _priority_changes: ClassVar[list[str]] = []

    __abstract = True

    @classmethod
    def _render_esm(cls, compiled: Any = True, server: bool = False) -> str:
        """The URL of the file on a server, else its source with the shared files spliced in."""
        source = super()._render_esm(compiled=compiled, server=server)
        return splice(source) if IMPORT.search(source) else source
