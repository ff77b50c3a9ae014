"""Views as files in a browser: text mirrors agree with the arrays, interaction, hostile strings, no requests."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from headatlas.store.errors import BudgetError
from headatlas.viewer import export, head_view, model_view, neuron_view
from headatlas.viewer.frames import detail_frames as details
from headatlas.viewer.frames import view_frames as frames
from headatlas.viewer.frames.geometry import strongest_edges

from ..conftest import TWO_HUNDRED
from ..view_data import random_attention

EXAMPLE = 9
TOKENS = ["[CLS]", "the", "nurse", "re", "##sched", "##uled", "[SEP]", "they", "met", "[SEP]"]


def random_layers(n=10, n_layers=3, n_heads=4, seed=1, causal=False):
    return [random_attention((1, n_heads, n, n), causal, seed + layer) for layer in range(n_layers)]


def drawn(maps, names, shown, **options):
    """Edges that the rule draws for some heads, as {(head, q, k): weight}."""
    edges = {}
    for name, attention in zip(names, maps, strict=True):
        strongest = strongest_edges(attention, query_shown=shown, key_shown=shown, **options)
        for q, k, w in zip(strongest.query_pos, strongest.key_pos, strongest.weight, strict=True):
            edges[name, int(q), int(k)] = float(w)
    return edges


def test_the_document_forbids_every_request_and_escapes_its_data():
    view = head_view(random_layers(1), ["</script><script>alert(1)</script><!--"], html_action="return")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', view.data)
    assert policy
    assert policy[1].startswith("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'")
    assert view.data.count("<script") == view.data.count("</script>") == 2
    assert "alert(1)</" not in view.data
    assert "http://" not in view.data
    assert "https://" not in view.data
    data = json.loads(re.search(r'id="data">(.*?)</script>', view.data, re.DOTALL)[1])
    assert data["parts"][0]["query"]["labels"] == ["</script><script>alert(1)</script><!--"]
    frame = view._repr_html_()
    assert frame.startswith('<iframe sandbox="allow-scripts allow-downloads" srcdoc="&lt;!doctype html&gt;')
    assert "<script" not in frame


def test_a_document_above_the_size_limit_is_rejected(monkeypatch):
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with pytest.raises(BudgetError, match="include_layers"):
        head_view(random_layers(10), TOKENS, html_action="return")


@pytest.mark.browser
def test_head_view_of_an_example_shows_the_numbers_of_the_store(store, opened):
    example = store.examples[EXAMPLE]
    document = opened(head_view(example, layer=1, heads=[2, 0], html_action="return"))
    document.page.locator("[data-drawn]").wait_for()
    shown = ~example.tokens().special
    maps = example.attention(1, [2, 0]).values
    assert document.edges() == pytest.approx(drawn(maps, ["1.2", "1.0"], shown), abs=1e-6)

    document.page.locator(".t[data-side='q'][data-index='2']").hover()
    document.page.locator(".col.k .bd").first.wait_for()
    badges = document.page.locator(".col.k .bd").evaluate_all(
        "bs => bs.map(b => [b.dataset.head, +b.parentNode.dataset.index, +b.dataset.weight])"
    )
    expected = {
        (name, k): float(maps[i, 2, k])
        for i, name in enumerate(["1.2", "1.0"])
        for k in np.flatnonzero(shown)
        if maps[:, 2, k].max() >= 0.02
    }
    assert {(h, k): w for h, k, w in badges} == pytest.approx(expected, abs=1e-4)

    document.page.locator(".t[data-side='q'][data-index='2']").click()
    document.page.locator(".pinned").wait_for()
    pinned = {(n, 2, int(k)): float(maps[i, 2, k]) for i, n in enumerate(["1.2", "1.0"]) for k in np.flatnonzero(shown) if maps[i, 2, k] >= 0.01}  # fmt: skip
    document.page.mouse.move(600, 690)
    assert document.edges() == pytest.approx(pinned, abs=1e-6)
    side = frames.table_frame(example.tokens())
    everything = example.attention().values
    frame = details.pinned_frame(
        details.PinnedRow("q", 2, maps[:, 2], maps[:, :, 2], everything[:, :, 2]), [(1, 2), (1, 0)], side, side,
        hide_special=True,
    )  # fmt: skip
    assert listing_of(document.page) == pytest.approx(expected_listing(frame), abs=2e-6)
    values = {r["head"]: float(r["value"]) for r in document.mirror("weight of each head")}
    others = shown.copy()
    others[2] = False
    best = frame["partner"]  # the strongest edge of the pinned token
    assert values == pytest.approx(
        {f"{i}.{h}": float(everything[i, h, 2, best]) for i in range(3) for h in range(4)}, abs=1e-6
    )
    document.page.keyboard.press("Escape")
    document.page.locator(".plot:not(.active)").wait_for()
    assert document.edges() == pytest.approx(drawn(maps, ["1.2", "1.0"], shown), abs=1e-6)


def listing_of(page):
    rows = page.locator("[data-row]").evaluate_all("rs => rs.map(r => [r.dataset.row, r.dataset.weights])")
    heads = page.locator("[data-edge-head]").evaluate_all("rs => rs.map(r => [r.dataset.edgeHead, r.dataset.weight])")
    back = page.locator("[data-back]").evaluate_all("rs => rs.map(r => [r.dataset.back, r.dataset.weight])")
    return {
        (kind, name, i): float(weight)
        for kind, items in (("row", rows), ("head", heads), ("back", back))
        for name, weights in items
        for i, weight in enumerate(weights.split(" "))
    }


def expected_listing(frame):
    rows = [(str(r["position"]), r["weights"]) for r in frame["rows"]]
    rows += [(name, frame[name]) for name in ("rest", "hidden") if frame[name]]
    items = [("row", n, w) for n, w in rows]
    items += [("head", h["head"], [h["weight"]]) for h in frame["edge"]["heads"]]
    items += [("back", str(r["position"]), r["weights"]) for r in frame["back"]]
    return {(kind, name, i): w for kind, name, weights in items for i, w in enumerate(weights)}


@pytest.mark.browser
def test_heads_sliders_and_sentences_are_chosen_in_the_file(opened):
    attention = random_layers()
    document = opened(head_view(attention, TOKENS, sentence_b_start=7, layer=1, heads=[3], html_action="return"))
    page, everything = document.page, np.ones(10, bool)
    page.locator("[data-drawn]").wait_for()
    assert document.edges() == pytest.approx(drawn([attention[1][0, 3]], ["1.3"], everything), abs=1e-6)
    page.get_by_role("button", name="all of layer").click()
    page.locator("[data-head='1.0']").first.wait_for()
    names = ["1.0", "1.1", "1.2", "1.3"]
    assert document.edges() == pytest.approx(drawn(attention[1][0], names, everything), abs=1e-6)
    page.locator("[data-head='1.2']").first.dblclick()
    page.locator("[data-control='keys']").fill("2")
    page.locator("[data-control='share']").fill("90")
    page.get_by_text("at most 2").wait_for()
    expected = drawn([attention[1][0, 2]], ["1.2"], everything, keys=2, share=0.9)
    page.locator(f"[data-drawn='{len(expected)}']").wait_for()
    assert document.edges() == pytest.approx(expected, abs=1e-6)
    for value, (rows, columns) in {
        "A \u2192 B": (slice(0, 7), slice(7, 10)), "B \u2192 A": (slice(7, 10), slice(0, 7)),
        "A \u2192 A": (slice(0, 7), slice(0, 7)), "B \u2192 B": (slice(7, 10), slice(7, 10)),
    }.items():  # fmt: skip
        page.locator("select[data-control='range']").select_option(label=value)
        page.get_by_text(f"sentence {value[0]} \u2192 sentence {value[-1]}").wait_for()
        part = strongest_edges(attention[1][0, 2][rows, columns], keys=2, share=0.9)
        expected = {
            ("1.2", int(q) + rows.start, int(k) + columns.start): float(w)
            for q, k, w in zip(part.query_pos, part.key_pos, part.weight, strict=True)
        }
        assert document.edges() == pytest.approx(expected, abs=1e-6)
        assert page.locator(".col.q .t").count() == rows.stop - rows.start
        assert (
            page.locator(".col.k .t").all_inner_texts()[0].startswith({0: "\u2039CLS\u203a", 7: "they"}[columns.start])
        )


@pytest.mark.browser
def test_encoder_decoder_and_cross_attention_have_their_own_tokens(opened):
    encoder, decoder, cross = (
        random_layers(5, seed=2),
        random_layers(3, seed=5, causal=True),
        [random_attention((1, 4, 3, 5), seed=9)] * 3,
    )
    view = head_view(
        encoder_attention=encoder, decoder_attention=decoder, cross_attention=cross,
        encoder_tokens=["a", "b", "c", "d", "e"], decoder_tokens=["x", "y", "z"], heads=[1], html_action="return",
    )  # fmt: skip
    document = opened(view)
    for part, maps in (("Encoder", encoder), ("Cross", cross), ("Decoder", decoder)):
        document.page.locator("select[data-control='part']").select_option(label=part)
        document.page.locator("header .sub", has_text=part).wait_for()
        expected = strongest_edges(maps[0][0, 1], causal=part == "Decoder")
        assert {(q, k): w for (_, q, k), w in document.edges().items()} == pytest.approx(
            {
                (int(q), int(k)): float(w)
                for q, k, w in zip(expected.query_pos, expected.key_pos, expected.weight, strict=True)
            },
            abs=1e-6,
        )
    assert document.page.locator(".col.k .l").all_inner_texts() == ["x", "y", "z"]


@pytest.mark.browser
def test_some_layers_keep_their_numbers(opened):
    attention = random_layers()
    document = opened(head_view(attention, TOKENS, include_layers=[2, 0], layer=2, heads=[1], html_action="return"))
    document.page.locator("[data-drawn]").wait_for()
    assert document.edges() == pytest.approx(drawn([attention[2][0, 1]], ["2.1"], np.ones(10, bool)), abs=1e-6)
    assert [r["head"] for r in document.mirror("weight of each head")][:5] == ["2.0", "2.1", "2.2", "2.3", "0.0"]
    document.page.get_by_role("group", name="heads: rows").focus()
    document.page.keyboard.press("ArrowDown")
    document.page.locator("[data-head='0.1']").first.wait_for()
    assert document.edges() == pytest.approx(drawn([attention[0][0, 1]], ["0.1"], np.ones(10, bool)), abs=1e-6)


@pytest.mark.browser
def test_a_long_text_is_shown_around_the_pin(opened):
    n = 600
    attention = np.zeros((1, 1, n, n), np.float32)
    attention[0, 0, np.arange(n), np.maximum(np.arange(n) - 3, 0)] = 1
    document = opened(head_view([attention], [f"w{i}" for i in range(n)], html_action="return"))
    document.page.get_by_text("tokens 0\u2013511 of 600").wait_for()
    document.page.locator(".t[data-side='q'][data-index='500']").click()
    document.page.get_by_text("tokens 88\u2013599 of 600").wait_for()
    document.page.mouse.move(600, 690)
    assert document.edges() == {("0.0", 500, 497): 1.0}


@pytest.mark.browser
@pytest.mark.parametrize("n", [10, 130])
def test_model_view_shows_every_head_and_enlarges_one(opened, n):
    attention = random_layers(n)
    tokens = TOKENS if n == 10 else [f"w{i}" for i in range(n)]
    document = opened(
        model_view(attention, tokens, 7, include_layers=[0, 2], include_heads=[0, 3], html_action="return")
    )
    document.page.locator("[data-fact], [data-query]").first.wait_for()
    maps = np.concatenate(attention)[[0, 2]][:, [0, 3]]
    pooled = frames.model_frame(frames.to_codes(maps))["codes"]
    rows = document.mirror("strongest cell of each head")
    assert [r["head"] for r in rows] == ["0.0", "0.3", "2.0", "2.3"]
    for row, codes in zip(rows, pooled.reshape(4, *pooled.shape[2:]), strict=True):
        q, k = np.unravel_index(codes.argmax(), codes.shape)
        assert (int(row["q"]), int(row["k"])) == (q, k)
        assert float(row["weight"]) == pytest.approx((codes.max() / 255) ** 2, abs=1e-6)
    document.page.get_by_role("group", name="model view").focus()
    document.page.keyboard.press("ArrowDown")
    document.page.keyboard.press("ArrowRight")
    document.page.get_by_role("heading", name="Head 2.3").wait_for()
    strongest = np.sort(maps[1, 1].ravel())[::-1][:6]
    weights = [float(r["weight"]) for r in document.mirror("map of one head")]
    assert weights == pytest.approx(strongest.tolist(), abs=1e-6)
    document.page.locator("select[data-control='range']").select_option(label="B \u2192 A")
    best = maps[1, 1][7:, :7].max()
    document.page.wait_for_function(
        "best => [...document.querySelectorAll('.host')].some(h => [...h.shadowRoot.querySelectorAll('[data-query]')].some(r => Math.abs(+r.dataset.weight - best) < 1e-5))",
        arg=float(best),
    )
    assert float(document.mirror("map of one head")[0]["weight"]) == pytest.approx(best, abs=1e-6)


@pytest.mark.browser
def test_neuron_view_of_an_example_shows_vectors_and_their_change(store, opened):
    example = store.examples[EXAMPLE]
    document = opened(neuron_view(example, 1, 2, query=2, html_action="return"))
    document.page.locator("[data-worst]").wait_for()
    site, shown = store.site(), ~example.tokens().special
    frame = frames.neuron_frame(
        frames.NeuronRow(
            example.query(1, 2).values[2], example.key(1, 2).values, float(example.logsumexp(1, 2).values[2]),
            example.attention(1, 2).values[2], (1, 2), query_pos=2, scaling=site.scaling[1],
        )
    )  # fmt: skip
    rows = {int(r["key"]): r for r in document.mirror("scores and attention of the row")}
    assert sorted(rows) == np.flatnonzero(shown).tolist()
    for k, row in rows.items():
        assert float(row["score"]) == pytest.approx(float(frame["scores"][k]), abs=2e-5)
        assert float(row["attention"]) == pytest.approx(float(frame["rebuilt"][k]), abs=2e-6)
        assert float(row["stored"]) == pytest.approx(float(frame["stored"][k]), abs=2e-6)
    document.page.locator("[data-zero]").first.click()
    document.page.get_by_text("1 changed").wait_for()
    changed = {int(r["key"]): float(r["attention"]) for r in document.mirror("scores and attention of the row")}
    assert max(abs(changed[k] - float(rows[k]["attention"])) for k in rows) > 1e-4
    document.page.get_by_role("group", name="neuron view").focus()
    document.page.keyboard.press("ArrowDown")
    document.page.get_by_text("position 3").wait_for()
    row = {int(r["key"]): float(r["stored"]) for r in document.mirror("scores and attention of the row")}
    assert row == pytest.approx({k: float(example.attention(1, 2).values[3, k]) for k in row}, abs=2e-6)


@pytest.mark.browser
@pytest.mark.parametrize("prettify", [True, False])
def test_two_hundred_hostile_tokens_do_nothing_and_all_show(opened, prettify):
    hostile = TWO_HUNDRED
    attention = random_attention((1, 2, 200, 200))
    view = head_view([attention], hostile, prettify_tokens=prettify, html_action="return")
    document = opened(view)
    document.page.locator("[data-drawn]").wait_for()
    from headatlas.viewer.theme.token_labels import label, visible

    expected = [label(text) if prettify else visible(text) for text in hostile]
    assert document.page.locator(".col.q .l").evaluate_all("ls => ls.map(l => l.textContent)") == expected
    document.page.locator(".t[data-side='q'][data-index='1']").hover()
    document.page.locator(".t[data-side='q'][data-index='1']").click()
    document.page.locator(".pinned").wait_for()
    assert document.page.evaluate("document.querySelectorAll('img, svg').length") == 0
    opened(model_view([attention], hostile, prettify_tokens=prettify, html_action="return")).page.locator(
        "[data-query]"
    ).first.wait_for()


@pytest.mark.browser
def test_hostile_examples_of_a_store_are_inert_in_every_view(store, opened):
    for number in range(3):
        example = store.examples[number]
        for call in (head_view, model_view, neuron_view):
            document = opened(call(example, html_action="return"))
            document.page.locator("main > .host").first.wait_for()
            assert document.page.locator("h1").inner_text() != ""


@pytest.mark.browser
def test_the_frame_of_a_notebook_shows_the_view(browser):
    view = head_view(random_layers(), TOKENS, html_action="return")
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.set_content(f"<!doctype html><body>{view._repr_html_()}</body>")
    frame = page.frame_locator("iframe")
    frame.locator("[data-drawn]").wait_for()
    frame.locator(".t[data-side='q'][data-index='2']").click()
    frame.locator(".pinned").wait_for()
    page.close()
    assert errors == []
