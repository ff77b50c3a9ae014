"""Ranking and comparison of heads in a real browser: evidence of a search, order of the model view, encoder–decoders.

The tests read the numbers of a picture from its text mirror and compare them with the store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import pytest

from headatlas.store.store import Store, open_store
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.data.vector_space import has_umap, neighbour_plane, sample_tokens

from ..conftest import SITE, write_store
from ..viewer_process import viewing
from .test_corpus_and_url import PREVIOUS, click_head, opened, wait_query
from .test_views import mirror, rows, wait_rows

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
SOURCES = ["The nurse met him .", "They left early .", "He agreed with the plan ."]
EFFECTS = np.linspace(-0.2, 0.9, 2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
"""Effects of the heads at the cross-attention, as `headatlas intervene --keep` adds them."""
TARGETS = ["Die Krankenschwester traf ihn .", "Sie gingen früh .", "Er stimmte dem Plan zu ."]


@pytest.fixture(scope="module")
def translations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three sentences in two languages, with the three sites of an encoder–decoder and effects at one of them."""
    path = write_store(tmp_path_factory.mktemp("traces") / "pairs", n_segments=1, rows=SOURCES, targets=TARGETS)
    description = "zero: change of the next-token loss, nats per token, measured; headatlas intervene"
    open_store(path).add_statistic("zero_loss", EFFECTS, site="cross", unit="nats per token", description=description)
    return path


@pytest.fixture(scope="module")
def url(store_path: Path, translations: Path) -> Iterator[str]:
    with viewing(store_path, str(translations)) as address:
        yield address


def test_ranked_heads_show_their_interval_and_both_baselines(page: Page, url: str, store: Store) -> None:
    expression = 'key.position == query.position - 1 and query.upos == "NOUN"'
    opened(page, url, f"page=search&pattern={quote(expression)}")
    head_rows = wait_rows(page, "ranked heads", lambda mirror_rows: len(mirror_rows) == 12)
    result = store.search(expression)
    table = result.table().set_index(["layer", "head"])
    for row in head_rows:
        layer, head = map(int, row["head"].split("."))
        expected = table.loc[(layer, head)]
        for field, name in (
            ("mass", "mass"), ("low", "mass_low"), ("high", "mass_high"), ("above", "above_uniform"), ("q", "q_uniform")
        ):  # fmt: skip
            assert float(row[field]) == pytest.approx(expected[name], abs=2e-6)
    best = page.locator("button[data-head='0.1']")
    low, high = (float(best.locator("[data-low]").get_attribute(f"data-{end}")) for end in ("low", "high"))
    assert low <= table.loc[(0, 1), "mass"] <= high
    page.get_by_text("grey: not above uniform attention").wait_for()
    assert page.locator(".hr.below").count() == int((table["q_uniform"] >= 0.05).sum())
    page.locator(".hr.below").first.hover()
    page.get_by_text(re.compile("Explained by uniform attention: at most|Undecided, too few data: up to")).wait_for()
    assert f"{result.evidence.null.n_above} above uniform attention" in page.get_by_role("status").first.inner_text()


def test_the_head_map_and_the_scatter_have_the_numbers_of_the_layers(page: Page, tmp_path: Path) -> None:
    site = SITE.model_copy(update={"layer_numbers": (1, 4, 6)})
    path = write_store(tmp_path / "tiny", rows=SOURCES, n_segments=1, site=site)
    names = [f"{layer}.{head}" for layer in (1, 4, 6) for head in range(4)]
    with viewing(path) as address:
        opened(page, address, "layer=4&head=2")
        assert sorted(row["head"] for row in rows(page, "numbers of the head map")) == names
        dots = mirror(page, "heads by two statistics").locator("tbody tr td:first-child")
        assert dots.all_text_contents() == names
        canvas = page.locator("canvas[data-cell]").first
        assert canvas.get_attribute("data-selected") == "4.2"
        canvas.focus()
        page.keyboard.press("ArrowDown")
        wait_query(page, layer="6", head="2")
        click_head(page, 1, 3)
        wait_query(page, layer="4", head="3")


def test_the_model_view_is_ordered_by_a_search_or_by_the_pin(page: Page, url: str, store: Store) -> None:
    opened(page, url, f"page=views&view=model&example=9&pattern={quote(PREVIOUS)}")
    head_rows = rows(page, "strongest cell of each head")
    assert [row["head"] for row in head_rows] == [f"{layer}.{head}" for layer in range(3) for head in range(4)]
    page.locator("[data-arrange=search]").click()
    wait_query(page, arrange="search")
    head_rows = wait_rows(page, "strongest cell of each head", lambda mirror_rows: "score" in mirror_rows[0])
    mass = store.search(PREVIOUS).heads["mass"].values
    assert head_rows[0]["head"] == "0.1"
    scores = [float(row["score"]) for row in head_rows]
    assert scores == sorted(scores, reverse=True)
    for row in head_rows:
        layer, head = map(int, row["head"].split("."))
        assert float(row["score"]) == pytest.approx(mass[layer, head], abs=1e-5)
    page.locator("[aria-label^='model view'] canvas").first.click(position={"x": 20, "y": 30})  # the best head's map
    wait_query(page, layer="", head="")  # 0.1, which a fresh page shows
    page.get_by_role("heading", name="Head 0.1").wait_for()
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name=f"Head {head_rows[1]['head']}").wait_for()
    opened(page, url, "page=views&view=model&example=9&arrange=weight&pin=q3")
    head_rows = wait_rows(page, "strongest cell of each head", lambda mirror_rows: "score" in mirror_rows[0])
    weights = store.examples[9].attention().values[:, :, 3].copy()
    weights[..., [0, 3, -1]] = 0  # itself, and special tokens
    of_edge = weights[..., weights[0, 1].argmax()]  # the strongest edge of head 0.1, which a fresh page shows
    assert [float(row["score"]) for row in head_rows[:3]] == pytest.approx(np.sort(of_edge.ravel())[::-1][:3], abs=1e-5)
    assert page.locator("[data-arrange=search]").is_disabled()


def test_an_encoder_decoder_is_looked_at_site_by_site(page: Page, url: str, translations: Path) -> None:
    store = open_store(translations)
    opened(page, url, "store=pairs&page=views&example=2&layer=2&head=3&heads=1.2,2.1&pin=q4")
    assert page.locator(".col.q .t .l").all_inner_texts() == page.locator(".col.k .t .l").all_inner_texts()
    page.get_by_label("attention site").select_option("cross")
    wait_query(page, site="cross", layer="1", heads="1.2", pin="")  # two layers here: heads of layer 2 are deselected
    page.locator(".col.q .t .l", has_text="Plan").wait_for()
    assert "stimmte" in page.locator(".col.q .t .l").all_inner_texts()
    assert page.locator(".col.k .t .l").all_inner_texts()[1:3] == ["He", "agreed"]
    weights = store.examples[2].attention(1, 3, "cross").values
    for row in wait_rows(page, "edges of the head view", lambda mirror_rows: len(mirror_rows) > 3):
        if row["head"] == "1.3":
            assert float(row["weight"]) == pytest.approx(weights[int(row["q"]), int(row["k"])], abs=1e-5)
    page.locator(".t[data-side=k][data-index='2']").click()
    wait_query(page, pin="k2")
    page.go_back()
    page.go_back()
    wait_query(page, site="", layer="2", pin="q4")
    opened(page, url, "store=pairs&site=cross")
    values = store.statistics("cross")["entropy"].values
    assert page.get_by_label("statistic", exact=True).locator("option", has_text="Previous").count() == 0
    page.get_by_label("statistic", exact=True).select_option("entropy")
    head_rows = wait_rows(page, "numbers of the head map", lambda mirror_rows: len(mirror_rows) == 8)
    assert float(head_rows[0]["value"]) == pytest.approx(np.nanmean(values, axis=-1).max(), rel=0.2)
    opened(page, url, "store=pairs&site=decoder&page=views&view=matrix&layer=1")
    page.get_by_label("attention site").wait_for()
    assert page.get_by_label("attention site").input_value() == "decoder"


def test_kept_effects_are_a_choice_of_the_map_at_their_site(page: Page, url: str, translations: Path) -> None:
    opened(page, url, "store=pairs&site=cross")
    page.get_by_label("statistic", exact=True).select_option("zero_loss")
    wait_query(page, statistic="zero_loss")
    page.locator("canvas[data-choice=zero_loss]").wait_for()
    lengths = np.array([len(example.tokens("target")) for example in open_store(translations).examples])
    means = (EFFECTS * lengths).sum(axis=-1) / lengths.sum()
    shown = wait_rows(page, "numbers of the head map", lambda mirror_rows: len(mirror_rows) == means.size)
    assert {row["head"]: float(row["value"]) for row in shown} == {
        f"{layer}.{head}": pytest.approx(means[layer, head], abs=1e-5) for layer in range(2) for head in range(4)
    }
    page.get_by_text("nats per token").first.wait_for()
    opened(page, url, "store=pairs&site=encoder")
    assert page.get_by_label("statistic", exact=True).locator("option[value=zero_loss]").count() == 0


def test_the_head_view_is_walked_by_keys_and_says_what_it_shows(page: Page, url: str, store: Store) -> None:
    opened(page, url, "page=views&example=9&layer=0&head=1")
    plot = page.locator("[aria-label^='head view']").last
    plot.focus()
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    wait_query(page, pin="q3")
    weights = store.examples[9].attention(0, 1).values[3]
    tokens = store.examples[9].tokens().text
    page.locator("[data-picture='head view'] [aria-live]", has_text=tokens[3]).wait_for()
    live_text = page.locator("[data-picture='head view'] [aria-live]").inner_text()
    assert tokens[int(weights.argmax())] in live_text
    assert f"{weights.max():.2f}".lstrip("0") in live_text
    page.keyboard.press("ArrowRight")
    wait_query(page, pin="k3")
    page.keyboard.press("n")
    page.locator("table.mirror.open[data-mirror='edges of the head view']").wait_for()
    page.keyboard.press("Escape")
    wait_query(page, pin="")


def test_keys_are_listed_and_can_be_turned_off(page: Page, url: str) -> None:
    opened(page, url, "page=views&example=9")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="keys")
    dialog.wait_for()
    for word in ("search", "light or dark", "release the pin"):
        assert word in dialog.inner_text()
    dialog.locator("[data-control=keys]").uncheck()
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.keyboard.press("2")
    page.keyboard.press("t")
    page.get_by_label("keys", exact=True).first.click()
    assert "view=" not in page.url
    assert "theme=" not in page.url
    dialog.locator("[data-control=keys]").check()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("2")
    wait_query(page, view="model")


def test_umap_is_offered_where_it_is_installed(page: Page, store_path: Path) -> None:
    without_umap = "import sys; sys.modules['umap'] = None"
    with viewing(store_path, before=without_umap) as address:
        opened(page, address, "page=views&view=space&layer=1&head=2")
        button = page.locator("[data-method=umap]")
        button.wait_for()
        assert button.is_disabled()
        assert "pip install 'headatlas[umap]'" in (button.get_attribute("title") or "")
        page.goto("about:blank")


@pytest.mark.slow  # the first plane compiles for about a minute
@pytest.mark.skipif(not has_umap(), reason="umap-learn is not installed")
@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")  # only parametric UMAP needs it
def test_umap_takes_the_place_of_the_plane_when_it_is_ready(page: Page, url: str, store: Store) -> None:
    opened(page, url, "page=views&view=space&layer=1&head=2")
    plane = rows(page, "query-key space")
    page.locator("[data-method=umap]").click()
    page.get_by_text("UMAP is being computed").wait_for()
    assert rows(page, "query-key space") == plane  # the plane stays until UMAP is ready
    page.get_by_text("examples \u00b7 UMAP").wait_for(timeout=300_000)
    expected = neighbour_plane(sample_tokens(DataSource(store), store.site(), (1, 2)))
    for row, (x, y) in zip(rows(page, "query-key space")[:50], expected.query[:50].tolist(), strict=True):
        assert (float(row["x"]), float(row["y"])) == pytest.approx((x, y), abs=0.05)
