"""Parts that figures share: caption, title, colour scale, axis labels, and cells of a map."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32

from headatlas.store.errors import ConfigError
from headatlas.store.files.drafts import replace_file

from ..theme.colours import sequential, signed
from .drawing import DPI, INK, MAX_CELLS, MIN_SIZE, Drawing, cell_path, hex_colour, lines_of, shortened, text_width
from .typesetting import render

Scale = Callable[[np.ndarray], np.ndarray]
SCALES: dict[str, Scale] = {
    "linear": lambda x: x,
    "sqrt": np.sqrt,
    "log": lambda x: np.clip(1 + np.log10(np.maximum(x, 1e-3)) / 3, 0, 1),
}
"""Scales of weights, 0 to 1. They are those of paint.js."""
SCALE_NAMES = {"linear": "", "sqrt": ", \u221a scale", "log": ", log scale"}
TITLE, BODY, SMALL = 8.0, 7.0, MIN_SIZE
_NAME = re.compile(r"[^\w.+]+")


@dataclass(frozen=True)
class Caption:
    """Subject of a figure.

    Attributes
    ----------
    model, head, sentence
        Names for the title, as ``SmolLM2-135M``, ``head 5.8`` and the text of the example.
    example
        Id of the example. Empty for figures of the corpus.
    corpus
        Corpus with the number of its examples.
    notes
        Further lines below the picture, such as what it leaves out.
    """

    model: str = ""
    head: str = ""
    sentence: str = ""
    example: str = ""
    corpus: str = ""
    notes: tuple[str, ...] = ()

    def with_notes(self, *notes: str) -> Caption:
        """Return the caption with further notes. Empty ones are left out."""
        return replace(self, notes=(*self.notes, *filter(None, notes)))

    def file_name(self, kind: str) -> str:
        """Return a file name without ending, such as ``attention-lines_SmolLM2-135M_head-5.8_ewt-17``."""
        parts = (kind, self.model, self.head, self.example)
        return "_".join(_NAME.sub("-", part).strip("-.")[:60] for part in parts if part)


@dataclass(frozen=True)
class Figure:
    """A finished drawing and the name of its file, without ending."""

    drawing: Drawing
    name: str

    def svg(self) -> str:
        """Return the figure as an SVG document."""
        return self.drawing.svg()

    def save(self, path: str | os.PathLike[str], dpi: int = DPI) -> Path:
        """Write the figure to a file whose name ends in .svg, .pdf or .png. PDF and PNG need the extra `figures`.

        Raises
        ------
        ConfigError
            The name has another ending.
        MissingExtraError
            The package of the extra is not installed.
        """
        target = Path(path)
        format = target.suffix[1:].lower()
        if format not in ("svg", "pdf", "png"):
            raise ConfigError(f"the figure's file is {target.name!r}; expected a name that ends in .svg, .pdf or .png")
        replace_file(target, render(self.svg(), format, dpi))
        return target

    def _repr_svg_(self) -> str:
        """Return the figure for Jupyter."""
        return self.svg()


def title(drawing: Drawing, head: str, caption: Caption, sentences: Sequence[str] = ()) -> float:
    """Write the title (what, model) and the sentences. Returns the position below them."""
    y = 8.0
    for line in lines_of(" \u00b7 ".join(filter(None, (head, caption.model))), drawing.width - 4, TITLE, 2):
        drawing.text(2, y, line, TITLE, bold=True)
        y += 10
    for sentence in sentences:
        for line in lines_of(sentence, drawing.width - 4, BODY):
            start = is_right_to_left(line)
            drawing.text(drawing.width - 2 if start else 2, y, line, BODY, "right" if start else "left", INK["ink-2"])
            y += 9
    return y + 2


def is_right_to_left(text: str) -> bool:
    """Return True if the first letter of a text is Hebrew, Arabic or of another script that runs to the left."""
    letters = (unicodedata.bidirectional(character) for character in text)
    return next((kind in ("R", "AL") for kind in letters if kind in ("L", "R", "AL")), False)


def finish(drawing: Drawing, y: float, caption: Caption, kind: str) -> Figure:
    """Write the notes below the picture and close the figure."""
    for note in caption.notes:
        for line in lines_of(note, drawing.width - 4, SMALL):
            drawing.text(2, y + 3, line, SMALL, fill=INK["ink-2"])
            y += 8
    drawing.height = y + 3
    return Figure(drawing, caption.file_name(kind))


def number(value: float | np.floating, digits: int = 2) -> str:
    """Format a number as the viewer does: ``.41``, ``1.00``, ``−1.2``."""
    if not np.isfinite(value):
        return "\u2013"
    text = f"{abs(value):.{digits}f}"
    sign = "\u2212" if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0.") else text)


def colours(values: Float[np.ndarray, "*shape"], is_signed: bool = False) -> np.ndarray:
    """Return the colours of scaled values, uint8 [..., 3]."""
    return signed(values) if is_signed else sequential(values)


def ramp(
    drawing: Drawing, y: float, label: str, ends: tuple[str, str], *, is_signed: bool = False, scale: str = "linear"
) -> float:
    """Draw a colour scale with the values at its ends and its label. Returns the position below it.

    The scale is linear in the value, so its colours show how `scale` maps values.
    """
    width, x, n = 64.0, 4 + text_width(ends[0], SMALL), 64
    values = np.linspace(-1 if is_signed else 0, 1, n)
    steps = colours(np.sign(values) * SCALES[scale](np.abs(values)), is_signed)
    drawing.text(2, y + 4, ends[0], SMALL, fill=INK["ink-2"])
    for i, step in enumerate(steps):
        drawing.cells(cell_path([(x + i * width / n, y + 1, width / n + 0.1, 6)]), hex_colour(step))
    drawing.rect(x, y + 1, width, 6, stroke=INK["line-2"], line=0.4)
    drawing.text(x + width + 3, y + 4, ends[1], SMALL, fill=INK["ink-2"])
    left = x + width + 9 + text_width(ends[1], SMALL)
    text = shortened(label + SCALE_NAMES[scale], drawing.width - left - 2, SMALL)
    drawing.text(left, y + 4, text, SMALL, fill=INK["ink-2"])
    return y + 12


def map_cells(
    drawing: Drawing,
    values: Float32[np.ndarray, "row column"],
    x: float,
    y: float,
    cell: tuple[float, float],
    *,
    is_signed: bool = False,
    max_cells: int = MAX_CELLS,
) -> None:
    """Draw the cells of a map of scaled values: as vectors, or as one image if more than `max_cells` are not blank."""
    rgb = colours(values, is_signed)
    is_blank = (rgb == 255).all(axis=-1)
    width, height = cell
    if int((~is_blank).sum()) > max_cells:
        drawing.image(x, y, width * values.shape[1], height * values.shape[0], rgb)
        return
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    for row, column in np.argwhere(~is_blank).tolist():
        box = (x + column * width, y + row * height, width, height)
        boxes.setdefault(hex_colour(rgb[row, column]), []).append(box)
    for colour, group in boxes.items():
        drawing.cells(cell_path(group), colour)


def shown(special: Bool[np.ndarray, "token"] | np.ndarray, hide: bool) -> np.ndarray:
    """Return the positions of the tokens that are shown."""
    special = np.asarray(special, bool)
    return np.flatnonzero(~special) if hide else np.arange(len(special))
