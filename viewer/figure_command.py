"""The command `headatlas figure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Viewer")
def figure(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of a store.", show_default=False)],
    address: Annotated[
        str,
        typer.Argument(metavar="ADDRESS", help="Address of a page of the viewer, or its part after the question mark."),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            show_default=False,
            help="File to write: .svg, .pdf or .png. Default: an SVG file named after the picture, in this folder.",
        ),
    ] = None,
    picture: Annotated[
        str,
        typer.Option(help="Picture of the page, such as 'one head'; default: its main picture.", show_default=False),
    ] = "",
    width: Annotated[str, typer.Option(help="Width: single (85 mm), double (170 mm) or millimetres.")] = "single",
    dpi: Annotated[int, typer.Option(min=72, max=2400, help="Resolution of a PNG in dots per inch.")] = 600,
    other: Annotated[
        list[str] | None, typer.Option("--with", metavar="STORE", help="Further store to compare. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Draw one picture of the viewer as a figure for print, without a browser. PDF and PNG need the extra `figures`.

    Copy the address from the browser: it holds every choice of the page.

    Example: [bold]headatlas figure traces/demo "page=views&view=head&example=3&head=5.8&pin=q8" --out head.pdf[/bold]
    """
    import json

    from .pages.page_figure import draw_figure

    drawn = draw_figure([store, *(other or [])], address, picture=picture, width=width)
    path = drawn.save(out or f"{drawn.name}.svg", dpi)
    width_mm, height_mm = (side * 25.4 / 72 for side in (drawn.drawing.width, drawn.drawing.height))
    if as_json:
        typer.echo(json.dumps({"file": str(path), "width_mm": round(width_mm, 2), "height_mm": round(height_mm, 2)}))
    else:
        typer.echo(f"{path}: {width_mm:.0f} \u00d7 {height_mm:.0f} mm")
