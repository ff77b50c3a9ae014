"""Pictures of the viewer's pages for the documentation, taken from a real store: ``python tools/screenshots.py``.

Starts the viewer on a free port, opens each page in a headless Chromium, waits until it has drawn, and writes
``docs/images/NAME-THEME.png``. Fails on any request that leaves the machine and on any error on the console.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATTERN = "subject_of"
# name: (query, what stands there once it is drawn)
PAGES = {
    "corpus": ("statistic=special", "canvas[data-choice=special]"),
    "search": (f"page=search&pattern={quote(PATTERN)}", "[data-mass]"),
    "search-mistake": ("page=search&pattern=" + quote('key.word == query.head and query.deprell == "nsubj"'), ".arrow"),
    "examples": ("page=examples&text=because&statistic=entropy&order=strongest&layer=2&head=8", "a.er"),
    "head": ("page=views&example=9&layer=5&head=3&heads=2.8&pin=q3", "table[data-mirror] tr"),
    "model": ("page=views&view=model&example=9&layer=5&head=3", "table[data-mirror] tr"),
    "neuron": ("page=views&view=neuron&example=9&layer=5&head=3&pin=q3", "table[data-mirror] tr"),
}


@contextmanager
def viewer(store: Path) -> Iterator[str]:
    """Serve a store; gives the address."""
    code = "from headatlas.viewer.cli import app; app()"
    command = [sys.executable, "-c", code, str(store), "--port", "0", "--no-show"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout or ():
            if match := re.search(r"is at (http://\S+)", line):
                try:
                    yield match[1]
                finally:
                    process.terminate()
                return
    sys.exit(f"the viewer could not open {store}")


def take(store: Path, folder: Path, themes: list[str], names: list[str]) -> list[str]:
    """Take the pictures; returns what went wrong."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("HEADATLAS_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit("no Chromium found; install one or set HEADATLAS_CHROMIUM")
    folder.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    with viewer(store) as address, sync_playwright() as playwright:
        arguments = ["--disable-gpu", "--font-render-hinting=none", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        for theme in themes:
            context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
            context.route(lambda url: urlsplit(url).hostname not in ("127.0.0.1", None), lambda route: (wrong.append(route.request.url), route.abort())[-1])
            page = context.new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            for name in names:
                query, drawn = PAGES[name]
                page.goto(f"{address}?{query}")
                page.locator(drawn).first.wait_for(state="attached", timeout=60_000)
                page.wait_for_timeout(700)
                page.screenshot(path=folder / f"{name}-{theme}.png")
            page.goto("about:blank")
            context.close()
        browser.close()
    return wrong


def main() -> None:
    """Take pictures of one store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=ROOT / "traces" / "demo")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--themes", nargs="+", default=["light", "dark"], choices=["light", "dark"])
    parser.add_argument("--pages", nargs="+", default=list(PAGES), choices=list(PAGES))
    arguments = parser.parse_args()
    wrong = take(arguments.store, arguments.out, arguments.themes, arguments.pages)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
