"""Take the pictures of the documentation from a store, in a browser that may only access this machine.

``python tools/screenshots.py [STORE] [--only NAME]`` serves the store, opens the states listed in `PICTURES`, and writes
docs/images/NAME.png. Look at the pictures before you commit them: the program cannot detect every error page.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1440, 900
START_LIMIT_S = 60
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_EDGE = {"page": "views", "example": 58, "layer": 1, "head": 3, "pin": "q4"}
_STATES: dict[str, dict[str, str | int]] = {
    "viewer": {**_EDGE, "view": "head", "heads": "3.1"},
    "corpus": {"page": "corpus", "statistic": "special", "layer": 4, "head": 5},
    "search": {"page": "search", "pattern": "key.lower == query.lower and key.position != query.position"},
    "search-mistake": {"page": "search", "pattern": 'key.word == query.head and query.deprell == "nsubj"'},
    "examples": {
        "page": "examples",
        "text": "because",
        "statistic": "entropy",
        "order": "strongest",
        "layer": 2,
        "head": 8,
    },
    "model": {"page": "views", "view": "model", "example": 58, "layer": 1, "head": 3},
    "neuron": {**_EDGE, "view": "neuron"},
    "matrix": {**_EDGE, "view": "matrix"},
    "compare": {**_EDGE, "view": "compare", "compare": "heads", "other_head": "3.1"},
    "space": {"page": "views", "view": "space", "layer": 1, "head": 3, "shade": "token"},
}
PICTURES = {
    f"{name}{end}": {**state, "theme": theme}
    for name, state in _STATES.items()
    for end, theme in (("", "light"), ("-dark", "dark"))
}
"""State of each picture, as parameters of the viewer's URL."""
DRAWN = {
    "search": "[data-mass], .arrow",
    "examples": "a.er",
    "views": "table[data-mirror] td",
    "corpus": "[data-picture=roles][data-done=true]",
}
"""Selector of an element that each page has once it is drawn."""


@contextmanager
def serving(store: Path) -> Iterator[str]:
    """Serve the store on a free port of this machine while the block runs. Yield the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    command = [
        sys.executable,
        "-m",
        "headatlas.store.commands.main",
        "view",
        str(store),
        "--port",
        str(port),
        "--no-show",
        "--no-token",
    ]
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                urlopen(address, timeout=5).close()
                break
            except (URLError, OSError):
                if server.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"The viewer did not start within {START_LIMIT_S} s: {' '.join(command)}")
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def take(address: str, names: list[str], folder: Path) -> list[str]:
    """Write a picture of each named state. Return the errors and forbidden requests of the pages."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("HEADATLAS_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit("Chromium is not installed. Install it, or set HEADATLAS_CHROMIUM to its path.")
    arguments = ["--disable-gpu", "--font-render-hinting=none"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    folder.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        for name in names:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
            page.route(
                lambda url: not url.startswith((address, "data:", "blob:")),
                lambda route: (problems.append(f"requested {route.request.url}"), route.abort())[-1],
            )
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.goto(f"{address}?{urlencode(PICTURES[name])}")
            page.locator(DRAWN[str(PICTURES[name]["page"])]).first.wait_for(state="attached", timeout=120_000)
            if PICTURES[name].get("view") == "space":  # computed in the background
                page.locator("canvas[data-shade]").wait_for(timeout=60_000)
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(2_000)  # the last frame arrives over the web socket, which networkidle ignores
            page.screenshot(path=folder / f"{name}.png")
            print(f"wrote {folder / name}.png")
            page.close()
        browser.close()
    return problems


def main() -> None:
    """Serve the store and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?", default=ROOT / "traces" / "demo")
    parser.add_argument("--only", choices=PICTURES, action="append")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    with serving(arguments.store) as address:
        problems = take(address, arguments.only or list(PICTURES), arguments.out)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
