"""SVG of a drawing to PDF and PNG, by Typst (extra `figures`). The text of a PDF stays text, with its fonts embedded."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from headatlas.store.errors import MissingExtraError

from .drawing import DPI

Format = Literal["svg", "pdf", "png"]
_DOCUMENT = """#set document(date: none)
#set page(width: auto, height: auto, margin: 0pt)
#image("figure.svg")
"""


def render(svg: str, format: Format, dpi: int = DPI) -> bytes:
    """Convert an SVG document that `Drawing.svg` wrote.

    Never pass SVG from elsewhere: it could refer to files.

    Raises
    ------
    MissingExtraError
        The package typst is not installed.
    """
    if format == "svg":
        return svg.encode("utf-8")
    try:
        import typst
    except ImportError:
        raise MissingExtraError(
            f"{format.upper()} needs typst: pip install 'headatlas[figures]'. SVG needs no further package."
        ) from None
    with TemporaryDirectory(prefix="headatlas-figure-") as folder:
        (Path(folder) / "figure.svg").write_text(svg, "utf-8")
        document = Path(folder) / "figure.typ"
        document.write_text(_DOCUMENT, "utf-8")
        return typst.compile(document, root=Path(folder), format=format, ppi=float(dpi))
