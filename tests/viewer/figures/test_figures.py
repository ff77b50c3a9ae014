"""Figures for print: what they draw, their sizes in print, and their files."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from headatlas.store.errors import ConfigError, MissingExtraError, NotFoundError
from headatlas.viewer import draw_figure
from headatlas.viewer.components.script_files import FOLDER
from headatlas.viewer.figures import drawing
from headatlas.viewer.figures.attention_figures import LineChoices, MapChoices, lines_figure, map_figure
from headatlas.viewer.figures.drawing import MIN_SIZE, POINTS_PER_MM, Drawing
from headatlas.viewer.figures.figure_parts import Caption, map_cells
from headatlas.viewer.figures.typesetting import render
from headatlas.viewer.frames.geometry import strongest_edges
from headatlas.viewer.frames.view_frames import tokens_frame

from ..components.test_frame_types import COMPONENTS
from ..conftest import PLAIN
from ..view_data import random_attention

SVG = "{http://www.w3.org/2000/svg}"
LABELS = ["‹CLS›", "the", "nurse", "said", "she", "‹SEP›"]
TOKENS = tokens_frame(LABELS, [True, False, False, False, False, True])
VIEW = "page=views&example=9&head=1.2"
PAGES = {
    "page=corpus": ("head map", "heads by two statistics", "distribution"),
    "page=search&pattern=key.position == query.position - 1": ("ranked heads",),
    f"{VIEW}&view=head&pin=q2&heads=0.1": ("head view", "heads"),
    f"{VIEW}&view=model": ("model view", "one head"),
    f"{VIEW}&view=neuron&factors=3:0": ("neuron view",),
    f"{VIEW}&view=matrix&zoom=1,1,4": ("matrix",),
    f"{VIEW}&view=compare&other_example=12": ("difference",),
    f"{VIEW}&view=space&shade=position": ("query-key space",),
}


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize(("address", "picture"), [(a, p) for a, pictures in PAGES.items() for p in pictures])
def test_every_picture_is_a_figure_of_its_width_without_controls(store_path, address, picture):
    """The figure is as wide as a column, its text is text of at least 6 points, and nothing in it is a control."""
    figure = draw_figure([str(store_path)], address, picture=picture)
    root = ElementTree.fromstring(figure.svg())
    assert root.get("width") == "85.00mm"
    words = texts(figure.svg())
    assert words[0]
    assert any("tiny-<b>random</b>" in text for text in words[:2])
    if "view=" in address and picture != "query-key space":
        assert any(PLAIN[9 % 3][:20] in text for text in words[:4])
    else:
        assert any("n = 60 examples" in text for text in words)
    sizes = [float(node.get("font-size") or 0) for node in root.iter(f"{SVG}text")]
    assert min(sizes) >= MIN_SIZE
    right = [float(node.get("x") or 0) for node in root.iter(f"{SVG}text")]
    assert 0 <= min(right) <= max(right) <= 85 * POINTS_PER_MM
    tags = {node.tag.removeprefix(SVG) for node in root.iter()}
    assert tags <= {"svg", "rect", "path", "text", "image", "circle"}
    assert not re.search(r'href="(?!data:image/png)', figure.svg())
    assert not {"zero", "Reset", "Copy", "Swap A and B"} & set(words)
    assert re.fullmatch(r"[\w.+-]+", figure.name)


def test_each_card_with_a_figure_has_a_component_that_draws_it():
    cards = {
        name
        for path in FOLDER.glob("*.js")
        for name in re.findall(r'"data-picture": "([^"]+)", "data-figure"', path.read_text("utf-8"))
    }
    assert cards == {kind.picture for kind in COMPONENTS if kind.picture} | {"small head map"}


def test_lines_are_those_of_the_head_view():
    maps = random_attention((2, 6, 6), seed=4)
    figure = lines_figure(maps, ["1.2", "0.1"], TOKENS, TOKENS, LineChoices(), Caption("m", "head 1.2", "a b"), 85)
    shown = ~np.asarray(TOKENS["special"], bool)
    edges = [strongest_edges(map_, query_shown=shown, key_shown=shown) for map_ in maps]
    curves = [
        node
        for node in ElementTree.fromstring(figure.svg()).iter(f"{SVG}path")
        if "C" in (node.get("d") or "") and float(node.get("stroke-width") or 0) > 0
    ]
    assert len(curves) - 3 == sum(map(len, edges))  # the legend has three
    pinned = lines_figure(maps[:1], ["1.2"], TOKENS, TOKENS, LineChoices(pin="q2"), Caption(), 85)
    weights = {f"{w:.2f}"[1:] for k, w in enumerate(maps[0, 2].tolist()) if shown[k] and w >= 0.02}
    assert weights <= set(texts(pinned.svg()))


def test_a_cell_is_a_vector_and_a_large_map_is_one_image():
    small, large = Drawing(85), Drawing(85)
    map_cells(small, np.array([[0, 0.5], [1, 0]], np.float32), 0, 0, (10, 10))
    map_cells(large, np.full((80, 80), 0.3, np.float32), 0, 0, (2, 2))
    assert small.svg().count("h10.00v10.00") == 2
    assert "<image" not in small.svg()
    assert large.svg().count("<image") == 1
    assert "<path" not in large.svg()


def test_a_difference_is_signed_and_its_scale_is_symmetric():
    delta = np.array([[0.2, -0.4], [0, 0.1]], np.float32)
    tokens = tokens_frame(["a", "b"])
    choices = MapChoices("B − A", is_signed=True, label="difference", ends=("A", "B"))
    svg = map_figure(delta, tokens, tokens, choices, Caption(), 85).svg()
    assert {"A +.40", "B +.40"} <= set(texts(svg))


def test_hostile_text_stays_text(store_path):
    """Texts of the corpus reach the file as character data, and no character that XML forbids is left."""
    for example in (0, 1, 3, 4):
        svg = draw_figure([str(store_path)], f"page=views&view=head&example={example}").svg()
        tags = {node.tag.removeprefix(SVG) for node in ElementTree.fromstring(svg).iter()}
        assert tags <= {"svg", "rect", "path", "text"}


def test_what_cannot_be_drawn_is_said(store_path):
    stores = [str(store_path)]
    for address, message in (
        ("page=views&head=9.9", "layer = '9': this store has layer 0 to 2"),
        ("page=views&view=neuron&factors=77:0", "have dimensions 0 to 31"),
        ("colour=red", "there is no such field"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            draw_figure(stores, address)
    with pytest.raises(NotFoundError, match=r"has no picture 'heads'\. Its pictures: head map"):
        draw_figure(stores, "page=corpus", picture="heads")
    with pytest.raises(NotFoundError, match="Choose A and B first"):
        draw_figure(stores, "page=views&view=compare&compare=examples&example=9")
    with pytest.raises(ConfigError, match="expected single, double or 40 to 600 millimetres"):
        draw_figure(stores, width="wide")
    with pytest.raises(ConfigError, match=r"ends in \.svg, \.pdf or \.png"):
        draw_figure(stores).save("figure.doc")


def test_pdf_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "typst", None)
    with pytest.raises(MissingExtraError, match=r"PDF needs typst: pip install 'headatlas\[figures\]'"):
        render("<svg/>", "pdf")


def test_pdf_and_png_have_the_size_of_the_figure_and_fonts_inside(store_path, tmp_path: Path):
    pytest.importorskip("typst", reason="the extra figures is not installed")
    figure = draw_figure([str(store_path)], f"{VIEW}&view=head", width="double")
    pdf = figure.save(tmp_path / "lines.pdf").read_bytes()
    box = re.search(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert box
    assert float(box[1]) == pytest.approx(170 * POINTS_PER_MM, abs=0.1)
    assert b"/FontFile" in pdf
    assert b"/ToUnicode" in pdf  # text can be selected
    png = figure.save(tmp_path / "lines.png", dpi=150).read_bytes()
    assert int.from_bytes(png[16:20], "big") == pytest.approx(170 / 25.4 * 150, abs=2)


@pytest.mark.parametrize("text", ["x" * 20_000, "word " * 20_000, "\u0301" * 20_000, "\u4e00" * 20_000])
def test_a_long_text_is_cut_in_one_pass(monkeypatch, text):
    measured = []
    width = drawing.text_width
    monkeypatch.setattr(drawing, "text_width", lambda text, size=7: measured.append(len(text)) or width(text, size))
    lines = drawing.lines_of(text, 200)
    assert all(width(line) <= 200 for line in lines)
    assert sum(measured) < 4 * len(text)


@pytest.mark.parametrize("text", ["short", "exactly as wide as its space", "x" * 300])
def test_a_text_is_cut_only_if_it_does_not_fit(text):
    assert drawing.shortened(text, drawing.text_width(text)) == text
    cut = drawing.shortened(text, drawing.text_width(text) - 0.1)
    assert cut == "\u2026" or (cut.endswith("\u2026") and text.startswith(cut[:-1]))
