"""A page without a browser: it opens a session, and sends whatever texts a test wants to its socket."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import warnings
from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from ..view_data import PATIENCE_S

Result = TypeVar("Result")


async def fetch(url: str, **options: Any) -> Any:
    """Request an address. Redirections and errors are answers too."""
    request = HTTPRequest(
        url, follow_redirects=False, request_timeout=PATIENCE_S, connect_timeout=PATIENCE_S, **options
    )
    client = AsyncHTTPClient(force_instance=True)
    try:
        return await client.fetch(request, raise_error=False)
    finally:
        client.close()


async def page_token(url: str, **options: Any) -> str:
    """Open a page and return the token of its session."""
    answer = await fetch(url, **options)
    assert answer.code == 200, answer.body
    return json.loads(re.search(r'id="session">(.*?)</script>', answer.body.decode())[1])["token"]


def patch(*events: Any) -> str:
    """Return the content of a message with events."""
    return json.dumps({"events": list(events)})


def data_event(model: str, data: Any) -> dict[str, Any]:
    """Return the event of a component's message."""
    entries = [["model", {"id": model}], ["data", data]]
    message = {"type": "event", "name": "data_event", "values": {"type": "map", "entries": entries}}
    return {"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": message}


def encoded(value: Any) -> Any:
    """Encode dicts as Bokeh's browser side does."""
    if isinstance(value, dict):
        return {"type": "map", "entries": [[name, encoded(item)] for name, item in value.items()]}
    return [encoded(item) for item in value] if isinstance(value, list) else value


_opened: list[RawPage] = []


def run(attack: Coroutine[Any, Any, Result]) -> Result:
    """Run an attack, and close the sockets that it has opened."""

    async def whole() -> Result:
        try:
            return await attack
        finally:
            while _opened:
                _opened.pop().socket.close()
            await asyncio.sleep(0.2)

    try:
        return asyncio.run(whole())
    finally:
        with warnings.catch_warnings():  # a refused socket is closed by nobody
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


class RawPage:
    """One session and its socket."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self.socket = socket
        self.document: dict[str, Any] = {}
        self._n = 0
        _opened.append(self)

    @classmethod
    async def open(cls, url: str, token: str | None = None, **headers: str) -> RawPage:
        """Open a page and its socket. Does not wait for an answer on the socket."""
        token = token or await page_token(url)
        parts = urlsplit(url)
        request = HTTPRequest(
            f"ws://{parts.netloc}{parts.path}ws",
            headers={"Origin": f"http://{parts.netloc}", **headers},
            request_timeout=PATIENCE_S,
            connect_timeout=PATIENCE_S,
        )
        return cls(await websocket_connect(request, subprotocols=["bokeh", token], max_message_size=1 << 28))

    async def ready(self) -> RawPage:
        """Wait until the session is open, and load its document."""
        assert (await self.receive())[0]["msgtype"] == "ACK"
        answer = await self.ask("PULL-DOC-REQ", "{}")
        assert answer is not None
        self.document = answer[2]["doc"]
        return self

    async def receive(self) -> list[Any] | None:
        """Return the next message: header, metadata, content. None if the socket is closed."""
        parts: list[Any] = []
        while len(parts) < 3:
            part = await asyncio.wait_for(self.socket.read_message(), PATIENCE_S)
            if part is None:
                return None
            if part != "pong":
                parts.append(json.loads(part))
        for _ in range(2 * parts[0].get("num_buffers", 0)):
            await self.socket.read_message()
        return parts

    async def ask(self, kind: str, content: str) -> list[Any] | None:
        """Send a message and return the answer to it. None if the socket was closed instead."""
        self._n += 1
        name = f"message {self._n}"
        for part in (json.dumps({"msgid": name, "msgtype": kind}), "{}", content):
            if self.socket.close_code is not None:
                return None
            await self.socket.write_message(part)
        while (answer := await self.receive()) and answer[0].get("reqid") != name:
            pass
        return answer

    def model(self, class_name: str) -> dict[str, Any]:
        """Return the model of a component of the document."""
        return next(m for m in models(self.document) if m.get("attributes", {}).get("class_name") == class_name)


def models(value: Any) -> list[dict[str, Any]]:
    """List all models in a document."""
    if isinstance(value, list):
        return [model for item in value for model in models(item)]
    if not isinstance(value, dict):
        return []
    own = [value] if value.get("type") == "object" and "id" in value else []
    return own + [model for item in value.values() for model in models(item)]
