"""Small web server for tests. It serves a folder, supports range requests, records requests, and can misbehave."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class RangeServer(ThreadingHTTPServer):
    """Server of the files below `folder`. `mode` is "ranges", "whole" (ignores ranges), "gzip", "flood" or "broken"."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.mode, self.requested = folder, "ranges", list[str]()
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/traces"


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def _respond(self, *, with_body: bool) -> None:
        server = self.server
        path = unquote(self.path).removeprefix("/traces/")
        server.requested.append(path)
        file = server.folder / path
        if server.mode == "broken":
            self.send_error(503)
            return
        if not file.is_file():
            self.send_error(404)
            return
        data, status, headers = file.read_bytes(), 200, {}
        byte_range = self.headers.get("Range")
        if server.mode == "flood":
            data = b"{" + bytes(64 << 20)
        elif byte_range and server.mode != "whole":
            start, stop = (int(part) for part in byte_range.removeprefix("bytes=").split("-"))
            if start >= len(data):
                self.send_error(416)
                return
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(data) - 1)}/{len(data)}"
            data, status = data[start : stop + 1], 206
        if server.mode == "gzip":
            headers["Content-Encoding"] = "gzip"
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data)
                server.sent += len(data)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[RangeServer]:
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
