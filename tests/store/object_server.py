"""S3-compatible server in a process of its own, and a proxy in front of it that answers with faults.

The server (moto) handles one request at a time, so that its conditional writes are atomic.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec

_PROGRAM = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
app = DomainDispatcherApplication(create_backend_app)
{changes}
server = make_server("127.0.0.1", 0, app, threaded=False)
print(server.server_port, flush=True)
server.serve_forever()
"""
_WITHOUT_CONDITIONS = """
def app(environ, respond, inner=app):
    environ.pop("HTTP_IF_NONE_MATCH", None)
    return inner(environ, respond)
"""
FAULTS = ("503 before", "503 after", "reset before", "reset after", "slow")


@contextlib.contextmanager
def run_server(*, conditional: bool = True) -> Iterator[dict[str, Any]]:
    """Run a server with a bucket ``bucket`` and yield the options that fsspec needs for it."""
    program = _PROGRAM.format(changes="" if conditional else _WITHOUT_CONDITIONS)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        options = options_of(port)
        fsspec.filesystem("s3", **options).mkdir("bucket")
        yield options
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def options_of(port: int) -> dict[str, Any]:
    """Return the options of fsspec for a server on this machine."""
    return {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "key": "key",
        "secret": "secret",
        "config_kwargs": {"retries": {"max_attempts": 2}, "read_timeout": 5},
    }


class FaultyProxy(ThreadingHTTPServer):
    """Proxy of a server. It answers one request in `every` with one of `FAULTS`, at most `n_faults` times."""

    daemon_threads = True

    def __init__(self, port: int, n_faults: int, every: int, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.n_left, self.every, self.rng = port, n_faults, every, random.Random(seed)
        self.counts: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self._lock = threading.Lock()

    def next_fault(self) -> str | None:
        """Return the fault of the next request, or None."""
        with self._lock:
            if self.n_left == 0 or self.rng.randrange(self.every):
                return None
            self.n_left -= 1
            fault = self.rng.choice(FAULTS)
            self.counts[fault] += 1
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the client closed."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.next_fault()
        if fault == "reset before":
            return self._reset()
        if fault == "503 before":
            return self._send(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        if fault == "slow":
            time.sleep(self.server.rng.uniform(0.05, 0.3))
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        data, headers = response.read(), dict(response.getheaders())
        connection.close()
        if fault == "reset after":
            return self._reset()
        if fault == "503 after":
            return self._send(503, {}, b"<Error><Code>InternalError</Code></Error>")
        return self._send(response.status, headers, data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def run_proxy(port: int, n_faults: int, every: int, seed: int) -> Iterator[FaultyProxy]:
    """Run a proxy in front of the server at a port."""
    with FaultyProxy(port, n_faults, every, seed) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
