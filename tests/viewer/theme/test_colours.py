"""Contrast of the colours, as WCAG 2.2 measures it."""

import numpy as np
import pytest

from headatlas.viewer.theme.colours import HEADS, NEGATIVE, POSITIVE, THEMES, TOKENS, rgb, signed

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


def oklab(colour: np.ndarray) -> np.ndarray:
    """Return lightness, a and b of an sRGB colour of three bytes, after Ottosson (2020)."""
    srgb = colour / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]  # fmt: skip
    from_lms = [
        [0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]  # fmt: skip
    return np.array(from_lms) @ np.cbrt(np.array(to_lms) @ linear)


@pytest.mark.parametrize("theme", THEMES)
def test_the_ends_of_the_diverging_scale_are_far_apart(theme):
    assert oklab(rgb("#FFFFFF")) == pytest.approx([1, 0, 0], abs=1e-3)
    low, high = signed(np.array([-1.0, 1.0]), theme)
    assert np.linalg.norm(oklab(high) - oklab(low)) * 100 >= 20
    for steps in (POSITIVE[theme], NEGATIVE[theme]):
        lightness = [oklab(rgb(step))[0] for step in steps]
        differences = np.diff(lightness)
        assert (differences < 0).all() if theme == "light" else (differences > 0).all()
