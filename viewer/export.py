"""`View`: a head, model or neuron view as one interactive HTML file that works offline."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any, Literal

from headatlas.store.errors import BudgetError
from headatlas.store.files.drafts import replace_file

from .components.standalone_page import MAX_BYTES, array_bytes, make_page
from .frames.whole_example import ADVICE, PartFrame
from .theme.colours import palette
from .theme.token_labels import visible

Kind = Literal["head", "model", "neuron"]
_COMPONENTS: dict[str, dict[str, str]] = {
    "head": {"HeadPicker": "headpicker.js", "HeadView": "headview.js", "KeyList": "keylist.js"},
    "model": {"HeadPicker": "headpicker.js", "ModelView": "modelview.js", "HeadDetail": "headdetail.js"},
    "neuron": {"HeadPicker": "headpicker.js", "NeuronView": "neuronview.js"},
}


class View:
    """One view as an HTML document. `data` is the document's text; `save` writes it to a file; a notebook shows it."""

    def __init__(self, data: str, height: int) -> None:
        self.data, self.height = data, height

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the document to a file. Any browser opens it, without a network."""
        replace_file(path, self.data.encode("utf-8"))
        return Path(path)

    def _repr_html_(self) -> str:
        """Return the view as an iframe for Jupyter. The iframe isolates the notebook's page and the view."""
        return (
            f'<iframe sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(self.data, quote=True)}" '
            f'style="width:100%;height:{self.height}px;border:0" title="headatlas view"></iframe>'
        )


def make_view(
    kind: Kind,
    title: str,
    parts: list[PartFrame],
    state: dict[str, Any],
    *,
    facts: Any = (),
    theme: str = "auto",
    height: int = 640,
) -> View:
    """Make the document of one view.

    Parameters
    ----------
    parts
        `whole_example.part_frame` of each attention that the reader can choose (encoder, decoder, cross).
    state
        Initial values of the view's choices: ``selected``, ``hide_special`` and so on.
    facts
        (heading, text) sections below the head picker.

    Raises
    ------
    BudgetError
        The arrays take more than `MAX_BYTES`.
    """
    n_bytes = array_bytes(parts)
    if n_bytes > MAX_BYTES:
        raise BudgetError(
            f"this view holds {n_bytes >> 20} MiB of numbers; a file holds at most {MAX_BYTES >> 20} MiB. {ADVICE}"
        )
    start = {"selected": "0.0", "part": 0, "range": 0, "pin": "", "share": 0.75, "keys": 8, "hide_special": False}
    data = {
        "kind": kind,
        "title": visible(title),
        "theme": theme,
        "palette": palette(),
        "parts": parts,
        "state": {**start, **state},
        "facts": [list(fact) for fact in facts],
    }
    return View(make_page(kind, visible(title), data, _COMPONENTS[kind]), height)
