"""Commands that create stores from stores and remove data from them: convert, drop, gc, merge."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from .options import AsJson, IgnoreSpace, StoreFolder, StorePath
from .printing import size_text

if TYPE_CHECKING:
    from rich.progress import Progress

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Store")
def convert(
    store: StorePath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new store.", show_default=False)],
    container: Annotated[
        Literal["zarr", "hdf5"] | None,
        typer.Option(
            help="Container: Zarr v3 groups, or one HDF5 file for each segment; default unchanged.", show_default=False
        ),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND=]NAME",
            help="Codec of attention, or of query and key with query_key=NAME; repeat for both.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Data to keep: attention, query_key, edges or statistics; repeat for more. Default: all.",
            show_default=False,
        ),
    ] = None,
    ignore_space: IgnoreSpace = False,
    as_json: AsJson = False,
) -> None:
    """Copy a store into another container or other codecs. All other data stay bit for bit.

    Errors of codecs add up, and the new store records their sum. After an interruption the same command resumes.

    Example: [bold]headatlas convert traces/demo traces/demo-small --codec sqrt7 --keep attention --keep edges[/bold]
    """
    from ..writing.convert import convert_store

    with _progress() as progress:
        task = progress.add_task("convert", total=None)
        result = convert_store(
            store,
            out,
            container,
            codecs=dict(_codec(text) for text in codec or ()),
            keep=keep,
            check_space=not ignore_space,
            on_segment=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
        return
    resumed = f" ({result.n_segments_there} existed already)" if result.n_segments_there else ""
    _say(
        f"{result.out}: {result.n_examples:,} examples in {result.n_segments} segments{resumed}, container {result.container}, "
        f"{size_text(result.bytes_after)} (before: {size_text(result.bytes_before)})."
    )
    if codec and result.attention:
        _say(
            f"Attention in {result.attention}: error at most {result.attention_error:.2g} from the weights of the model."
        )


def _codec(text: str) -> tuple[str, str]:
    kind, equals, name = text.partition("=")
    return (kind, name) if equals else ("attention", text)


@app.command(rich_help_panel="Store")
def drop(
    store: StoreFolder,
    examples: Annotated[
        list[str] | None,
        typer.Option("--examples", metavar="ID", help="Id of an example; repeat for more."),
    ] = None,
    numbers: Annotated[
        list[str] | None,
        typer.Option("--numbers", metavar="N", help="Number of an example, or span such as 10:20; repeat for more."),
    ] = None,
    segments: Annotated[
        list[int] | None, typer.Option("--segments", metavar="N", help="Segment number; repeat for more.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Reason to record for each example.")] = "dropped",
    as_json: AsJson = False,
) -> None:
    """Remove examples or segments: write a new snapshot without them. `gc` frees the space.

    Example: [bold]headatlas drop traces/demo --numbers 17 --numbers 20:24[/bold]
    """
    from ..writing.drop import drop_from_store

    selection = [*(examples or ()), *(number for text in numbers or () for number in _span(text))]
    result = drop_from_store(store, examples=selection, segments=segments or (), reason=reason)
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
        return
    _say(
        f"{result.path}: manifest {result.manifest} leaves out {len(result.examples)} examples and "
        f"{len(result.segments)} segments. Older snapshots have them until headatlas gc removes those."
    )


def _span(text: str) -> range:
    match = re.fullmatch(r"([0-9]{1,9})(?::([0-9]{1,9}))?", text)
    span = range(0) if match is None else range(int(match[1]), int(match[2] or int(match[1]) + 1))
    if not span:
        raise ConfigError(
            f"--numbers is {text!r}; expected a number such as 17, or a span such as 20:24 (without 24). For an id, use "
            "--examples."
        )
    return span


@app.command(rich_help_panel="Store")
def gc(
    store: StoreFolder,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    keep: Annotated[int, typer.Option(min=1, help="Number of newest snapshots to keep.")] = 1,
    grace: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="Keep snapshots that are younger than this.")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Remove old snapshots and the data that no remaining snapshot uses. Data in use by open readers stay.

    Example: [bold]headatlas gc traces/demo --dry-run[/bold]
    """
    from ..writing.garbage_collection import collect_store

    result = collect_store(store, keep=keep, grace_s=3600 * grace, dry_run=dry_run)
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
        return
    verb = "would remove" if dry_run else "removed"
    in_use = f" Open readers use {len(result.held)} more." if result.held else ""
    _say(
        f"{result.path}: {verb} {len(result.manifests)} manifests and {len(result.segments)} segments, "
        f"{size_text(result.bytes)}.{in_use}"
    )


@app.command(rich_help_panel="Store")
def merge(
    stores: Annotated[
        list[str],
        typer.Argument(metavar="STORE", help="Folders or URLs of two or more trace stores.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the new store.", show_default=False)],
    append: Annotated[
        bool, typer.Option("--append", help="Join stores of different corpora, one after the other.")
    ] = False,
    ignore_space: IgnoreSpace = False,
    as_json: AsJson = False,
) -> None:
    """Merge stores of the same model into one: parts of one job, or different corpora with --append.

    Example: [bold]headatlas merge traces/a traces/b --out traces/both[/bold]
    """
    from ..writing.merge import merge_stores

    with _progress() as progress:
        task = progress.add_task("merge", total=None)
        result = merge_stores(
            stores,
            out,
            append=append,
            check_space=not ignore_space,
            on_segment=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
        return
    _say(f"{result.out}: {result.n_examples:,} examples in {result.n_segments} segments of {result.n_stores} stores.")


def _say(text: str) -> None:
    from rich.console import Console

    Console(highlight=False, markup=False).print(text, soft_wrap=True)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
