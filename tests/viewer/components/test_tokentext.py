"""Running text: its content, its shading, and the pin of a click."""

from __future__ import annotations

import numpy as np
import pytest

from ..view_data import wait_for

pytestmark = pytest.mark.browser
LINE = {"parts": [["‹CLS›", 0], ["The", 1], [" ", -1], ["nurse", 2], [" ", -1], ["she", 3]], "side": "qk"}


def test_click_pins_and_weights_shade(serve):
    from headatlas.viewer.components.tokentext import TokenText

    texts = []

    def make():
        line = LINE | {"special": np.array([1, 0, 0, 0], np.uint8)}
        text = TokenText(frame={"lines": [line], "tags": ["4 tokens"]}, width=600, height=100)
        text.param.watch(lambda e: setattr(text, "weights", {"k": np.float32([0.25, 0, 0.64, 0.1])}), "pin")
        texts.append(text)
        return text

    served = serve(make)
    page = served.page
    token = page.locator("[data-token='3']")
    token.click()
    page.locator("[data-token='2'][data-weight='0.6400']").wait_for()
    wait_for(page, lambda: texts[-1].pin == "q3")
    assert token.get_attribute("aria-pressed") == "true"
    assert page.locator(".lines").inner_text() == "‹CLS›The nurse she"
    served.shot("tokentext")
    token.click()
    page.locator("[data-token='3'][aria-pressed='false']").wait_for()
