"""Background threads for long work, with the result handed back to the session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import panel as pn

from .wire import step


def background(work: Callable[[], Any], done: Callable[[Any], None]) -> None:
    """Run `work` in a thread and pass its result to `done` in this session. Without a server both run at once."""
    document = pn.state.curdoc
    if document is None or document.session_context is None:
        done(work())
        return

    async def run() -> None:
        result = await asyncio.to_thread(work)
        with step(document):
            done(result)

    # Start after the page has loaded: changes between the response and the page's first connection are lost.
    pn.state.onload(lambda: pn.state.execute(run))
