"""Colours of every picture. Python draws and tests with them; the components receive them as constants.

Sequential ramps start at the colour of the surface, because attention is sparse and zero must stay blank. Their
lightness then moves away from it monotonically. Signed values use `POSITIVE` above zero and `NEGATIVE` below, whose ends
are far apart: a sequential ramp of the dark theme ends near white, and two of them could not be told apart there.
Heads are coloured by the order in which they were selected. Colours by head number would repeat in wide models.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")

TOKENS: dict[Theme, dict[str, str]] = {
    "light": {
        "bg": "#F5F6F8",
        "surface": "#FFFFFF",
        "surface-2": "#F0F2F6",
        "surface-3": "#E6E9EF",
        "line": "#E0E4EA",
        "line-2": "#C7CDD8",
        "ink": "#171C26",
        "ink-2": "#4C5565",
        "ink-3": "#5F6879",
        "accent": "#2B57C9",
        "accent-soft": "#E7EDFB",
        "accent-ink": "#1F459F",
        "on-accent": "#FFFFFF",
        "warn": "#9A5B00",
        "warn-soft": "#FFF3DC",
        "bad": "#B3261E",
        "bad-soft": "#FCEBEA",
        "good": "#1B7A43",
        "neg": "#A84C0B",
        "pos": "#2B57C9",
        "shadow": "0 6px 24px rgba(23,28,38,.14), 0 1px 3px rgba(23,28,38,.10)",
    },
    "dark": {
        "bg": "#0E1117",
        "surface": "#151A22",
        "surface-2": "#1C222C",
        "surface-3": "#262D39",
        "line": "#262D39",
        "line-2": "#3A4352",
        "ink": "#E7EAF0",
        "ink-2": "#AEB6C4",
        "ink-3": "#8B94A4",
        "accent": "#8AA9FF",
        "accent-soft": "#1E2A48",
        "accent-ink": "#B4C7FF",
        "on-accent": "#0E1526",
        "warn": "#F0B45A",
        "warn-soft": "#2E2413",
        "bad": "#FF8A80",
        "bad-soft": "#331C1C",
        "good": "#62CF8E",
        "neg": "#F2A15C",
        "pos": "#8AA9FF",
        "shadow": "0 8px 28px rgba(0,0,0,.55), 0 1px 3px rgba(0,0,0,.5)",
    },
}
SEQUENTIAL: dict[Theme, tuple[str, ...]] = {
    "light": ("#FFFFFF", "#E3EAFA", "#BFD0F4", "#93AFEA", "#658BDD", "#3B68CC", "#21489F", "#122C6B"),
    "dark": ("#151A22", "#1C2A49", "#23407F", "#2F5BB6", "#4F7FDD", "#80A5F2", "#B5CBFA", "#EEF3FF"),
}
NEGATIVE: dict[Theme, tuple[str, ...]] = {
    "light": ("#FFFFFF", "#FBE9D7", "#F5CDA4", "#EBA968", "#D98334", "#B8600F", "#8A4306", "#662F02"),
    "dark": ("#151A22", "#33251A", "#553619", "#7A4A1A", "#A0611E", "#C77A25", "#EA9633", "#FFB75A"),
}
POSITIVE: dict[Theme, tuple[str, ...]] = {
    "light": SEQUENTIAL["light"],
    "dark": ("#151A22", "#1A2740", "#213868", "#2A4C97", "#3562C4", "#467CE8", "#6698FF", "#8DB4FF"),
}
HEADS: dict[Theme, tuple[str, ...]] = {
    "light": (
        *("#013DB7", "#8F9518", "#9F1747", "#297CAE", "#C55865", "#644B7B"),
        *("#C56AEB", "#0E4B0C", "#671156", "#925B0D", "#4B9D9C", "#7C53DD"),
    ),
    "dark": (
        *("#0C84FA", "#FDDE3C", "#FDA293", "#C2ECFE", "#D47C79", "#8E6AC7"),
        *("#D09EFD", "#68BE1F", "#D33C8B", "#A67628", "#5AD5CA", "#9F99BB"),
    ),
}


def palette() -> dict[str, dict[str, object]]:
    """Return all colours by theme, in the form that the components' JavaScript reads."""
    return {
        theme: {
            "tokens": dict(TOKENS[theme]),
            "sequential": list(SEQUENTIAL[theme]),
            "negative": list(NEGATIVE[theme]),
            "positive": list(POSITIVE[theme]),
            "heads": list(HEADS[theme]),
        }
        for theme in THEMES
    }


def css_variables(theme: Theme) -> str:
    """Return the colour tokens as CSS custom properties, `--surface: #FFFFFF; …`."""
    return " ".join(f"--{name}: {value};" for name, value in TOKENS[theme].items())


def rgb(colour: str) -> UInt8[np.ndarray, "3"]:
    """Convert `#RRGGBB` to three bytes."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)


def ramp(steps: tuple[str, ...]) -> UInt8[np.ndarray, "256 3"]:
    """Interpolate 256 colours between evenly spaced `steps`, linearly in sRGB."""
    anchors = np.stack([rgb(step) for step in steps]).astype(np.float64)
    x = np.linspace(0, len(steps) - 1, 256)
    return np.stack([np.floor(np.interp(x, np.arange(len(steps)), c) + 0.5) for c in anchors.T], axis=1).astype(
        np.uint8
    )


def sequential(value: Float[np.ndarray, "*shape"], theme: Theme = "light") -> UInt8[np.ndarray, "*shape 3"]:
    """Return the colours of values in [0, 1]. Values outside are clipped; NaN counts as zero."""
    index = np.floor(np.clip(np.nan_to_num(value), 0, 1) * 255 + 0.5).astype(np.intp)
    return ramp(SEQUENTIAL[theme])[index]


def signed(value: Float[np.ndarray, "*shape"], theme: Theme = "light") -> UInt8[np.ndarray, "*shape 3"]:
    """Return the colours of values in [-1, 1]: orange below zero, blue above, the surface at zero."""
    index = np.floor(np.clip(np.abs(np.nan_to_num(value)), 0, 1) * 255 + 0.5).astype(np.intp)
    return np.where((value < 0)[..., None], ramp(NEGATIVE[theme])[index], ramp(POSITIVE[theme])[index])
