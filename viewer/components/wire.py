"""Outbox of a page: all changes of one step of a session travel to the browser in one message.

Panel and Bokeh send a message per changed property. Each costs the server one to two milliseconds (themes, references,
the message itself), and a click changes ten properties. An open page therefore has an `Outbox`. It collects the changes
of data while the session handles a message from the browser, and sends them as one JSON text with one block of bytes.
`router.js` distributes them. For components without such a page (in notebooks and tests) Panel sends the changes.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

import numpy as np
from bokeh.document import Document

_MARK = secrets.token_hex(8)
"""Key of values that JSON cannot represent. It is random, so that no key of a corpus annotation can equal it."""
_TYPES = frozenset({"float32", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32"})
"""Types of JavaScript's typed arrays."""


class Outbox:
    """Changes of one page that wait for the end of a step.

    Parameters
    ----------
    send
        Method that sends one message to the page. The outbox holds a weak reference to it.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send, self._depth = WeakMethod(send), 0
        self._waiting: dict[str, dict[str, Any]] = {}

    def put(self, model_id: str, name: str, value: Any) -> None:
        """Add a new value of a component's property. It replaces an earlier value that was not sent yet."""
        with self:
            self._waiting.setdefault(model_id, {})[name] = value

    def __enter__(self) -> Outbox:
        """Begin a step. Steps may be nested."""
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        """Send the collected changes at the end of the outermost step."""
        self._depth -= 1
        if self._depth == 0 and self._waiting:
            changes, self._waiting = self._waiting, {}
            if send := self._send():
                send(encode_message(changes))


_OUTBOXES: WeakKeyDictionary[Document, Outbox] = WeakKeyDictionary()


def open_outbox(document: Document, send: Callable[[dict[str, Any]], None]) -> None:
    """Open the outbox of a page. Changes of its components go through it from now on."""
    _OUTBOXES[document] = Outbox(send)


def outbox_of(document: Document | None) -> Outbox | None:
    """Return the outbox of a page, or None if it has none."""
    return None if document is None else _OUTBOXES.get(document)


def step(document: Document | None) -> AbstractContextManager[object]:
    """Return a context that collects all changes inside it into one message."""
    return outbox_of(document) or nullcontext()


def encode_message(value: Any) -> dict[str, Any]:
    """Encode a value as ``{"text": JSON, "bytes": block, "mark": key}``. `decodeMessage` in wire.js decodes it.

    The block holds the arrays, each at a multiple of eight bytes. The text has ``{mark: [type, offset, length]}`` for an
    array and ``{mark: "NaN"}`` for a number that JSON cannot represent. `mark` is empty if the text has neither.
    """
    for is_finite in (True, False):
        block = _Block()
        content = value if is_finite else _mark_numbers(value)
        try:
            text = json.dumps(content, default=block.add, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        except ValueError:  # a number is not finite
            if not is_finite:
                raise
            continue
        return {"text": text, "bytes": b"".join(block.parts), "mark": _MARK if block.parts or not is_finite else ""}
    raise AssertionError("unreachable")


class _Block:
    """Block of bytes that holds arrays one after the other."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._size = 0

    def add(self, value: Any) -> Any:
        """Add an array and return its placeholder for the text. NumPy scalars become plain numbers."""
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, np.ndarray):
            raise TypeError(f"a frame holds a {type(value).__name__}; expected text, numbers, lists, dicts and arrays")
        array = np.ascontiguousarray(value)
        if array.dtype == bool:
            array = array.view(np.uint8)
        elif str(array.dtype) not in _TYPES:
            array = array.astype(np.float64)
        start = self._size
        content = array.tobytes()
        self.parts += [content, bytes(-len(content) % 8)]
        self._size += len(content) + -len(content) % 8
        return {_MARK: [str(array.dtype), start, array.size]}


def _mark_numbers(value: Any) -> Any:
    """Replace numbers that are not finite by placeholders."""
    if isinstance(value, dict):
        return {key: _mark_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mark_numbers(inner) for inner in value]
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return {_MARK: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return value
