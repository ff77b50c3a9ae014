"""One message for all that one step of a session changed, instead of one of Panel's for every property of every component.

What Panel and Bokeh do for a property (themes, references, a message of its own) costs the server one to two milliseconds,
and a click changes ten. So a page that is open has an `Outbox`: changes of data gather there while a message from the
browser is answered, and leave as one text of JSON beside one block of bytes. `router.js` hands them out. A component that
is on no such page (a notebook, a test) is none the wiser: Panel sends its changes.
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
"""Key of what JSON cannot say, in this process; a key of a stranger's annotation cannot be like it."""
_TYPES = frozenset({"float32", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32"})
"""What a browser has typed arrays of."""


class Outbox:
    """Changes of one page that wait for the end of a step.

    Parameters
    ----------
    send
        Method that sends one message to the page; its object is not kept alive.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send, self._depth = WeakMethod(send), 0
        self._waiting: dict[str, dict[str, Any]] = {}

    def put(self, model_id: str, name: str, value: Any) -> None:
        """Take a new value of a component's property; of several the last one is sent."""
        with self:
            self._waiting.setdefault(model_id, {})[name] = value

    def __enter__(self) -> Outbox:
        """Begin a step, or a step inside one."""
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        """Send what gathered, at the end of the outermost step."""
        self._depth -= 1
        if self._depth == 0 and self._waiting:
            waiting, self._waiting = self._waiting, {}
            if send := self._send():
                send(packed(waiting))


_OUTBOXES: WeakKeyDictionary[Document, Outbox] = WeakKeyDictionary()


def open_outbox(document: Document, send: Callable[[dict[str, Any]], None]) -> None:
    """From now on the page of `document` listens."""
    _OUTBOXES[document] = Outbox(send)


def outbox_of(document: Document | None) -> Outbox | None:
    """The outbox of a page that listens."""
    return None if document is None else _OUTBOXES.get(document)


def step(document: Document | None) -> AbstractContextManager[object]:
    """Gather what changes inside into one message."""
    return outbox_of(document) or nullcontext()


def packed(value: Any) -> dict[str, Any]:
    """Write a value as ``{"text": JSON, "bytes": block, "mark": key}``; `unpacked` of wire.js reads it.

    Arrays lie in the block, each from a multiple of eight on; in the text stands ``{mark: [type, offset, length]}`` for
    them, and ``{mark: "NaN"}`` for numbers that JSON has no word for. `mark` is empty where the text has neither.
    """
    for finite in (True, False):
        block = _Block()
        whole = value if finite else _marked(value)
        try:
            text = json.dumps(whole, default=block.take, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        except ValueError:  # not finite
            if not finite:
                raise
            continue
        return {"text": text, "bytes": b"".join(block.parts), "mark": _MARK if block.parts or not finite else ""}
    raise AssertionError("unreachable")


class _Block:
    """Arrays one after the other."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._size = 0

    def take(self, value: Any) -> Any:
        """What stands in the text for a value that JSON does not know."""
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


def _marked(value: Any) -> Any:
    """The same with marks for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _marked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(inner) for inner in value]
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return {_MARK: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return value
