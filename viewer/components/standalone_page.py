"""Standalone HTML documents: components with their data in one file that works offline and sends no request.

The document holds the component files that a server would send, the data as JSON (arrays in base64), and a small model
that replaces Panel's. Its content security policy forbids every request. Corpus text is data only: it cannot close the
script element (`<` is escaped), and components write it as text nodes.
"""

from __future__ import annotations

import base64
import html
import json
import math
from typing import Any, Literal

import numpy as np

from headatlas.store.errors import BudgetError

from ..frames.whole_example import MAX_BYTES
from ..theme.colours import palette
from ..theme.token_labels import visible
from .script_files import bundle

PageKind = Literal["head", "model", "neuron", "page"]
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_STYLE = """
html, body { margin: 0; height: 100% } body { display: grid; grid-template-rows: 32px minmax(0,1fr); gap: 6px; padding: 6px; box-sizing: border-box }
main { display: grid; gap: 8px; min-height: 0; grid-template-columns: 232px minmax(0,1fr) 296px; grid-template-rows: minmax(0,1fr) } main.neuron { grid-template-columns: 232px minmax(0,1fr) } main.page { grid-template-columns: minmax(0,1fr) }
.host { display: block; min-width: 0; min-height: 0 }
@media (max-width: 1100px) { main { grid-template-columns: 208px minmax(0,1fr); grid-template-rows: minmax(0,1fr) minmax(0,1fr) } main .host:nth-child(2) { grid-column: 2; grid-row: 1 / 3 } main .host:nth-child(3) { grid-column: 1; grid-row: 2 }
  main.head { grid-template-rows: minmax(0,7fr) minmax(0,3fr) }
  main.neuron { grid-template-rows: minmax(0,1fr) } main.neuron { grid-template-columns: 150px minmax(0,1fr) } main.neuron .host:nth-child(2) { grid-row: 1 } }
"""


def frozen_page(
    name: str, file: str, values: dict[str, Any], theme: str, note: str = "", max_bytes: int = MAX_BYTES
) -> str:
    """Make the document of one component in its present state. Hover, tooltips and tables still work.

    Parameters
    ----------
    name
        Class of the component.
    file
        JavaScript file of the component.
    values
        Parameters of the component by name.
    note
        Words beside the title: what the document leaves out.

    Raises
    ------
    BudgetError
        The arrays take more than `max_bytes`.
    """
    values = _finite(values)
    n_bytes = array_bytes(values)
    if n_bytes > max_bytes:
        raise BudgetError(
            f"this picture holds {n_bytes / 2**20:.1f} MiB of numbers; a file holds at most {max_bytes >> 20} MiB. "
            "Show fewer heads or a shorter text."
        )
    title = visible(f"{name} \u00b7 {note}" if note else name)
    data = {
        "kind": "page", "title": title, "theme": theme, "palette": palette(), "parts": [], "state": {},
        "facts": [], "items": [{"component": name, "values": values}],
    }  # fmt: skip
    return make_page("page", title, data, {name: file})


def make_page(kind: PageKind, title: str, data: dict[str, Any], names: dict[str, str]) -> str:
    """Make the HTML document of components with their data.

    Parameters
    ----------
    kind
        View with several components, or ``"page"`` for one component in its present state.
    names
        File of each component by the name of its class.
    """
    script = bundle(names, "standalone.js")
    call = f'startPage(JSON.parse(document.getElementById("data").textContent), {{{", ".join(names)}}});'
    assert "</script" not in script, "a component file contains </script"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
        f'<body><header></header><main class="{kind}"></main>\n<script type="application/json" id="data">{to_json(data)}</script>\n'
        f'<script>(() => {{ "use strict";\n{script}\n{call}\n}})();</script></body></html>\n'
    )


def array_bytes(value: Any) -> int:
    """Return the size of all arrays inside dicts and lists, in bytes."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(array_bytes, items))


def to_json(data: Any) -> str:
    """Encode data as ASCII JSON that cannot end a script element. Arrays become ``{"$array": "f4", "data": base64}``."""
    text = json.dumps(data, default=_encode_array, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        kind = {"u1": "u1", "i4": "i4"}.get(value.dtype.str[1:], "f4")
        raw = np.ascontiguousarray(value, dtype=kind if kind == "u1" else f"<{kind}").tobytes()
        return {"$array": kind, "data": base64.b64encode(raw).decode("ascii")}
    if isinstance(value, np.integer | np.floating | np.bool_):
        return value.item()
    raise TypeError(f"a frame holds a {type(value).__name__}; expected text, numbers, lists, dicts and arrays")


def _finite(value: Any) -> Any:
    """Replace numbers that JSON cannot represent (NaN, infinity) by None."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
