"""Commands that make stores out of stores, and take things out of them: convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .container import ContainerName
from .render import size_text

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a trace store.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Store")
def convert(
    store: StorePath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new store.", show_default=False)],
    container: Annotated[
        ContainerName, typer.Option(help="Zarr v3 groups, or one HDF5 file a segment.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Copy a store into the other container, bit for bit. Cut off, it goes on where it stopped.

    Example: [bold]headatlas convert traces/demo traces/demo-hdf5 --container hdf5[/bold]
    """
    from .convert import convert_store

    with _progress() as progress:
        task = progress.add_task("convert", total=None)
        result = convert_store(
            store, out, container, on_segment=lambda done, total: progress.update(task, completed=done, total=total)
        )
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
        return
    there = f" ({result.n_segments_there} were there)" if result.n_segments_there else ""
    _say(
        f"{result.out}: {result.n_examples:,} examples in {result.n_segments} segments{there}, container {container}, "
        f"{size_text(result.bytes_after)} (before: {size_text(result.bytes_before)})."
    )


def _say(text: str) -> None:
    Console(highlight=False, markup=False).print(text, soft_wrap=True)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
