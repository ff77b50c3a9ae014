"""The command `headatlas annotate`: add annotations from a file to a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from headatlas.store.commands.options import AsJson, StoreFolder

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Store")
def annotate(
    store: StoreFolder,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="A .jsonl, .csv, .tsv, .parquet or .conllu file, also compressed. Its rows name examples by `id`.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            "--name", help="Name of the column in expressions: query.NAME or example.NAME.", show_default=False
        ),
    ] = ...,  # pyright: ignore[reportArgumentType]  typer marks a required option by ...
    column: Annotated[
        str | None, typer.Option(help="Column of the file; default: the name in --name.", show_default=False)
    ] = None,
    kind: Annotated[
        Literal["example", "word", "token"] | None,
        typer.Option(help="Items that the values of a list annotate; default: word.", show_default=False),
    ] = None,
    sequence: Annotated[Literal["source", "target"], typer.Option(help="Sequence of the words or tokens.")] = "source",
    description: Annotated[str, typer.Option(help="Description to store with the column.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace the column with this name.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the column with this name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add annotations of examples, words or tokens to a store. Existing files are not rewritten.

    Example: [bold]headatlas annotate traces/ewt parsed.conllu --name upos2 --column upos[/bold]
    """
    from headatlas.store.errors import ConfigError
    from headatlas.store.reading.snapshot import open_snapshot
    from headatlas.store.writing.annotate import annotate_store, remove_annotation

    from ..corpora.annotation_files import describe_annotation_file, read_annotation_file

    if remove:
        opened = remove_annotation(store, name)
        n_examples = n_skipped = 0
    else:
        if file is None:
            raise ConfigError("FILE is missing; expected headatlas annotate STORE FILE --name NAME.")
        kind, values = read_annotation_file(file, column or name, kind)
        opened = annotate_store(
            open_snapshot(store),
            name,
            values,
            kind=kind,
            sequence=sequence,
            description=description,
            made_from=describe_annotation_file(file, column or name),
            replace=replace,
        )
        skipped = {row.id for row in opened.manifest.skipped}
        n_skipped = sum(name in skipped for name in values)
        n_examples = len(values) - n_skipped
    if as_json:
        report = {
            "path": opened.location,
            "manifest": opened.manifest.number,
            "name": name,
            "kind": "removed" if remove else kind,
        }
        print(json.dumps(report | {"n_examples": n_examples, "n_skipped": n_skipped}, indent=1))
    elif remove:
        print(f"{opened.location}: manifest {opened.manifest.number} no longer has {name}.")
    else:
        reference = f"example.{name}" if kind == "example" else f"query.{name}"
        print(
            f"{opened.location}: manifest {opened.manifest.number} has {name} ({kind}) of {n_examples:,} of "
            f"{opened.n_examples:,} examples. Name in patterns: {reference}"
        )
        if n_skipped:
            print(f"Left out: the values of {n_skipped:,} examples that the store lists as skipped or dropped.")
