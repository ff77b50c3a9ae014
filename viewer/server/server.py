"""The viewer's web server: one process, one address, explicit origins.

It binds to loopback unless told otherwise, and a web socket is only taken from the origins it was told: the address it
listens on, and those given. All sessions read the same `ServedStores`. Only bookmarks can be written.
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
    """Who may open the viewer; nobody is asked by default. What is said here goes to Panel as it is.

    `basic` is a password, or a file of ``{"user": "password"}``. `oauth` names a provider of Panel's (``github``, ``google``,
    ``azure``, ``generic``, ...) with its `key` and `secret`. Either needs `cookie_secret`, which signs the cookies.
    """

    basic: str = ""
    oauth: str = ""
    key: str = ""
    secret: str = ""
    cookie_secret: str = ""

    def __post_init__(self) -> None:
        if self.basic and self.oauth:
            raise ConfigError("basic_auth and oauth are both given; take one")
        if (self.basic or self.oauth) and len(self.cookie_secret) < 16:
            raise ConfigError(
                "logins need a secret of 16 characters or more that signs their cookies; set HEADATLAS_COOKIE_SECRET"
            )
        if self.oauth and not (self.key and self.secret):
            raise ConfigError(
                "oauth needs the key and the secret that the provider gave; set HEADATLAS_OAUTH_KEY and HEADATLAS_OAUTH_SECRET"
            )

    def for_panel(self) -> dict[str, Any]:
        """What `panel.io.server.get_server` is told.

        Raises
        ------
        ConfigError
            Panel knows no such provider, or is not told where the ``generic`` one is.
        """
        if self.oauth:
            _check_provider(self.oauth)
        given = {
            "basic_auth": self.basic, "oauth_provider": self.oauth, "oauth_key": self.key, "oauth_secret": self.secret,
            "cookie_secret": self.cookie_secret,
        }  # fmt: skip
        door = str(Path(__file__).parent / "door.html")  # Panel's own pages ask a network for fonts and a logo
        own = {"logout_template": door, "oauth_error_template": door} | ({"login_template": door} if self.basic else {})
        return {name: value for name, value in given.items() if value} | (own if self.basic or self.oauth else {})


def _check_provider(name: str) -> None:
    from panel.auth import AUTH_PROVIDERS

    known = sorted(set(AUTH_PROVIDERS) - {"basic", "password", "pam"})
    if name not in known:
        raise ConfigError(f"oauth is {name!r}; expected one of {', '.join(known)}")
    unset = [place for place in _GENERIC if not os.environ.get(place)]
    if name == "generic" and unset:
        raise ConfigError(f"a generic provider needs its addresses; set {', '.join(unset)}")


@dataclass(frozen=True)
class ServerOptions:
    """Where the viewer listens and from which pages a web socket may come.

    `origins` are further ``host:port`` from which the viewer is opened (behind a proxy). `prefix` is the path below
    which everything lies (``/atlas``).
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
                    f"origin is {origin!r}; expected host or host:port (* would let any web page read the store)"
                )
        if not _PREFIX.fullmatch(self.normal_prefix):
            raise ConfigError(f"prefix is {self.prefix!r}; expected a path such as /atlas")
        if self.max_sessions < 1:
            raise ConfigError(f"max_sessions is {self.max_sessions}; expected 1 or more")

    @property
    def normal_prefix(self) -> str:
        """The prefix with a slash in front and none behind; empty for none."""
        bare = self.prefix.strip("/")
        return f"/{bare}" if bare else ""

    def allowed_origins(self, port: int) -> list[str]:
        """Origins of web sockets once the port is known."""
        hosts = ["localhost", "127.0.0.1"] if is_loopback(self.address) else []
        if self.address not in ("", "0.0.0.0", "::"):
            hosts.append(f"[{self.address}]" if ":" in self.address else self.address)
        return list(dict.fromkeys([*(f"{host}:{port}" for host in hosts), *self.origins]))

    def url(self, port: int) -> str:
        """The address to open."""
        host = "127.0.0.1" if self.address in ("", "0.0.0.0", "::") else self.address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{self.normal_prefix}/"


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def make_server(stores: ServedStores, options: ServerOptions) -> tuple[Any, str]:
    """Make a server that listens but is not started; returns it and the address to open.

    Raises
    ------
    ConfigError
        The port is taken, the address is none of this machine, or no origin could open the viewer.
    """
    import panel as pn

    from .document import make_app

    send_at_once()
    try:  # asked here: a server that fails to bind leaves a socket open
        port = free_port(options.address, options.port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {options.address}:{options.port}: {error.strerror or error}; choose another --port or --address"
        ) from error
    origins = options.allowed_origins(port)
    if not origins:
        raise ConfigError(
            f"address {options.address!r} listens on every interface; name the origins that may open the viewer, such as --origin HOST:{port}"
        )
    pn.config.respect_explicit_sizing = True
    app = limited(make_app(stores), options.max_sessions)
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


def limited(app: Callable[[], Any], most: int) -> Callable[[], Any]:
    """Give at most `most` sessions the app; who comes later is told so and may try again."""
    import panel as pn

    present: set[str] = set()
    lock = threading.Lock()

    def serve() -> Any:
        document = pn.state.curdoc
        context = document.session_context if document is not None else None
        if context is None:
            return app()
        with lock:
            full = len(present) >= most
            if not full:
                present.add(context.id)
        if full:
            text = f"{most} readers are here, which is as many as this viewer takes. Try again in a minute."
            return pn.pane.HTML(f"<p>{text}</p>", sanitize_html=True)
        pn.state.on_session_destroyed(lambda ended: present.discard(ended.id))
        return app()

    return serve


@functools.cache
def send_at_once() -> None:
    """Send every message when it is written: Nagle's algorithm and delayed acknowledgements add 40 ms to a picture.

    Bokeh writes a message as several frames and sets no TCP_NODELAY.
    """
    from bokeh.server.views.ws import WSHandler

    opened = WSHandler.open

    def open(handler: Any, *arguments: Any, **named: Any) -> Any:
        handler.set_nodelay(True)
        return opened(handler, *arguments, **named)

    WSHandler.open = open


def free_port(address: str, port: int = 0) -> int:
    """`port` if it can be listened on, or for 0 any that can; OSError if not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return int(probe.getsockname()[1])


def make_ready(stores: ServedStores) -> None:
    """Make one page and forget it: modules are loaded and the map is read before somebody waits for them."""
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
    """Serve until interrupted."""
    server, url = make_server(stores, options)
    make_ready(stores)
    announce(f"headatlas: {', '.join(stores.names)} is at {url}  (Ctrl-C ends)")
    server.start()
    if show:
        import webbrowser

        webbrowser.open(url)
    server.run_until_shutdown()  # ends on Ctrl-C and on SIGTERM, and stops the server then
