"""Work that takes long: in a thread, with its result handed to the session that asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import panel as pn

from .wire import step


def background(work: Callable[[], Any], done: Callable[[Any], None]) -> None:
    """Run `work` in a thread and hand its result to `done` in this session; at once where there is no server."""
    document = pn.state.curdoc
    if document is None or document.session_context is None:
        done(work())
        return

    async def run() -> None:
        found = await asyncio.to_thread(work)
        with step(document):
            done(found)

    # Not before the page has loaded: what changes between sending the page and its first connection is lost.
    pn.state.onload(lambda: pn.state.execute(run))
