"""Load of many sessions on one viewer: web sockets that click in the head map once a second each.

``python -m benchmarks.viewer_load URL SESSIONS SECONDS LAYERS HEADS`` prints the milliseconds of every click as JSON.
It runs as a process of its own, so that its work is not counted as the server's. A click is answered when the message
arrives with which the inspector names the head.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

ANSWER_S = 20


@dataclass
class Reader:
    """One session: its socket, the component that is clicked, and the duration of each click."""

    connection: WebSocketClientConnection
    head_map: str
    router: str = ""
    took_ms: list[float] = field(default_factory=list)

    async def message(self) -> tuple[dict[str, Any], str]:
        """Return header and content of the next message; binary buffers are skipped."""
        header = json.loads(await self._text())
        await self._text()
        content = await self._text()
        for _ in range(2 * header.get("num_buffers", 0)):
            await self.connection.read_message()
        return header, content

    async def _text(self) -> str:
        text = await self.connection.read_message()
        if text is None:
            raise ConnectionError("the server closed the socket")
        return text if isinstance(text, str) else text.decode()

    async def send(self, kind: str, content: dict[str, Any]) -> None:
        """Write one message of Bokeh's protocol."""
        for part in ({"msgid": uuid4().hex, "msgtype": kind}, {}, content):
            await self.connection.write_message(json.dumps(part))

    async def event(self, name: str, **values: Any) -> None:
        """Send an event of the document or of a model, as a browser does."""
        entries = [[key, value] for key, value in values.items()]
        data = {"type": "event", "name": name, "values": {"type": "map", "entries": entries}}
        change = {"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": data}
        await self.send("PATCH-DOC", {"events": [change]})

    async def click(self, layer: int, head: int) -> None:
        """Choose a head and wait until the inspector names it."""
        started = time.perf_counter()
        patch = {"type": "map", "entries": [["layer", layer], ["head", head]]}
        data = {"type": "map", "entries": [["go", patch]]}
        await self.event("data_event", model={"id": self.head_map}, data=data)
        answer = re.compile(rf"layer {layer}, head {head}(?![0-9])")  # the text of the inspector
        async with asyncio.timeout(ANSWER_S):
            while not answer.search((await self.message())[1]):
                pass
        self.took_ms.append(1000 * (time.perf_counter() - started))


async def opened(url: str) -> Reader:
    """Load the page, open its session and tell the server that it is drawn."""
    page = (await AsyncHTTPClient().fetch(url, request_timeout=120)).body.decode()
    token = re.search(r'"token": "([^"]+)"', html.unescape(page))
    assert token, "the page holds no session token"
    address = urlsplit(url)
    request = HTTPRequest(f"ws://{address.netloc}{address.path}ws", headers={"Origin": f"http://{address.netloc}"})
    connection = await websocket_connect(request, subprotocols=["bokeh", token[1]], max_message_size=1 << 28)
    stream = connection.stream
    if stream is not None and stream.socket is not None:  # our own delay is not the server's
        stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader = Reader(connection, "")
    while (await reader.message())[0]["msgtype"] != "ACK":
        pass
    await reader.send("PULL-DOC-REQ", {})
    while True:
        header, content = await reader.message()
        if header["msgtype"] == "PULL-DOC-REPLY":
            break
    document = json.loads(content)["doc"]
    reader.head_map = model_of(document, "headmap.js")
    await reader.event("document_ready")
    listens = {"type": "map", "entries": [["listens", True]]}
    reader.router = model_of(document, "router.js")
    await reader.event("data_event", model={"id": reader.router}, data=listens)
    return reader


def model_of(document: Any, file: str) -> str:
    """Return the id of the first component with this file."""
    ids: list[str] = []

    def look(node: Any) -> None:
        if isinstance(node, dict):
            attributes = node.get("attributes")
            if isinstance(attributes, dict) and file in str(attributes.get("esm", "")):
                ids.append(node["id"])
            for value in node.values():
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)

    look(document)
    assert ids, f"the page has no {file}"
    return ids[0]


async def clicking(reader: Reader, number: int, seconds: int, shape: tuple[int, int]) -> None:
    """Click once a second, with an offset that depends on `number`."""
    loop = asyncio.get_running_loop()
    begin = loop.time() + number % 50 / 50
    for step in range(seconds):
        await asyncio.sleep(max(0, begin + step - loop.time()))
        cell = (7 * number + 5 * step) % (shape[0] * shape[1])
        await reader.click(*divmod(cell, shape[1]))


async def run(url: str, sessions: int, seconds: int, shape: tuple[int, int]) -> None:
    """Open the sessions one by one, print "open", wait for a line of input, then click in all."""
    readers = [await opened(url) for _ in range(sessions)]
    print("open", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await asyncio.gather(*(clicking(reader, i, seconds, shape) for i, reader in enumerate(readers)))
    print(json.dumps([took for reader in readers for took in reader.took_ms]), flush=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), (int(sys.argv[4]), int(sys.argv[5]))))
