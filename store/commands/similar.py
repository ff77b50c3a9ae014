"""The command `headatlas similar`: heads that behave alike, in one model or across two."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import HeadsAsCsv, HeadsAsJson, SiteName, StorePath, Top, head_of
from .printing import TOP, console_for_people, first_rows, print_csv, print_table

if TYPE_CHECKING:
    import pandas as pd

    from ..queries.head_similarity import SimilarHeads
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")
_MOST = 200


@app.command(rich_help_panel="Query")
def similar(
    store: StorePath,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="STORE2", help="Another model's store of the same corpus; default STORE itself.", show_default=False
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="LAYER.HEAD", help="This head of STORE against all others.", show_default=False),
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="How many examples are drawn.")] = _MOST,
    merge: Annotated[
        Literal["mean", "first"], typer.Option(help="A word's row: the mean of its tokens' rows, or its first token's.")
    ] = "mean",
    sink_free: Annotated[
        bool,
        typer.Option(
            "--sink-free", help="Leave out the first token and special tokens, and divide rows by what is left."
        ),
    ] = False,
    top: Top = None,
    site: SiteName = None,
    as_csv: HeadsAsCsv = False,
    as_json: HeadsAsJson = False,
) -> None:
    """Find heads that behave alike, in one model or across two over the same corpus, matched on words.

    Example: [bold]headatlas similar traces/ewt traces/ewt-smollm2 --head 2.0[/bold]
    """
    from ..store import open_store
    from . import tables as render

    chosen = head_of(head) if head else None
    first, second = open_store(store), None if other is None else open_store(other)
    result = _compared(first, second, site, merge, examples, sink_free)
    table = result.table(chosen, top if top is not None or as_csv or as_json else TOP)
    table = first_rows(table, top, everything=as_csv or as_json)
    if as_csv:
        print_csv(table)
    elif as_json:
        print(render.to_json({"similar": _about(result), "pairs": render.records(table)}))
    else:
        _print(result, table)


def _compared(
    first: Store,
    second: Store | None,
    site: str | None,
    merge: Literal["mean", "first"],
    n_examples: int,
    sink_free: bool,
) -> SimilarHeads:
    from ..queries.head_similarity import similar as compare

    if not sys.stderr.isatty():
        return compare(first, second, site, merge, sink_free=sink_free, n_examples=n_examples)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("comparing", total=None)
        return compare(
            first,
            second,
            site,
            merge,
            sink_free=sink_free,
            n_examples=n_examples,
            on_progress=lambda done, planned: progress.update(task, completed=done, total=planned),
        )


def _about(result: SimilarHeads) -> dict[str, Any]:
    from . import tables as render

    return {
        "store": result.store.location,
        "other": result.other.location,
        "measure": "Jensen-Shannon distance of word rows, bits",
        "merge": result.merge,
        "sink_free": result.sink_free,
        "rows": result.rows,
        "examples": result.n_examples,
        "shared": result.n_shared,
        "refused": result.refused,
        "median": render.plain(result.median),
    }


def _print(result: SimilarHeads, table: pd.DataFrame) -> None:
    from . import tables as render

    console = console_for_people()
    columns = (("distance", "right"), ("95 %", "right"), ("/median", "right"))
    drawn = render.plain_table(("head", "right"), ("like", "right"), *columns)
    for row in table.to_dict("records"):
        drawn.add_row(
            f"{row['layer']}.{row['head']}",
            f"{row['other_layer']}.{row['other_head']}",
            render.number(row["distance"]),
            render.interval(row["low"], row["high"]),
            render.number(row["distance"] / result.median, 2) if result.median else "–",
        )
    print_table(console, drawn)
    refused = "; ".join(f"{count:,} {reason}" for reason, count in result.refused.items())
    whose = "" if result.same else f" Heads of {result.store.name}, like those of {result.other.name}."
    console.print(
        f"Jensen-Shannon distance of word rows in bits (0 the same, 1 nothing in common); median of all pairs "
        f"{render.number(result.median)}. {result.rows:,} words in {result.n_examples:,} of {result.n_shared:,} examples, "
        f"tokens merged by {result.merge}{', without first and special tokens' if result.sink_free else ''}.{whose} Refused: {refused or 'none'}.",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
