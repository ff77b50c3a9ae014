"""The viewer's web server: one process, one address, explicit origins.

The server binds to loopback by default. Every request passes a gate (`gate.py`), and every message of a page a check
(`messages.py`). All sessions read the same `ServedStores`. Only bookmarks can be written.
"""

from __future__ import annotations

import functools
import logging
import secrets
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headatlas.store.errors import ConfigError

from .options import ServerOptions

if TYPE_CHECKING:
    from ..data.served_stores import ServedStores

UNCONNECTED_S = 30.0
"""Seconds until a session ends whose page has no socket."""
LOG_RECORDS_PER_S = 10
"""Most lines of the log per second, on average over ten seconds. Further ones are counted."""


def make_server(stores: ServedStores, options: ServerOptions) -> tuple[Any, str]:
    """Create a server that listens but is not started. Returns the server and the address to open.

    Raises
    ------
    ConfigError
        The port is in use, the address does not belong to this machine, no origin could open the viewer, or the file
        of passwords cannot be read.
    """
    import panel as pn
    from tornado.web import GZipContentEncoding

    from .document import make_app
    from .gate import BODY_S, HEADER_S, MAX_BODY, MAX_HEADER, Gate
    from .messages import MAX_FRAME

    login = options.auth.for_panel()
    try:  # checked here: a server that fails to bind leaves a socket open
        port = free_port(options.address, options.port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {options.address}:{options.port}: {error.strerror or error}. "
            "Choose another --port or --address."
        ) from error
    origins = options.allowed_origins(port)
    if not origins:
        raise ConfigError(
            f"address {options.address!r} listens on every interface. "
            f"Name the origins that may open the viewer, such as --origin HOST:{port}."
        )
    pn.config.respect_explicit_sizing = True
    pn.config.browser_info = False
    server = pn.io.server.get_server(
        {"/": make_app(stores)},
        port=port,
        address=options.address,
        websocket_origin=origins,
        prefix=options.normal_prefix,
        show=False,
        start=False,
        location=False,
        secret_key=secrets.token_bytes(32),
        sign_sessions=True,
        websocket_max_message_size=MAX_FRAME,
        check_unused_sessions_milliseconds=1_000,
        unused_session_lifetime_milliseconds=int(1_000 * UNCONNECTED_S),
        http_server_kwargs={
            "max_header_size": MAX_HEADER,
            "max_body_size": MAX_BODY,
            "idle_connection_timeout": HEADER_S,
            "body_timeout": BODY_S,
        },
        **login,
    )
    application = server._tornado
    application.wildcard_router.rules.clear()
    application.add_handlers(".*", routes(application, options, stores))
    application.add_transform(GZipContentEncoding)
    server._http.request_callback = Gate(application, options, port, n_connections())
    return server, options.url(port)


def routes(application: Any, options: ServerOptions, stores: ServedStores) -> list[Any]:
    """Return all routes of the server. Bokeh's and Panel's own routes import modules and open sessions by name."""
    from .page_handler import LivenessHandler, PageHandler, file_routes
    from .session_socket import SessionSocket

    prefix = options.normal_prefix
    context = {
        "application_context": application.applications["/"],
        "bokeh_websocket_path": f"{prefix}/ws",
    }
    local: list[Any] = [
        (r"/?", PageHandler, context | {"max_sessions": options.max_sessions, "stores": stores}),
        (r"/ws", SessionSocket, context | {"compression_level": None, "mem_level": None}),
        (r"/liveness", LivenessHandler),
        *file_routes(),
        *application.auth_provider.endpoints,
    ]
    return [(prefix + route[0], *route[1:]) for route in local]


def n_connections() -> int:
    """Return how many connections may be open at once: half of the files that this process may open.

    Raises the limit of open files as far as the system allows.
    """
    try:
        import resource
    except ImportError:  # Windows
        return 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(8, min(2_048, max(soft, limit) // 2))


class LogLimit(logging.Filter):
    """Filter that lets a bounded number of records pass, so that nobody can fill the disk with errors."""

    def __init__(self, per_s: float = LOG_RECORDS_PER_S) -> None:
        super().__init__()
        self._per_s, self._credit, self._time, self._n_left_out = per_s, per_s * 10, time.monotonic(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if a record passes. The next one that passes names the number of those left out."""
        now = time.monotonic()
        self._credit = min(self._per_s * 10, self._credit + (now - self._time) * self._per_s)
        self._time = now
        if self._credit < 1:
            self._n_left_out += 1
            return False
        self._credit -= 1
        if self._n_left_out:
            record.msg, record.args = f"({self._n_left_out} lines left out) {record.getMessage()}", None
            self._n_left_out = 0
        return True


def free_port(address: str, port: int = 0) -> int:
    """Return `port`, or any free port if it is 0.

    Raises
    ------
    OSError
        The port is in use, or the address does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return int(probe.getsockname()[1])


def warm_up(stores: ServedStores) -> None:
    """Read what pages need and build one page, so that the first visitor does not wait for it and for imports."""
    from bokeh.document import Document
    from panel.io.state import set_curdoc

    from ..pages.session import Session

    stores.prepare()
    document = Document()
    with set_curdoc(document):
        document.add_root(Session(stores.first).view.get_root(document))


def serve(
    stores: ServedStores,
    options: ServerOptions,
    *,
    show: bool = False,
    announce: Callable[[str], Any] = functools.partial(print, flush=True),
) -> None:
    """Serve until the process is interrupted."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogLimit())
    server, url = make_server(stores, options)
    warm_up(stores)
    announce(f"headatlas: {', '.join(stores.names)} is at {url}  (Ctrl-C ends)")
    server.start()
    if show:
        import webbrowser

        webbrowser.open(url)
    server.run_until_shutdown()  # stops the server on Ctrl-C and on SIGTERM
