"""Services of the server besides pictures: bookmarks, drawn patterns, growing and damaged stores, login."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import pytest

from headatlas.store.files.manifest import read_manifest
from headatlas.store.files.manifest_names import manifest_name
from headatlas.store.store import open_store

from ..conftest import HOSTILE, write_store
from ..view_data import PATIENCE_S, wait_for
from ..viewer_process import viewing
from .test_corpus_and_url import PREVIOUS, opened, wait_query

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def bookmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bookmarks") / "heads.json"


@pytest.fixture(scope="module")
def url(store_path: Path, bookmarks: Path) -> Iterator[str]:
    with viewing(store_path, "--bookmarks", str(bookmarks)) as address:
        yield address


def test_a_star_and_a_note_are_kept_and_shown_in_every_table(page: Page, url: str, bookmarks: Path) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    opened(page, url, "layer=0&head=1")
    page.get_by_label("star this head").click()
    page.locator("[aria-label='star this head'][aria-pressed=true]").wait_for()
    hostile = " ".join(text for text in HOSTILE if "\ud83d" not in text and "\x00" not in text and "\n" not in text)
    page.get_by_label("note on this head").fill(hostile)
    page.get_by_label("note on this head").blur()
    row = page.locator("table[data-mirror='numbers of the head map'] tr[data-head='0.1']")

    def is_written() -> bool:
        return bookmarks.exists() and bool(
            json.loads(bookmarks.read_text())["heads"].get("encoder 0.1", {}).get("note")
        )

    wait_for(page, is_written)
    assert json.loads(bookmarks.read_text()) == {
        "headatlas_bookmarks": 1,
        "heads": {"encoder 0.1": {"star": True, "note": hostile}},
    }
    page.reload()
    row.wait_for(state="attached")
    assert row.locator("td").all_inner_texts()[3:4] == ["★"] or "★" in row.text_content()
    assert "<img src=x onerror=alert(1)>" in row.text_content()
    assert "‹RLO›" in row.text_content()
    assert page.locator("[data-part=head] b").inner_text() == "0.1 ★"
    opened(page, url, f"page=search&pattern={quote(PREVIOUS)}")
    page.locator("[data-head='0.1'] [data-star=true]").wait_for()
    assert page.locator("body img").count() == 0


def test_a_drawn_arc_becomes_a_pattern_and_names_are_completed(page: Page, url: str) -> None:
    opened(page, url, "page=search&example=9")
    page.get_by_text("Draw arcs").click()
    for query, key in ((2, 1), (3, 2)):
        page.locator(f".w[data-side=q][data-index='{query}']").click()
        page.locator(f".w[data-side=q][data-index='{key}']").click()
    guess = page.locator(f"[data-guess='{PREVIOUS}']")
    guess.wait_for()
    wait_query(page, arcs="2>1,3>2")
    page.reload()
    guess.wait_for()  # the address holds the drawn arcs
    guess.click()
    wait_query(page, pattern=PREVIOUS)
    assert page.locator("[data-mass]").first.get_attribute("data-head") == "0.1"
    page.get_by_text("Write", exact=True).click()
    field = page.get_by_label("pattern", exact=True).last
    field.fill("")
    field.press_sequentially("key.up")
    page.locator("[data-completion=upos]").wait_for()
    page.keyboard.press("Tab")
    assert field.input_value() == "key.upos"
    field.press_sequentially(' == "P')
    page.locator("[data-completion]", has_text="PRON").wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert field.input_value() in ('key.upos == "PRON"', 'key.upos == "PUNCT"')
    page.keyboard.press("Enter")
    page.locator("[data-mass]").first.wait_for()


def test_a_search_that_takes_too_long_says_what_it_has_seen(page: Page, store_path: Path) -> None:
    with viewing(store_path, "--search-s", "0") as address:
        opened(page, address, f"page=search&pattern={quote(PREVIOUS)}")
        page.locator("[data-partial], [data-state=no-match]").first.wait_for()
        assert "of 60 examples" in page.locator("[data-partial]").inner_text()
        page.goto("about:blank")


def test_annotations_filter_the_examples(page: Page, url: str, store_path: Path) -> None:
    opened(page, url, "page=examples")
    page.locator("[data-facet=genre][data-value='<i>news</i>']").click()
    wait_query(page, where='{"genre": "<i>news</i>"}')
    genres = open_store(store_path).example_columns()["genre"].to_list()
    page.locator(f"[data-found='{genres.count('<i>news</i>')}']").wait_for()
    page.locator("[data-where=genre]").click()
    wait_query(page, where="")


def test_a_store_that_grows_is_shown_when_the_reader_asks(page: Page, tmp_path: Path) -> None:
    """The store is complete when the reader opens it, and is then extended by a segment."""
    full = write_store(tmp_path / "whole", n_segments=3, planned=3)
    growing = tmp_path / "growing"
    shutil.copytree(full, growing)
    manifest = sorted(growing.glob("manifest-*.json"))[-1]
    hidden_manifest = tmp_path / manifest.name
    manifest.rename(hidden_manifest)
    (growing / "latest.json").unlink()  # it names the hidden manifest
    before, _ = read_manifest(growing)
    complete = before.model_copy(update={"n_segments_planned": 2, "n_examples_planned": 40})
    (growing / manifest_name(before.number)).write_bytes(complete.to_bytes())
    assert open_store(growing).is_complete
    with viewing(growing) as address:
        opened(page, address, "page=examples")
        page.locator("[data-found='40']").wait_for()
        hidden_manifest.rename(manifest)
        page.locator("[data-banner=growing]", has_text="1 new segment was committed").wait_for()
        assert page.locator("[data-found='40']").count() == 1  # the page does not change by itself
        page.get_by_role("button", name="Show them").click()
        page.locator("[data-found='60']").wait_for()
        page.goto("about:blank")


def test_an_empty_store_opens_by_itself(page: Page, tmp_path: Path) -> None:
    path = write_store(tmp_path / "soon", n_segments=1)
    manifest = sorted(path.glob("manifest-*.json"))[-1]
    hidden_manifest = tmp_path / manifest.name
    manifest.rename(hidden_manifest)
    (path / "latest.json").unlink()  # it names the hidden manifest
    with viewing(path) as address:
        opened(page, address)
        page.locator("[data-state=empty]").wait_for()
        hidden_manifest.rename(manifest)
        page.locator("canvas[data-cell]").first.wait_for()
        page.goto("about:blank")


def test_a_damaged_segment_is_named_and_left_out(page: Page, tmp_path: Path) -> None:
    path = write_store(tmp_path / "hurt", n_segments=3)
    victim = max((path / "segments").rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0)
    victim.unlink()
    with viewing(path) as address:
        opened(page, address, "page=examples")
        banner = page.locator("[data-banner=damaged]")
        banner.wait_for()
        assert victim.name in banner.inner_text()
        assert str(tmp_path) not in page.locator("body").inner_text()
        page.locator("[data-found='40']").wait_for()
        page.goto("about:blank")


def test_a_server_asks_for_a_password_counts_its_readers_and_says_that_it_lives(
    page: Page, page_record, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADATLAS_COOKIE_SECRET", "of sixteen letters or more")
    with viewing(store_path, "--basic-auth", "open sesame", "--max-sessions", "1") as address:
        address_parts = urlsplit(address)
        connection = HTTPConnection(address_parts.hostname or "", address_parts.port, timeout=PATIENCE_S)
        connection.request("GET", "/liveness")
        assert connection.getresponse().status == 200
        connection.close()
        page.goto(address)
        assert "/login" in page.url
        page.locator("input[name=username]").fill("reader")
        page.locator("input[name=password]").fill("open sesame")
        page.locator("input[name=password]").press("Enter")
        page.locator(".path").wait_for()
        second = page.context.new_page()
        second.goto(address)
        second.get_by_text("This viewer is full").wait_for()
        second.close()
        page.goto(f"{address}logout")
        page.get_by_text("You are logged out.").wait_for()
        page.get_by_role("link", name="Log in again").click()
        page.locator("input[name=password]").fill("sesame")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("alert").get_by_text("Invalid").wait_for()
        page_record.errors.clear()  # the browser records the answer 401 as an error
        page.goto("about:blank")
