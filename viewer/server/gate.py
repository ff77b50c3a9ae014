"""Gate of the server: every request passes it before any handler, page, file and web socket alike.

It checks the name that the request was sent to, the path, the origin of the page and the token, limits the connections
of each address, and adds the security headers to every answer. A refusal is one short line of text.
"""

from __future__ import annotations

import hmac
import re
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.web import Application

from .options import ServerOptions, host_name

MAX_HEADER = 64 << 10
"""Most bytes of a request's line and headers."""
MAX_BODY = 16 << 10
"""Most bytes of a request's body: that of the login form."""
HEADER_S = 20.0
"""Seconds until a connection that sends no complete header is closed."""
BODY_S = 10.0
MAX_WAITING = 24
"""Most connections of one address that have not sent a header. If there are more, the oldest is closed."""
COOKIE = "headatlas-token"
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}")

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self' 'unsafe-inline'", "img-src 'self' data: blob:",
        "font-src 'self'", "connect-src 'self'", "base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'",
    )
)  # fmt: skip
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Refusal:
    """Answer of the gate: a status with one line of text, or a redirection with cookies."""

    status: int
    text: str
    headers: dict[str, str] = field(default_factory=dict)


class Gate(HTTPServerConnectionDelegate):
    """Delegate between the HTTP server and the application.

    Parameters
    ----------
    application
        Receives the requests that pass.
    max_connections
        Most connections at once, of all addresses. Must be well below the limit of open files.
    """

    def __init__(self, application: Application, options: ServerOptions, port: int, max_connections: int) -> None:
        self.application, self.options = application, options
        self.cookie = f"{COOKIE}-{port}"  # browsers send cookies to all ports of a host
        self._hosts, self._max_connections = options.allowed_hosts(), max_connections
        self._origins = frozenset(options.allowed_origins(port))
        self._connections: dict[Any, tuple[str, bool]] = {}

    # connections

    def start_request(self, server_conn: Any, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Begin to read a request. Called when a connection opens, and after each answer."""
        peer = "" if self.options.is_behind_proxy else request_conn.context.remote_ip  # type: ignore[attr-defined]
        self._connections.pop(server_conn, None)
        self._connections[server_conn] = (peer, True)
        self._close_surplus(peer)
        return _Request(self, server_conn, request_conn)

    def has_header(self, server_conn: Any) -> None:
        """Record that a connection has sent a complete header."""
        if server_conn in self._connections:
            self._connections[server_conn] = (self._connections[server_conn][0], False)

    def _close_surplus(self, peer: str) -> None:
        """Close the oldest waiting connections beyond the limits, so that a new one is always answered."""
        for connection in [c for c in self._connections if c.stream.closed()]:
            del self._connections[connection]
        waiting = [c for c, (address, waits) in self._connections.items() if waits and address == peer]
        n_surplus = len(waiting) - MAX_WAITING if peer else 0
        n_open = Counter(address for address, _ in self._connections.values())
        if peer and n_open[peer] > self._max_connections // 2:
            n_surplus = max(n_surplus, 1)
        if len(self._connections) > self._max_connections:
            if len(waiting) <= 1:  # this address has one connection: close one of another address
                waiting = [c for c, (_, waits) in self._connections.items() if waits]
            n_surplus = max(n_surplus, len(self._connections) - self._max_connections)
        for connection in waiting[: max(0, n_surplus)]:
            del self._connections[connection]
            connection.stream.close()

    # requests

    def address_of(self, headers: HTTPHeaders, request_conn: Any) -> str:
        """Return the address of the reader; behind a proxy the last one that it names."""
        peer = request_conn.context.address[0]  # not `remote_ip`, which the request before may have set
        if not self.options.is_behind_proxy:
            return peer
        last = headers.get("X-Forwarded-For", "").rsplit(",", 1)[-1].strip()
        return last if _ADDRESS.fullmatch(last) else peer

    def check(self, line: RequestStartLine, headers: HTTPHeaders) -> Refusal | None:
        """Return why a request is refused, or None if it passes."""
        path, _, query = line.path.partition("?")
        prefix = self.options.normal_prefix
        if not path.startswith(f"{prefix}/") and path != prefix:
            return Refusal(404, "There is no such page.")
        local = path[len(prefix) :]
        if local == "/liveness":
            return None
        hosts = headers.get_list("Host")
        if len(hosts) != 1 or host_name(hosts[0].strip()) not in self._hosts:
            return Refusal(
                421, "The viewer does not serve this host name. Start it with --origin HOST:PORT to add one."
            )
        if line.method not in ("GET", "HEAD", "POST") or (line.method == "POST" and local != "/login"):
            return Refusal(405, "This method is not used here.")
        if line.method == "POST" and (origin := headers.get("Origin")) and not self._is_own_origin(origin, hosts[0]):
            return Refusal(403, "Only pages of the viewer may send this.")
        is_navigation = (headers.get("Sec-Fetch-Mode"), headers.get("Sec-Fetch-Dest")) == ("navigate", "document")
        if headers.get("Sec-Fetch-Site") == "cross-site" and not is_navigation:
            return Refusal(403, "Only pages of the viewer may request this.")
        return self._check_token(local, query, headers) if self.options.token else None

    def _is_own_origin(self, origin: str, host: str) -> bool:
        try:
            name = urlsplit(origin).netloc.lower()
        except ValueError:  # an open bracket
            return False
        return name == host.lower() or name in self._origins

    def _check_token(self, local: str, query: str, headers: HTTPHeaders) -> Refusal | None:
        if is_equal(cookies_of(headers).get(self.cookie, ""), self.options.token):
            return None
        pairs = parse_qsl(query, keep_blank_values=True) if local in ("", "/") else []
        if any(name == "token" and is_equal(value, self.options.token) for name, value in pairs):
            others = urlencode([pair for pair in pairs if pair[0] != "token"])
            location = f"{self.options.normal_prefix}/" + (f"?{others}" if others else "")
            cookie = f"{self.cookie}={self.options.token}; Path={self.options.normal_prefix}/; HttpOnly; SameSite=Lax"
            return Refusal(302, "", {"Location": location, "Set-Cookie": cookie, "Cache-Control": "no-store"})
        return Refusal(
            403,
            "Open the address that the command printed: it ends in ?token=…. (With --no-token everybody is let in.)",
        )


class _Request(HTTPMessageDelegate):
    """One request. It is handed to the application after the gate has checked its header."""

    def __init__(self, gate: Gate, server_conn: Any, request_conn: HTTPConnection) -> None:
        self._gate, self._server_conn, self._connection = gate, server_conn, request_conn
        self._inner: HTTPMessageDelegate | None = None

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> Any:
        """Check the header and answer with a refusal, or pass the request on."""
        assert isinstance(start_line, RequestStartLine)
        gate, context = self._gate, self._connection.context  # type: ignore[attr-defined]
        gate.has_header(self._server_conn)
        context.remote_ip = gate.address_of(headers, self._connection)
        is_secure = gate.options.is_behind_proxy and headers.get("X-Forwarded-Proto", "").rsplit(",", 1)[-1] == "https"
        context.protocol = "https" if is_secure else "http"
        connection = _SecureConnection(self._connection, is_secure)
        if refusal := gate.check(start_line, headers):
            return self._refuse(connection, refusal, start_line.method == "HEAD")
        self._inner = gate.application.start_request(self._server_conn, connection)  # type: ignore[arg-type]
        return self._inner.headers_received(start_line, headers)

    def _refuse(self, connection: _SecureConnection, refusal: Refusal, is_head: bool) -> None:
        body = refusal.text.encode()
        headers = HTTPHeaders({"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))})
        for name, value in (refusal.headers | {"Connection": "close"}).items():
            headers[name] = value
        line = ResponseStartLine("HTTP/1.1", refusal.status, HTTPStatus(refusal.status).phrase)
        connection.write_headers(line, headers, b"" if is_head else body)
        connection.finish()

    def data_received(self, chunk: bytes) -> Any:
        """Pass on a part of the body."""
        return self._inner.data_received(chunk) if self._inner else None

    def finish(self) -> None:
        """Pass on the end of the request."""
        if self._inner:
            self._inner.finish()

    def on_connection_close(self) -> None:
        """Pass on that the connection has closed."""
        if self._inner:
            self._inner.on_connection_close()


class _SecureConnection:
    """A connection whose answers carry the security headers. Everything else is that of the connection itself."""

    def __init__(self, connection: HTTPConnection, is_secure: bool) -> None:
        self._connection, self._is_secure = connection, is_secure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def write_headers(self, start_line: Any, headers: HTTPHeaders, chunk: bytes | None = None) -> Any:
        """Write a header with the security headers and with cookies that other sites cannot use."""
        for name, value in SECURITY_HEADERS.items():
            headers[name] = value
        headers.pop("Server", None)
        if cookies := headers.get_list("Set-Cookie"):
            headers.pop("Set-Cookie")  # `del` fails in tornado 6.5 if nobody has read the header
            for cookie in cookies:
                headers.add("Set-Cookie", strict_cookie(cookie, self._is_secure))
        return self._connection.write_headers(start_line, headers, chunk)


def strict_cookie(cookie: str, is_secure: bool) -> str:
    """Add the attributes ``HttpOnly``, ``SameSite`` and, over TLS, ``Secure`` to a cookie."""
    attributes = {part.strip().split("=")[0].lower() for part in cookie.split(";")[1:]}
    wanted_attributes = {"httponly": "HttpOnly", "samesite": "SameSite=Lax"} | (
        {"secure": "Secure"} if is_secure else {}
    )
    return "; ".join([cookie, *(text for name, text in wanted_attributes.items() if name not in attributes)])


def cookies_of(headers: HTTPHeaders) -> dict[str, str]:
    """Return the cookies of a request by name."""
    pairs = (part.strip().partition("=") for part in headers.get("Cookie", "").split(";"))
    return {name: value for name, _, value in pairs if name}


def is_equal(text: str, secret: str) -> bool:
    """Compare a text with a secret in a time that does not depend on how much of it is right."""
    return hmac.compare_digest(text.encode(), secret.encode())
