"""The viewer's web server: one process, one address, explicit origins.

The server binds to loopback by default. It accepts web sockets only from pages at the address it listens on and from
the origins in its options. All sessions read the same `ServedStores`. Only bookmarks can be written.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.store.errors import ConfigError

if TYPE_CHECKING:
    from ..data.served_stores import ServedStores

_ORIGIN = re.compile(r"[A-Za-z0-9.\-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:]+\](:[0-9]{1,5})?")
_GENERIC = ("PANEL_OAUTH_AUTHORIZE_URL", "PANEL_OAUTH_TOKEN_URL", "PANEL_OAUTH_USER_URL")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~\-]+)*")


@dataclass(frozen=True)
class Auth:
    """Settings of the login, which are passed on to Panel. By default the viewer needs no login.

    `basic` is a password, or a file of ``{"user": "password"}``. `oauth` names a provider that Panel supports
    (``github``, ``google``, ``azure``, ``generic``, ...), with its `key` and `secret`. Both kinds of login need
    `cookie_secret`, which signs the cookies.
    """

    basic: str = ""
    oauth: str = ""
    key: str = ""
    secret: str = ""
    cookie_secret: str = ""

    def __post_init__(self) -> None:
        if self.basic and self.oauth:
            raise ConfigError("basic_auth and oauth are both set. Set only one of them.")
        if (self.basic or self.oauth) and len(self.cookie_secret) < 16:
            raise ConfigError("a login needs a cookie secret of at least 16 characters. Set HEADATLAS_COOKIE_SECRET.")
        if self.oauth and not (self.key and self.secret):
            raise ConfigError(
                "oauth needs the key and the secret of the provider. "
                "Set HEADATLAS_OAUTH_KEY and HEADATLAS_OAUTH_SECRET."
            )

    def for_panel(self) -> dict[str, Any]:
        """Return the login arguments of `panel.io.server.get_server`.

        Raises
        ------
        ConfigError
            Panel does not support the provider, or the addresses of the ``generic`` provider are not set.
        """
        if self.oauth:
            _check_provider(self.oauth)
        arguments = {
            "basic_auth": self.basic, "oauth_provider": self.oauth, "oauth_key": self.key, "oauth_secret": self.secret,
            "cookie_secret": self.cookie_secret,
        }  # fmt: skip
        page = str(Path(__file__).parent / "door.html")  # Panel's own pages load fonts and a logo from the network
        templates = {"logout_template": page, "oauth_error_template": page} | (
            {"login_template": page} if self.basic else {}
        )
        return {name: value for name, value in arguments.items() if value} | (
            templates if self.basic or self.oauth else {}
        )


def _check_provider(name: str) -> None:
    from panel.auth import AUTH_PROVIDERS

    providers = sorted(set(AUTH_PROVIDERS) - {"basic", "password", "pam"})
    if name not in providers:
        raise ConfigError(f"oauth is {name!r}; expected one of {', '.join(providers)}")
    unset = [variable for variable in _GENERIC if not os.environ.get(variable)]
    if name == "generic" and unset:
        raise ConfigError(f"the generic provider has no addresses. Set {', '.join(unset)}.")


@dataclass(frozen=True)
class ServerOptions:
    """Address, origins and limits of the server.

    `origins` lists further ``host:port`` under which readers open the viewer (behind a proxy). `prefix` is the path
    below which the viewer is served (``/atlas``).
    """

    port: int = 5006
    address: str = "127.0.0.1"
    origins: tuple[str, ...] = ()
    prefix: str = ""
    auth: Auth = field(default_factory=lambda: Auth())
    max_sessions: int = 200

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port is {self.port}; expected 0 (any free one) to 65535")
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"origin is {origin!r}; expected host or host:port. With * any web page could read the store."
                )
        if not _PREFIX.fullmatch(self.normal_prefix):
            raise ConfigError(f"prefix is {self.prefix!r}; expected a path such as /atlas")
        if self.max_sessions < 1:
            raise ConfigError(f"max_sessions is {self.max_sessions}; expected 1 or more")

    @property
    def normal_prefix(self) -> str:
        """Prefix with a leading slash and without a trailing one. Empty if there is no prefix."""
        bare = self.prefix.strip("/")
        return f"/{bare}" if bare else ""

    def allowed_origins(self, port: int) -> list[str]:
        """Return the origins that may open web sockets to a port."""
        hosts = ["localhost", "127.0.0.1"] if is_loopback(self.address) else []
        if self.address not in ("", "0.0.0.0", "::"):
            hosts.append(f"[{self.address}]" if ":" in self.address else self.address)
        return list(dict.fromkeys([*(f"{host}:{port}" for host in hosts), *self.origins]))

    def url(self, port: int) -> str:
        """Return the address to open."""
        host = "127.0.0.1" if self.address in ("", "0.0.0.0", "::") else self.address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{self.normal_prefix}/"


def is_loopback(address: str) -> bool:
    """Return True if only this machine can reach an address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def make_server(stores: ServedStores, options: ServerOptions) -> tuple[Any, str]:
    """Create a server that listens but is not started. Returns the server and the address to open.

    Raises
    ------
    ConfigError
        The port is in use, the address does not belong to this machine, or no origin could open the viewer.
    """
    import panel as pn

    from .document import make_app

    disable_nagle()
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
    app = limit_sessions(make_app(stores), options.max_sessions)
    server = pn.io.server.get_server(
        {"/": app},
        port=port,
        address=options.address,
        websocket_origin=origins,
        prefix=options.normal_prefix,
        title="headatlas",
        show=False,
        start=False,
        location=False,
        liveness=True,
        **options.auth.for_panel(),
        check_unused_sessions_milliseconds=5_000,
        unused_session_lifetime_milliseconds=30_000,
    )
    return server, options.url(port)


def limit_sessions(app: Callable[[], Any], limit: int) -> Callable[[], Any]:
    """Limit an app to `limit` sessions at once. Further visitors get a message instead of the app."""
    import panel as pn

    session_ids: set[str] = set()
    lock = threading.Lock()

    def serve() -> Any:
        document = pn.state.curdoc
        context = document.session_context if document is not None else None
        if context is None:
            return app()
        with lock:
            is_full = len(session_ids) >= limit
            if not is_full:
                session_ids.add(context.id)
        if is_full:
            text = f"This viewer is full: at most {limit} readers at once. Try again in a minute."
            return pn.pane.HTML(f"<p>{text}</p>", sanitize_html=True)
        pn.state.on_session_destroyed(lambda closed: session_ids.discard(closed.id))
        return app()

    return serve


@functools.cache
def disable_nagle() -> None:
    """Turn off Nagle's algorithm for web sockets.

    Bokeh writes a message as several frames and does not set TCP_NODELAY. With delayed acknowledgements, Nagle's
    algorithm adds 40 ms to a picture.
    """
    from bokeh.server.views.ws import WSHandler

    original = WSHandler.open

    def open(handler: Any, *arguments: Any, **options: Any) -> Any:
        handler.set_nodelay(True)
        return original(handler, *arguments, **options)

    WSHandler.open = open


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
    """Build one page and discard it, so that the first visitor does not wait for imports and for the head map."""
    from bokeh.document import Document
    from panel.io.state import set_curdoc

    from ..pages.session import Session

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
    server, url = make_server(stores, options)
    warm_up(stores)
    announce(f"headatlas: {', '.join(stores.names)} is at {url}  (Ctrl-C ends)")
    server.start()
    if show:
        import webbrowser

        webbrowser.open(url)
    server.run_until_shutdown()  # stops the server on Ctrl-C and on SIGTERM
