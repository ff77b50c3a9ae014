"""Two hundred hostile strings as tokens, texts, ids, annotations, notes and values of the address, on every page.

No script runs, no element of the strings appears, and every character is shown, control characters by their names.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from headatlas.viewer.state.reader_state import ViewState
from headatlas.viewer.theme.token_labels import label, visible, visible_lines

from ..conftest import TWO_HUNDRED, write_store
from ..viewer_process import viewing
from .test_corpus_and_url import opened, wait_query

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import PageRecord

pytestmark = pytest.mark.browser
ALL = len(TWO_HUNDRED)
"""Number of the example whose tokens are all strings. Example i has the i-th string as id, text and annotation."""
PLACE = f"page=views&example={ALL}&specials=show&layer=1&head=2"
READ = """() => { const texts = [], elements = []; const walk = node => { if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes || []) { if (child.nodeType === 3) texts.push(child.data); else if (!["STYLE", "SCRIPT"].includes(child.tagName)) walk(child); }
  if (["IMG", "IFRAME"].includes(node.tagName)) elements.push(node.tagName); if (node.title) texts.push(node.title); if (node.value) texts.push(node.value); };
  walk(document.body); return [texts.join("\\n"), elements, window.ran || 0]; }"""


def text(name: str) -> str:
    """Return a string as one word of a text."""
    return name.replace(" ", "_")


@pytest.fixture(scope="module")
def notes() -> str:
    return "\n".join(TWO_HUNDRED)[:1900]


@pytest.fixture(scope="module")
def hostile_store(tmp_path_factory: pytest.TempPathFactory, notes: str) -> Path:
    rows = [f"{text(name)} they" for name in TWO_HUNDRED] + [" ".join(map(text, TWO_HUNDRED))]
    genres = [f"g {name}" for name in (*TWO_HUNDRED[:30], *TWO_HUNDRED[:30] * 6, "last")][: len(rows)]
    genres += ["last"] * (len(rows) - len(genres))
    path = tmp_path_factory.mktemp("traces") / "<b>store"
    write_store(path, n_segments=1, rows=rows, ids=[*TWO_HUNDRED, "all"], genres=genres)
    bookmarks_path = path.parent / f"{path.name}.bookmarks.json"
    bookmarks_path.write_text(
        json.dumps({"headatlas_bookmarks": 1, "heads": {"encoder 1.2": {"star": True, "note": notes}}})
    )
    return path


@pytest.fixture(scope="module")
def url(hostile_store: Path) -> Iterator[str]:
    with viewing(hostile_store) as address:
        yield address


@pytest.fixture
def watched(page: Page, page_record: PageRecord) -> Page:
    """A page that records an error for a dialog and for a function that the strings call."""
    page.add_init_script("window.ran = 0; window.alert = () => { window.ran++; }")
    page.on("dialog", lambda dialog: (page_record.errors.append(dialog.message), dialog.dismiss()))
    return page


def shown(page: Page) -> str:
    """Return all text of the page. Fails if a string became an element or ran."""
    written, elements, ran = page.evaluate(READ)
    assert elements == []
    assert ran == 0
    return written


def missing(written: str, expected: list[str]) -> list[str]:
    return [name for name in expected if name not in written]


def test_every_page_of_the_examples_names_each(watched: Page, url: str) -> None:
    opened(watched, url, "page=examples")
    watched.locator("a.er").first.wait_for()
    written = ""
    for start in range(0, ALL, 22):
        watched.locator("[data-rows]", has_text=f"rows {start + 1}").wait_for()
        written += shown(watched)
        if start + 22 <= ALL:
            watched.get_by_label("next page").click()
    assert missing(written, [visible(name) for name in TWO_HUNDRED]) == []
    assert missing(written, [visible(f"{text(name)} they") for name in TWO_HUNDRED]) == []
    assert missing(written, [visible(f"g {name}") for name in TWO_HUNDRED[:30]]) == []
    facet = watched.locator("[data-facet=genre]").first
    value = facet.get_attribute("data-value")
    facet.click()
    watched.locator("[data-where=genre]").wait_for()
    assert value in shown(watched)


def test_every_view_writes_each_token(watched: Page, url: str, tmp_path: Path) -> None:
    opened(watched, url, f"{PLACE}&view=head")
    watched.locator("[data-drawn]").wait_for()
    # long words have two tokens: their labels together are the string
    labels = watched.locator(".col.q .l").all_text_contents()
    text_of_labels = "".join(name.removeprefix("+") for name in labels)
    assert missing(text_of_labels, [label(text(name)) for name in TWO_HUNDRED]) == []
    assert missing(shown(watched), labels) == []
    for index in (1, 5, 30):
        watched.locator(f".t[data-side='q'][data-index='{index}']").hover()
    watched.locator(".t[data-side='q'][data-index='1']").click()
    wait_query(watched, pin="q1")
    files = {}
    for kind in ("CSV", "SVG", "HTML"):
        watched.get_by_label("download head view").click()
        with watched.expect_download() as waiting:
            watched.locator(f".downloads[open] [data-format={kind}]").first.click()
        files[kind] = tmp_path / f"view.{kind.lower()}"
        waiting.value.save_as(files[kind])
    pinned = list(csv.DictReader(io.StringIO(files["CSV"].read_text("utf-8"))))
    assert {row["Query"] for row in pinned} == {labels[1]}
    for kind in ("SVG", "HTML"):
        offline = watched.context.new_page()
        requests: list[str] = []
        offline.on("request", lambda request, requests=requests: requests.append(request.url))
        offline.on("dialog", lambda dialog, requests=requests: requests.append(dialog.message))
        address = f"{url}file-of-{kind}"  # the `page` fixture forbids file URLs, so this serves the same bytes
        content_types = {"SVG": "image/svg+xml", "HTML": "text/html; charset=utf-8"}
        answer = {"path": files[kind], "content_type": content_types[kind]}
        offline.route(address, lambda route, _, answer=answer: route.fulfill(**answer))
        offline.goto(address)
        if kind == "HTML":
            offline.locator("[data-drawn]").wait_for()
            assert offline.locator(".col.q .l").all_text_contents() == labels
        else:
            assert offline.locator("text").count() > 10
            assert offline.locator("script, foreignObject, image").count() == 0
        assert requests == [address]
        offline.close()
    views = {
        "model": "strongest cell of each head", "neuron": "scores and attention of the row", "matrix": "strongest cells of the matrix",
        "compare": "heads that change", "space": "query-key space",
    }  # fmt: skip
    for number, (view, mirror) in enumerate(views.items(), 2):
        watched.keyboard.press(str(number))
        wait_query(watched, view=view)
        if view == "compare":
            watched.locator("[data-compare=heads]").click()
        watched.locator(f"table[data-mirror='{mirror}'] tbody tr").first.wait_for(state="attached")
        shown(watched)
    opened(watched, url, f"{PLACE}&view=neuron&pin=q1")
    watched.locator("table[data-mirror='scores and attention of the row'] tbody tr").first.wait_for(state="attached")
    keys = watched.locator(
        "table[data-mirror='scores and attention of the row'] tbody tr td:first-child"
    ).all_text_contents()
    assert keys == labels
    opened(watched, url, f"{PLACE}&view=space&shade=token")
    watched.locator("canvas[data-shade=token]").wait_for()
    assert label(text(TWO_HUNDRED[0])[:6]) in shown(watched)


def test_notes_the_search_and_the_library_show_them(watched: Page, url: str, notes: str) -> None:
    opened(watched, url, "layer=1&head=2")
    field = watched.get_by_label("note on this head")
    field.wait_for()
    assert field.input_value() == visible_lines(notes)
    row = watched.locator("table[data-mirror='numbers of the head map'] tr[data-head='1.2']")
    assert visible(notes) in (row.text_content() or "")
    watched.locator("[data-fact]").first.wait_for()
    written = shown(watched)
    assert visible("<b>store") in written
    expression = (
        f"key.text == {json.dumps(TWO_HUNDRED[2][:6], ensure_ascii=False)} or key.position == query.position - 1"
    )
    opened(watched, url, f"page=search&layer=1&head=2&pattern={quote(expression)}")
    watched.locator(".kw").first.wait_for()
    written = shown(watched)
    assert expression in written
    assert len({visible(name) for name in TWO_HUNDRED} & set(written.splitlines())) > 30  # ids of the listed examples
    opened(watched, url, f"page=search&example={ALL}")
    watched.get_by_text("Draw arcs").click()
    watched.locator(".w[data-side=q]").nth(5).wait_for()
    assert shown(watched)


def test_values_of_the_address_are_named(watched: Page, url: str) -> None:
    fields = [name for name in ViewState.FIELDS if name not in ("pattern", "text", "store")]
    values = dict(zip(fields, TWO_HUNDRED, strict=False))
    values |= {f"x{i}": name for i, name in enumerate(TWO_HUNDRED)}
    query = "&".join(f"{name}={quote(value.encode('utf-8', 'replace'))}" for name, value in values.items())
    opened(watched, url, query)
    watched.get_by_text("Problems:").wait_for()
    written = shown(watched)
    expected = [visible(value.encode("utf-8", "replace").decode()) for value in values.values()]
    assert missing(written, expected) == []
    hostile_text = "".join(TWO_HUNDRED[:3])
    opened(watched, url, f"page=examples&text={quote(hostile_text)}")
    watched.locator("[data-found='0']").wait_for()
    assert visible(hostile_text) in shown(watched)
    opened(watched, url, f"page=search&pattern={quote(hostile_text)}")
    watched.locator("[data-message]").wait_for()
    assert hostile_text in watched.get_by_label("pattern", exact=True).last.input_value()
