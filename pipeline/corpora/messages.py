"""Conversations in records: lists of messages with a role and a content."""

from __future__ import annotations

import re
from typing import Any

from headatlas.store.schema.omissions import Omission, Omissions

from .examples import Message
from .records import check_text

MAX_MESSAGES = 4096
_ROLE = re.compile(r"[A-Za-z][\w-]{0,63}", re.ASCII)


def read_messages(value: Any) -> tuple[tuple[Message, ...], tuple[Omission, ...]] | str:
    """Return the messages of a record and what they leave out, or the reason why the record cannot be used.

    A content is a text, or a list of parts of which the texts are read. Tool calls and other fields are left out.
    """
    if not isinstance(value, list) or not value:
        return f"messages are {type(value).__name__ if value != [] else 'empty'}, expected a list with a role and a content each"
    if len(value) > MAX_MESSAGES:
        return f"{len(value)} messages, expected at most {MAX_MESSAGES}"
    messages: list[Message] = []
    left_out = Omissions()
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(role := message.get("role"), str):
            return f"message {number} has no role; expected a role and a content"
        if not _ROLE.fullmatch(role):
            return f"message {number} has the role {role[:40]!r}; expected a word such as user or assistant"
        for name, field in message.items():
            if name not in ("role", "content") and field not in (None, [], {}, ""):
                left_out.add(
                    Omission(
                        what="fields of messages", n=1, reason="only role and content are read", names=(str(name),)
                    )
                )
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts: list[str] = []
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                texts.append(text)
            elif content is not None:
                kind = str(part.get("type")) if isinstance(part, dict) else type(part).__name__
                left_out.add(Omission(what="parts of messages", n=1, reason="only texts are read", names=(kind,)))
        if not texts:
            left_out.add(Omission(what="messages", n=1, reason="they have no text", names=(role,)))
            continue
        text = "".join(texts)
        if text.strip() and (reason := check_text(text)):
            return f"message {number}: {reason}"
        messages.append(Message(role, text))
    if not any(message.content.strip() for message in messages):
        return "empty text"
    return tuple(messages), tuple(omission.model_copy(update={"n_examples": 1}) for omission in left_out)
