"""The command `headatlas relations`: the head × relation atlas of a treebank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cluster import shares_tasks
from .options import AsCsv, AsJson, MergeTokens, Score, Select, SiteName, Unit, open_stores
from .printing import output_console, print_csv, print_table, progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from ..queries.dependency_relations import RelationAtlas
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Query")
@shares_tasks
def relations(
    store: Annotated[
        str | None,
        typer.Argument(metavar="STORE", help="Folder or URL of a trace store.", show_default=False),
    ] = None,
    select: Select = None,
    score: Score = None,
    merge: MergeTokens = "mean",
    subtypes: Annotated[bool, typer.Option("--subtypes", help="Distinguish nsubj:pass from nsubj.")] = False,
    every_head: Annotated[
        bool,
        typer.Option("--every-head", help="List every head in both directions, not only the best of each relation."),
    ] = False,
    minimum: Annotated[
        int, typer.Option("--min-rows", min=1, help="Relations with fewer dependents are listed, not ranked.")
    ] = 30,
    site: SiteName = None,
    unit: Unit = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure", metavar="FILE", help="Also write a figure of the best heads as SVG.", show_default=False
        ),
    ] = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Rank heads by dependency relation: the accuracy of each head, with chance and fixed offsets as baselines.

    Example: [bold]headatlas relations traces/ewt[/bold]
    """
    from ..files.drafts import replace_file
    from ..queries.dependency_relations import relation_atlas, split_by_count
    from ..queries.relations_figure import relations_figure
    from . import tables as render

    first, second = open_stores(store, select, score)
    stores = (second, None) if first is None else (first, second)
    with progress_bar() as report:
        atlas = relation_atlas(*stores, site, merge, subtypes=subtypes, unit=unit, on_progress=report)
    best = atlas.table()
    frequent, few = split_by_count(best, minimum)
    if figure is not None:
        replace_file(figure, relations_figure(frequent, _title(first, second)).encode())
    table = atlas.table(every_head=True) if every_head else best
    if as_json:
        print(
            render.to_json(
                render.relations_json(table, atlas.score, atlas.score.hidden_notes(atlas.site))
                | render.fetched(first, second)
            )
        )
    elif as_csv:
        print_csv(table, atlas.score.left_out)
    else:
        _print(atlas, split_by_count(table, minimum)[0], few, first, second)


def _dropped_text(store: Store) -> str:
    """Return the sentence about dropped weights if attention is sparse."""
    codec = store.spec.attention_codec
    if codec is None or codec.selection is None:
        return ""
    return f" Weights that {codec.name} dropped count as 0."


def _title(first: Store | None, second: Store) -> str:
    selection = "" if first is None else f", heads chosen on {_corpus(first)}"
    model = second.manifest.provenance.get("model")
    name = model.get("name", "") if isinstance(model, dict) else ""
    return " · ".join(part for part in (str(name), f"{_corpus(second)}{selection}") if part)


def _corpus(store: Store) -> str:
    corpus = store.manifest.provenance.get("corpus")
    return str(corpus.get("name", store.name)) if isinstance(corpus, dict) else store.name


def _print(atlas: RelationAtlas, table: pd.DataFrame, few: pd.DataFrame, first: Store | None, second: Store) -> None:
    from . import tables as render

    console = output_console()
    print_table(console, render.relations_table(table))
    selection = "on the same data, which is optimistic" if first is None else f"on {first.location}"
    console.print(
        f"{len(atlas.score.example):,} dependents in {second.n_examples:,} examples. Heads were chosen {selection}. "
        f"→: the dependent attends to its governor; ←: the governor attends to its dependent. "
        f"Tokens are merged to words by {atlas.merge}.{_dropped_text(second)} {atlas.score.describe_units()}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    for line in (*map(str, atlas.score.left_out), *atlas.score.hidden_notes(atlas.site)):
        console.print(line, style="dim", markup=False, soft_wrap=True)
    if len(few):
        names = ", ".join(f"{name} ({n})" for name, n in zip(few["relation"], few["n"], strict=True))
        console.print(
            f"Relations with too few dependents to rank heads: {render.printable(names)}.",
            style="dim",
            markup=False,
            soft_wrap=True,
        )
    if fetched := render.fetched_text(first, second):
        console.print(fetched, style="dim")
