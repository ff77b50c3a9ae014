"""The strip of facts, and the list of what the store does not hold."""

from __future__ import annotations

import pytest

from headatlas.viewer.components.corpus_cards import Facts

pytestmark = pytest.mark.browser
LINES = [
    "30 values of 28 examples left out: a list (tags)",
    "2 records left out: <img src=x onerror=alert(1)> (line 3)",
]


def test_what_was_left_out_is_listed(serve) -> None:
    cards: list[Facts] = []

    def make() -> Facts:
        card = Facts(lambda message: None, height=56, width=900)
        card.frame = {"facts": [["tiny", "Model"]], "tag": ["complete", "accent"], "left_out": LINES}
        cards.append(card)
        return card

    served = serve(make)
    page = served.page
    dialog = page.get_by_role("dialog", name="left out of this store")
    button = page.get_by_role("button", name="left out (2)")
    button.wait_for()
    assert not dialog.is_visible()
    button.click()
    dialog.wait_for()
    assert dialog.locator("li").all_text_contents() == LINES
    dialog.get_by_role("button", name="Close").click()
    dialog.wait_for(state="hidden")
    rows = page.locator("table[data-mirror='the store'] tr").all_text_contents()
    assert rows[-2:] == [f"Left out{line}" for line in LINES]
