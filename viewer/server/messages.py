"""Messages of the browser: which of them are taken. Everything else gets one short refusal.

A message of the Bokeh protocol has a header, metadata and a content, all JSON. A page sends few kinds of them: one
request for its document, the event that it is ready, messages of components, and new values of the parameters that
components declare as changeable (`ESMView._priority_changes`). Bokeh itself takes far more: any model, property or
callback, arrays, compressed bytes. These never reach it.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from bokeh.document import Document

from ..components.esm_view import ESMView, component_of

MAX_MESSAGE, MAX_FRAME = 64 << 10, 8 << 20
"""Most characters of one part of a message that is read, and most bytes of one that is refused by an answer. A larger
part closes the socket.
"""
MAX_EVENTS, MAX_VALUES, MAX_DEPTH, MAX_LENGTH = 64, 10_000, 12, 32_000
"""Most events of a message, values in it, levels of nesting, and characters of one text."""
PULL, PATCH = "PULL-DOC-REQ", "PATCH-DOC"


class RefusedError(Exception):
    """A message that the server does not take."""


def parse_header(text: str | bytes) -> tuple[str, str]:
    """Return the type and the id of a message from its header.

    Raises
    ------
    RefusedError
        It is not the header of a message without binary parts, so that the parts after it cannot be told apart.
    """
    header = _parse(text)
    kind, name = header.get("msgtype"), header.get("msgid")
    if not isinstance(kind, str) or not isinstance(name, str) or len(name) > 100 or header.get("num_buffers", 0) != 0:
        raise RefusedError
    return kind, name


def check_content(text: str | bytes, kind: str, document: Document) -> None:
    """Check the content of a message against the components of a document.

    Raises
    ------
    RefusedError
        It holds anything but messages of components and values of their declared parameters.
    """
    content = _parse(text)
    if kind == PULL and not content:
        return
    if kind != PATCH:
        raise RefusedError
    events = content.get("events")
    if set(content) != {"events"} or not isinstance(events, list) or not 1 <= len(events) <= MAX_EVENTS:
        raise RefusedError
    for event in events:
        _check_event(event, document)


def _parse(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object of bounded size."""
    if not isinstance(text, str) or len(text) > MAX_MESSAGE:
        raise RefusedError
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RefusedError from error
    if not isinstance(value, dict):
        raise RefusedError
    return value


def _refuse(_: str) -> NoReturn:
    raise RefusedError


def _check_event(event: Any, document: Document) -> None:
    if not isinstance(event, dict):
        raise RefusedError
    if event.get("kind") == "ModelChanged" and set(event) == {"kind", "model", "attr", "new"}:
        component = _component(event["model"], document, is_data=True)
        name = event["attr"]
        if name not in component._priority_changes:
            raise RefusedError
        check_plain(event["new"])
        try:
            component.param[name]._validate(event["new"])
        except (ValueError, TypeError) as error:
            raise RefusedError from error
    elif event.get("kind") == "MessageSent" and set(event) == {"kind", "msg_type", "msg_data"}:
        message = event["msg_data"]
        is_event = event["msg_type"] == "bokeh_event" and isinstance(message, dict)
        if not is_event or set(message) != {"type", "name", "values"} or message["type"] != "event":
            raise RefusedError
        values = _entries(message["values"])
        if message["name"] == "document_ready" and not values:
            return
        if message["name"] != "data_event" or set(values) != {"model", "data"}:
            raise RefusedError
        _component(values["model"], document, is_data=False)
        check_plain(values["data"])
    else:
        raise RefusedError


def _component(reference: Any, document: Document, is_data: bool) -> ESMView:
    """Return the component of a reference to its model, or to the model of its data."""
    name = reference.get("id") if isinstance(reference, dict) and set(reference) == {"id"} else None
    component = component_of(document, name, is_data) if isinstance(name, str) else None
    if component is None:
        raise RefusedError
    return component


def _entries(value: Any) -> dict[str, Any]:
    """Return the entries of an encoded map with text keys."""
    if not isinstance(value, dict) or not set(value) <= {"type", "entries"} or value.get("type") != "map":
        raise RefusedError
    entries = value.get("entries", [])
    if not isinstance(entries, list):
        raise RefusedError
    result: dict[str, Any] = {}
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or entry[0] in result:
            raise RefusedError
        result[entry[0]] = entry[1]
    return result


def check_plain(value: Any) -> None:
    """Check that a value holds only texts, numbers, truth values, lists and maps, and not too many of them.

    Raises
    ------
    RefusedError
        It holds anything else, such as a model, an array or a number that is not finite.
    """
    level, n_values = [value], 0
    for _ in range(MAX_DEPTH):
        n_values += len(level)
        if n_values > MAX_VALUES:
            raise RefusedError
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise RefusedError


def _children(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    if isinstance(value, str) and len(value) <= MAX_LENGTH:
        return []
    if isinstance(value, int) and abs(value) <= 2**53:
        return []
    if isinstance(value, float) and math.isfinite(value):
        return []
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        return [part for pair in _entries(value).items() for part in pair]
    raise RefusedError
