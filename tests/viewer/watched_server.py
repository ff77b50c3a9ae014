"""A viewer in a process of its own that is watched: bytes read, memory, and the work of its event loop.

Run as a script it serves a store and writes a line for each request of `/liveness`: seconds until the answer, and the
processor seconds that the event loop's thread spent meanwhile. The latter does not depend on other programs.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.viewer_load import Reader, model_of, opened

ROOT = Path(__file__).resolve().parents[2]
IDLE_S = 0.4
MAX_WORK_S = 240
"""Most processor time of the server until it is idle. It does not depend on other programs, as a time to wait would."""


def watch(log: Path) -> None:
    """Wait for the address of the server, then request `/liveness` again and again, and log each answer."""
    address = log.with_suffix(".url")
    while not address.exists():
        time.sleep(0.05)
    url, clock = address.read_text(), time.pthread_getcpuclockid(threading.main_thread().ident or 0)
    with log.open("w", buffering=1) as file:
        while True:
            start, work = time.monotonic(), time.clock_gettime(clock)
            with urllib.request.urlopen(url + "/liveness", timeout=120) as answer:
                answer.read()
            file.write(json.dumps([start, time.monotonic() - start, time.clock_gettime(clock) - work]) + "\n")
            time.sleep(0.02)


def serve(store: str, log: str) -> None:
    """Serve a store and watch the server."""
    from headatlas.viewer.commands import app

    threading.Thread(target=watch, args=(Path(log),), daemon=True).start()
    sys.argv = ["view", store, "--port", "0", "--no-show", "--no-token"]
    app()


@dataclass
class Click:
    """Measures of one click."""

    name: str
    read_bytes: int
    peak_bytes: int
    """Peak of the resident memory above that of the idle server."""
    seconds: float
    slowest_s: float
    """Longest time until an answer of `/liveness`."""
    busiest_s: float
    """Most processor time of the event loop's thread until an answer of `/liveness`."""
    loop_bytes: int
    """Bytes of `read_bytes` that the event loop's thread has read itself."""
    longest_message: int
    """Characters of the longest message to the browser."""
    text: str = field(repr=False)
    """All messages to the browser."""


class Watched:
    """A running viewer with one session, for use in an event loop."""

    def __init__(self, url: str, process: subprocess.Popen[str], log: Path) -> None:
        self.url, self.process, self._log = url, process, log
        self._reader: Reader | None = None
        self._router, self.idle_bytes = "", 0
        self._texts: list[str] = []
        self._pump: asyncio.Task[None] | None = None

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self.process.pid}/{name}").read_text()

    def _status(self, name: str) -> int:
        match = re.search(rf"^{name}:\s+(\d+)", self._proc("status"), re.MULTILINE)
        assert match
        return 1024 * int(match[1])

    def read_bytes(self, *, on_loop: bool = False) -> int:
        """Return the bytes that the server, or the thread of its event loop, has read from files and sockets so far."""
        counts = self._proc(f"task/{self.process.pid}/io" if on_loop else "io")
        match = re.search(r"^rchar: (\d+)", counts, re.MULTILINE)
        assert match
        return int(match[1])

    def work_s(self) -> float:
        """Return the processor time of the server so far, in seconds."""
        fields = self._proc("stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_working(self) -> bool:
        """True if a thread of the server runs now."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                state = (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if state in "RD":
                return True
        return False

    async def open(self, query: str = "") -> None:
        """Open a session and wait until it is idle."""
        self._reader = await opened(self.url + "/" + query)
        self._router = self._reader.router

        async def pump() -> None:
            assert self._reader is not None
            while True:
                _, content = await self._reader.message()
                self._texts.append(content)

        self._pump = asyncio.create_task(pump())
        await self.idle()

    async def close(self) -> None:
        """Close the session."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        if self._reader is not None:
            self._reader.connection.close()
            while await self._reader.connection.read_message() is not None:
                pass

    async def idle(self) -> None:
        """Wait until the server has not worked for a moment."""
        start, samples = self.work_s(), [True] * 20
        while sum(samples) > 6:
            assert self.work_s() - start < MAX_WORK_S, "the server still works"
            await asyncio.sleep(IDLE_S / len(samples))
            samples = [*samples[1:], self.is_working()]

    def start(self) -> None:
        """Take the memory of the idle server as the base of all peaks."""
        self.idle_bytes = self._status("VmRSS")

    async def send(self, patch: dict[str, Any]) -> None:
        """Send a change of the state, as a click does, and return at once."""
        assert self._reader is not None
        entries = [[name, value] for name, value in patch.items()]
        data = {"type": "map", "entries": [["go", {"type": "map", "entries": entries}]]}
        await self._reader.event("data_event", model={"id": self._router}, data=data)

    async def download(self, file: str, picture: str) -> Click:
        """Request the HTML file of a component that the last clicks have made, and measure until the server is idle."""
        documents = [json.loads(text) for text in self._texts if file in text]
        model = {"id": next(model_of(document, file) for document in documents)}
        data = {"type": "map", "entries": [["download", picture]]}
        assert self._reader is not None
        return await self._measure("download", self._reader.event("data_event", model=model, data=data))

    async def click(self, name: str, patch: dict[str, Any]) -> Click:
        """Send a change of the state and measure until the server is idle again."""
        return await self._measure(name, self.send(patch))

    async def _measure(self, name: str, request: Coroutine[Any, Any, None]) -> Click:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # resets VmHWM
        read, on_loop, begin = self.read_bytes(), self.read_bytes(on_loop=True), time.monotonic()
        self._texts.clear()
        await request
        await self.idle()
        seconds = time.monotonic() - begin - IDLE_S
        answers = [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("]")]
        during = [(wall, work) for start, wall, work in answers if start + wall >= begin]
        return Click(
            name, self.read_bytes() - read, self._status("VmHWM") - self.idle_bytes, seconds,
            max(wall for wall, _ in during), max(work for _, work in during),
            self.read_bytes(on_loop=True) - on_loop, max(map(len, self._texts), default=0), "".join(self._texts),
        )  # fmt: skip


@contextmanager
def watched(store: Path, log: Path) -> Iterator[Watched]:
    """Serve a store in a process of its own."""
    code = "import sys; from tests.viewer.watched_server import serve; serve(*sys.argv[1:])"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(store), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        try:
            assert process.stdout is not None
            matches = (re.search(r"is at (http://[^\s/]+)", line) for line in process.stdout)
            match = next((match for match in matches if match), None)
            assert match, "the viewer did not start"
            threading.Thread(target=process.stdout.read, daemon=True).start()
            log.with_suffix(".part").write_text(match[1])
            log.with_suffix(".part").rename(log.with_suffix(".url"))
            yield Watched(match[1], process, log)
        finally:
            process.kill()
            process.wait(20)
