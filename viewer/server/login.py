"""Logins with passwords. Logins with a provider (OAuth) are those of Panel."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.store.errors import ConfigError

if TYPE_CHECKING:
    from tornado.web import RequestHandler

DOOR = Path(__file__).parent / "door.html"
"""Page of the login, the logout and their errors. Panel's own pages load fonts and a logo from the network."""
MAX_PENDING = 4
"""Most attempts of one address that wait at once."""
_GENERIC = ("PANEL_OAUTH_AUTHORIZE_URL", "PANEL_OAUTH_TOKEN_URL", "PANEL_OAUTH_USER_URL")


@dataclass(frozen=True)
class Auth:
    """Settings of the login. By default the viewer needs no login.

    `basic` is a password, or a file of ``{"user": "password"}``: whatever holds a slash or ends in ``.json`` is a file,
    and must exist. `oauth` names a provider that Panel supports (``github``, ``google``, ``azure``, ``generic``, ...),
    with its `key` and `secret`. Both kinds of login need `cookie_secret`, which signs the cookies.
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

    @property
    def is_set(self) -> bool:
        """True if readers have to log in."""
        return bool(self.basic or self.oauth)

    def passwords(self) -> str | dict[str, str]:
        """Return the password of everybody, or the password of each user, read anew from the file.

        Raises
        ------
        ConfigError
            The file is missing, or it is not a JSON object of texts.
        """
        if os.sep not in self.basic and "/" not in self.basic and not self.basic.lower().endswith(".json"):
            return self.basic
        try:
            users = json.loads(Path(self.basic).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
            raise ConfigError(
                f'the file of passwords {self.basic!r} cannot be read: {reason}. It holds {{"user": "password"}}.'
            ) from error
        is_table = isinstance(users, dict) and all(isinstance(value, str) and value for value in users.values())
        if not is_table or not users:
            raise ConfigError(f'the file of passwords {self.basic!r} does not hold {{"user": "password"}}')
        return users

    def for_panel(self) -> dict[str, Any]:
        """Return the login arguments of `panel.io.server.get_server`.

        Raises
        ------
        ConfigError
            The file of passwords cannot be read, Panel does not support the provider, or the addresses of the
            ``generic`` provider are not set.
        """
        if not self.is_set:
            return {}
        if self.basic:
            self.passwords()
            return {"auth_provider": password_provider(self), "cookie_secret": self.cookie_secret}
        _check_provider(self.oauth)
        return {
            "oauth_provider": self.oauth, "oauth_key": self.key, "oauth_secret": self.secret,
            "cookie_secret": self.cookie_secret, "logout_template": str(DOOR), "oauth_error_template": str(DOOR),
        }  # fmt: skip


def _check_provider(name: str) -> None:
    from panel.auth import AUTH_PROVIDERS

    providers = sorted(set(AUTH_PROVIDERS) - {"basic", "password", "pam"})
    if name not in providers:
        raise ConfigError(f"oauth is {name!r}; expected one of {', '.join(providers)}")
    unset = [variable for variable in _GENERIC if not os.environ.get(variable)]
    if name == "generic" and unset:
        raise ConfigError(f"the generic provider has no addresses. Set {', '.join(unset)}.")


class Attempts:
    """Failed logins by address. The answer to a wrong password waits 1 s, then 2, 4, ... up to 30 s.

    An address is forgotten ten minutes after its last failure.
    """

    FORGET_S = 600.0

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}
        self._pending: dict[str, int] = {}

    def is_full(self, address: str) -> bool:
        """Return True if so many attempts of an address wait that no more are taken."""
        return self._pending.get(address, 0) >= MAX_PENDING

    def wait_s(self, address: str) -> float:
        """Return how long the next failure of an address waits."""
        return min(30.0, 2.0 ** self._failures.get(address, (0, 0.0))[0])

    def clear(self, address: str) -> None:
        """Forget the failures of an address that has logged in."""
        self._failures.pop(address, None)

    async def fail(self, address: str) -> None:
        """Count a failure and wait."""
        wait, now = self.wait_s(address), time.monotonic()
        self._failures = {name: entry for name, entry in self._failures.items() if now - entry[1] < self.FORGET_S}
        self._failures[address] = (min(10, self._failures.get(address, (0, 0.0))[0] + 1), now)
        self._pending[address] = self._pending.get(address, 0) + 1
        try:
            await asyncio.sleep(wait)
        finally:
            self._pending[address] -= 1
            if not self._pending[address]:
                del self._pending[address]


def is_valid(passwords: str | dict[str, str], user: str, password: str) -> bool:
    """Compare a password in a time that does not depend on how much of it is right."""
    expected = passwords if isinstance(passwords, str) else passwords.get(user, "")
    return hmac.compare_digest(expected.encode(), password.encode()) and bool(expected)


def password_provider(auth: Auth) -> Any:
    """Return Panel's provider of a login form, with checks of our own."""
    from panel.auth import BasicAuthProvider, BasicLoginHandler, _validate_next_url
    from panel.io.state import state

    attempts = Attempts()

    class PasswordHandler(BasicLoginHandler):  # type: ignore[misc]
        def get(self) -> None:
            self.set_cookie("next_url", _validate_next_url(self.get_argument("next", "")) or state.base_url)
            self._form("")

        async def post(self) -> None:  # type: ignore[override]
            address = self.request.remote_ip or ""
            if attempts.is_full(address):
                self.set_status(429)
                return self._form("Too many attempts at once. Wait a moment.")
            user, password = (self.get_argument(name, "")[:1_000] for name in ("username", "password"))
            try:
                valid = is_valid(auth.passwords(), user, password)
            except ConfigError:
                self.set_status(503)
                return self._form("Nobody can log in now: the file of passwords cannot be read.")
            if not valid:
                await attempts.fail(address)
                self.set_status(401)
                return self._form("Invalid username or password.")
            attempts.clear(address)
            self.set_current_user(user or "reader")
            self.redirect(_validate_next_url(self.get_cookie("next_url", state.base_url)))
            return None

        def _form(self: RequestHandler, message: str) -> None:
            self.write(provider._login_template.render(login_endpoint="/login", errormessage=message))

    class PasswordProvider(BasicAuthProvider):  # type: ignore[misc]
        @property
        def login_handler(self) -> type[PasswordHandler]:
            PasswordHandler._login_endpoint = self._login_endpoint
            PasswordHandler._login_template = self._login_template
            return PasswordHandler

    provider = PasswordProvider(login_template=str(DOOR), logout_template=str(DOOR), error_template=str(DOOR))
    return provider
