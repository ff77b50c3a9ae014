"""`Drawing`: shapes and text in points, written as SVG. Its width is that of a column of a paper.

The unit is the point (1/72 inch), so a font size in the file is the size in print. Everything is drawn in the light
theme. The file refers to nothing outside itself: its images are data, and its text names font families.
"""

from __future__ import annotations

import base64
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from jaxtyping import UInt8

from ..theme.colours import TOKENS

Align = Literal["left", "center", "right"]
COLUMNS_MM: dict[str, float] = {"single": 85.0, "double": 170.0}
"""Widths of a figure in one and in two columns, in millimetres."""
POINTS_PER_MM = 72 / 25.4
INK = TOKENS["light"]
FONTS = "Arial, Helvetica, 'Liberation Sans', 'DejaVu Sans', 'Noto Sans', sans-serif"
MIN_SIZE = 6.0
"""Smallest font size in points."""
DPI = 600
"""Resolution of images in dots per inch."""
MAX_CELLS = 4096
"""Most cells of a map that are drawn as vectors. A larger map becomes one image."""
_ANCHORS = {"left": "start", "center": "middle", "right": "end"}


def text_width(text: str, size: float = 7) -> float:
    """Estimate the width of a text in points. It errs upwards, because the reader's font is not known."""
    em = 0.0
    for character in text:
        if unicodedata.combining(character):
            continue
        if unicodedata.east_asian_width(character) in "WF":
            em += 1.0
        else:
            em += 0.33 if character in "iljtfrI.,:;'|!()[] \u2039\u203a" else 0.86 if character in "mwMW" else 0.61
    return em * size


def shortened(text: str, width: float, size: float = 7) -> str:
    """Cut a text to a width in points. The cut is marked by ``…``."""
    if len(text) < 64 + 8 * width / size and text_width(text, size) <= width:
        return text
    left = width - text_width("\u2026", size)
    for end, character in enumerate(text):
        left -= text_width(character, size)
        if left < 0:
            return text[:end].rstrip() + "\u2026"
    return text


def lines_of(text: str, width: float, size: float = 7, n_lines: int = 2) -> list[str]:
    """Break a text into at most `n_lines` lines of a width in points. What does not fit is replaced by ``…``."""
    words, lines = text.split(" "), [""]
    for index, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or text_width(longer, size) <= width:
            lines[-1] = longer
        elif len(lines) < n_lines:
            lines.append(word)
        else:
            lines[-1] = " ".join([lines[-1], *words[index:]])
            break
    return [shortened(line, width, size) for line in lines]


class Drawing:
    """Shapes of one figure, in the order of painting.

    Parameters
    ----------
    width_mm
        Width of the figure in millimetres. `height` is set by whoever draws, in points.
    """

    def __init__(self, width_mm: float) -> None:
        self.width, self.height, self.dpi = width_mm * POINTS_PER_MM, 0.0, DPI
        self._parts: list[str] = []

    def _put(self, tag: str, inner: str | None = None, **attributes: object) -> None:
        pairs = (
            f"{name.replace('_', '-')}={quoteattr(_number(value))}"
            for name, value in attributes.items()
            if value is not None
        )
        start = f"<{tag} {' '.join(pairs)}"
        self._parts.append(f"{start}/>" if inner is None else f"{start}>{escape(inner)}</{tag}>")

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str = "none", stroke: str | None = None,
        line: float = 0.5,
    ) -> None:  # fmt: skip
        """Draw a rectangle."""
        self._put(
            "rect", x=x, y=y, width=max(0.0, width), height=max(0.0, height), fill=fill, stroke=stroke,
            stroke_width=None if stroke is None else line,
        )  # fmt: skip

    def cells(self, path: str, fill: str) -> None:
        """Draw cells of one colour, given as the path data of all of them. Their edges meet without a gap."""
        self._put("path", d=path, fill=fill, shape_rendering="crispEdges")

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 0.5) -> None:
        """Draw a straight line."""
        self._put("path", d=f"M{x1:.2f} {y1:.2f}L{x2:.2f} {y2:.2f}", fill="none", stroke=stroke, stroke_width=width)

    def link(
        self, x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 0.5, opacity: float = 1.0
    ) -> None:
        """Draw a curve between two columns, horizontal at both ends."""
        bend = (x2 - x1) * 0.36
        data = f"M{x1:.2f} {y1:.2f}C{x1 + bend:.2f} {y1:.2f} {x2 - bend:.2f} {y2:.2f} {x2:.2f} {y2:.2f}"
        self._put("path", d=data, fill="none", stroke=stroke, stroke_width=width, stroke_opacity=opacity)

    def dot(self, x: float, y: float, radius: float, fill: str, stroke: str | None = None, opacity: float = 1) -> None:
        """Draw a filled circle, or an outlined one if `fill` is ``none``."""
        self._put(
            "circle", cx=x, cy=y, r=radius, fill=fill, stroke=stroke, stroke_width=None if stroke is None else 0.6,
            fill_opacity=None if opacity == 1 else opacity,
        )  # fmt: skip

    def text(
        self, x: float, y: float, text: str, size: float = 7, align: Align = "left", fill: str = INK["ink"],
        bold: bool = False, turn: float = 0,
    ) -> None:  # fmt: skip
        """Write a text. `y` is the middle of small letters; `turn` is an angle in degrees, clockwise."""
        self._put(
            "text", _printable(text), x=x, y=y + 0.34 * size, font_size=size, text_anchor=_ANCHORS[align], fill=fill,
            font_weight="bold" if bold else None, transform=f"rotate({turn} {x:.2f} {y:.2f})" if turn else None,
        )  # fmt: skip

    def image(self, x: float, y: float, width: float, height: float, pixels: UInt8[np.ndarray, "row column 3"]) -> None:
        """Draw an image. Its pixels are repeated up to the resolution `dpi`, so that no program blurs them."""
        repeats = max(width / pixels.shape[1], height / pixels.shape[0]) * self.dpi / 72
        sharp = pixels.repeat(n := max(1, round(repeats)), axis=0).repeat(n, axis=1)
        data = base64.b64encode(_png(sharp)).decode("ascii")
        self._put(
            "image", x=x, y=y, width=width, height=height, preserveAspectRatio="none",
            href=f"data:image/png;base64,{data}",
        )  # fmt: skip

    def svg(self) -> str:
        """Return the drawing as an SVG document of its width in millimetres."""
        width, height = self.width / POINTS_PER_MM, self.height / POINTS_PER_MM
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.2f}mm" height="{height:.2f}mm" '
            f'viewBox="0 0 {self.width:.2f} {self.height:.2f}" font-family="{FONTS}">\n'
            f'<rect width="100%" height="100%" fill="#FFFFFF"/>\n' + "\n".join(self._parts) + "\n</svg>\n"
        )


def cell_path(boxes: Sequence[tuple[float, float, float, float]]) -> str:
    """Return the path data of rectangles (x, y, width, height)."""
    return "".join(f"M{x:.2f} {y:.2f}h{w:.2f}v{h:.2f}h{-w:.2f}z" for x, y, w, h in boxes)


def hex_colour(rgb: UInt8[np.ndarray, "3"]) -> str:
    """Return three bytes as ``#RRGGBB``."""
    return f"#{int(rgb[0]):02X}{int(rgb[1]):02X}{int(rgb[2]):02X}"


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _printable(text: str) -> str:
    """Remove what XML forbids. Labels have no control characters; this is the last line of defence."""
    return "".join(c if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff" else "?" for c in text)


def _png(pixels: UInt8[np.ndarray, "row column 3"]) -> bytes:
    """Encode an RGB image as PNG."""
    rows, columns = pixels.shape[:2]
    raw = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1).tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 6)) + chunk(b"IEND", b"")
