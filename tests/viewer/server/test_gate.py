"""The gate: names, paths, tokens, headers, and connections that never finish."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from headatlas.store.errors import ConfigError
from headatlas.viewer.server.gate import COOKIE, strict_cookie
from headatlas.viewer.server.login import Attempts, Auth, is_valid
from headatlas.viewer.server.options import ServerOptions, host_name
from headatlas.viewer.server.server import LogLimit, n_connections

from ..view_data import PATIENCE_S
from ..viewer_process import running, viewing
from .raw_page import RawPage, fetch, page_token, run
from .test_messages import SPY, spied

pytestmark = pytest.mark.browser
SECRET = "of sixteen letters or more"


@pytest.fixture(scope="module")
def url(store_path: Path) -> Iterator[str]:
    with viewing(store_path, before=SPY) as address:
        yield address


@pytest.mark.parametrize(
    "path",
    [
        "components/unittest.__main__/x/css/y", "components/torch/x/css/y", "components/os/x/css/y",
        "components/headatlas.viewer.components.esm_view/ESMView/_js/../esm_view.py",
        "components/headatlas.viewer.components.esm_view/ESMView/_js/%2e%2e/esm_view.py",
        "components/headatlas.viewer.components.esm_view/ESMView/_bundle/x", "components/", "autoload.js", "metadata",
        "static/js/../../server.py", "static/extensions/panel/../../config.py", "static/extensions/panel/%2e%2e/config.py",
        "static//etc/passwd", "rest/session_info", "admin", "index", "login", "liveness?endpoint=/&x=1/../..",
        "..%2f..%2fetc/passwd", "server.py", "start.js/../server.py", "page.html", "door.html",
    ],
)  # fmt: skip
def test_only_the_files_of_the_viewer_are_served(url: str, path: str) -> None:
    async def attack() -> None:
        await spied(url)
        answer = await fetch(f"{url}{path}")
        assert answer.code in (404, 403) or path.startswith("liveness"), path
        assert b"Traceback" not in (answer.body or b"")
        assert b"/home/" not in (answer.body or b"")
        assert [entry for entry in await spied(url) if entry[0] == "import"] == []
        assert [
            p
            for kind, p in await spied(url)
            if kind == "open" and not p.endswith((".js", ".bookmarks.json", "latest.json"))
        ] == []

    run(attack())


@pytest.mark.parametrize("path", ["", "start.js", "static/js/bokeh.min.js", "spied"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:5006", "127.0.0.1.evil.example", "localhost@evil", ""])
def test_a_request_to_another_name_is_refused(url: str, path: str, host: str) -> None:
    answer = run(fetch(f"{url}{path}", headers={"Host": host}))
    assert answer.code in (400, 421)
    assert run(fetch(f"{url}liveness", headers={"Host": "evil.example"})).code == 200


def test_names_of_the_server() -> None:
    options = ServerOptions(address="10.1.2.3", origins=("Atlas.example:443", "[fe80::1]:80"))
    assert options.allowed_hosts() == {"localhost", "127.0.0.1", "::1", "atlas.example", "fe80::1", "10.1.2.3"}
    assert "0.0.0.0" not in ServerOptions(address="0.0.0.0").allowed_hosts()
    assert [host_name(text) for text in ("A.b:80", "[::1]:5", "a b", "x@y", "a/b", "")] == [
        "a.b",
        "::1",
        "",
        "",
        "",
        "",
    ]


def test_every_answer_has_the_security_headers(url: str) -> None:
    for path in (
        "",
        "start.js",
        "static/js/bokeh.min.js",
        "nothing",
        "liveness",
        "static/extensions/panel/panel.min.js",
    ):
        headers = run(fetch(f"{url}{path}")).headers
        assert headers["X-Content-Type-Options"] == "nosniff", path
        policy = headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy, path
        assert "frame-ancestors 'none'" in policy, path
        assert "Server" not in headers
    page = run(fetch(url)).body.decode()
    assert "<script>" not in page
    assert "https://" not in page.replace("xmlns='http://www.w3.org/2000/svg'", "")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
    ],
)
def test_another_web_page_cannot_open_sessions(url: str, headers: dict[str, str]) -> None:
    assert run(fetch(url, headers=headers)).code == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert run(fetch(url, headers=link)).code == 200


def test_methods_that_are_not_used_are_refused(url: str) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert run(fetch(url, method=method, allow_nonstandard_methods=True)).code == 405
    assert run(fetch(url, method="POST", body="x=1")).code == 405


def test_the_printed_address_holds_a_token_that_lets_in(store_path: Path) -> None:
    with running(store_path) as (address, _):
        base, token = address.split("?token=")
        port = urlsplit(base).port

        async def attack() -> None:
            for path in (
                "",
                "start.js",
                "?token=wrong",
                "?token=",
                f"?token={token}x",
                "ws",
                f"start.js?token={token}",
            ):
                answer = await fetch(f"{base}{path}")
                assert answer.code == 403, path
                assert token not in answer.body.decode()
            assert (await fetch(f"{base}liveness")).code == 200
            answer = await fetch(f"{address}&page=examples&text=a%20b")
            assert answer.code == 302
            assert answer.headers["Location"] == "/?page=examples&text=a+b"  # no token stays in an address
            cookie = answer.headers["Set-Cookie"]
            assert cookie.startswith(f"{COOKIE}-{port}={token};")
            assert "HttpOnly" in cookie
            assert "SameSite" in cookie
            with_cookie = {"Cookie": f"{COOKIE}-{port}={token}"}
            session = await page_token(base, headers=with_cookie)
            with pytest.raises(Exception, match="403"):
                await RawPage.open(base, session)
            await (await RawPage.open(base, session, **with_cookie)).ready()

        run(attack())


def test_a_token_is_not_in_the_address_of_a_login(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADATLAS_COOKIE_SECRET", SECRET)
    monkeypatch.setenv("HEADATLAS_TOKEN", "chosen-by-the-reader")
    with running(store_path, "--basic-auth", "sesame") as (address, _):
        assert "token" not in address
    with running(store_path) as (address, _):
        assert address.endswith("?token=chosen-by-the-reader")


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"ada": 1}', '{"ada": ""}', "{", "[" * 100_000])
def test_a_file_of_passwords_must_be_readable(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "users.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="file of passwords"):
        Auth(str(path), cookie_secret=SECRET).for_panel()


def test_the_name_of_a_missing_file_is_no_password() -> None:
    for name in ("users.json", "./users", "/etc/headatlas/users", "USERS.JSON"):
        with pytest.raises(ConfigError, match="cannot be read"):
            Auth(name, cookie_secret=SECRET).passwords()
    assert Auth("open sesame", cookie_secret=SECRET).passwords() == "open sesame"


def test_a_login_checks_the_file_anew_and_waits_longer_after_each_failure(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADATLAS_COOKIE_SECRET", SECRET)
    users = tmp_path / "users.json"
    users.write_text('{"ada": "her password"}')

    async def log_in(url: str, password: str, **headers: str):
        body = f"username=ada&password={password}"
        return await fetch(f"{url}login", method="POST", body=body, headers=headers)

    with running(store_path, "--basic-auth", str(users)) as (url, _):

        async def attack() -> None:
            good = await log_in(url, "her+password")
            assert good.code == 302
            assert good.headers["Location"] == "/"
            cookies = good.headers.get_list("Set-Cookie")
            assert all("SameSite=Lax" in cookie and "HttpOnly" in cookie for cookie in cookies)
            for other in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://["}):
                assert (await log_in(url, "her+password", **other)).code == 403
            start = time.monotonic()
            assert (await log_in(url, "wrong")).code == 401
            assert (await log_in(url, "wrong")).code == 401
            assert time.monotonic() - start >= 3.0  # 1 s and 2 s
            answers = await asyncio.gather(*(log_in(url, "wrong") for _ in range(8)))
            assert sorted({answer.code for answer in answers}) == [401, 429]
            users.unlink()
            assert (await log_in(url, str(users).replace("/", "%2F"))).code in (503, 401, 429)
            assert (await log_in(url, "her+password")).code == 503

        run(attack())


def test_passwords_are_compared_whole() -> None:
    assert is_valid("sesame", "anybody", "sesame")
    assert not is_valid("sesame", "anybody", "sesam")
    assert is_valid({"ada": "x"}, "ada", "x")
    assert not is_valid({"ada": "x"}, "bob", "x")
    assert not is_valid({"ada": "x"}, "bob", "")
    assert not is_valid("", "", "")


def test_the_wait_after_failures_doubles_up_to_half_a_minute() -> None:
    attempts = Attempts()
    waits = []
    for n in range(7):
        waits.append(attempts.wait_s("a"))
        attempts._failures["a"] = (n + 1, time.monotonic())
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert attempts.wait_s("b") == 1
    attempts.clear("a")
    assert attempts.wait_s("a") == 1


def test_cookies_of_others_get_attributes() -> None:
    assert strict_cookie("a=b; Path=/", True) == "a=b; Path=/; HttpOnly; SameSite=Lax; Secure"
    assert strict_cookie("a=b; samesite=Strict; httponly", False) == "a=b; samesite=Strict; httponly"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_connections_that_never_finish_keep_nobody_out(store_path: Path, tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))"
    with running(store_path, "--no-token", before=limited) as (url, process):
        parts = urlsplit(url)
        sockets = []
        for i in range(300):
            half_open = socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S)
            half_open.sendall(b"" if i % 3 == 0 else b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
            sockets.append(half_open)
        start = time.monotonic()
        assert run(fetch(f"{url}liveness")).code == 200
        run(page_token(url))
        print(f"answers beside 300 half-open connections after {time.monotonic() - start:.2f} s")
        files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        assert files < 96
        for half_open in sockets:
            half_open.close()


def test_a_header_that_does_not_end_is_closed_in_time(store_path: Path) -> None:
    before = "import headatlas.viewer.server.gate as gate\ngate.HEADER_S = gate.BODY_S = 1.0"
    with running(store_path, "--no-token", before=before) as (url, _):
        parts = urlsplit(url)
        for text in (
            b"",
            b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
            b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx",
        ):
            with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as half_open:
                half_open.sendall(text)
                while half_open.recv(10_000):
                    pass


def test_long_addresses_and_headers_are_refused(url: str) -> None:
    parts = urlsplit(url)
    for text in (b"GET /?" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000):
        with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as connection:
            try:
                connection.sendall(text)
                assert b"200 OK" not in connection.recv(10_000)
            except ConnectionResetError:
                pass
    assert run(fetch(f"{url}liveness")).code == 200


def test_readers_of_one_address_leave_room_for_others(store_path: Path) -> None:
    with running(store_path, "--no-token", "--proxy", "--max-sessions", "8") as (url, _):

        async def attack() -> None:
            mine, theirs = {"X-Forwarded-For": "spoofed, 10.0.0.1"}, {"X-Forwarded-For": "10.0.0.1, 10.0.0.2"}
            for _ in range(4):
                await (await RawPage.open(url, await page_token(url, headers=mine))).ready()
            assert (await fetch(url, headers=mine)).code == 503
            assert (await fetch(url, headers=theirs)).code == 200

        run(attack())


def test_pages_without_a_socket_are_ended_for_new_ones(store_path: Path) -> None:
    async def attack(url: str) -> None:
        for _ in range(15):  # more than all sessions together
            assert (await fetch(url)).code == 200

    few = "import headatlas.viewer.server.page_handler as handler; handler.MAX_UNCONNECTED = 4"
    with viewing(store_path, "--max-sessions", "12", before=few) as url:
        run(attack(url))


def test_the_log_grows_at_a_bounded_rate() -> None:
    import logging

    limit = LogLimit(per_s=1)
    records = [logging.LogRecord("x", 30, "x", 1, "line %d", (i,), None) for i in range(1_000)]
    assert sum(limit.filter(record) for record in records) == 10
    limit._time -= 2
    late = logging.LogRecord("x", 30, "x", 1, "late", (), None)
    assert limit.filter(late)
    assert late.getMessage() == "(990 lines left out) late"


def test_half_of_the_files_are_for_connections() -> None:
    command = "from headatlas.viewer.server.server import n_connections; print(n_connections())"
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert 8 <= int(done.stdout) <= 2_048
    assert n_connections() == int(done.stdout)
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
