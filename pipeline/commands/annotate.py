"""The command `headatlas annotate`: add to a written store what a file says of its examples."""

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
            metavar="LAYER",
            help="A .jsonl, .csv, .tsv, .parquet or .conllu file; rows are found by `id`.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="What expressions call it: query.NAME or example.NAME.", show_default=False)
    ] = ...,  # pyright: ignore[reportArgumentType]  typer's word for a required option
    column: Annotated[
        str | None, typer.Option(help="The file's column, if its name is not the one of --name.", show_default=False)
    ] = None,
    kind: Annotated[
        Literal["example", "word", "token"] | None,
        typer.Option(help="What each value of a list belongs to; default word.", show_default=False),
    ] = None,
    sequence: Annotated[Literal["source", "target"], typer.Option(help="Whose words or tokens.")] = "source",
    description: Annotated[str, typer.Option(help="Stored with the column.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace the column of that name.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the column of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add an annotation of examples, words or tokens to a written store. Nothing is written anew.

    Example: [bold]headatlas annotate traces/ewt parsed.conllu --name upos2 --column upos[/bold]
    """
    from headatlas.store.errors import ConfigError
    from headatlas.store.writing.annotate import annotate_store, remove_annotation

    from ..corpora.annotation_files import describe_annotation_file, read_annotation_file

    if remove:
        opened = remove_annotation(store, name)
        n_examples = 0
    else:
        if file is None:
            raise ConfigError("no file; expected headatlas annotate STORE FILE --name NAME.")
        kind, values = read_annotation_file(file, column or name, kind)
        opened = annotate_store(
            store,
            name,
            values,
            kind=kind,
            sequence=sequence,
            description=description,
            made_from=describe_annotation_file(file, column or name),
            replace=replace,
        )
        n_examples = len(values)
    if as_json:
        told = {
            "path": opened.location,
            "manifest": opened.manifest.number,
            "name": name,
            "kind": "removed" if remove else kind,
        }
        print(json.dumps(told | {"n_examples": n_examples}, indent=1))
    elif remove:
        print(f"{opened.location}: manifest {opened.manifest.number} is without {name}.")
    else:
        used = f"example.{name}" if kind == "example" else f"query.{name}"
        print(
            f"{opened.location}: manifest {opened.manifest.number} has {name} ({kind}) of {n_examples:,} of "
            f"{opened.n_examples:,} examples. In patterns: {used}"
        )
