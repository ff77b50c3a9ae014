"""A view as one HTML file: works offline, asks for nothing, keeps the interaction.

The page holds the same component files that a server would send, the data as JSON (arrays in base64), and a small model
in place of Panel's. Its content policy forbids every request. Corpus text is data only: nothing in it can close the
script element (`<` is escaped), and components write it as text nodes.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headatlas.store.errors import BudgetError

from .components.script_files import bundle
from .frames.view_frames import Frame
from .theme.colours import palette
from .theme.token_labels import visible

if TYPE_CHECKING:
    from .components.esm_view import ESMView

Kind = Literal["head", "model", "neuron", "page"]
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
MAX_BYTES = 128 << 20
"""Arrays in one file; a browser opens more only with trouble."""
_COMPONENTS: dict[str, dict[str, str]] = {
    "head": {"HeadPicker": "headpicker.js", "HeadView": "headview.js", "KeyList": "keylist.js"},
    "model": {"HeadPicker": "headpicker.js", "ModelView": "modelview.js", "HeadDetail": "headdetail.js"},
    "neuron": {"HeadPicker": "headpicker.js", "NeuronView": "neuronview.js"},
}
_STYLE = """
html, body { margin: 0; height: 100% } body { display: grid; grid-template-rows: 32px minmax(0,1fr); gap: 6px; padding: 6px; box-sizing: border-box }
main { display: grid; gap: 8px; min-height: 0; grid-template-columns: 232px minmax(0,1fr) 296px; grid-template-rows: minmax(0,1fr) } main.neuron { grid-template-columns: 232px minmax(0,1fr) } main.page { grid-template-columns: minmax(0,1fr) }
.host { display: block; min-width: 0; min-height: 0 }
@media (max-width: 1100px) { main { grid-template-columns: 208px minmax(0,1fr); grid-template-rows: minmax(0,1fr) minmax(0,1fr) } main .host:nth-child(2) { grid-column: 2; grid-row: 1 / 3 } main .host:nth-child(3) { grid-column: 1; grid-row: 2 }
  main.neuron { grid-template-rows: minmax(0,1fr) } main.neuron { grid-template-columns: 150px minmax(0,1fr) } main.neuron .host:nth-child(2) { grid-row: 1 } }
"""


class View:
    """One view as an HTML document: `data` is the whole document, `save` writes it, a notebook shows it."""

    def __init__(self, data: str, height: int) -> None:
        self.data, self.height = data, height

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the document to a file; it opens in any browser, without a network."""
        target = Path(path)
        target.write_text(self.data, encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        """As Jupyter shows it: a frame of its own, so that page and view cannot touch each other."""
        return (
            f'<iframe sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(self.data, quote=True)}" '
            f'style="width:100%;height:{self.height}px;border:0" title="headatlas view"></iframe>'
        )


def make_view(
    kind: Kind, title: str, parts: list[Frame], state: Frame, *, facts: Any = (), theme: str = "auto", height: int = 640
) -> View:
    """Put one view into a document.

    Parameters
    ----------
    parts
        `parts.part_frame` of each attention that can be chosen (encoder, decoder, cross).
    state
        What is chosen at first: ``selected``, ``hide_special`` and so on.
    facts
        (heading, text) below the picker.

    Raises
    ------
    BudgetError
        The arrays take more than `MAX_BYTES`.
    """
    n_bytes = sum(array.nbytes for part in parts for array in _arrays(part))
    if n_bytes > MAX_BYTES:
        raise BudgetError(
            f"this view holds {n_bytes >> 20} MiB of numbers; a file takes at most {MAX_BYTES >> 20} MiB. "
            "Name fewer layers with include_layers=[...], or a shorter text."
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
    return View(_document(kind, visible(title), data, _COMPONENTS[kind]), height)


def frozen_view(component: ESMView, title: str, height: int = 640) -> View:
    """Put one component as it stands into a document: what can be asked of its frame alone still works.

    Raises
    ------
    BudgetError
        Its arrays take more than `MAX_BYTES`.
    """
    from panel.viewable import Layoutable

    kept = [name for name in component.param if name not in Layoutable.param and name != "theme"]
    values = {name: _finite(getattr(component, name)) for name in kept}
    n_bytes = sum(array.nbytes for array in _arrays(values))
    if n_bytes > MAX_BYTES:
        raise BudgetError(f"this picture holds {n_bytes >> 20} MiB of numbers; a file takes at most {MAX_BYTES >> 20}.")
    name = type(component).__name__
    items = [{"component": name, "values": values}]
    data = {
        "kind": "page", "title": visible(title), "theme": component.theme, "palette": palette(), "parts": [],
        "state": {}, "facts": [], "items": items,
    }  # fmt: skip
    return View(_document("page", visible(title), data, {name: str(type(component)._bundle)}), height)


def _document(kind: Kind, title: str, data: Frame, names: dict[str, str]) -> str:
    script = bundle(names, "standalone.js")
    call = f'startPage(JSON.parse(document.getElementById("data").textContent), {{{", ".join(names)}}});'
    assert "</script" not in script, "the components never hold an end tag"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
        f'<body><header></header><main class="{kind}"></main>\n<script type="application/json" id="data">{to_json(data)}</script>\n'
        f'<script>(() => {{ "use strict";\n{script}\n{call}\n}})();</script></body></html>\n'
    )


def to_json(data: Any) -> str:
    """JSON in ASCII that cannot end a script element; arrays as ``{"$array": "f4", "data": base64}``."""
    text = json.dumps(data, default=_encode_array, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        kind = {"u1": "u1", "i4": "i4"}.get(value.dtype.str[1:], "f4")
        raw = np.ascontiguousarray(value, dtype=kind if kind == "u1" else f"<{kind}").tobytes()
        return {"$array": kind, "data": base64.b64encode(raw).decode("ascii")}
    if isinstance(value, np.integer | np.floating | np.bool_):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a frame")


def _finite(value: Any) -> Any:
    """Numbers that JSON cannot write become null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _arrays(value: Any) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [array for item in items for array in _arrays(item)]
