"""A causal model in a browser: the switch for the first token, roles, the search box, and the edges of a pattern.

The store has no special tokens: its first token is the sink. Words have a governor and a relation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import pytest

from headatlas.store.schema.token_table import Column, TokenFlag, TokenTable
from headatlas.store.store import open_store

from ..conftest import SITE, token_table, write_store
from ..view_data import wait_for
from ..viewer_process import viewing
from .test_corpus_and_url import opened, wait_query

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
ROWS = [f"The nurse told the patient that {name} met the nurse and told the patient ." for name in "abcdefghijkl"] * 4
MATRIX_END = "[data-picture='matrix'] .legend [data-high]"
"""Upper end of the matrix's scale."""
HIDE, RENORMALISE = "[data-control='hide_special']", "[data-control='weights']"


def annotated(rows: list[str], second: list[str | None]) -> TokenTable:
    """Make tokens of which none is special; every word depends on the one before it, every third as an object."""
    table = token_table(rows, second)
    counts = np.diff(table.word_offset)
    head = np.concatenate([np.arange(n) - 1 for n in counts]).astype(np.int32)
    relation = [("obj", "det", "nsubj")[word % 3] if word >= 0 else "root" for word in head.tolist()]
    columns = {"head": Column(head), "deprel": Column.of_text(relation), "relation": Column.of_text(relation)}
    flags = table.flags & ~np.uint8(TokenFlag.SPECIAL)
    return replace(table, flags=flags, word_columns={**table.word_columns, **columns})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = SITE.model_copy(update={"causal": True, "name": "decoder"})
    folder = tmp_path_factory.mktemp("traces") / "causal"
    return write_store(folder, rows=ROWS, n_segments=1, site=site, table_of=annotated)


@pytest.fixture(scope="module")
def url(path: Path) -> Iterator[str]:
    with viewing(path) as address:
        yield address


def keys_drawn(page: Page) -> set[int]:
    """Return the keys of the listed edges of the head view."""
    rows = page.locator("table[data-mirror='edges of the head view'] tbody tr")
    rows.first.wait_for(state="attached")
    return {int(row.get_attribute("data-k")) for row in rows.all()}


def test_the_switch_hides_the_first_token_in_every_view(page, url, path):
    attention = open_store(path).examples[0].attention(0, 0).values
    opened(page, url, "page=views&view=head&example=0&layer=0&head=0")
    page.get_by_text("hide first token and special tokens").wait_for()
    assert page.locator(HIDE).is_checked()
    assert 0 not in keys_drawn(page)
    shown = attention[1:, 1:].max()
    high = page.locator("[data-count]").first
    wait_for(page, lambda: abs(float(high.get_attribute("data-high")) - shown) < 0.01)
    assert shown < 0.99 < attention[:, 0].max()  # the first token does not set the scale
    for view, selector in (("model", ".count[data-high] >> visible=true"), ("matrix", MATRIX_END)):
        page.locator(f"[data-view='{view}']").click()
        number = page.locator(selector).first
        number.wait_for()
        wait_for(page, lambda number=number: 0 < float(number.get_attribute("data-high")) < 1)
        assert page.locator(f"{HIDE} >> visible=true").is_checked()
    page.locator(f"{HIDE} >> visible=true").uncheck()
    wait_query(page, specials="show")
    wait_for(page, lambda: float(page.locator(MATRIX_END).get_attribute("data-high")) == 1)


def test_rows_are_renormalised_by_a_switch_of_its_own(page, url, path):
    row = open_store(path).examples[0].attention(0, 0).values[5, 1:6]
    opened(page, url, "page=views&view=head&example=0&layer=0&head=0&pin=q5")
    page.locator(f"{RENORMALISE} >> visible=true").check()
    wait_query(page, weights="renormalised")
    page.get_by_text("rows add up to 1").wait_for()
    best = int(row.argmax()) + 1
    edge = page.locator(f"table[data-mirror='edges of the head view'] tr[data-q='5'][data-k='{best}']")
    wait_for(page, lambda: edge.count() == 1 and abs(float(edge.get_attribute("data-weight")) - row.max() / row.sum()) < 0.01)  # fmt: skip


def test_the_grid_shows_the_weight_of_the_pinned_edge(page, url, path):
    attention = open_store(path).examples[0].attention().values
    opened(page, url, "page=views&view=head&example=0&layer=0&head=1&pin=q5")

    def grid() -> dict[str, float]:
        cells = page.locator("table[data-mirror='weight of each head'] tr[data-head]").all()
        return {cell.get_attribute("data-head"): float(cell.get_attribute("data-value")) for cell in cells}

    def is_edge(key: int) -> bool:
        values = grid()
        return len(values) == 12 and all(
            abs(value - attention[int(name[0]), int(name[2]), 5, key]) < 0.01 for name, value in values.items()
        )

    wait_for(page, lambda: is_edge(4))  # head 0.1 looks at the previous token
    row = page.locator("button[data-row]").nth(1)
    key = int(row.get_attribute("data-row"))
    row.click()
    wait_query(page, pin=f"q5k{key}")
    wait_for(page, lambda: is_edge(key))


def test_the_first_page_names_the_roles(page, url):
    opened(page, url)  # previous-token heads: no action
    page.locator("[data-picture='roles'][data-done='true']").wait_for()
    role = page.locator("a[data-role='previous_token']")
    assert (role.get_attribute("data-best"), int(role.get_attribute("data-n")) > 0) == ("0.1", True)
    assert page.locator("a[data-role='special_token']").count() == 0
    assert int(page.locator("canvas[data-roles]").first.get_attribute("data-roles")) > 0
    best = page.locator("a[data-role='induction']").get_attribute("data-best")
    page.locator("a[data-role='induction']").click()  # induction heads: one action
    wait_query(page, statistic="induction")
    page.get_by_role("heading", name=f"Head {best}").wait_for()
    page.locator(".strip[data-statistic='induction'].on").wait_for()
    assert page.locator(".strip[data-statistic='duplicate']").count() == 1


def test_one_box_understands_heads_tokens_names_and_texts(page, url):
    opened(page, url)
    box = page.locator(".find input")
    box.fill("L1H2")
    page.locator(".found [data-kind='head']").get_by_text("Head 1.2").wait_for()
    box.press("Enter")
    wait_query(page, layer="1", head="2")
    box.fill("nurse")
    page.locator(".found [data-kind='text']").wait_for()
    assert page.locator(".found [data-kind]").first.get_attribute("data-kind") == "token"
    box.press("Enter")
    wait_query(page, page="search", pattern='key.text == "nurse"')
    box.fill("nurse told")
    box.press("Enter")
    wait_query(page, page="examples", text="nurse told")


def test_objects_of_verbs_with_examples_in_one_entry(page, url):
    opened(page, url)
    box = page.locator(".find input")
    box.fill("objects of verbs")  # one typed entry
    box.press("Enter")
    wait_query(page, page="search", pattern='key.word == query.head and query.deprel == "obj"')
    rows = page.locator(".kw")
    rows.first.wait_for()
    counts = page.locator(".kw [data-count]")
    assert rows.count() + sum(int(c.get_attribute("data-count")) - 1 for c in counts.all()) >= 10
    texts = page.locator(".words").all_text_contents()
    assert len(set(texts)) == len(texts)  # equal quotes are one row
    assert counts.count() > 0
    rows.first.click()  # the example opens with the edge pinned, and the pattern's edges stand out
    page.locator("[data-matching]").wait_for()
    assert int(page.locator("[data-matching]").get_attribute("data-matching")) > 0
    wait_for(page, lambda: "k" in page.url.partition("pin=q")[2].partition("&")[0])
    page.get_by_role("button", name="highlight no pattern").click()
    wait_query(page, pattern="")
    wait_for(page, lambda: page.locator("[data-matching]").count() == 0)


def test_search_lists_what_the_store_can_answer(page, url):
    opened(page, url, "page=search")
    item = page.locator("[data-pattern-item='induction']")
    item.get_by_text("a token looks at the tokens that followed its earlier copies").wait_for()
    for absent in ("next_token", "special_token", "other_segment", "coreferent"):
        assert page.locator(f"[data-pattern-item='{absent}']").count() == 0
    editor = page.locator("input[aria-label='pattern']")
    editor.press_sequentially("query.")
    names = page.locator("[data-completion]")
    names.first.wait_for()
    order = [node.get_attribute("data-completion") for node in names.all()]
    assert {"upos", "deprel", "head"} <= set(order[: order.index("position")])  # the fields of the corpus come first


def test_an_error_names_the_nearest_and_keeps_the_library(page, url):
    opened(page, url, "page=search&pattern=" + quote('indukshun and query.upos == "NOUN"'))
    message = page.locator(".problem [data-message]")
    message.wait_for()
    assert len(message.inner_text()) < 160
    opened(page, url, "page=search&pattern=" + quote('query.deprell == "obj"'))
    page.locator(".problem").get_by_text("did you mean deprel?").wait_for()
    assert page.locator(".chip[data-pattern='induction']").is_visible()
