"""Coming back: stars and notes of heads and examples, their list, and the report."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..view_data import wait_for
from ..viewer_process import viewing
from .test_corpus_and_url import opened, wait_query

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def traces(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(store_path, tmp_path_factory.mktemp("traces") / "tiny"))


@pytest.fixture(scope="module")
def url(traces: Path) -> Iterator[str]:
    with viewing(traces) as address:
        yield address


def bookmarks(traces: Path) -> dict[str, dict[str, dict[str, object]]]:
    path = traces.with_name("tiny.bookmarks.json")
    return json.loads(path.read_text()) if path.exists() else {}


def test_examples_and_heads_are_starred_listed_reached_and_reported(page: Page, url: str, traces: Path) -> None:
    opened(page, url, "page=views&view=head&example=9")
    star = page.get_by_role("button", name="star this example")
    star.wait_for()
    page.keyboard.press("s")
    page.get_by_role("button", name="star this example", pressed=True).wait_for()
    note = page.get_by_label("note on this example")
    note.fill("agreement <b>here</b>")
    note.press("Enter")
    wait_for(
        page, lambda: bookmarks(traces).get("examples") == {"ex-009": {"star": True, "note": "agreement <b>here</b>"}}
    )
    opened(page, url, "layer=0&head=1")
    page.get_by_role("button", name="star this head").click()
    page.get_by_role("button", name="star this head", pressed=True).wait_for()
    assert page.locator("footer").inner_text().endswith("stars and notes can be written")

    # back at a starred example: two actions
    opened(page, url)
    page.keyboard.press("b")
    row = page.locator("[data-bookmark='example ex-009']")
    row.wait_for()
    page.keyboard.press("Tab")  # the filter and the list are reached by keys too
    row.click()
    wait_query(page, page="views", example="9")
    note.wait_for()
    assert note.input_value() == "agreement <b>here</b>"

    page.get_by_role("button", name="stars and notes").click()
    rows = page.locator("[data-bookmark]")
    rows.nth(1).wait_for()
    assert rows.evaluate_all("rows => rows.map(r => r.dataset.bookmark)") == ["head 0.1", "example ex-009"]
    page.get_by_label("filter of stars and notes").fill("agreement")
    page.locator("[data-bookmark='head 0.1']").wait_for(state="detached")
    assert rows.count() == 1
    documents = {}
    for kind in ("html", "md"):
        with page.expect_download() as download:
            page.locator(f"[data-report={kind}]").click()
        assert download.value.suggested_filename == f"headatlas-report.{kind}"
        documents[kind] = Path(download.value.path()).read_text("utf-8")
    for text in documents.values():
        assert "Head 0.1" in text
        assert "ex-009" in text
        assert "<b>here" not in text
    assert documents["html"].count("<svg") == 2
    assert "agreement &lt;b&gt;here" in documents["html"]
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", documents["md"])
    assert [base64.b64decode(picture).startswith(b"<svg") for picture in pictures] == [True, True]
    # head 0.1 attends to the previous token: each drawn line goes up one row
    figure = base64.b64decode(pictures[0]).decode()
    tokens = [
        float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)"[^>]* text-anchor="end" fill="#171C26"', figure)
    ]
    lines = [
        (float(a), float(b))
        for a, b in re.findall(r'M[\d.]+ ([\d.]+)C[\d. ]+ ([\d.]+)(?=M|")', figure)
        if float(a) < max(tokens)  # below are the lines of the scale
    ]
    assert lines
    assert sum(a - b == pytest.approx(tokens[1] - tokens[0], abs=0.02) for a, b in lines) > 0.8 * len(lines)
    page.goto("about:blank")
    page.set_content(documents["html"])
    assert page.locator("figure svg path").count() > len(lines)

    opened(page, url, "page=examples")
    page.locator("[data-example='9'] [data-star=true]").wait_for()
    page.locator("table[data-mirror='examples']").wait_for(state="attached")
    opened(page, url)
    page.locator("table[data-mirror='numbers of the head map'] tr[data-head='0.1']", has_text="\u2605").wait_for(
        state="attached"
    )


def test_a_viewer_that_cannot_write_says_so(page: Page, store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with viewing(store_path, "--bookmarks", str(tmp_path / "file" / "no-folder.json")) as address:
        opened(page, address)
        page.locator("footer", has_text="stars and notes cannot be written").wait_for()
        page.keyboard.press("b")
        page.get_by_text("start the viewer with --bookmarks PATH").wait_for()
