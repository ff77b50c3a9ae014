"""Address, names, limits and login of the server."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from headatlas.store.errors import ConfigError

from .login import Auth

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_ORIGIN = re.compile(r"[A-Za-z0-9.\-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:]+\](:[0-9]{1,5})?")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~\-]+)*")


@dataclass(frozen=True)
class ServerOptions:
    """Address, origins and limits of the server.

    Attributes
    ----------
    origins
        Further ``host:port`` under which readers open the viewer, such as behind a proxy.
    prefix
        Path below which the viewer is served, such as ``/atlas``.
    max_sessions
        Most readers at once. One address gets at most half of them.
    token
        Secret that the address must hold, or that a cookie holds later. Empty: everybody who reaches the server is
        let in.
    is_behind_proxy
        True if the address of a reader is the last one in ``X-Forwarded-For``.
    """

    port: int = 5006
    address: str = "127.0.0.1"
    origins: tuple[str, ...] = ()
    prefix: str = ""
    auth: Auth = field(default_factory=lambda: Auth())
    max_sessions: int = 200
    token: str = ""
    is_behind_proxy: bool = False

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
        if self.token and not re.fullmatch(r"[A-Za-z0-9_\-]{8,200}", self.token):
            raise ConfigError("the token has an invalid form; expected 8 to 200 letters, digits, - and _")

    @property
    def normal_prefix(self) -> str:
        """Prefix with a leading slash and without a trailing one. Empty if there is no prefix."""
        bare = self.prefix.strip("/")
        return f"/{bare}" if bare else ""

    @property
    def _listens_everywhere(self) -> bool:
        return self.address in ("", "0.0.0.0", "::")

    def allowed_origins(self, port: int) -> list[str]:
        """Return the origins that may open web sockets to a port."""
        hosts = ["localhost", "127.0.0.1"] if is_loopback(self.address) else []
        if not self._listens_everywhere:
            hosts.append(f"[{self.address}]" if ":" in self.address else self.address)
        return list(dict.fromkeys([*(f"{host}:{port}" for host in hosts), *self.origins]))

    def allowed_hosts(self) -> frozenset[str]:
        """Return the names that a request may have in its ``Host`` header, without ports and in lower case."""
        hosts = set(LOOPBACK_NAMES) | {host_name(origin) for origin in self.origins}
        return frozenset(hosts if self._listens_everywhere else hosts | {self.address.lower()})

    def url(self, port: int) -> str:
        """Return the address to open."""
        host = "127.0.0.1" if self._listens_everywhere else self.address
        query = f"?token={self.token}" if self.token else ""
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{self.normal_prefix}/{query}"


def host_name(host: str) -> str:
    """Return the name in a ``host:port``, in lower case and without brackets. Empty if it is malformed."""
    if not _ORIGIN.fullmatch(host):
        return ""
    return urlsplit(f"//{host}").hostname or ""


def is_loopback(address: str) -> bool:
    """Return True if only this machine can reach an address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
