"""The program that renders conversations with the chat template of a model, in a process of its own with limits.

A template comes with the model, from a stranger. transformers runs it in a sandbox, which bounds neither time nor
memory; this process does. It reads JSON lines: first the template, then conversations. It answers each conversation
with its text and the span of each message, or with the template's own error.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from ..corpora.messages import MAX_MESSAGES

MEMORY_BYTES = 512 << 20
"""Largest memory that rendering adds to the process."""
MAX_TEXT_CHARS = 16 << 20
TOO_LARGE = 4
"""Exit code of a process that stopped because of memory or size. Its timer kills it if it is too slow."""
_FIRST_MARK, _LAST_MARK = 0xF1000, 0xF1000 + 2 * MAX_MESSAGES
_MARK = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]")
_TODAY = datetime(2025, 1, 1)


class FixedDate:
    """Clock of the templates. Texts would differ from day to day otherwise, and a job could not be resumed."""

    @staticmethod
    def now() -> datetime:
        """Return the first of January 2025."""
        return _TODAY


def main() -> None:
    """Answer conversations from standard input until it ends."""
    from transformers.utils import chat_template_utils

    setattr(chat_template_utils, "datetime", FixedDate)  # noqa: B010
    setup = json.loads(sys.stdin.readline())
    sys.set_int_max_str_digits(10_000)
    _limit_memory()

    def render(messages: Sequence[dict[str, str]]) -> str:
        (text,), _ = chat_template_utils.render_jinja_template(
            [list(messages)],
            chat_template=setup["template"],
            add_generation_prompt=setup["add_generation_prompt"],
            **setup["tokens"],
        )
        return text

    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_VIRTUAL, setup["seconds"])
        try:
            answer = render_with_spans(render, json.loads(line))
        except MemoryError:
            _stop(TOO_LARGE)
        except Exception as error:  # whatever the template raises
            answer = {"error": f"{str(error)[:200] or type(error).__name__}"}
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(json.dumps(answer), flush=True)


def render_with_spans(render: Any, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Render a conversation, and find each message in its text.

    The template runs twice: the second time with marks around the contents, inside of their whitespace, which templates
    may strip. If the marks change what the template writes, a content is found if the text has it exactly once.
    """
    text = render(messages)
    if len(text) > MAX_TEXT_CHARS:
        _stop(TOO_LARGE)
    cores = [message["content"].strip() for message in messages]
    spans = [
        (text.find(core), text.find(core) + len(core)) if core and text.count(core) == 1 else None for core in cores
    ]
    if not any(_MARK.search(message["content"]) for message in messages):
        marked_messages = [
            {
                **message,
                "content": message["content"].replace(
                    core, f"{chr(_FIRST_MARK + 2 * i)}{core}{chr(_FIRST_MARK + 2 * i + 1)}", 1
                ),
            }
            if core
            else message
            for i, (message, core) in enumerate(zip(messages, cores, strict=True))
        ]
        try:
            marked = render(marked_messages)
        except MemoryError:
            raise
        except Exception:  # a template may refuse a content with a mark
            marked = ""
        if _MARK.sub("", marked) == text:
            edges = {ord(mark[0]) - _FIRST_MARK: mark.start() - n for n, mark in enumerate(_MARK.finditer(marked))}
            spans = [
                (edges[2 * i], edges[2 * i + 1]) if 2 * i in edges and 2 * i + 1 in edges else spans[i]
                for i in range(len(messages))
            ]
    return {"text": text, "spans": spans}


def _limit_memory() -> None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # only Linux counts a process's addresses there
        return
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))


def _stop(code: int) -> NoReturn:
    os._exit(code)


if __name__ == "__main__":
    main()
