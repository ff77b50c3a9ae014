"""Contrast of the colours, as WCAG 2.2 measures it."""

import numpy as np
import pytest

from headatlas.viewer.theme.colours import HEADS, THEMES, TOKENS, rgb

GROUNDS = ("bg", "surface", "surface-2")
TEXTS = ("ink", "ink-2", "ink-3", "accent", "accent-ink", "warn", "bad", "good", "neg", "pos")
PAIRS = (
    ("on-accent", "accent"), ("accent-ink", "accent-soft"), ("ink-2", "accent-soft"), ("warn", "warn-soft"), ("bad", "bad-soft"),
)  # fmt: skip


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21."""
    srgb = np.stack([rgb(first), rgb(second)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    dark, light = np.sort(linear @ [0.2126, 0.7152, 0.0722])
    return float((light + 0.05) / (dark + 0.05))


def test_contrast_agrees_with_the_standard():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", THEMES)
def test_text_can_be_read(theme):
    colours = TOKENS[theme]
    pairs = [(text, ground) for text in TEXTS for ground in GROUNDS] + list(PAIRS)
    low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert {pair: value for pair, value in low.items() if value < 4.5} == {}


@pytest.mark.parametrize("theme", THEMES)
def test_lines_of_heads_can_be_seen(theme):
    low = {colour: contrast(colour, TOKENS[theme]["surface"]) for colour in HEADS[theme]}
    assert {colour: value for colour, value in low.items() if value < 3} == {}
