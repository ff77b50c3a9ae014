"""Sockets and their messages: what a stranger with a page of his own can send."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ..viewer_process import running, viewing
from .raw_page import RawPage, data_event, encoded, fetch, page_token, patch, run

pytestmark = pytest.mark.browser

SPY = """
import sys
spied = []
def spy(event, arguments):
    if spied and event in ("open", "import", "os.listdir", "subprocess.Popen", "compile", "exec"):
        spied.append((event, str(arguments[0])))
sys.addaudithook(spy)
from tornado.web import RequestHandler
class Spied(RequestHandler):
    def get(self):
        self.write({"spied": spied[1:]})
        spied[:] = [("start", "")]
import headatlas.viewer.server.server as server
routes = server.routes
server.routes = lambda *arguments: [*routes(*arguments), ("/spied", Spied)]
"""
"""Code that records what the server opens and imports, from the first request of /spied on."""


@pytest.fixture(scope="module")
def url(store_path: Path) -> Iterator[str]:
    with viewing(store_path, before=SPY) as address:
        yield address


async def spied(url: str) -> list[list[str]]:
    return json.loads((await fetch(f"{url}spied")).body)["spied"]


def unsigned(session_id: str) -> str:
    content = json.dumps({"session_id": session_id, "session_expiry": int(time.time()) + 3_000})
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def hostile_contents(page: RawPage) -> dict[str, str]:
    """Contents of messages that must not reach Bokeh, by what they try."""
    root, router = page.document["roots"][0]["id"], page.model("Router")
    router_id, data_id = router["id"], router["attributes"]["data"]["id"]

    def changed(model: str, attr: str, new: object) -> str:
        return patch({"kind": "ModelChanged", "model": {"id": model}, "attr": attr, "new": new})

    compressed = base64.b64encode(gzip.compress(bytes(10**8))).decode()
    script = {"type": "object", "name": "CustomJS", "id": "x", "attributes": {"args": {"type": "map"}, "code": "1"}}
    icon = {"type": "object", "name": "CustomAction", "id": "y", "attributes": {"icon": "/etc/hostname"}}
    array = {"type": "ndarray", "array": ["x"], "dtype": "S1000000000", "shape": [1], "order": "little"}
    deep: object = 1
    for _ in range(100):
        deep = [deep]
    return {
        "a script": changed(root, "js_property_callbacks", {"type": "map", "entries": [["change:name", [script]]]}),
        "a file as an icon": changed(root, "tags", [icon]),
        "a huge array": changed(root, "tags", [array]),
        "compressed bytes": changed(root, "tags", [{"type": "bytes", "data": compressed}]),
        "children": changed(root, "children", []),
        "a parameter that only Python sets": changed(data_id, "frame", {"type": "map"}),
        "a property of the component's model": changed(router_id, "esm", "alert(1)"),
        "a parameter that is not there": changed(data_id, "__class__", "x"),
        "a model inside a message": patch(data_event(router_id, encoded({"travel": ""}) | {"extra": icon})),
        "an array in a message": patch(data_event(router_id, {"type": "map", "entries": [["travel", array]]})),
        "a reference in a message": patch(
            data_event(router_id, {"type": "map", "entries": [["travel", {"id": root}]]})
        ),
        "a model defined in place of a reference": patch(
            {"kind": "ModelChanged", "model": icon, "attr": "icon", "new": "/etc/passwd"}
        ),
        "deep lists": patch(data_event(router_id, deep)),
        "deep text": '{"events": ' + "[" * 50_000,
        "not a number": patch(data_event(router_id, encoded({"travel": 1}))).replace(", 1]", ", NaN]"),
        "an event of another kind": patch({"kind": "RootRemoved", "model": {"id": root}}),
        "a title": patch({"kind": "TitleChanged", "title": "pwned"}),
        "columns streamed": patch({"kind": "ColumnsStreamed", "model": {"id": root}, "attr": "x", "data": {}}),
        "another event": patch(
            {
                "kind": "MessageSent",
                "msg_type": "bokeh_event",
                "msg_data": {"type": "event", "name": "button_click", "values": {"type": "map"}},
            }
        ),
        "an event of Panel's messages": patch({"kind": "MessageSent", "msg_type": "panel", "msg_data": {"x": 1}}),
        "no event": patch(),
        "many events": patch(*[data_event(router_id, encoded({"dismiss": True}))] * 65),
        "many values": patch(data_event(router_id, encoded({"go": [0] * 10_001}))),
        "buffers": json.dumps({"events": [], "buffers": []}),
        "a list": "[]",
        "nothing": "",
        "five megabytes": patch(data_event(router_id, encoded({"travel": "x" * 5_000_000}))),
    }


def test_messages_beyond_those_of_a_page_get_one_short_refusal(url: str) -> None:
    async def attack() -> None:
        await spied(url)
        page = await (await RawPage.open(url)).ready()
        other = await (await RawPage.open(url)).ready()
        await spied(url)
        for name, content in hostile_contents(page).items():
            answer = await page.ask("PATCH-DOC", content)
            assert answer, name
            assert answer[0]["msgtype"] == "ERROR", name
            assert answer[2] == {"text": "refused", "traceback": None}, name
        for kind in ("PUSH-DOC", "SERVER-INFO-REQ", "OK", "ACK", "x" * 100):
            answer = await page.ask(kind, "{}")
            assert answer, kind
            assert answer[2]["text"] == "refused", kind
        entries = [entry for entry in await spied(url) if entry[0] in ("open", "import")]
        assert [
            entry for entry in entries if not entry[1].endswith((".bookmarks.json", "latest.json"))
        ] == []  # looked at every 2 s
        good = await page.ask("PATCH-DOC", patch(data_event(page.model("Router")["id"], encoded({"travel": ""}))))
        assert good is not None
        assert good[0]["msgtype"] == "OK"
        alive = await other.ask("PULL-DOC-REQ", "{}")
        assert alive is not None
        assert alive[2]["doc"]["roots"][0]["id"] == other.document["roots"][0]["id"]

    run(attack())


@pytest.mark.parametrize(
    "part",
    [b"\x00\x01", "[", "1", '{"msgtype": 1, "msgid": "x"}', '{"msgtype": "PATCH-DOC", "msgid": "x", "num_buffers": 1}'],
)
def test_a_part_that_is_no_header_closes_the_socket(url: str, part: str | bytes) -> None:
    async def attack() -> int | None:
        page = await (await RawPage.open(url)).ready()
        await page.socket.write_message(part, binary=isinstance(part, bytes))
        answer = await page.receive()
        assert answer is not None
        assert answer[2] == {"text": "refused", "traceback": None}
        assert await page.receive() is None
        return page.socket.close_code

    assert run(attack()) == 4002


def test_an_error_of_the_viewer_tells_no_path(store_path: Path) -> None:
    broken = """
from bokeh.server.session import ServerSession
async def fail(message, connection):
    raise RuntimeError("/etc/x")
ServerSession.patch = fail
"""

    async def attack(url: str) -> None:
        page = await (await RawPage.open(url)).ready()
        answer = await page.ask("PATCH-DOC", patch(data_event(page.model("Router")["id"], encoded({"travel": ""}))))
        assert answer is not None
        assert answer[0]["msgtype"] == "ERROR"
        assert answer[2] == {"text": "The viewer failed to handle this.", "traceback": None}

    with viewing(store_path, before=broken) as url:
        run(attack(url))


def test_a_session_is_never_chosen_by_the_address_or_a_header(url: str) -> None:
    async def attack() -> None:
        chosen = "B" * 24
        for options in ({}, {"headers": {"Bokeh-Session-Id": chosen}}):
            token = await page_token(f"{url}?bokeh-session-id={chosen}&bokeh-token={unsigned(chosen)}", **options)
            payload = base64.urlsafe_b64decode(token.split(".")[0] + "===")
            assert chosen.encode() not in payload
        for forged in (unsigned(chosen), "x", "x" * 5_000, token[:-4] + "AAAA"):
            page = await RawPage.open(url, forged)
            assert await page.receive() is None, forged
            assert page.socket.close_code == 4002

    run(attack())


def test_a_session_takes_one_socket_in_its_life(url: str) -> None:
    async def attack() -> None:
        token = await page_token(url)
        first = await (await RawPage.open(url, token)).ready()
        second = await RawPage.open(url, token)
        assert await second.receive() is None
        assert second.socket.close_code == 4001
        assert (await first.ask("PULL-DOC-REQ", "{}")) is not None  # the first one is not disturbed
        first.socket.close()
        await asyncio.sleep(0.5)
        third = await RawPage.open(url, token)
        assert await third.receive() is None

    run(attack())


def test_a_page_of_another_origin_gets_no_socket(url: str) -> None:
    async def attack() -> None:
        token = await page_token(url)
        for headers in (
            {"Origin": "http://evil.example"},
            {"Host": "evil.example"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "websocket"},
        ):
            with pytest.raises(Exception, match=r"403|421"):
                await RawPage.open(url, token, **headers)

    run(attack())


def test_a_socket_answers_pings(url: str) -> None:
    async def ping() -> str | bytes | None:
        page = await (await RawPage.open(url)).ready()
        await page.socket.write_message("ping")
        return await asyncio.wait_for(page.socket.read_message(), 60)

    assert run(ping()) == "pong"


def test_a_page_that_does_not_read_stops_no_memory_from_being_freed(store_path: Path) -> None:
    """A page may ask for more than it reads. What waits for it is bounded."""

    async def attack(url: str, process: psutil.Process) -> int:
        page = await (await RawPage.open(url, None)).ready()
        socket = page.socket.protocol.stream.socket  # type: ignore[union-attr]
        before = process.memory_info().rss
        socket.settimeout(0.0)
        router = page.model("Router")["id"]
        page.socket.read_message = None  # type: ignore[assignment]  (nothing is read from now on)
        for i in range(400):
            content = patch(
                data_event(router, encoded({"travel": f"page=examples&order={'strongest' if i % 2 else 'weakest'}"}))
            )
            for part in (json.dumps({"msgid": str(i), "msgtype": "PATCH-DOC"}), "{}", content):
                await page.socket.write_message(part)
        await asyncio.sleep(2)
        return process.memory_info().rss - before

    with running(store_path, "--no-token") as (url, process):
        assert run(attack(url, psutil.Process(process.pid))) < 200 << 20
