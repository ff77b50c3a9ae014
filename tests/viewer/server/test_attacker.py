"""An attacker: thousands of random messages, addresses and headers, from a page of the attacker's own.

The attacker must change nothing for another reader, read no file, import no module, and learn no path.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from ..view_data import PATIENCE_S
from ..viewer_process import running
from .raw_page import RawPage, data_event, encoded, fetch, models, page_token, patch, run
from .test_messages import SPY, hostile_contents, spied

pytestmark = pytest.mark.browser
SECRET = "of sixteen letters or more"
FIELDS = (
    "page",
    "view",
    "layer",
    "head",
    "example",
    "pattern",
    "text",
    "where",
    "zoom",
    "arcs",
    "heads",
    "pin",
    "store",
)
TEXTS = (
    "", "0", "-1", "1e999", "NaN", "\x00", "\ud83d", "\u202e", "../../etc/passwd", "file:///etc/passwd", "<script>alert(1)</script>",
    "{{7*7}}", "__import__('os')", "key.position == query.position - 1", "(" * 900, "not " * 400, '{"a": 1}', "9" * 40, "x" * 3_000,
    "q3", "1.2", "0,0,9", "3>2", "views", "search", "matrix", "neuron",
)  # fmt: skip


class Attacker:
    """Source of random messages and addresses."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        """Return a random JSON value; deeper ones are rarer."""
        choice = self.random.randrange(9 if depth < 4 else 5)
        if choice < 3:
            return self.random.choice(TEXTS).replace("\ud83d", "?")
        if choice < 5:
            return self.random.choice([None, True, False, 0, -1, 2**31, 2**63, 1.5, -1e300])
        if choice == 5:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if choice == 6:
            names = ("type", "id", "name", "attributes", "entries", "array", "dtype", "shape", "data", "code", "model")
            return {self.random.choice(names): self.value(depth + 1) for _ in range(self.random.randrange(4))}
        return encoded({self.random.choice(FIELDS): self.value(5) for _ in range(self.random.randrange(1, 4))})

    def content(self, page: RawPage) -> str:
        """Return the content of a random message: valid, nearly valid or nonsense."""
        names = [model["id"] for model in models(page.document)]
        choice = self.random.randrange(8)
        if choice == 0:
            return self.random.choice(list(hostile_contents(page).values()))
        if choice == 1:
            return json.dumps(self.value())
        if choice == 2:
            attr = self.random.choice(
                ["frame", "pin", "selected", "tags", "children", "esm", "shade", "theme", "visible", "zoom"]
            )
            model = {"id": self.random.choice(names)}
            return patch({"kind": "ModelChanged", "model": model, "attr": attr, "new": self.value()})
        if choice == 3:
            text = patch(data_event(self.random.choice(names), self.value()))
            at = self.random.randrange(len(text))
            return text[:at] + self.random.choice('{}[]",:0x') + text[at + self.random.randrange(3) :]
        name = self.random.choice(
            [
                "go",
                "travel",
                "find",
                "suggest",
                "run",
                "bookmark",
                "refresh",
                "dismiss",
                "download",
                "tiles",
                "open",
                "add",
            ]
        )
        fields = {self.random.choice(FIELDS): self.random.choice(TEXTS).replace("\ud83d", "?") for _ in range(3)}
        data: Any = fields
        if name == "travel":
            data = "&".join(f"{field}={quote(value, errors='replace')}" for field, value in fields.items())
        elif name in ("find", "suggest", "run"):
            data = self.random.choice(TEXTS).replace("\ud83d", "?")
        elif self.random.randrange(2):
            data = self.value()
        return patch(data_event(self.random.choice(names), encoded({name: data})))

    def request(self) -> tuple[str, dict[str, Any]]:
        """Return a random path with options of the request."""
        parts = (
            "components", "static", "js", "ws", "login", "logout", "liveness", "..", "%2e%2e", "%00", "etc", "passwd", "autoload.js",
            "extensions", "panel", "os", "torch", "x", "", "start.js", "metadata", "%c0%ae", "headatlas.viewer.components.esm_view",
        )  # fmt: skip
        path = "/".join(self.random.choice(parts) for _ in range(self.random.randrange(6)))
        query = "&".join(f"{self.random.choice([*FIELDS, 'bokeh-session-id', 'bokeh-token', 'token', 'endpoint', 'next'])}="
                         f"{quote(self.random.choice(TEXTS), errors='replace')}" for _ in range(self.random.randrange(4)))  # fmt: skip
        headers = {
            name: self.random.choice(["x", "evil.example", "127.0.0.1", "1" * 300, "a, b", "http://evil.example", "null", "-1"])
            for name in self.random.sample(
                ["Host", "Origin", "Cookie", "X-Forwarded-For", "Bokeh-Session-Id", "Range", "If-None-Match", "Sec-Fetch-Site",
                 "Upgrade", "Accept-Encoding", "Referer", "Authorization", "X-Forwarded-Proto"], self.random.randrange(4)
            )
        }  # fmt: skip
        method = self.random.choice(["GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS"])
        return f"{path}?{query}" if query else path, {
            "method": method,
            "headers": headers,
            "allow_nonstandard_methods": True,
        }


def leaks(text: bytes | str, store: Path) -> bool:
    """Return True if a text holds a traceback or a path of the server."""
    content = text.decode(errors="replace") if isinstance(text, bytes) else text
    return any(part in content for part in ("Traceback", "site-packages", str(store.parent), '.py"', "root:x:0"))


async def send_messages(url: str, attacker: Attacker, n: int, store: Path, headers: dict[str, str]) -> dict[str, int]:
    """Send random messages from pages of the attacker's own. Returns the numbers of answers by kind."""
    page, counts = None, {"OK": 0, "ERROR": 0, "closed": 0}
    for _ in range(n):
        if page is None or page.socket.close_code is not None:
            page = await (await RawPage.open(url, await page_token(url, headers=headers), **headers)).ready()
        kind = attacker.random.choice(["PATCH-DOC"] * 12 + ["PULL-DOC-REQ", "PUSH-DOC", "x"])
        answer = await page.ask(kind, attacker.content(page) if kind != "PULL-DOC-REQ" else "{}")
        if answer is None:
            counts["closed"] += 1
            page = None
        else:
            counts[answer[0]["msgtype"] if answer[0]["msgtype"] in counts else "OK"] += 1
            assert not leaks(json.dumps(answer) if answer[0]["msgtype"] == "ERROR" else "", store)
    return counts


async def send_requests(url: str, attacker: Attacker, n: int, store: Path) -> dict[int, int]:
    """Send random requests. Returns the numbers of answers by status."""
    counts: dict[int, int] = {}
    for _ in range(n):
        path, options = attacker.request()
        try:
            answer = await fetch(f"{url}{path}", **options)
        except ValueError:  # the client itself cannot send this
            continue
        counts[answer.code] = counts.get(answer.code, 0) + 1
        assert answer.code != 500, path
        assert not leaks(answer.body or b"", store), path
    return counts


async def watch(url: str, stop: asyncio.Event) -> float:
    """Return the longest wait for an answer of /liveness."""
    longest = 0.0
    while not stop.is_set():
        start = time.monotonic()
        assert (await fetch(f"{url}liveness")).code == 200
        longest = max(longest, time.monotonic() - start)
        await asyncio.sleep(0.05)
    return longest


@pytest.mark.parametrize(("n_messages", "n_requests"), [(300, 150), pytest.param(5_000, 2_000, marks=pytest.mark.slow)])
def test_an_attacker_changes_nothing_for_another_reader(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, n_messages: int, n_requests: int
) -> None:
    monkeypatch.setenv("HEADATLAS_COOKIE_SECRET", SECRET)
    before = SPY + "\nimport resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))"
    with running(store_path, "--basic-auth", "sesame", "--search-s", "2", before=before) as (url, process):

        async def attack() -> None:
            login = await fetch(f"{url}login", method="POST", body="username=mallory&password=sesame")
            cookie = {"Cookie": "; ".join(text.split(";")[0] for text in login.headers.get_list("Set-Cookie"))}
            reader = await (await RawPage.open(url, await page_token(url, headers=cookie), **cookie)).ready()
            document = roots_text(reader.document)
            memory = psutil.Process(process.pid).memory_info().rss
            await spied(url)
            stop = asyncio.Event()
            liveness = asyncio.create_task(watch(url, stop))
            attacker = Attacker(seed=7)
            answers = await send_messages(url, attacker, n_messages, store_path, cookie)
            statuses = await send_requests(url, attacker, n_requests, store_path)
            stop.set()
            again = await reader.ask("PULL-DOC-REQ", "{}")
            assert again is not None
            assert roots_text(again[2]["doc"]) == document
            entries = await spied(url)
            opened = [path for kind, path in entries if kind == "open" and not is_own_file(path, store_path)]
            imported = [
                name for kind, name in entries if kind == "import" and name in ("unittest", "torch", "os.path", "x")
            ]
            growth = psutil.Process(process.pid).memory_info().rss - memory
            print(f"messages {answers}; requests {statuses}; longest wait for /liveness {await liveness:.2f} s; "
                  f"memory +{growth >> 20} MiB; files opened elsewhere {opened}; modules imported {imported}")  # fmt: skip
            assert opened == imported == []
            assert answers["ERROR"] > n_messages // 4
            assert growth < 500 << 20

        run(asyncio.wait_for(attack(), 20 * PATIENCE_S))


def roots_text(document: dict[str, Any]) -> str:
    """Return the models of a document as text, without the numbers of its binary parts."""
    return re.sub(r'\{"id": "p\d+"\}, "type": "bytes"', "bytes", json.dumps(document["roots"], sort_keys=True))


def is_own_file(path: str, store: Path) -> bool:
    """Return True for files of the store and of the installed packages, which the server may open."""
    return (
        path.isdigit()
        or path.startswith(str(store.parent))
        or path.endswith((".py", ".pyc", ".so", ".js", ".css", ".html", ".grammar", ".toml"))
    )
