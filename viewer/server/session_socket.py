"""The web socket of a page: one for each session, and only messages that a page sends.

A page sends the text ``ping`` every second, and the server answers ``pong``. So a page notices within seconds that the
server does not answer, and the server that a page is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from bokeh.core.types import ID
from bokeh.protocol import Protocol
from bokeh.protocol.exceptions import ProtocolError
from bokeh.server.protocol_handler import ProtocolHandler
from bokeh.server.session import ServerSession
from bokeh.server.tornado import BokehTornado
from bokeh.util.token import check_token_signature, get_session_id, get_token_payload
from panel.io.server import WSHandler
from tornado.websocket import WebSocketClosedError

from .messages import PULL, RefusedError, check_content, parse_header

logger = logging.getLogger(__name__)
CLOSED_EXPIRED, CLOSED_REFUSED = 4001, 4002
"""Codes of a closed socket: the session has ended (the page loads anew); the message or the token is not taken."""
MAX_UNSENT = 64 << 20
"""Most bytes that wait to be sent to a page. While there are more, no message of the page is read."""
MAX_UNREAD_S = 60.0
"""Seconds that a page may leave bytes unread. Then its socket is closed."""
MAX_PULLS, MAX_REFUSED = 4, 100
"""Most requests for the whole document on one socket, and most messages that are refused before it is closed."""


@dataclass
class Reader:
    """Reader of a session: the address, and whether the page has had its socket."""

    address: str
    has_had_socket: bool = False


READERS: WeakKeyDictionary[ServerSession, Reader] = WeakKeyDictionary()
"""Readers of the sessions that pages were made for."""


class SessionSocket(WSHandler):  # type: ignore[misc]
    """Web socket of one session."""

    application: BokehTornado

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._parts: list[str] = []
        self._kind, self._name, self._n_refused = "", "", 0
        self._n_pulls, self._unsent = 0, 0
        self._drained = asyncio.Event()
        self._drained.set()

    def open(self, *arguments: Any, **options: Any) -> None:
        """Check the token, and attach the socket to its session."""
        self.set_nodelay(True)  # a message is several frames: without this each picture waits 40 ms
        token = self._token or ""
        if self.selected_subprotocol != "bokeh" or not self._is_valid(token):
            self.close(CLOSED_REFUSED, "refused")
            return
        self.application.io_loop.add_callback(self._async_open, token)

    def _is_valid(self, token: str) -> bool:
        """Return True if this server has signed a token, and it has not expired."""
        try:
            if not check_token_signature(token, signed=True, secret_key=self.application.secret_key):
                return False
            expiry = get_token_payload(token)["session_expiry"]
        except Exception:  # any text may arrive here, and Bokeh's parser raises what it likes
            return False
        return time.time() < expiry

    async def _async_open(self, token: str) -> None:
        """Attach the socket to the session of a page. A session takes one socket in its life."""
        try:
            session = self.application_context.get_session(get_session_id(token))
        except ProtocolError:
            session = None
        reader = READERS.get(session) if session is not None else None
        if session is None or reader is None or session.destroyed or reader.has_had_socket:
            self.close(CLOSED_EXPIRED, "the session has ended")
            return
        reader.has_had_socket = True
        protocol = Protocol()
        self.handler = ProtocolHandler()
        self.connection = self.application.new_connection(protocol, self, self.application_context, session)
        await self.send_message(protocol.create("ACK"))

    async def on_message(self, fragment: str | bytes) -> None:
        """Take one part of a message: header, metadata, content. Anything unexpected gets one refusal."""
        if fragment == "ping" and not self._parts:
            await self._answer_ping()
            return
        is_header = not self._parts
        if not self._add_part(fragment):
            await self._refuse()
            if is_header:  # where the next message begins is unknown
                self.close(CLOSED_REFUSED, "refused")
        elif len(self._parts) == 3:
            parts, self._parts = self._parts, []
            await (self._take(parts) if self._is_expected(parts) else self._refuse())

    def _add_part(self, fragment: str | bytes) -> bool:
        """Add a part of a message. False if it cannot be one."""
        if self.connection is None or self.connection.session.destroyed or not isinstance(fragment, str):
            self._parts = []
            return False
        if not self._parts:
            try:
                self._kind, self._name = parse_header(fragment)
            except RefusedError:
                return False
        self._parts.append(fragment)
        return True

    def _is_expected(self, parts: list[str]) -> bool:
        """Return True if a page sends this message."""
        assert self.connection is not None
        self._n_pulls += self._kind == PULL
        try:
            check_content(parts[2], self._kind, self.connection.session.document)
        except RefusedError:
            return False
        return parts[1] == "{}" and self._n_pulls <= MAX_PULLS

    async def _refuse(self) -> None:
        """Answer that a message is not taken. After many of them the socket is closed."""
        self._n_refused += 1
        await self._send_error(self._name, "refused")
        if self._n_refused >= MAX_REFUSED:
            self.close(CLOSED_REFUSED, "refused")

    async def _send_error(self, name: str, text: str) -> None:
        """Send an error without the traceback that Bokeh adds."""
        if self.connection is not None:
            message = self.connection.protocol.create("ERROR", ID(name), text)
            message.content["traceback"] = None
            await self.send_message(message)

    async def _answer_ping(self) -> None:
        with suppress(WebSocketClosedError):
            await self.write_message("pong")

    async def _take(self, parts: list[str]) -> None:
        """Pass a message to Bokeh."""
        assert self.connection is not None
        assert self.handler is not None
        if not await self._is_drained():
            self.close(CLOSED_REFUSED, "the page does not read")
            return
        message = self.connection.protocol.assemble(*parts)
        reply = await self.handler.handle(message, self.connection)
        if reply is not None and reply.msgtype == "ERROR":
            await self._send_error(self._name, "The viewer failed to handle this.")
        elif reply is not None:
            await self.send_message(reply)

    async def _is_drained(self) -> bool:
        """Wait while much is unsent. False if the page has not read it in time."""
        try:
            await asyncio.wait_for(self._drained.wait(), MAX_UNREAD_S)
        except TimeoutError:
            return False
        return True

    async def write_message(self, message: Any, binary: bool = False, locked: bool = True) -> None:
        """Send one part of a message, and count what the page has not yet read."""
        size = len(message) if isinstance(message, str | bytes) else 0
        self._unsent += size
        if self._unsent > MAX_UNSENT:
            self._drained.clear()
        try:
            await super().write_message(message, binary, locked)
        finally:
            self._unsent -= size
            if self._unsent <= MAX_UNSENT:
                self._drained.set()

    def on_close(self) -> None:
        """End the session: a page that comes back gets a new one from its address."""
        if self.connection is not None and not self.connection.session.destroyed:
            self.connection.session.request_expiration()
        super().on_close()
