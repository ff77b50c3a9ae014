"""The head view beside BertViz's on the same attention: first paint, hover, another layer, all heads of a layer drawn.

Both are HTML files of `head_view(attention, tokens, html_action="return")`, opened by one browser in turns. BertViz
runs in the Python that HEADATLAS_BERTVIZ names (``pip install bertviz`` there). Its page asks a network for d3, jquery
and require.js: HEADATLAS_BERTVIZ_FILES names a folder with d3.min.js, jquery.min.js and require.min.js that are given
to it instead.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .browser import fresh, launched, timed, took
from .report import Row

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from headatlas.store import Store

LIMIT_S = float(os.environ.get("HEADATLAS_BENCH_LIMIT_S", "60"))
"""Limit of an action. If it is exceeded, longer texts of that model are not tried."""
OPENINGS, HOVERS, LAYERS = 3, 5, 3
FILES = ("d3.min.js", "jquery.min.js", "require.min.js")
_WRITE = """
import sys
import numpy, torch
from bertviz import head_view
data = numpy.load(sys.argv[1])
attention = [torch.from_numpy(layer[None]) for layer in data["attention"]]
page = head_view(attention, data["tokens"].tolist(), html_action="return")
with open(sys.argv[2], "w", encoding="utf-8") as file:
    file.write("<!doctype html><meta charset=utf-8><body>" + page.data)
"""


@dataclass(frozen=True)
class Way:
    """Way to drive one of the two viewers: conditions of `browser`, and actions."""

    name: str
    drawn: str

    def hover(self, page: Page, token: int, limit_s: float) -> float:
        """Point at a query token."""
        raise NotImplementedError

    def layer(self, page: Page, layer: int, limit_s: float) -> float:
        """Show all heads of another layer."""
        raise NotImplementedError


class Ours(Way):
    """headatlas."""

    def hover(self, page: Page, token: int, limit_s: float) -> float:
        """Point at a query token."""
        box = page.locator(f".col.q .t[data-index='{token}'] .l").bounding_box()
        assert box
        target = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        shown = f"""find(".t.me[data-side='q'][data-index='{token}']")"""
        return timed(page, ["mousemove"], lambda: page.mouse.move(*target), shown, limit_s)

    def layer(self, page: Page, layer: int, limit_s: float) -> float:
        """Click the layer's number beside the grid of heads."""
        canvas = page.locator("canvas[data-layers]").first
        top, cell = (float(canvas.get_attribute(f"data-{name}") or 0) for name in ("top", "cell"))
        shown = f"""find('table[data-mirror="edges of the head view"] tr[data-head^="{layer}."]')"""
        position = {"x": 4.0, "y": top + (layer + 0.5) * cell}
        return timed(page, ["click"], lambda: canvas.click(position=position), shown, limit_s)  # type: ignore[arg-type]


class Theirs(Way):
    """BertViz."""

    def hover(self, page: Page, token: int, limit_s: float) -> float:
        """Point at a token of the left column."""
        box = page.locator("#left text").nth(token).bounding_box(timeout=1000 * limit_s)
        assert box
        target = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        shown = f"""(line => line && line.getAttribute("visibility") === "visible")(find("#attention line[left-token-index='{token}']"))"""
        return timed(page, ["mouseover"], lambda: page.mouse.move(*target), shown, limit_s)

    def layer(self, page: Page, layer: int, limit_s: float) -> float:
        """Choose another layer in the list."""
        page.mouse.move(1400, 5)
        page.evaluate("document.querySelector('#vis svg').dataset.old = '1'")
        choose = "l => { const s = document.querySelector('#layer'); s.value = l; s.dispatchEvent(new Event('change', {bubbles: true})); }"
        shown = "(svg => svg && !svg.dataset.old)(find('#vis svg'))"
        return timed(page, ["change"], lambda: page.evaluate(choose, str(layer)), shown, limit_s)


OURS = Ours("headatlas", """find('table[data-mirror="edges of the head view"] tbody tr')""")
THEIRS = Theirs("BertViz", "find('#attention line')")


def beside_bertviz(stores: dict[str, Store]) -> list[Row]:
    """Measure both viewers on the texts of each store; returns rows by length."""
    python = os.environ.get("HEADATLAS_BERTVIZ")
    if not python:
        print(
            "BertViz is skipped. Set HEADATLAS_BERTVIZ to a Python that has it; docs/benchmarks.md says how to make one."
        )
    ways = [OURS, THEIRS] if python else [OURS]
    folder = os.environ.get("HEADATLAS_BERTVIZ_FILES")
    served = {name: Path(folder) / name for name in FILES} if folder else {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as temporary, launched() as browser:
        for model, store in stores.items():
            given_up: set[str] = set()
            for number in range(len(LENGTHS := lengths_of(store))):
                attention, tokens = read(store, number)
                for way in ways:
                    if way.name in given_up:
                        continue
                    label = f"{way.name} · {model} · {LENGTHS[number]} tokens"
                    try:
                        file = Path(temporary) / "page.html"
                        write(way, attention, tokens, file, python or "")
                        ms_by_action = look(browser, way, file, served)
                    except Exception as error:
                        given_up.add(way.name)
                        print(f"{label}: {first_line(error)}")
                        rows.append(
                            Row(f"first paint · {label}", 1000 * LIMIT_S, "ms", None, f"given up: {first_line(error)}")
                        )
                        continue
                    rows += [
                        Row(f"{name} · {label}", statistics.median(ms), "ms", (min(ms), max(ms)))
                        for name, ms in ms_by_action.items()
                    ]
                    print(
                        label, {name: round(statistics.median(ms), 1) for name, ms in ms_by_action.items()}, flush=True
                    )
    return rows


def lengths_of(store: Store) -> list[int]:
    """Return the tokens of the first texts, each longer than the one before."""
    lengths = [len(example.tokens()) for example in store.examples[:5]]
    assert lengths == sorted(set(lengths))
    return lengths


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def read(store: Store, number: int) -> tuple[np.ndarray, list[str]]:
    """Return all maps of an example, and its tokens."""
    example = store.examples[number]
    return example.attention().values, list(example.tokens().text)


def write(way: Way, attention: np.ndarray, tokens: list[str], file: Path, python: str) -> None:
    """Write the page of one of the two viewers."""
    if way is OURS:
        from headatlas.viewer import head_view

        view = head_view(list(attention[:, None]), tokens, html_action="return")
        assert view is not None
        view.save(file)
        return
    data = file.with_suffix(".npz")
    np.savez(data, attention=attention, tokens=np.array(tokens))
    done = subprocess.run([python, "-c", _WRITE, str(data), str(file)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no page was written"])[-1])


def look(browser: Browser, way: Way, file: Path, served: dict[str, Path]) -> dict[str, list[float]]:
    """Open a page several times; hover and change the layer in the last."""
    ms_by_action: dict[str, list[float]] = {"first paint": [], "hover": [], "layer": []}
    for opening in range(OPENINGS):
        with fresh(browser, served, on_start=way.drawn) as page:
            page.goto(file.as_uri(), timeout=1000 * LIMIT_S)
            ms_by_action["first paint"].append(took(page, LIMIT_S))
            if opening < OPENINGS - 1:
                continue
            page.wait_for_timeout(300)
            ms_by_action["hover"] = [way.hover(page, 2 + i, LIMIT_S) for i in range(HOVERS)]
            page.mouse.move(1400, 5)
            page.wait_for_timeout(100)
            ms_by_action["layer"] = [way.layer(page, 1 + i, LIMIT_S) for i in range(LAYERS)]
    return ms_by_action
