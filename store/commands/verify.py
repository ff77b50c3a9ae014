"""The command `headatlas verify`; damage ends as exit code 1."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import HeadAtlasError
from .options import AsJson, StorePath
from .printing import size_text

if TYPE_CHECKING:
    from ..writing.verification import Verification

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Store")
def verify(
    store: StorePath,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="Compare the hash of every byte, or presence and size only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that nothing of a store is missing or changed; exit code 1 if something is.

    Example: [bold]headatlas verify traces/demo --full[/bold]
    """
    from ..writing.verification import verify_store

    if as_json:
        result = verify_store(store, full=full)
        print(json.dumps(result.to_json(), indent=1))
    else:
        result = _verify_with_progress(store, full)
        _print_verification(result)
    raise typer.Exit(0 if result.is_sound else 1)


def _verify_with_progress(store: str, full: bool) -> Verification:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from ..store import open_store
    from ..writing.verification import verify_store

    console = Console(stderr=True)
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        try:
            total = open_store(store).bytes_on_disk
        except HeadAtlasError:  # verify says what is wrong
            total = None
        task = progress.add_task("verify", total=total)
        return verify_store(store, full=full, on_bytes=lambda n: progress.advance(task, n))


def _print_verification(result: Verification) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if result.bytes_fetched:
        console.print(f"{size_text(result.bytes_fetched)} fetched.")
    looked = f"{result.n_segments} segments, {result.n_objects} objects, {size_text(result.n_bytes)}"
    how = "hashes" if result.full else "presence and size"
    if result.is_sound:
        console.print(f"{result.path}: sound ({how} of {looked}).", soft_wrap=True)
        if not result.full:
            console.print("Run with --full to compare every byte with its hash.")
        return
    console.print(f"{result.path}: {len(result.findings)} damaged ({how} of {looked}).", soft_wrap=True)
    for finding in result.findings:
        first, last = finding.first_example, finding.last_example
        touched = "no example" if first is None else f"examples {first} to {last}"
        console.print(f"  {finding.object}  ({touched})\n    {finding.problem}", soft_wrap=True)
    if any(finding.segment is not None and finding.overlay is None for finding in result.findings):
        console.print("Its job writes damaged segments again: headatlas run JOB --repair")
