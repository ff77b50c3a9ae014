"""The command line: `main` gathers the commands of every part, and of plug-ins; `verify` and `info` are here.

Our own parts are listed by name, so that the store can run without the others; a plug-in offers a typer app under the
entry-point group ``headatlas.commands``. Errors that headatlas raises on purpose
end as one message and exit code 2, those of the disk too; damage found by `verify` is exit code 1.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import HeadAtlasError, PatternError
from .options import AsJson, StorePath
from .tables import fetched_text, size_text

if TYPE_CHECKING:
    from ..codecs.attention_codecs import AttentionCodec
    from ..writing.verify import Verification

_OWN = (
    "headatlas.pipeline.commands.run",
    "headatlas.pipeline.commands.annotate",
    "headatlas.store.commands.search",
    "headatlas.store.commands.stats",
    "headatlas.store.commands.relations",
    "headatlas.store.commands.contrast",
    "headatlas.store.commands.like",
    "headatlas.store.commands.neurons",
    "headatlas.store.commands.similar",
    "headatlas.store.commands.maintain",
    "headatlas.store.commands.main",
    "headatlas.viewer.commands",
)

app = typer.Typer(rich_markup_mode="rich")


def main() -> None:
    """Run the command line."""
    command = typer.Typer(
        name="headatlas",
        help="Which attention heads do this, over thousands of examples, and where?",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    command.callback()(lambda: None)  # one command alone would otherwise lose its name
    for part in command_apps():
        command.add_typer(part)
    try:
        command()
    except HeadAtlasError as error:
        message = error.pointed() if isinstance(error, PatternError) else str(error)
        print(f"headatlas: {message}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full or failing disk: what was committed is safe, and there is nothing to debug
        print(f"headatlas: {error}", file=sys.stderr)
        sys.exit(2)


def command_apps() -> Iterator[typer.Typer]:
    """The typer apps of headatlas's own parts, then those of plug-ins; what cannot be loaded is told and left out."""
    yield from own_apps()
    for entry in sorted(entry_points(group="headatlas.commands"), key=lambda entry: entry.name):
        if entry.module in _OWN:
            continue
        try:
            yield entry.load()
        except Exception as error:  # a broken plug-in must not take the commands of others away
            print(f"headatlas: the commands of {entry.name} ({entry.value}) cannot be loaded: {error}", file=sys.stderr)


def own_apps() -> Iterator[typer.Typer]:
    """The typer apps of headatlas's own parts, those that are installed."""
    for name in _OWN:
        if importlib.util.find_spec(name) is not None:
            yield app if name == "headatlas.store.commands.main" else importlib.import_module(name).app


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
    from ..writing.verify import verify_store

    if as_json:
        result = verify_store(store, full=full)
        print(json.dumps(result.to_json(), indent=1))
    else:
        result = _verify_with_progress(store, full)
        _print_verification(result)
    raise typer.Exit(0 if result.is_sound else 1)


def _verify_with_progress(store: str, full: bool) -> Verification:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from ..store import open_store
    from ..writing.verify import verify_store

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


@app.command(rich_help_panel="Store")
def info(store: StorePath, as_json: AsJson = False) -> None:
    """Show what a store holds, what made it, and the bytes of each array.

    Example: [bold]headatlas info traces/demo[/bold]
    """
    from ..store import open_store

    opened = open_store(store)
    manifest = opened.manifest
    arrays = _bytes_by_array(opened)
    if as_json:
        summary: dict[str, Any] = {
            "path": opened.location,
            "manifest": manifest.number,
            "format_version": manifest.format_version,
            "created": manifest.created,
            "is_complete": opened.is_complete,
            "n_examples": opened.n_examples,
            "n_examples_planned": manifest.n_examples_planned,
            "n_tokens": opened.n_tokens,
            "n_segments": len(opened.segments),
            "n_segments_planned": manifest.n_segments_planned,
            "bytes_on_disk": opened.bytes_on_disk,
            "bytes_fetched": opened.bytes_fetched,
            "requests": opened.n_requests,
            "arrays": arrays,
            "attention_error": manifest.spec.attention_error,
            "overlays": [overlay.model_dump(mode="json") for overlay in opened.overlays],
            "spec": manifest.spec.model_dump(mode="json"),
            "provenance": manifest.provenance,
            "skipped": [row.model_dump() for row in manifest.skipped],
        }
        print(json.dumps(summary, indent=1))
        return
    console = Console(highlight=False, markup=False)
    facts = Table.grid(padding=(0, 2))
    state = "complete" if opened.is_complete else f"{len(opened.segments)} of {manifest.n_segments_planned} segments"
    facts.add_row("store", f"{opened.location} ({state}, manifest {manifest.number} of {manifest.created})")
    facts.add_row(
        "examples", f"{opened.n_examples:,}" + (f" ({len(manifest.skipped)} skipped)" if manifest.skipped else "")
    )
    facts.add_row("tokens", ", ".join(f"{n:,} {name}" for name, n in opened.n_tokens.items()))
    facts.add_row("on disk", f"{size_text(opened.bytes_on_disk)} in {len(opened.segments)} segments")
    for site in opened.sites.values():
        heads = f"{site.n_layers} layers × {site.n_heads} heads"
        shared = f", {site.n_kv_heads} key heads" if site.n_kv_heads != site.n_heads else ""
        width = f", d_head {site.d_head}" if opened.spec.capture == "interface" else ""
        facts.add_row(f"site {site.name}", f"{heads}{shared}{width}{', causal' if site.causal else ''}")
    if opened.spec.capture == "eager":
        facts.add_row("eager mode", "attention as the model returned it; its query and key could not be seen")
    if (codec := manifest.spec.attention_codec) is not None:
        facts.add_row("attention", _attention_text(opened, codec))
    for overlay in opened.overlays:
        what = f"{overlay.kind} of {overlay.group}" if overlay.kind in ("word", "token") else overlay.kind
        added = f"added {overlay.created}{f', {overlay.unit}' if overlay.unit else ''}"
        facts.add_row(f"column {overlay.name}", f"{what}, {added}. {overlay.description}".rstrip(" ."))
    for name, value in manifest.provenance.items():
        facts.add_row(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    console.print(facts)
    table = Table("Array", "On disk", "Decoded", "Ratio")
    for path, (stored, raw) in arrays.items():
        table.add_row(path, size_text(stored), size_text(raw), f"{raw / stored:.2f}" if stored and raw else "")
    console.print(table)
    if fetched := fetched_text(opened):
        console.print(fetched)


def _attention_text(store: Any, codec: AttentionCodec) -> str:
    """How attention is kept, with its error, what it went through before, and what a sparse codec dropped."""
    from ..reading.pair_attention import mean_dropped

    spec = store.spec
    before = f", before that {', '.join(spec.earlier.attention)}" if spec.earlier.attention else ""
    text = f"{codec.name}{before}: weights within {spec.attention_error:.2g} of the model's"
    if codec.selection is not None:
        dropped = ", ".join(f"{name} {mean_dropped(store.segments, site):.1%}" for name, site in store.sites.items())
        text += f", those that were not kept included; mean mass of a row that was not kept: {dropped}"
    return text


def _bytes_by_array(store: Any) -> dict[str, tuple[int, int]]:
    """Bytes on disk and decoded of each trace array, of all tables together, and of metadata, over the store."""
    totals: dict[str, tuple[int, int]] = {}
    for segment in store.segments:
        rest = segment.entry.bytes + segment.entry.data_bytes
        for entry in segment.listing.arrays:
            stored, raw = segment.reader.stored_bytes(entry.path), entry.layout().raw_bytes
            rest -= stored
            name = entry.path if entry.path.split("/")[0] in store.sites else "texts and tokens"
            before = totals.get(name, (0, 0))
            totals[name] = (before[0] + stored, before[1] + raw)
        for overlay in segment.overlays.values():
            raw = sum(layout.raw_bytes for layout in overlay.layouts.values())
            before = totals.get("overlays", (0, 0))
            totals["overlays"] = (before[0] + overlay.entry.bytes + overlay.entry.data_bytes, before[1] + raw)
        totals["metadata"] = (totals.get("metadata", (0, 0))[0] + rest, 0)
    return totals


if __name__ == "__main__":
    main()
