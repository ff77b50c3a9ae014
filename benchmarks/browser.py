"""A Chromium that times changes of a page: from an event or the start of the page to the paint of the change.

A condition is JavaScript over `find(selector)`, which searches every shadow root. It is evaluated once a frame. The
time ends after the paint of the frame in which the condition first holds, so the wait for a frame counts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROBE = """
(() => {
  const roots = [document], attach = Element.prototype.attachShadow;
  Element.prototype.attachShadow = function (init) { const root = attach.call(this, init); roots.push(root); return root; };
  const find = selector => { for (const root of roots) { const node = root.querySelector(selector); if (node) return node; } return null; };
  const until = (condition, done) => {
    const holds = new Function("find", `return ${condition}`);
    const look = () => requestAnimationFrame(() => {
      if (!holds(find)) return look();
      const {port1, port2} = new MessageChannel();
      port1.onmessage = () => done(performance.now());
      port2.postMessage(0);
    });
    look();
  };
  window.probe = {
    took: null, find,
    sinceStart(condition) { this.took = null; until(condition, now => { this.took = now; }); },
    sinceEvent(types, condition) {
      this.took = null;
      let started = null;
      const begin = () => {
        if (started !== null) return;
        started = performance.now();
        for (const type of types) removeEventListener(type, begin, true);
        until(condition, now => { this.took = now - started; });
      };
      for (const type of types) addEventListener(type, begin, true);
    },
  };
})()
"""


def program() -> str | None:
    """Return the system's Chromium, or the program that HEADATLAS_CHROMIUM names; None if there is none."""
    named = os.environ.get("HEADATLAS_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """Run a headless Chromium without a GPU."""
    from playwright.sync_api import sync_playwright

    path = program()
    if path is None:
        raise RuntimeError("no Chromium was found; install one or set HEADATLAS_CHROMIUM")
    arguments = ["--disable-gpu", "--disable-dev-shm-usage", "--font-render-hinting=none"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextmanager
def fresh(browser: Browser, served: dict[str, Path] | None = None, on_start: str = "") -> Iterator[Page]:
    """Open a page with an empty cache and the probe.

    `on_start` is a condition that is timed from the start of the page. Requests that leave this machine are answered
    with files of `served`, by the end of the address (``{"d3.min.js": path}``), and refused otherwise.
    """
    context: BrowserContext = browser.new_context(  # our pages forbid the probe
        viewport={"width": 1440, "height": 900}, reduced_motion="reduce", bypass_csp=True
    )
    context.set_default_timeout(30_000)

    def answer(route: Route) -> None:
        url = route.request.url
        if urlsplit(url).scheme == "file" or urlsplit(url).hostname == "127.0.0.1":
            return route.continue_()
        file = next((path for end, path in (served or {}).items() if url.endswith(end)), None)
        return route.fulfill(path=file, content_type="text/javascript") if file else route.abort()

    context.route("**/*", answer)
    context.add_init_script(PROBE + (f"; probe.sinceStart({on_start!r})" if on_start else ""))
    try:
        yield context.new_page()
    finally:
        context.close()


class Work:
    """Processor milliseconds of a page's main thread, which other jobs on the machine do not lengthen."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self._before = self.total_ms()

    def total_ms(self) -> float:
        """Return the milliseconds since the page began."""
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return 1000 * next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    def so_far_ms(self) -> float:
        """Return the milliseconds since this object was made."""
        return self.total_ms() - self._before


def took(page: Page, limit_s: float = 60) -> float:
    """Return the milliseconds until the condition of the probe held; TimeoutError after `limit_s`."""
    page.wait_for_function("probe.took !== null", polling=50, timeout=1000 * limit_s)
    return float(page.evaluate("probe.took"))


def timed(page: Page, types: list[str], act: Callable[[], object], condition: str, limit_s: float = 60) -> float:
    """Return the milliseconds from the first event of `types` that `act` causes to the paint with `condition`."""
    page.evaluate("([types, condition]) => probe.sinceEvent(types, condition)", [types, condition])
    act()
    return took(page, limit_s)
