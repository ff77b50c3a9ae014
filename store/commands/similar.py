"""The command `headatlas similar`: similar heads in one model or in two."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import AsCsv, AsJson, MergeTokens, SiteName, StorePath, Top, Unit, head_of
from .printing import TOP, first_rows, output_console, print_csv, print_table

if TYPE_CHECKING:
    import pandas as pd

    from ..queries.head_similarity import SimilarHeads
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")
_N_EXAMPLES = 200


@app.command(rich_help_panel="Query")
def similar(
    store: StorePath,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="STORE2",
            help="Store of another model over the same corpus; default STORE itself.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head", metavar="LAYER.HEAD", help="Head of STORE to compare with all others.", show_default=False
        ),
    ] = None,
    examples: Annotated[int, typer.Option("--sample", min=1, help="Number of examples to sample.")] = _N_EXAMPLES,
    merge: MergeTokens = "mean",
    sink_free: Annotated[
        bool,
        typer.Option("--sink-free", help="Leave out the first token and special tokens, and normalise the rows again."),
    ] = False,
    top: Top = None,
    site: SiteName = None,
    unit: Unit = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Find similar heads, in one model or in two over the same corpus, by their word-to-word attention.

    Example: [bold]headatlas similar traces/ewt traces/ewt-smollm2 --head 2.0[/bold]
    """
    from ..store import open_store
    from . import tables as render

    head_index = head_of(head) if head else None
    first, second = open_store(store), None if other is None else open_store(other)
    result = _compare_with_progress(first, second, site, merge, examples, sink_free)
    table = result.table(head_index, top if top is not None or as_csv or as_json else TOP, unit=unit)
    table = first_rows(table, top, all_rows=as_csv or as_json)
    if as_csv:
        print_csv(table, result.left_out)
    elif as_json:
        print(render.to_json({"similar": _summary(result, unit), "pairs": render.records(table)}))
    else:
        _print(result, table, unit)


def _compare_with_progress(
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


def _summary(result: SimilarHeads, unit: str | None) -> dict[str, Any]:
    from ..schema.omissions import Omissions
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
        "left_out": Omissions(result.left_out).to_json(),
        "median": render.plain(result.median),
        "unit": result.units(unit).name,
        "units": result.n_units(unit),
    }


def _print(result: SimilarHeads, pairs: pd.DataFrame, unit: str | None) -> None:
    from . import tables as render

    console = output_console()
    columns = (("distance", "right"), ("95 %", "right"), ("/median", "right"))
    table = render.plain_table(("head", "right"), ("similar to", "right"), *columns)
    for row in pairs.to_dict("records"):
        table.add_row(
            f"{row['layer']}.{row['head']}",
            f"{row['other_layer']}.{row['other_head']}",
            render.number(row["distance"]),
            render.interval(row["low"], row["high"]),
            render.number(row["distance"] / result.median, 2) if result.median else "–",
        )
    print_table(console, table)
    refused = "; ".join(f"{count:,} {reason}" for reason, count in result.refused.items())
    stores = "" if result.is_same_store else f" Heads of {result.store.name} and similar heads of {result.other.name}."
    console.print(
        f"Jensen-Shannon distance of word rows in bits (0 equal, 1 disjoint); median of all pairs "
        f"{render.number(result.median)}. {result.rows:,} words in {result.n_examples:,} of {result.n_shared:,} examples, "
        f"tokens merged by {result.merge}{', without first and special tokens' if result.sink_free else ''}."
        f"{stores} Examples left out: {refused or 'none'}. {result.units(unit).describe(result.n_units(unit))}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    for omission in result.left_out:
        console.print(str(omission), style="dim", markup=False, soft_wrap=True)
