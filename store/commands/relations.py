"""The command `headatlas relations`: the head × relation atlas of a treebank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Score, Select, SiteName, chosen_stores
from .printing import print_table

if TYPE_CHECKING:
    import pandas as pd

    from ..queries.dependency_relations import Merge, RelationAtlas
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Query")
def relations(
    store: Annotated[
        str | None,
        typer.Argument(metavar="STORE", help="Folder or URL of a trace store; none with --select.", show_default=False),
    ] = None,
    select: Select = None,
    score: Score = None,
    merge: Annotated[
        Literal["mean", "first"], typer.Option(help="A word's row: the mean of its tokens' rows, or its first token's.")
    ] = "mean",
    subtypes: Annotated[bool, typer.Option("--subtypes", help="Tell nsubj:pass from nsubj.")] = False,
    every_head: Annotated[
        bool, typer.Option("--every-head", help="Every head in both directions, not the best of each relation.")
    ] = False,
    minimum: Annotated[
        int, typer.Option("--min-rows", min=1, help="Relations with fewer dependents are named, not ranked.")
    ] = 30,
    site: SiteName = None,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="Also draw the best heads as SVG.", show_default=False),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show which head finds which dependency relation: accuracy per head against chance and fixed offsets.

    Example: [bold]headatlas relations traces/ewt[/bold]
    """
    from ..queries.dependency_relations import by_support
    from ..queries.relations_figure import relations_figure
    from . import tables as render

    first, second = chosen_stores(store, select, score)
    atlas = _atlas(first, second, site, merge, subtypes)
    best = atlas.table()
    supported, few = by_support(best, minimum)
    if figure is not None:
        figure.write_text(relations_figure(supported, _title(first, second)), encoding="utf-8")
    table = atlas.table(every_head=True) if every_head else best
    if as_json:
        print(render.to_json(render.relations_json(table) | render.fetched(first, second)))
    elif as_csv:
        print(table.to_csv(index=False, lineterminator="\n"), end="")
    else:
        _print(atlas, by_support(table, minimum)[0], few, first, second)


def _atlas(first: Store | None, second: Store, site: str | None, merge: Merge, subtypes: bool) -> RelationAtlas:
    """Compute the atlas, with a progress bar where a person is looking."""
    from ..queries.dependency_relations import relation_atlas

    stores = (second, None) if first is None else (first, second)
    if not sys.stderr.isatty():
        return relation_atlas(*stores, site, merge, subtypes=subtypes)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("relations", total=None)
        return relation_atlas(
            *stores,
            site,
            merge,
            subtypes=subtypes,
            on_progress=lambda done, planned: progress.update(task, completed=done, total=planned),
        )


def _left_out(store: Store) -> str:
    """What is said where attention is sparse."""
    codec = store.spec.attention_codec
    if codec is None or codec.selection is None:
        return ""
    return f" Weights that {codec.name} left out count as 0."


def _title(first: Store | None, second: Store) -> str:
    chosen = "" if first is None else f", heads chosen on {_corpus(first)}"
    model = second.manifest.provenance.get("model")
    name = model.get("name", "") if isinstance(model, dict) else ""
    return " · ".join(part for part in (str(name), f"{_corpus(second)}{chosen}") if part)


def _corpus(store: Store) -> str:
    corpus = store.manifest.provenance.get("corpus")
    return str(corpus.get("name", store.name)) if isinstance(corpus, dict) else store.name


def _print(atlas: RelationAtlas, table: pd.DataFrame, few: pd.DataFrame, first: Store | None, second: Store) -> None:
    from rich.console import Console

    from . import tables as render

    console = Console()
    print_table(console, render.relations_table(table))
    chosen = "on the same data: optimistic" if first is None else f"on {first.location}"
    console.print(
        f"{len(atlas.score.example):,} dependents in {second.n_examples:,} examples. Heads chosen {chosen}. "
        f"→ head: the dependent looks at its head; ← head: the head looks at its dependent. "
        f"Tokens merged to words by {atlas.merge}.{_left_out(second)}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    if len(few):
        names = ", ".join(f"{name} ({n})" for name, n in zip(few["relation"], few["n"], strict=True))
        console.print(
            f"Too few dependents to rank heads on: {render.printable(names)}.",
            style="dim",
            markup=False,
            soft_wrap=True,
        )
    if fetched := render.fetched_text(first, second):
        console.print(fetched, style="dim")
