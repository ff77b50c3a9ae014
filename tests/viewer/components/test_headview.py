"""The head view in a browser: its text mirror agrees with the arrays; pins, hover and hostile tokens."""

from __future__ import annotations

import numpy as np
import pytest

from headatlas.viewer.frames import view_frames as frames
from headatlas.viewer.frames.geometry import strongest_edges
from headatlas.viewer.theme.token_labels import label

from ..view_data import random_attention, wait_for

pytestmark = pytest.mark.browser
HEADS = [(5, 8), (5, 10)]


def make_view(attention, labels=None, *, special=(), **options):
    from headatlas.viewer.components.headview import HeadView

    n = attention.shape[1]
    labels = labels or [f"t{i}" for i in range(n)]
    tokens = frames.tokens_frame(labels, [i in special for i in range(n)], labels)
    causal = options.pop("causal", False)
    frame = frames.head_frame(attention, HEADS[: len(attention)], causal=causal, id="x")
    return HeadView(frame=frame, tokens=frames.sides_frame(tokens, id="x"), width=800, height=600, **options)


def rows_of(page, mirror="edges of the head view"):
    """Return the rows of a text mirror as {(head, q, k): weight}."""
    rows = page.evaluate(
        """name => { const hosts = []; const walk = n => { if (n.shadowRoot) walk(n.shadowRoot); for (const c of n.children || []) walk(c); if (n.dataset && n.dataset.mirror === name) hosts.push(n); };
        walk(document.documentElement); return hosts.flatMap(t => [...t.querySelectorAll('tbody tr')].map(r => ({...r.dataset}))) }""",
        mirror,
    )
    return {(r["head"], int(r["q"]), int(r["k"])): float(r["weight"]) for r in rows}


@pytest.mark.parametrize("causal", [False, True])
def test_drawn_edges_are_those_of_the_rule(serve, causal):
    attention = random_attention((2, 12, 12), causal, seed=3)
    views = []
    served = serve(lambda: views.append(make_view(attention, special=(0, 11), causal=causal)) or views[-1])
    shown = np.array([0 < i < 11 for i in range(12)])

    def expected(share, keys):
        return [
            strongest_edges(a, share=share, keys=keys, causal=causal, query_shown=shown, key_shown=shown)
            for a in attention
        ]

    served.page.locator("[data-count][data-drawn]").wait_for()
    for share, keys in [(0.75, 8), (0.3, 8), (0.9, 2)]:
        drawn = expected(share, keys)
        views[-1].param.update(share=share, keys=keys)
        counts = served.page.locator(
            f"[data-drawn='{sum(map(len, drawn))}'][data-pairs='{sum(d.n_pairs for d in drawn)}']"
        )
        counts.wait_for()
        part = sum(d.weight.sum() for d in drawn) / sum(d.row_mass for d in drawn)
        assert float(counts.get_attribute("data-share")) == pytest.approx(part, abs=2e-6)
        assert (
            f"{sum(map(len, drawn))} of {sum(d.n_pairs for d in drawn)} edges drawn, {part:.0%}".replace("%", " %")
            in counts.inner_text()
        )
        weights = {
            (frames.head_name(head), int(q), int(k)): float(w)
            for head, d in zip(HEADS, drawn, strict=True)
            for q, k, w in zip(d.query_pos, d.key_pos, d.weight, strict=True)
        }
        assert rows_of(served.page) == pytest.approx(weights, abs=1e-6)


def test_pin_hover_and_escape(serve):
    attention = random_attention((2, 8, 8), seed=5)
    views = []
    served = serve(lambda: views.append(make_view(attention)) or views[-1])
    page = served.page
    query = page.locator(".t[data-side='q'][data-index='3']")
    query.hover()
    page.locator(".col.k .bd").first.wait_for()
    badges = {
        (b["head"], int(b["index"])): float(b["weight"])
        for b in page.locator(".col.k .bd").evaluate_all(
            "bs => bs.map(b => ({head: b.dataset.head, weight: b.dataset.weight, index: b.parentNode.dataset.index}))"
        )
    }
    expected = {
        (frames.head_name(h), k): float(attention[i, 3, k])
        for i, h in enumerate(HEADS)
        for k in range(8)
        if attention[:, 3, k].max() >= 0.02
    }
    assert badges == pytest.approx(expected, abs=1e-4)
    assert views[-1].pin == ""
    query.click()
    pinned = {
        (frames.head_name(h), 3, k): float(attention[i, 3, k])
        for i, h in enumerate(HEADS)
        for k in range(8)
        if attention[i, 3, k] >= 0.01
    }
    page.mouse.move(400, 5)
    page.locator(".t.me[data-side='q'][data-index='3']").wait_for()
    wait_for(page, lambda: views[-1].pin == "q3")
    wait_for(page, lambda: rows_of(page) == pytest.approx(pinned, abs=1e-6))
    assert page.locator("[aria-live]").inner_text().startswith("t3 to ")
    page.keyboard.press("Escape")
    page.locator(".plot:not(.active)").wait_for()
    wait_for(page, lambda: views[-1].pin == "")
    page.locator(".t[data-side='k'][data-index='2']").click()
    page.mouse.move(400, 5)
    page.locator(".t.me[data-side='k'][data-index='2']").wait_for()
    wait_for(page, lambda: views[-1].pin == "k2")
    received = {
        (frames.head_name(h), q, 2): float(attention[i, q, 2])
        for i, h in enumerate(HEADS)
        for q in range(8)
        if attention[i, q, 2] >= 0.01
    }
    wait_for(page, lambda: rows_of(page) == pytest.approx(received, abs=1e-6))
    page.keyboard.press("ArrowDown")
    page.locator(".t.me[data-side='k'][data-index='3']").wait_for()
    page.keyboard.press("n")
    page.locator("table.mirror.open").wait_for()


def test_a_pin_set_in_python_shows_and_a_new_frame_waits_for_its_tokens(serve):
    first, second = random_attention((1, 6, 6), seed=1), random_attention((1, 9, 9), seed=2)
    views = []
    served = serve(lambda: views.append(make_view(first)) or views[-1])
    served.page.locator(".col.q .t").nth(5).wait_for()
    view = views[-1]
    view.pin = "q4"
    served.page.locator(".t.me[data-index='4']").wait_for()
    other = make_view(second, [f"u{i}" for i in range(9)])
    view.tokens = {**other.tokens, "id": "y"}
    view.frame = {**other.frame, "id": "y"}
    served.page.get_by_text("u8").first.wait_for()
    assert set(rows_of(served.page)) == {("5.8", 4, k) for k in range(9) if second[0, 4, k] >= 0.01}


def test_a_window_counts_positions_of_the_whole_example(serve):
    attention = random_attention((1, 20, 20), seed=1)
    views = []

    def make():
        view = make_view(attention[:, :10, :10])
        labels = [f"t{i}" for i in range(120)]
        view.tokens = frames.sides_frame(frames.tokens_frame(labels), id="x")
        view.frame = frames.head_frame(
            attention[:, 5:15, 5:15], HEADS[:1], query_start=100, key_start=100, n_queries=120, n_keys=120, id="x"
        )
        view.pin = "q103"
        views.append(view)
        return view

    served = serve(make)
    served.page.locator(".t.me[data-index='103']").wait_for()
    assert {key[1] for key in rows_of(served.page)} == {103}
    best = int(attention[0, 8, 5:15].argmax())
    assert rows_of(served.page)["5.8", 103, 100 + best] == pytest.approx(float(attention[0, 8, 5 + best]), abs=1e-6)
    assert "tokens 100–109 of 120" in served.page.locator("[data-count]").inner_text()


def test_hostile_tokens_show_and_do_nothing(serve):
    hostile = [
        "<img src=x onerror=alert(1)>",
        "</script><script>alert(2)</script>",
        "\u202eevil",
        "nul\x00",
        "\ud83d",
        "`${alert(3)}`",
        "&amp;",
        "'\"><svg onload=alert(4)>",
    ]
    labels = [label(text) for text in hostile]
    attention = random_attention((1, len(hostile), len(hostile)))
    served = serve(lambda: make_view(attention, labels, pin="q0"))
    served.page.locator(".col.q .t .l").nth(len(hostile) - 1).wait_for()
    assert served.page.locator(".col.q .t .l").all_inner_texts() == labels
    served.page.locator(".t[data-side='k'][data-index='1']").hover()
    assert served.page.locator("img, svg, script[src='x']").count() == 0


def test_512_tokens_are_drawn_and_hover_marks_one(serve):
    attention = random_attention((1, 512, 512), seed=1)
    served = serve(lambda: make_view(attention))
    served.page.locator(".t[data-side='q'][data-index='511']").wait_for(state="attached")
    drawn = strongest_edges(attention[0])
    served.page.locator(f"[data-drawn='{len(drawn)}'][data-pairs='262144']").wait_for()
    served.page.locator(".t[data-side='q'][data-index='7']").hover()
    served.page.locator(".t.me[data-index='7']").wait_for()


def test_a_message_is_shown_instead_of_a_picture(serve):
    from headatlas.viewer.components.headview import HeadView

    served = serve(
        lambda: HeadView(
            frame=frames.message_frame("Attention was not kept", "Keep it with <b>this</b>."), width=600, height=300
        )
    )
    assert served.page.locator(".message").inner_text() == "Attention was not kept\nKeep it with <b>this</b>."


def test_themes_differ_and_follow_the_page(serve):
    attention = random_attention((1, 6, 6))
    served = serve(lambda: make_view(attention), color_scheme="dark")
    root = served.page.locator(".ha")
    root.wait_for()
    assert root.get_attribute("data-theme") == "dark"
    served.page.evaluate("document.documentElement.dataset.theme = 'light'")
    served.page.locator(".ha[data-theme='light']").wait_for()
