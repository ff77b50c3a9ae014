"""The commands `headatlas neurons` and `headatlas what-if`: dimensions of query and key."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..schema.head_dimensions import rotary_pairs
from .cluster import shares_tasks
from .options import AsCsv, AsJson, Patterns, SiteName, StorePath, Top, Unit, head_of, read_pattern
from .printing import first_rows, output_console, print_csv, print_table
from .what_if import what_if

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from ..queries.vector_dimensions import NeuronResult

app = typer.Typer(rich_markup_mode="rich")
app.command("what-if", rich_help_panel="Query")(what_if)


@app.command(rich_help_panel="Query")
@shares_tasks
def neurons(
    store: StorePath,
    expression: Annotated[
        str,
        typer.Argument(
            metavar="EXPR", help="Pattern whose keys are separated from the other keys.", show_default=False
        ),
    ],
    head: Annotated[str, typer.Option("--head", metavar="LAYER.HEAD", help="Head to analyse.", show_default=False)],
    top: Top = None,
    patterns: Patterns = None,
    site: SiteName = None,
    unit: Unit = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Rank the dimensions of a head's query and key by how well they separate matching keys from the row's other keys.

    Example: [bold]headatlas neurons traces/demo previous_token --head 2.4[/bold]
    """
    from ..queries.vector_dimensions import neurons as measure
    from ..store import open_store
    from . import tables as render

    opened = open_store(store)
    result = measure(opened, read_pattern(expression, patterns), *head_of(head), site, unit=unit)
    dimensions, pairs = (first_rows(t, top, all_rows=as_csv or as_json) for t in (result.table(), result.pairs()))
    if as_csv:
        print_csv(dimensions)
    elif as_json:
        output = {"neurons": _summary(result), "dimensions": render.records(dimensions), "pairs": render.records(pairs)}
        print(render.to_json({**output, **render.fetched(opened)}))
    else:
        _print(result, dimensions, pairs)


def _summary(result: NeuronResult) -> dict[str, Any]:
    from . import tables as render

    return {
        "pattern": str(result.pattern),
        "site": result.site.name,
        "head": f"{result.layer}.{result.head}",
        "kv_head": result.kv_head,
        "shared_with": list(result.sharing_heads),
        "rows": result.rows,
        "examples": result.n_examples,
        "matching_pairs": result.n_matching,
        "control_pairs": result.n_control,
        "rows_without_control": result.n_without_control,
        "score_difference": render.plain(result.score_difference),
        "query_key": result.codec,
        "unit": result.units.name,
        "units": result.n_units,
    }


def _print(result: NeuronResult, dimensions: pd.DataFrame, pairs: pd.DataFrame) -> None:
    from . import tables as render

    console = output_console()
    if len(pairs):
        print_table(console, _table(pairs, "pair"))
    print_table(console, _table(dimensions, "dimension"))
    others = ", ".join(map(str, result.sharing_heads))
    plural = "s" if len(result.sharing_heads) > 1 else ""
    keys = f", key head {result.kv_head}, shared with head{plural} {others}" if others else ""
    console.print(
        f"Head {result.layer}.{result.head}{keys}. Mean score of a matching key minus that of the row's other visible keys: "
        f"{render.number(result.score_difference)}, the sum over all dimensions. {result.rows:,} rows in "
        f"{result.n_examples:,} examples, {result.n_matching:,} matching and {result.n_control:,} other pairs, from query "
        f"and key ({result.codec}).{_caveats(result)} {result.units.describe(result.n_units)}"
        + (
            " Rotary pairs are numbered by frequency, 0 is the fastest; period: tokens of one rotation"
            + ("." if result.site.rotary_frequency else ", which differs between the layers of this model.")
            if len(pairs)
            else ""
        ),
        style="dim",
        markup=False,
        soft_wrap=True,
    )


def _caveats(result: NeuronResult) -> str:
    sentences = []
    if result.n_without_control:
        sentences.append(f" {result.n_without_control:,} rows have no other visible key and are left out.")
    if result.site.softcap[result.site.layer_index(result.layer)] is not None:
        sentences.append(" Scores are those before the soft cap.")
    if result.site.has_position_bias:
        sentences.append(" Scores are without the learned position bias.")
    if result.site.rotary and not rotary_pairs(result.site):
        sentences.append(
            " Rotary dimensions rotate in pairs, which are not in this store (it is too old, or not all layers rotate the "
            "same pairs): a single dimension is not meaningful here."
        )
    return "".join(sentences)


def _table(contributions: pd.DataFrame, unit: str) -> Table:
    """Create the table of dimensions or of rotary pairs."""
    from . import tables as render

    pair_columns = [("pair", "right"), ("dims", "right"), ("period", "right")]
    columns = pair_columns if unit == "pair" else [("dim", "right")]
    values = ("matching", "others", "difference", "95 %", "share")
    table = render.plain_table(*columns, *((name, "right") for name in values))
    for row in contributions.to_dict("records"):
        if unit == "pair":
            rotates = row["pair"] >= 0
            dimensions = f"{row['first']}, {row['second']}" if rotates else str(row["first"])
            cells = [
                str(row["pair"]) if rotates else "–",
                dimensions,
                f"{row['period']:,.1f}" if 0 < row["period"] < math.inf else "–",
            ]
        else:
            cells = [str(row["dimension"])]
        numbers = (f"{row[name]:+.3f}" for name in ("matching", "control", "difference"))
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        table.add_row(*cells, *numbers, interval, f"{100 * row['share']:.1f} %")
    return table
