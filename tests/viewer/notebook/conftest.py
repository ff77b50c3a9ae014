"""Fixture `opened`: a browser opens a view's file from disk and records every request, error and dialog."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ..view_data import PATIENCE_S

READ = """name => { const tables = []; const walk = n => { if (n.shadowRoot) walk(n.shadowRoot); for (const c of n.children || []) walk(c); if (n.dataset && n.dataset.mirror === name) tables.push(n); };
walk(document.documentElement); return tables.flatMap(t => [...t.querySelectorAll('tbody tr')].map(r => ({...r.dataset, cells: [...r.children].map(c => c.textContent)}))) }"""


class OpenedView:
    """One page from disk, with its requests, errors and dialogs."""

    def __init__(self, page, url: str) -> None:
        self.page, self.url = page, url
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda r: self.requests.append(r.url))
        page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("dialog", lambda d: (self.errors.append(f"dialog {d.message}"), d.dismiss()))

    def mirror(self, name: str) -> list[dict]:
        """Return the rows of a text mirror: data attributes and cells."""
        return self.page.evaluate(READ, name)

    def edges(self) -> dict[tuple[str, int, int], float]:
        """Return the weight of each drawn edge of the head view by (head, query, key)."""
        rows = self.mirror("edges of the head view")
        return {(r["head"], int(r["q"]), int(r["k"])): float(r["weight"]) for r in rows}

    def check(self) -> None:
        """Assert that the page requested nothing but its own file and reported no error."""
        assert self.requests == [self.url]
        assert self.errors == []


@pytest.fixture
def opened(browser, tmp_path) -> Iterator[Callable[..., OpenedView]]:
    """`opened(view)` saves a view and opens the file. At the end of the test every page is checked."""
    running = []

    def start(view, width: int = 1400, height: int = 700) -> OpenedView:
        path = view.save(tmp_path / f"view{len(running)}.html")
        context = browser.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce", offline=True
        )
        context.set_default_timeout(1000 * PATIENCE_S)
        document = OpenedView(context.new_page(), path.as_uri())
        running.append((context, document))
        document.page.goto(document.url)
        return document

    yield start
    for context, _ in running:
        context.close()
    for _, document in running:
        document.check()
