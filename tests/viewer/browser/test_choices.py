"""Choices of many items in a real browser: heads by a lasso, filtered examples, a second model, a cancelled search."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from headatlas.store.schema.traces import Keep
from headatlas.store.store import Store, open_store
from headatlas.viewer.data.example_filters import sample_ranking

from ..conftest import write_store
from ..view_data import PATIENCE_S, wait_for
from ..viewer_process import viewing
from .test_corpus_and_url import PREVIOUS, opened, wait_query

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser
GATED = """
import time
from pathlib import Path
from headatlas.viewer.data import store_data
search = store_data.search
def gated_search(store, expression, site, limits, on_progress, stop):
    numbers = iter(range(store.n_examples))
    def tell(progress):
        on_progress(progress)
        gate = Path(GATES, str(next(numbers)))
        while not gate.exists() and not stop():
            time.sleep(0.01)
    return search(store, expression, site, limits, tell, stop)
store_data.search = gated_search
"""
"""Python code that makes the search wait after segment N until the file N exists, or until it is cancelled."""


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("traces") / "other", n_examples=20, n_segments=1, keep=Keep(edges=4))


@pytest.fixture(scope="module")
def url(store_path: Path, other_store: Path) -> Iterator[str]:
    with viewing(store_path, str(other_store)) as address:
        yield address


def drag(page: Page, canvas: Locator, corners: list[tuple[float, float]]) -> None:
    """Drag the mouse through corners, given as shares of the width and height of a canvas."""
    box = canvas.bounding_box()
    assert box
    points = [(box["x"] + 2 + x * (box["width"] - 4), box["y"] + 2 + y * (box["height"] - 4)) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def test_a_lasso_chooses_heads_and_any_number_is_drawn_in_its_own_colour(page: Page, url: str, store: Store) -> None:
    opened(page, url)
    canvas = page.locator("[data-picture='heads by two statistics'] canvas")
    canvas.wait_for()
    page.wait_for_timeout(300)
    drag(page, canvas, [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
    page.locator("[data-chosen='12']").wait_for()
    names = [f"{layer}.{head}" for layer in range(3) for head in range(4)]
    page.get_by_role("button", name="Open", exact=True).click()
    wait_query(page, page="views")
    page.locator(".hchip").nth(11).wait_for()
    assert sorted(page.locator(".hchip").all_inner_texts()) == names
    opened(page, url, f"page=views&example=9&layer=0&head=0&heads={','.join(names)}&share=1&keys=64&specials=show")
    page.locator("table[data-mirror='edges of the head view'] tr[data-head='2.3']").first.wait_for(state="attached")
    colours = page.locator(".hchip i").evaluate_all("is => is.map(i => i.style.background)")
    assert len(set(colours)) == 12
    themes = page.evaluate(
        """async ([url, palette]) => { const {paintOf} = await import(new URL(url, document.baseURI).href);
        return ["light", "dark"].map(theme => { const p = paintOf({theme, esm_constants: {palette}}); return Array.from({length: 144}, (_, i) => p.head(i)); }) }""",
        ["./components/headatlas.viewer.components.esm_view/ESMView/_js/paint.js", _palette()],
    )
    assert [len(set(theme)) for theme in themes] == [144, 144]
    assert all(len(colour) == 7 and colour.startswith("#") for theme in themes for colour in theme)
    opened(page, url)
    page.locator("canvas[data-selected]").first.wait_for()


def _palette() -> dict[str, dict[str, object]]:
    from headatlas.viewer.theme.colours import palette

    return palette()


def test_examples_are_chosen_by_length_and_by_value(page: Page, url: str, store: Store) -> None:
    lengths = np.concatenate([segment.tokens("source").n_tokens for segment in store.segments])
    entropy = store.statistics()["entropy"].values[1, 2]
    middle = float(f"{np.median(entropy):.3f}")
    opened(page, url, f"page=examples&statistic=entropy&layer=1&head=2&lengths=6..20&scores=..{middle}")
    expected = np.flatnonzero((lengths >= 6) & (lengths <= 20) & (entropy <= middle))
    assert 0 < len(expected) < len(lengths)
    page.locator(f"[data-found='{len(expected)}']").wait_for()
    numbers = page.locator("a.er").evaluate_all("rows => rows.map(r => +r.dataset.example)")
    assert numbers == expected[:22].tolist()
    page.locator("[data-span=scores]").click()
    wait_query(page, scores="", lengths="6..20")
    page.get_by_label("fewest tokens").fill("10")
    page.get_by_label("fewest tokens").press("Enter")
    wait_query(page, lengths="10..20")
    page.locator(f"[data-found='{int(((lengths >= 10) & (lengths <= 20)).sum())}']").wait_for()
    page.get_by_role("button", name="Clear all").click()
    wait_query(page, lengths="")
    page.locator("[data-found='60']").wait_for()
    drag(page, page.locator("canvas[data-brush=lengths]"), [(0, 0.5), (0.3, 0.5), (0.4, 0.5)])
    page.locator("[data-span=lengths]").wait_for()
    least, most = (float(page.get_by_label(f"{end} tokens").input_value()) for end in ("fewest", "most"))
    page.locator(f"[data-found='{int(((lengths >= least) & (lengths <= most)).sum())}']").wait_for()
    opened(page, url, "page=examples&lengths=many")
    page.get_by_text("expected fewest..most tokens").wait_for()


def test_a_second_model_stands_beside_the_first(page: Page, url: str, other_store: Path) -> None:
    opened(page, url, "statistic=maximum")
    page.get_by_label("another store beside").select_option("other")
    wait_query(page, other_store="other")
    second = page.locator("table[data-mirror='numbers of the other head map'] tbody tr")
    second.first.wait_for(state="attached")
    other = open_store(other_store)
    values = other.statistics()["maximum"].values
    lengths = other.segments[0].tokens("source").n_tokens
    mean = (values * lengths).sum(-1) / lengths.sum()
    for head, value in second.evaluate_all("rows => rows.map(r => [r.dataset.head, +r.dataset.value])"):
        layer, index = map(int, head.split("."))
        assert value == pytest.approx(mean[layer, index], abs=1e-5)
    page.get_by_role("button", name="Compare heads").click()
    wait_query(page, page="views", view="compare", compare="models")
    page.get_by_role("heading", name="other ").first.wait_for()


def test_what_stands_beside_the_pictures_is_downloaded_too(page: Page, url: str, tmp_path: Path) -> None:
    def table(name: str) -> list[dict[str, str]]:
        page.get_by_label(f"download {name}", exact=True).click()
        with page.expect_download() as waiting:
            page.locator(".downloads[open] [data-format]", has_text="CSV").click()
        waiting.value.save_as(tmp_path / "table.csv")
        return list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text("utf-8"))))

    opened(page, url)
    facts = {row["Fact"]: row["Value"] for row in table("store")}
    assert facts["Examples"] == "60"
    opened(page, url, "page=views&example=9")
    page.locator("table[data-mirror='weight of each head'] tbody tr").first.wait_for(state="attached")
    assert len(table("heads")) == 12
    opened(page, url, f"page=search&pattern={quote(PREVIOUS)}")
    page.locator("[data-mass]").first.wait_for()
    assert table("small head map")[0]["head"] == "0.1"


def test_a_search_tells_how_far_it_is_and_is_cancelled(page: Page, tmp_path: Path) -> None:
    path = write_store(tmp_path / "slow", n_segments=12)
    gates = tmp_path / "gates"
    gates.mkdir()
    with viewing(path, before=f"GATES = {str(gates)!r}\n{GATED}") as address:
        opened(page, address, "page=search")
        field = page.get_by_label("pattern", exact=True).last
        field.fill(PREVIOUS)
        field.press("Enter")
        bar = page.locator("[role=progressbar]")

        def percent() -> int:
            return int(bar.get_attribute("aria-valuenow") or 0)

        for number in range(2):
            (gates / str(number)).touch()
        wait_for(page, lambda: percent() > 0)
        before = percent()
        for number in range(2, 4):
            (gates / str(number)).touch()
        wait_for(page, lambda: percent() > before)  # the bar moves
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Run", exact=True).wait_for()
        partial = page.locator("[data-partial]")
        partial.wait_for()
        n = int(partial.inner_text().split("after ")[1].split(" of")[0])
        assert 0 < n < 60
        best = page.locator("[data-mass]").first
        assert best.get_attribute("data-head") == "0.1"  # the partial result counts
        page.goto("about:blank")


def test_pages_of_logins_ask_for_nothing_elsewhere(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADATLAS_COOKIE_SECRET", "of sixteen letters or more")
    options = ("--oauth", "github", "--oauth-key", "key", "--oauth-secret", "secret")
    with viewing(store_path, *options) as address:
        address_parts = urlsplit(address)

        def get(path: str) -> tuple[int, str, str]:
            connection = HTTPConnection(address_parts.hostname or "", address_parts.port, timeout=PATIENCE_S)
            connection.request("GET", path)
            answer = connection.getresponse()
            response = answer.status, answer.getheader("Location") or "", answer.read().decode()
            connection.close()
            return response

        status, location, _ = get("/")
        assert status == 302
        assert location.startswith("./login")
        status, location, _ = get("/login")
        assert status == 302
        assert location.startswith("https://github.com/login/oauth/authorize?")  # only the address of the provider
        for path in ("/login?code=x&state=wrong", "/login?error=access_denied&error_description=%3Cb%3Eno", "/logout"):
            _, _, body = get(path)
            assert "headatlas" in body, path
            assert "://" not in body, path
            assert "<b>" not in body


def test_other_parts_of_a_ranking_stand_beside_the_strongest(page: Page, url: str, store: Store) -> None:
    result = store.search(PREVIOUS)
    ranking = result.ranked_examples(0, 1).tolist()
    opened(page, url, f"page=search&pattern={quote(PREVIOUS)}&layer=0&head=1")
    rows = page.locator("table[data-mirror='ranked examples'] tbody tr")
    page.locator(".kw").first.wait_for()
    samples = {
        "Weakest": sample_ranking(np.array(ranking), "weakest", 60).tolist(),
        "Deciles": sample_ranking(np.array(ranking), "deciles", 60).tolist(),
        "Random": sample_ranking(np.array(ranking), "random", 60).tolist(),
    }
    assert samples["Weakest"] != ranking[:60]
    for name, numbers in samples.items():
        page.get_by_role("button", name=name, exact=True).click()
        wait_query(page, sample=name.lower())
        page.locator(f".kw[data-example='{numbers[0]}']").first.wait_for()
        page.get_by_role("button", name=name, exact=True, pressed=True).wait_for()
        assert [int(v) for v in page.locator(".kw").evaluate_all("ks => ks.map(k => k.dataset.example)")] == numbers
        ranked_scores = rows.evaluate_all(
            "rows => rows.map(row => [Number(row.dataset.rank), Number(row.dataset.score)])"
        )
        hits = result.hits(0, 1, np.array(numbers))
        assert ranked_scores == [[ranking.index(hit.example) + 1, pytest.approx(hit.score, abs=1e-6)] for hit in hits]
    page.reload()
    page.get_by_role("button", name="Random", exact=True, pressed=True).wait_for()
