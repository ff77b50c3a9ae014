"""Head picker, key list, model view, enlarged head and neuron view: mirrors agree with the arrays, clicks work."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from headatlas.store.schema.head_dimensions import parse_factors
from headatlas.store.schema.traces import Site
from headatlas.viewer.frames import detail_frames as details
from headatlas.viewer.frames import view_frames as frames
from headatlas.viewer.frames.geometry import rescaled_row

from ..view_data import random_attention, wait_for

pytestmark = pytest.mark.browser
LABELS = ["‹CLS›", "the", "nurse", "said", "she", "‹SEP›"]
TOKENS = frames.tokens_frame(LABELS, [True, False, False, False, False, True], LABELS)


def mirror_rows(page, name):
    """Return the rows of a text mirror as dicts of their data attributes."""
    table = page.locator(f"table[data-mirror='{name}']")
    table.locator("tbody tr").first.wait_for(state="attached")
    return table.locator("tbody tr").evaluate_all("rows => rows.map(r => ({...r.dataset}))")


def test_picker_chooses_adds_isolates_and_slides(serve):
    from headatlas.viewer.components.headpicker import HeadPicker

    values = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    views = []
    served = serve(
        lambda: (
            views.append(HeadPicker(frame=frames.picker_frame(values, "weight"), selected="0.0", width=232, height=600))
            or views[-1]
        )
    )
    page, picker = served.page, views[-1]
    shown = {r["head"]: float(r["value"]) for r in mirror_rows(page, "weight of each head")}
    assert shown == pytest.approx({f"{i}.{h}": float(values[i, h]) for i in range(3) for h in range(4)}, abs=1e-6)
    canvas, cell = page.locator(".grid canvas"), lambda layer, head: {"x": 18 + 18 * head + 8, "y": 14 + 18 * layer + 8}
    canvas.click(position=cell(1, 2))
    wait_for(page, lambda: picker.selected == "1.2")
    canvas.click(position=cell(2, 3), modifiers=["Shift"])
    wait_for(page, lambda: picker.selected == "1.2,2.3")
    assert page.locator(".hchip").all_inner_texts() == ["1.2", "2.3"]
    page.get_by_text("all of layer").click()
    wait_for(page, lambda: picker.selected == "1.0,1.1,1.2,1.3")
    page.locator(".hchip[data-head='1.1']").click()
    wait_for(page, lambda: picker.selected == "1.0,1.2,1.3")
    page.locator("[data-control='share']").fill("40")
    wait_for(page, lambda: picker.share == 0.4)
    page.locator("[data-control='keys']").fill("3")
    wait_for(page, lambda: picker.keys == 3)
    page.locator("[data-control='hide_special']").uncheck()
    wait_for(page, lambda: picker.hide_special is False)
    page.locator(".grid").focus()
    page.keyboard.press("ArrowDown")
    wait_for(page, lambda: picker.selected == "2.0")


def test_key_list_shows_the_frame_and_pins(serve):
    from headatlas.viewer.components.keylist import KeyList

    maps = random_attention((2, 3, 6, 6), seed=2)
    heads = [(0, 1), (1, 2)]
    shown = np.stack([maps[h] for h in heads])
    frame = details.pinned_frame(
        details.PinnedRow("q", 4, shown[:, 4], shown[:, :, 4], maps[:, :, 4]), heads, TOKENS, TOKENS, hide_special=True
    )
    views, messages = [], []

    def make():
        keys = KeyList(frame=frame, pin="q4", width=296, height=700)
        keys.on_msg(lambda event: messages.append(event.data))
        views.append(keys)
        return keys

    served = serve(make)
    page = served.page
    rows = page.locator("[data-row]")
    rows.first.wait_for()
    keys = views[-1]
    weights_by_row = {
        r["row"]: [float(w) for w in r["weights"].split()]
        for r in rows.evaluate_all("rs => rs.map(r => ({...r.dataset}))")
    }
    expected = {str(r["position"]): r["weights"] for r in frame["rows"]} | {
        "rest": frame["rest"],
        "hidden": frame["hidden"],
    }
    expected = {k: v for k, v in expected.items() if v}
    assert weights_by_row.keys() == expected.keys()
    for key, weights in expected.items():
        assert weights_by_row[key] == pytest.approx(weights, abs=1e-6)
    page.locator(f"[data-edge-head='{frame['edge']['heads'][0]['head']}']").click()
    wait_for(page, lambda: {"add": frame["edge"]["heads"][0]["head"]} in messages)
    page.get_by_text("Why: neuron view").click()
    wait_for(page, lambda: {"go": "neuron"} in messages)
    page.get_by_role("button", name="Attended by").click()
    wait_for(page, lambda: keys.pin == "k4")
    page.locator(f"[data-row='{frame['rows'][0]['position']}']").click()
    wait_for(page, lambda: keys.pin == f"q4k{frame['rows'][0]['position']}")
    page.get_by_role("button", name="release the pin").click()
    wait_for(page, lambda: keys.pin == "")


@pytest.mark.parametrize("hide_special", [True, False])
def test_model_view_shows_every_head_and_enlarges(serve, hide_special):
    from headatlas.viewer.components.modelview import ModelView

    maps = random_attention((3, 4, 6, 6), seed=7)
    codes = frames.to_codes(maps)
    views = []
    served = serve(
        lambda: (
            views.append(
                ModelView(
                    frame=frames.model_frame(codes, id="x"),
                    tokens=frames.sides_frame(TOKENS, id="x"),
                    enlarged="0.0",
                    hide_special=hide_special,
                    width=800,
                    height=600,
                )
            )
            or views[-1]
        )
    )
    page = served.page
    rows = {r["head"]: r for r in mirror_rows(page, "strongest cell of each head")}
    assert len(rows) == 12
    shown = slice(1, 5) if hide_special else slice(0, 6)
    for layer in range(3):
        for head in range(4):
            part = codes[layer, head, shown, shown]
            q, k = np.unravel_index(part.argmax(), part.shape)
            row = rows[f"{layer}.{head}"]
            assert (int(row["q"]), int(row["k"])) == (q + shown.start, k + shown.start)
            assert float(row["weight"]) == pytest.approx((part.max() / 255) ** 2, abs=1e-6)
    plot = page.locator(".plot")
    plot.click(position={"x": 300, "y": 120})
    wait_for(page, lambda: views[-1].enlarged not in ("", "0.0"))
    plot.focus()
    page.keyboard.press("ArrowRight")
    plot.click(position={"x": 300, "y": 120}, modifiers=["Shift"])
    wait_for(page, lambda: views[-1].selected != "")


def test_model_view_paints_the_colours_of_its_weights(serve):
    from headatlas.viewer.components.modelview import ModelView
    from headatlas.viewer.theme.colours import sequential

    codes = np.zeros((1, 2, 4, 4), np.uint8)
    codes[0, 0, 1, 2], codes[0, 1, 3, 0] = 255, 128
    tokens = frames.sides_frame(frames.tokens_frame(list("abcd")), id="x")
    served = serve(
        lambda: ModelView(frame=frames.model_frame(codes, id="x"), tokens=tokens, width=700, height=500, theme="light")
    )
    canvas = served.page.locator(".plot canvas").first
    served.page.locator("table[data-mirror] tbody tr").first.wait_for(state="attached")
    pixels = canvas.evaluate(
        """c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, seen = {}; for (let i = 0; i < d.length; i += 4) if (d[i + 3] === 255) { const k = [d[i], d[i + 1], d[i + 2]].join(); seen[k] = (seen[k] || 0) + 1; } return seen }"""
    )
    strong, middle = (
        ",".join(map(str, sequential(np.array([np.sqrt((c / 255) ** 2)]))[0].tolist())) for c in (255, 128)
    )
    assert pixels[strong] > 100
    assert abs(pixels[strong] - pixels[middle]) < 0.2 * pixels[strong]


def test_an_enlarged_head_shows_its_map_and_pins(serve):
    from headatlas.viewer.components.headdetail import HeadDetail

    attention = random_attention((6, 6), seed=8)
    frame = details.detail_frame(
        attention,
        (2, 1),
        TOKENS,
        TOKENS,
        facts=[("Entropy", 1.25, "nats"), ("Gone", float("nan"), "")],
        hide_special=True,
    )
    views = []
    served = serve(lambda: views.append(HeadDetail(frame=frame, width=296, height=700)) or views[-1])
    page = served.page
    rows = mirror_rows(page, "map of one head")
    inner = attention[1:5, 1:5]
    assert float(rows[0]["weight"]) == pytest.approx(inner.max(), abs=1e-6)
    assert page.locator("[data-fact]").evaluate_all("f => f.map(x => [x.dataset.fact, +x.dataset.value])") == [
        ["Entropy", 1.25]
    ]
    page.locator("[data-query]").first.click()
    wait_for(page, lambda: views[-1].pin == f"q{rows[0]['query']}")


HALF_PAIRS = ((0, 4), (1, 5), (2, 6), (3, 7))


def neuron(serve, **options):
    from headatlas.viewer.components.neuronview import NeuronView

    rng = np.random.default_rng(3)
    query, keys = rng.normal(size=8).astype(np.float32), rng.normal(size=(6, 8)).astype(np.float32)
    scaling = 0.35
    scores = keys.astype(np.float64) @ query * scaling
    logsumexp = float(np.log(np.exp(scores).sum()))
    stored = np.exp(scores - logsumexp).astype(np.float32)
    views = []

    def make():
        frame = frames.neuron_frame(
            frames.NeuronRow(
                query,
                keys,
                logsumexp,
                options.get("stored", stored),
                (1, 2),
                query_pos=4,
                scaling=scaling,
                **options.get("frame", {}),
            ),
            "x",
        )
        views.append(
            NeuronView(
                frame=frame,
                tokens=frames.sides_frame(TOKENS, id="x"),
                hide_special=False,
                width=1100,
                height=640,
                pin="q4",
            )
        )
        return views[-1]

    return serve(make), views, query, keys, scaling, scores, stored


def test_neuron_view_shows_scores_attention_and_parts(serve):
    from headatlas.viewer.frames.geometry import dimension_parts

    served, views, query, keys, scaling, scores, stored = neuron(serve)
    page = served.page
    rows = {int(r["key"]): r for r in mirror_rows(page, "scores and attention of the row")}
    assert [float(rows[k]["score"]) for k in range(6)] == pytest.approx(scores.tolist(), abs=1e-4)
    assert [float(rows[k]["attention"]) for k in range(6)] == pytest.approx(stored.tolist(), abs=1e-5)
    assert [float(rows[k]["stored"]) for k in range(6)] == pytest.approx(stored.tolist(), abs=1e-6)
    parts = dimension_parts(query, keys, scaling=scaling, focus=int(stored.argmax()), mask=np.ones(6, bool))
    shown = {int(r["dimension"]): float(r["part"]) for r in mirror_rows(page, "dimensions by their part")}
    assert shown == pytest.approx(dict(enumerate(parts.tolist())), abs=1e-4)
    page.locator("[data-order='part']").click()
    wait_for(page, lambda: views[-1].order == "part")
    order = [int(r["dimension"]) for r in mirror_rows(page, "dimensions by their part")]
    assert order == sorted(range(8), key=lambda d: -abs(parts[d]))
    assert [int(d) for d in page.locator("[data-dim]").evaluate_all("d => d.map(x => x.dataset.dim)")] == order


def test_zeroing_a_dimension_gives_the_softmax_without_it(serve):
    served, _, query, keys, scaling, _, stored = neuron(serve)
    page = served.page
    page.locator("[data-zero]").first.wait_for()
    dim = int(page.locator("[data-zero]").first.get_attribute("data-zero"))
    page.locator("[data-zero]").first.click()
    page.get_by_text("1 changed").wait_for()
    without = np.delete(keys, dim, axis=1).astype(np.float64) @ np.delete(query, dim) * scaling
    expected = np.exp(without) / np.exp(without).sum()
    rows = {int(r["key"]): float(r["attention"]) for r in mirror_rows(page, "scores and attention of the row")}
    assert [rows[k] for k in range(6)] == pytest.approx(expected.tolist(), abs=1e-5)
    page.locator("[data-reset]").click()
    page.get_by_text("no changes").wait_for()
    rows = {int(r["key"]): float(r["attention"]) for r in mirror_rows(page, "scores and attention of the row")}
    assert [rows[k] for k in range(6)] == pytest.approx(stored.tolist(), abs=1e-5)


def test_neuron_view_names_rotary_pairs_shared_keys_and_biases(serve):
    served, *_ = neuron(
        serve, frame={"rotary": True, "pairs": HALF_PAIRS, "kv_head": 0, "n_sharing": 3, "softcap": 50.0}
    )
    note = served.page.locator(".note")
    note.wait_for()
    for text in ("Key head 0, shared by 3 query heads", "dimensions 0 and 4 turn together", "soft-capped at 50"):
        assert text in note.inner_text()
    served.page.locator("[data-order='pairs']").click()
    served.page.locator("[data-order='pairs'][aria-pressed='true']").wait_for()
    assert [int(r["dimension"]) for r in mirror_rows(served.page, "dimensions by their part")] == [
        0,
        4,
        1,
        5,
        2,
        6,
        3,
        7,
    ]


def test_pairs_that_lie_side_by_side_in_a_part_of_the_head(serve):
    served, *_ = neuron(serve, frame={"rotary": True, "pairs": ((2, 3), (0, 1))})
    served.page.locator("[data-order='pairs']").click()
    served.page.locator("[data-order='pairs'][aria-pressed='true']").wait_for()
    order = [int(r["dimension"]) for r in mirror_rows(served.page, "dimensions by their part")]
    assert order == [2, 3, 0, 1, 4, 5, 6, 7]
    read = "rows => rows.map(row => [row.dataset.dims, row.querySelector('b').title])"
    titles = dict(served.page.locator("[data-dim]").evaluate_all(read))
    assert titles == {
        "2,3": "rotary pair 0: dimensions 2 and 3",
        "0,1": "rotary pair 1: dimensions 0 and 1",
        **dict.fromkeys("4567", ""),
    }


def test_a_rotary_pair_is_scaled_as_one_and_copied_by_its_number(serve):
    served, views, query, keys, scaling, _, _ = neuron(
        serve, frame={"rotary": True, "pairs": HALF_PAIRS, "store": "traces/x"}
    )
    page = served.page
    page.locator("[data-order='pairs']").click()
    page.locator("[data-dims='1,5'] [data-zero]").click()
    wait_for(page, lambda: views[-1].factors == "1,5:0")
    assert "--dimensions pairs:1:0" in page.locator("[data-command='what-if']").inner_text()
    without = np.delete(keys, [1, 5], axis=1).astype(np.float64) @ np.delete(query, [1, 5]) * scaling
    expected = np.exp(without) / np.exp(without).sum()
    rows = {int(r["key"]): float(r["attention"]) for r in mirror_rows(page, "scores and attention of the row")}
    assert [rows[k] for k in range(6)] == pytest.approx(expected.tolist(), abs=1e-5)
    figure = rescaled_row(views[-1].frame, {1: 0.0, 5: 0.0})
    assert figure.attention.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_changed_dimensions_are_copied_as_commands(serve):
    """Both commands name every changed dimension with its factor, in the notation that the commands read."""
    served, *_ = neuron(serve, frame={"store": "it's mine", "site": "cross"})
    page = served.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-zero]").first.wait_for()
    assert page.locator("[data-copy]").count() == 0
    dims = [int(page.locator("[data-zero]").nth(i).get_attribute("data-zero")) for i in (0, 1, 2)]
    for dim in dims[:2]:
        page.locator(f"[data-zero='{dim}']").click()
    page.get_by_text("2 changed").wait_for()
    slide = "input => { input.value = 0.35; input.dispatchEvent(new Event('input')); }"
    page.locator(f"[data-factor='{dims[2]}']").evaluate(slide)
    page.get_by_text("3 changed").wait_for()
    copied = {}
    for name in ("what-if", "intervene"):
        page.locator(f"[data-copy='{name}']").click()
        page.locator(f"[data-copy='{name}']", has_text="Copied").wait_for()
        copied[name] = page.evaluate("navigator.clipboard.readText()")
        assert copied[name] == page.locator(f"[data-command='{name}']").inner_text()
    words = shlex.split(copied["what-if"])
    change = words[6]
    assert words == ["headatlas", "what-if", "it's mine", "--head", "1.2", "--dimensions", change, "--site", "cross"]
    site = Site(
        name="decoder",
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        d_head=8,
        causal=True,
        scaling=(1.0,),
        softcap=(None,),
        window=(None,),
    )
    assert parse_factors(change, site) == dict(sorted({dims[0]: 0.0, dims[1]: 0.0, dims[2]: 0.35}.items()))
    expected = ["intervene", "JOB.toml", "--heads", "1.2", "--do", f"dimensions:{change}", "--site", "cross"]
    assert shlex.split(copied["intervene"]) == ["headatlas", *expected]
    page.locator("[data-reset]").click()
    page.get_by_text("no changes").wait_for()
    assert page.locator("[data-copy]").count() == 0


def test_scores_with_a_position_bias_cannot_be_changed(serve):
    served, *_ = neuron(serve, frame={"position_bias": True})
    served.page.get_by_text("attention as stored").wait_for()
    assert served.page.locator("[data-zero]").first.is_disabled()


def test_colours_in_the_browser_are_those_of_python(serve):
    from headatlas.viewer.components.tokentext import TokenText
    from headatlas.viewer.theme.colours import NEGATIVE, SEQUENTIAL, TOKENS, palette, ramp

    served = serve(lambda: TokenText(frame={"lines": [], "tags": ["here"]}, theme="dark", width=200, height=40))
    served.page.get_by_text("here").wait_for()
    root = served.page.locator(".ha")
    assert root.evaluate("r => getComputedStyle(r).getPropertyValue('--surface').trim()") == TOKENS["dark"]["surface"]
    base = "./components/headatlas.viewer.components.tokentext/TokenText/_js/paint.js"
    for theme, steps in (("light", SEQUENTIAL), ("dark", SEQUENTIAL)):
        ramps = served.page.evaluate(
            """async ([url, theme, palette]) => { const {paintOf} = await import(new URL(url, document.baseURI).href); const p = paintOf({theme, esm_constants: {palette}});
            return [[...p.up], [...p.down]].map(t => t.map(c => [c & 255, c >> 8 & 255, c >> 16 & 255])) }""",
            [base, theme, palette()],
        )
        np.testing.assert_array_equal(ramps[0], ramp(steps[theme]))
        np.testing.assert_array_equal(ramps[1], ramp(NEGATIVE[theme]))
