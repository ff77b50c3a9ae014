"""The command `headatlas neurons`: which dimensions of query and key carry a pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import HeadsAsCsv, HeadsAsJson, Patterns, SiteName, StorePath, Top, head_of, read_pattern
from .printing import console_for_people, first_rows, print_csv, print_table

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from ..queries.vector_dimensions import NeuronResult

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Query")
def neurons(
    store: StorePath,
    expression: Annotated[
        str, typer.Argument(metavar="EXPR", help="The pattern whose keys are told apart.", show_default=False)
    ],
    head: Annotated[str, typer.Option("--head", metavar="LAYER.HEAD", help="The head.", show_default=False)],
    top: Top = None,
    patterns: Patterns = None,
    site: SiteName = None,
    as_csv: HeadsAsCsv = False,
    as_json: HeadsAsJson = False,
) -> None:
    """Show which dimensions of a head's query and key tell a pattern's keys from the other keys of the same rows.

    Example: [bold]headatlas neurons traces/demo previous_token --head 2.4[/bold]
    """
    from ..queries.vector_dimensions import neurons as measure
    from ..store import open_store
    from . import tables as render

    opened = open_store(store)
    result = measure(opened, read_pattern(expression, patterns), *head_of(head), site)
    dimensions, pairs = (first_rows(t, top, everything=as_csv or as_json) for t in (result.table(), result.pairs()))
    if as_csv:
        print_csv(dimensions)
    elif as_json:
        told = {"neurons": _about(result), "dimensions": render.records(dimensions), "pairs": render.records(pairs)}
        print(render.to_json({**told, **render.fetched(opened)}))
    else:
        _print(result, dimensions, pairs)


def _about(result: NeuronResult) -> dict[str, Any]:
    from . import tables as render

    return {
        "pattern": str(result.pattern),
        "site": result.site.name,
        "head": f"{result.layer}.{result.head}",
        "kv_head": result.kv_head,
        "shared_with": list(result.sharing),
        "rows": result.rows,
        "examples": result.n_examples,
        "matching_pairs": result.n_matching,
        "control_pairs": result.n_control,
        "rows_without_control": result.n_without_control,
        "score_difference": render.plain(result.score_difference),
        "query_key": result.codec,
    }


def _print(result: NeuronResult, dimensions: pd.DataFrame, pairs: pd.DataFrame) -> None:
    from . import tables as render

    console = console_for_people()
    if len(pairs):
        print_table(console, _table(pairs, "pair"))
    print_table(console, _table(dimensions, "dimension"))
    shared = ", ".join(map(str, result.sharing))
    keys = f", key head {result.kv_head}, shared with head{'s' * (len(result.sharing) > 1)} {shared}" if shared else ""
    console.print(
        f"Head {result.layer}.{result.head}{keys}. Mean score of a matching key less that of the row's other visible keys: "
        f"{render.number(result.score_difference)}, the sum over all dimensions. {result.rows:,} rows in "
        f"{result.n_examples:,} examples, {result.n_matching:,} matching and {result.n_control:,} other pairs, from query "
        f"and key ({result.codec}).{_left_out(result)}"
        + (
            " Rotary pairs by frequency, 0 the fastest; period: tokens in which the pair turns once."
            if len(pairs)
            else ""
        ),
        style="dim",
        markup=False,
        soft_wrap=True,
    )


def _left_out(result: NeuronResult) -> str:
    parts = []
    if result.n_without_control:
        parts.append(f" {result.n_without_control:,} rows have no other key and are left out.")
    if result.site.softcap[result.layer] is not None:
        parts.append(" Before the soft cap.")
    if result.site.has_position_bias:
        parts.append(" Without the learned bias by position.")
    if result.site.rotary and not result.site.rotary_frequency:
        parts.append(
            " Rotary dimensions turn in pairs, whose frequencies this store does not know (it was captured before they "
            "were kept, or layers differ): a single dimension means little here."
        )
    return "".join(parts)


def _table(table: pd.DataFrame, what: str) -> Table:
    """Dimensions, or rotary pairs."""
    from . import tables as render

    named = [("pair", "right"), ("dims", "right"), ("period", "right")]
    columns = named if what == "pair" else [("dim", "right")]
    values = ("matching", "others", "difference", "95 %", "share")
    drawn = render.plain_table(*columns, *((name, "right") for name in values))
    for row in table.to_dict("records"):
        if what == "pair":
            turns = row["pair"] >= 0
            both = f"{row['first']}, {row['second']}" if turns else str(row["first"])
            cells = [str(row["pair"]) if turns else "–", both, f"{row['period']:,.1f}" if turns else "–"]
        else:
            cells = [str(row["dimension"])]
        numbers = (f"{row[name]:+.3f}" for name in ("matching", "control", "difference"))
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        drawn.add_row(*cells, *numbers, interval, f"{100 * row['share']:.1f} %")
    return drawn
