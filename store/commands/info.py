"""The command `headatlas info`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from .options import AsJson, StorePath
from .printing import size_text

if TYPE_CHECKING:
    from ..codecs.attention_codecs import AttentionCodec

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Store")
def info(store: StorePath, as_json: AsJson = False) -> None:
    """Show what a store holds and what was left out, what made it, and the bytes of each array.

    --json has the whole provenance with the hash of every file.

    Example: [bold]headatlas info traces/demo[/bold]
    """
    from rich.console import Console
    from rich.table import Table

    from ..files.manifest import left_out_of
    from ..patterns.lexer import printable
    from ..schema.omissions import Omissions
    from ..store import open_store
    from .provenance_text import corpus_columns, provenance_rows
    from .tables import fetched_text

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
            "extensions": [part.model_dump(mode="json") for part in manifest.extensions],
            "spec": manifest.spec.model_dump(mode="json"),
            "provenance": manifest.provenance,
            "skipped": [row.model_dump() for row in manifest.skipped],
            "left_out": Omissions(left_out_of(manifest)).to_json(),
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
    for part in manifest.extensions:
        last = part.first_example + part.n_examples - 1
        facts.add_row("", f"{part.first_example:,} to {last:,} from {part.name}, added {part.created}")
    facts.add_row("tokens", ", ".join(f"{n:,} {name}" for name, n in opened.n_tokens.items()))
    facts.add_row("on disk", f"{size_text(opened.bytes_on_disk)} in {len(opened.segments)} segments")
    for site in opened.sites.values():
        shared = f", {site.n_kv_heads} key heads" if site.n_kv_heads != site.n_heads else ""
        width = f", d_head {site.d_head}" if opened.spec.capture == "interface" else ""
        facts.add_row(f"site {site.name}", f"{site.shape_text}{shared}{width}{', causal' if site.causal else ''}")
    if opened.spec.capture == "eager":
        facts.add_row("eager mode", "attention as the model returned it; its query and key could not be seen")
    if (codec := manifest.spec.attention_codec) is not None:
        facts.add_row("attention", _attention_text(opened, codec))
    lines = [*map(str, left_out_of(manifest)), *manifest.renamed.lines()]
    for number, line in enumerate(lines):
        facts.add_row("" if number else "left out", printable(line))
    for kind, names in corpus_columns(opened).items():
        facts.add_row(f"{kind} columns", printable(", ".join(names)))
    for overlay in opened.overlays:
        what = f"{overlay.kind} of {overlay.group}" if overlay.kind in ("word", "token") else overlay.kind
        added = f"added {overlay.created}{f', {overlay.unit}' if overlay.unit else ''}"
        if (n_covered := opened.n_covered(overlay.name)) < opened.n_examples:
            added += f", to {n_covered:,} of the examples"
        facts.add_row(f"column {overlay.name}", f"{what}, {added}. {overlay.description}".rstrip(" ."))
    for name, text in provenance_rows(manifest.provenance):
        facts.add_row(printable(name), printable(text))
    console.print(facts)
    table = Table("Array", "On disk", "Decoded", "Ratio")
    for path, (stored, raw) in arrays.items():
        table.add_row(path, size_text(stored), size_text(raw), f"{raw / stored:.2f}" if stored and raw else "")
    console.print(table)
    if fetched := fetched_text(opened):
        console.print(fetched)


def _attention_text(store: Any, codec: AttentionCodec) -> str:
    """Describe the codec of attention: its error, the codecs before it, and the mass that a sparse codec dropped."""
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
