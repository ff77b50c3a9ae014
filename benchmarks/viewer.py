"""Latency of the viewer in a real browser, alone and beside BertViz: ``make bench-viewer``.

A server process serves small stores (`viewer_stores`). A Chromium without a GPU on the same machine opens them. Times
go from the start of a page, or from the event, to the paint that shows the answer (`browser`). HEADATLAS_BENCH_VIEWER
names a folder that keeps the stores between runs, in a folder named after their content. Without it they are captured
anew each time, which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np

from .browser import Work, fresh, launched, program, timed, took
from .report import Row, keep_rows

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
FIRST_DRAWS, CLICKS, SESSIONS, SECONDS = 5, 20, 50, 15
PARTS = ("first", "clicks", "hover", "model", "table", "pan", "sessions")
HEAD_VIEW = 'table[data-mirror="edges of the head view"]'
GOALS = {
    "first draw": 1500, "click to head view": 60, "hover 512": 16, "model view": 100, "table page": 200,
    "50 sessions median": 100, "50 sessions p95": 200, "50 sessions memory": 2, "pan 8192": 100,
}  # fmt: skip
"""Milliseconds; memory in MB a session."""


def main(arguments: Iterable[str] = ()) -> None:
    """Measure and write build/bench/viewer.json."""
    options = parse_options(arguments)
    if program() is None:
        print("The viewer is skipped: no Chromium was found. Set HEADATLAS_CHROMIUM to its program file.")
        return
    from headatlas.store import open_store

    from .viewer_beside import beside_bertviz
    from .viewer_stores import make_stores

    with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as temporary:
        stores = make_stores(Path(os.environ.get("HEADATLAS_BENCH_VIEWER") or temporary))
        rows: list[Row] = []
        if not options.beside:
            rows += own(stores, options)
        if not options.own:
            models = {"MiniLM": stores["minilm"], "GPT-2 shape": stores["gpt2"]}
            rows += beside_bertviz({name: open_store(path) for name, path in models.items()})
    keep_rows(rows, "viewer")


def parse_options(arguments: Iterable[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="make bench-viewer",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog='Example: HEADATLAS_BENCH_VIEWER=build/bench/viewer make bench-viewer ARGS="--only hover,clicks"',
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--own", action="store_true", help="measure the viewer alone")
    group.add_argument("--beside", action="store_true", help="measure the comparison with BertViz alone")
    group.add_argument(
        "--only",
        type=_parts,
        metavar="PART,…",
        help=f"measure these parts of the viewer alone: {', '.join(PARTS)}; other rows of build/bench/viewer.json stay",
    )
    parser.add_argument(
        "--sessions", type=int, default=SESSIONS, help=f"number of sessions at the same time; default: {SESSIONS}"
    )
    parser.add_argument(
        "--seconds", type=int, default=SECONDS, help=f"seconds that each session clicks; default: {SECONDS}"
    )
    options = parser.parse_args(list(arguments))
    if options.sessions < 1 or options.seconds < 1:
        parser.error("--sessions and --seconds are 1 or more")
    options.own, options.only = options.own or options.only is not None, options.only or PARTS
    return options


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    return parts


def own(stores: dict[str, Path], options: argparse.Namespace) -> list[Row]:
    """Measure the parts of the viewer that `options` name."""
    rows: list[Row] = []
    in_one_page = {"clicks": clicks, "hover": hovers, "model": model_view, "table": table_page, "pan": pan}
    with launched() as browser:
        if "first" in options.only:
            with serving(stores["sentences"]) as server:
                rows += first_draw(browser, server)
        if parts := [part for part in in_one_page if part in options.only]:
            with serving(*(stores[name] for name in ("sentences", "minilm", "gpt2", "many", "document"))) as server:
                for part in parts:
                    rows += in_one_page[part](browser, server)
    if "sessions" in options.only:
        with serving(stores["sentences"]) as server:
            rows += sessions(server, options.sessions, options.seconds)
    return rows


class Server:
    """Address and process of a running viewer."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url, self.process = url, process

    def cpu_ms(self) -> float:
        """Return the processor milliseconds so far; NaN if the system does not tell."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return float("nan")
        return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Return the resident memory of the server; NaN if the system does not tell."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return float("nan")
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(match[1]) / 1000 if match else float("nan")


@contextmanager
def serving(*stores: Path) -> Iterator[Server]:
    """Run `headatlas view` on a free port."""
    code = "from headatlas.viewer.commands import app; app()"
    command = [sys.executable, "-c", code, *map(str, stores), "--port", "0", "--no-show", "--no-token"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        try:
            assert process.stdout is not None
            match = next(
                (address for line in process.stdout if (address := re.search(r"is at (http://\S+)", line))), None
            )
            assert match, "the viewer did not start"
            # Drain the pipe, so that the server never blocks on it.
            Thread(target=process.stdout.read, daemon=True).start()
            yield Server(match[1], process)
        finally:
            process.terminate()
            process.wait(20)


def row(name: str, ms: list[float], beside: str, unit: str = "ms") -> Row:
    """Print and return a row: the median, the smallest and largest, and the goal if there is one."""
    goal = f", goal {GOALS[name]:,}" if name in GOALS else ""
    print(f"{name}: median {np.median(ms):.1f} {unit}, largest {max(ms):.1f}{goal}", flush=True)
    return Row(name, float(np.median(ms)), unit, (min(ms), max(ms)), beside + goal)


class Meter:
    """Repeated measurement of one action in one page: latencies, and processor time of server and page."""

    def __init__(self, server: Server, page: Page) -> None:
        self.server, self.page, self.ms = server, page, []
        self._server_ms, self._work = server.cpu_ms(), Work(page)

    def time(self, types: list[str], act: Callable[[], object], condition: str) -> None:
        """Measure the action once more."""
        self.ms.append(timed(self.page, types, act, condition))

    def rows(self, name: str, beside: str) -> list[Row]:
        """Return the latency, and the processor time of one action."""
        n = len(self.ms)
        page_ms, server_ms = self._work.so_far_ms() / n, (self.server.cpu_ms() - self._server_ms) / n
        print(f"{name}: {server_ms:.1f} ms of the server's processor, {page_ms:.1f} ms of the page's", flush=True)
        work = Row(f"{name}, processor", page_ms + server_ms, "ms", None, f"server {server_ms:.1f}, page {page_ms:.1f}")
        return [row(name, self.ms, beside), work]


def first_draw(browser: Browser, server: Server) -> list[Row]:
    """Time the corpus page with an empty cache, from the address to the drawn head map."""
    ms = []
    for _ in range(FIRST_DRAWS):
        with fresh(browser, on_start="find('canvas[data-selected][data-cell]')") as page:
            page.goto(server.url)
            ms.append(took(page))
    cold = Row("first draw, first of a server", ms[0], "ms", None, "nothing of the store was read before")
    return [row("first draw", ms, f"corpus page, empty cache, {FIRST_DRAWS} openings"), cold]


def ready(page: Page, address: str, condition: str) -> None:
    """Open an address and wait until the page is drawn and idle."""
    page.goto(address)
    page.wait_for_function(f"(find => {condition})(s => probe.find(s))")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(400)


def clicks(browser: Browser, server: Server) -> list[Row]:
    """Time the choice of a head in the grid beside the head view, and in the map of the corpus page."""
    rows = []
    with fresh(browser) as page:
        ready(page, f"{server.url}?page=views&view=head&example=9", f"find('{HEAD_VIEW} tr[data-head]')")
        meter = Meter(server, page)
        canvas = page.locator("canvas[data-layers]").first
        left, top, cell = (float(canvas.get_attribute(f"data-{name}") or 0) for name in ("left", "top", "cell"))
        for layer, head in cells():
            position = {"x": left + (head + 0.5) * cell, "y": top + (layer + 0.5) * cell}
            shown = f"find('{HEAD_VIEW} tr[data-head=\"{layer}.{head}\"]')"
            meter.time(["click"], lambda position=position: canvas.click(position=position), shown)  # type: ignore[misc]
        rows += meter.rows("click to head view", f"MiniLM, one sentence, {CLICKS} heads")
    with fresh(browser) as page:
        ready(page, server.url, "find('canvas[data-selected][data-cell]')")
        meter = Meter(server, page)
        canvas = page.locator("canvas[data-cell][data-selected]").first
        names = ("left", "top", "across", "down")
        left, top, across, down = (float(canvas.get_attribute(f"data-{name}") or 0) for name in names)
        for layer, head in cells():
            position = {"x": left + (head + 0.5) * across, "y": top + (layer + 0.5) * down}
            shown = f"find('section[aria-label=head] h2')?.textContent === 'Head {layer}.{head}'"
            meter.time(["click"], lambda position=position: canvas.click(position=position), shown)  # type: ignore[misc]
        return rows + meter.rows("click to inspector", f"corpus page, {CLICKS} heads")


def cells() -> list[tuple[int, int]]:
    """Return the heads to click, never the same twice in a row."""
    return [(5 * i % 6, (7 * i + 1) % 12) for i in range(CLICKS)]


def hovers(browser: Browser, server: Server) -> list[Row]:
    """Time a hover over a token, at 512 tokens: one head, and all twelve of a layer."""
    rows = []
    heads = ",".join(f"0.{head}" for head in range(1, 12))
    for name, chosen in (("hover 512, one head", ""), ("hover 512", f"&heads={heads}")):
        with fresh(browser) as page:
            query = f"?store=minilm&page=views&view=head&example=4&layer=0&head=0&specials=show{chosen}"
            ready(page, server.url + query, f"find('{HEAD_VIEW} tr[data-head]')")
            meter = Meter(server, page)
            for token in range(3, 3 + CLICKS):
                box = page.locator(f".col.q .t[data-index='{token}'] .l").bounding_box()
                assert box
                to = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
                shown = f"""find(".t.me[data-side='q'][data-index='{token}']")"""
                meter.time(["mousemove"], lambda to=to: page.mouse.move(*to), shown)  # type: ignore[misc]
            rows += meter.rows(name, f"MiniLM, {'12 heads' if chosen else 'one head'}, {CLICKS} tokens")
    return rows


def model_view(browser: Browser, server: Server) -> list[Row]:
    """Time the model view of 12 × 12 heads at 64 tokens: the next example, and the opening of the view."""
    opening: list[float] = []
    with fresh(browser) as page:
        for number in range(5, 8):
            query = f"?store=gpt2&page=views&view=head&example={number}&specials=show"
            ready(page, server.url + query, f"find('{HEAD_VIEW} tr[data-head]')")
            shown = "find('canvas[data-maps]')"
            opening.append(timed(page, ["keydown"], lambda: page.keyboard.press("2"), shown))
        ready(
            page, f"{server.url}?store=gpt2&page=views&view=model&example=5&specials=show", "find('canvas[data-maps]')"
        )
        meter = Meter(server, page)
        for step in range(14):
            old = page.evaluate("probe.find('canvas[data-maps]').dataset.maps")
            shown = f"find('canvas[data-maps]').dataset.maps !== {old!r}"
            key = "j" if step // 7 % 2 == 0 else "k"
            meter.time(["keydown"], lambda key=key: page.keyboard.press(key), shown)  # type: ignore[misc]
            page.wait_for_timeout(150)
        rows = meter.rows("model view", "12 × 12 × 64, the next example")
    return [*rows, row("model view, opened", opening, "from the head view")]


def table_page(browser: Browser, server: Server) -> list[Row]:
    """Time the next page of 10,000 examples, in corpus order and by a statistic."""
    rows = []
    for name, order in (("table page", ""), ("table page, ordered", "&order=strongest")):
        with fresh(browser) as page:
            ready(page, f"{server.url}?store=many&page=examples{order}", "find('a.er')")
            meter = Meter(server, page)
            button = page.get_by_label("next page")
            for _ in range(CLICKS):
                old = page.locator("[data-rows]").inner_text()
                shown = f"find('[data-rows]').textContent !== {old!r}"
                meter.time(["click"], button.click, shown)
            rows += meter.rows(name, "of 10,000 examples")
    return rows


def pan(browser: Browser, server: Server) -> list[Row]:
    """Time a drag in the matrix of 8,192 tokens, until every tile of the new window is drawn."""
    with fresh(browser) as page:
        query = "?store=document&page=views&view=matrix&specials=show&layer=1&head=2&zoom=5000,4000,700"
        ready(page, server.url + query, "find(\"canvas[data-missing='0']\")")
        box = page.locator("canvas[data-missing]").bounding_box()
        assert box
        x, y = box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.7
        page.mouse.move(x, y)
        page.mouse.down()
        meter = Meter(server, page)
        for step in range(1, CLICKS + 1):
            old = page.evaluate("probe.find('canvas[data-missing]').dataset.column")
            shown = f"(c => c.dataset.column !== {old!r} && c.dataset.missing === '0')(find('canvas[data-missing]'))"
            to = x - 28 * step, y - 12 * step
            meter.time(["pointermove"], lambda to=to: page.mouse.move(*to), shown)  # type: ignore[misc]
        page.mouse.up()
        rows = meter.rows("pan 8192", f"{CLICKS} steps of 28 pixels, query and key stored")
    return [*rows, Row("pan 8192 p95", float(np.percentile(meter.ms, 95)), "ms", None, "tiles made meanwhile included")]


def sessions(server: Server, n_sessions: int, seconds: int) -> list[Row]:
    """Measure many sessions at a click a second each: latency and memory."""
    client = [sys.executable, "-m", "benchmarks.viewer_load", server.url]
    for n, lasting in ((2, 3), (n_sessions, seconds)):  # the first sessions fill the shared cache
        before = server.memory_mb()
        command = [*client, str(n), str(lasting), "6", "12"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            opened = server.memory_mb()
            process.stdin.write("\n")
            process.stdin.flush()
            ms = json.loads(process.stdout.readline())
            ended = server.memory_mb()
    beside = f"{n_sessions} sessions, a click a second each for {seconds} s"
    mb = (max(opened, ended) - before) / n_sessions
    p95 = float(np.percentile(ms, 95))
    named = f"{n_sessions} sessions"
    rows = [row(f"{named} median", ms, beside)]
    for name, value, unit in ((f"{named} p95", p95, "ms"), (f"{named} memory", mb, "MB")):
        goal = f", goal {GOALS[name]}" if name in GOALS else ""
        print(f"{name}: {value:.2f} {unit}{goal}", flush=True)
        rows.append(Row(name, value, unit, None, beside + goal))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
