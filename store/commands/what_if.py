"""The command `headatlas what-if`: the attention of a head with scaled dimensions of query and key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsCsv, AsJson, Patterns, SiteName, StorePath, Top, Unit, head_of, read_pattern
from .printing import first_rows, output_console, print_csv, print_table, progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from ..comparisons.scaled_dimensions import WhatIf


def what_if(
    store: StorePath,
    head: Annotated[str, typer.Option("--head", metavar="LAYER.HEAD", help="Head to change.", show_default=False)],
    dimensions: Annotated[
        str,
        typer.Option(
            "--dimensions",
            metavar="DIMENSIONS",
            help="Dimensions such as 12,44 or 0-15, or rotary pairs such as pair:3 or pairs:0-4, the fastest first. A factor "
            "of their own may follow, and + joins several: pairs:0-4:0+12:0.5.",
            show_default=False,
        ),
    ],
    expression: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPR",
            help="Pattern whose mass is compared; default the decay of attention over distance.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        float, typer.Option("--scale", help="Factor of the contribution of the dimensions to the scores.")
    ] = 0.0,
    top: Top = None,
    patterns: Patterns = None,
    site: SiteName = None,
    unit: Unit = None,
    parquet: Annotated[
        Path | None,
        typer.Option("--parquet", metavar="FILE", help="Write every example to a Parquet file.", show_default=False),
    ] = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Scale dimensions of a head's query and key over the corpus, and show what that changes in its attention.

    Attention is computed again from stored query and key. `headatlas intervene --do dimensions:…` makes the same change in
    the running model.

    Example: [bold]headatlas what-if traces/demo previous_token --head 2.4 --dimensions 12,44 --scale 0[/bold]
    """
    from ..comparisons.scaled_dimensions import what_if as measure
    from ..store import open_store
    from . import tables as render

    opened = open_store(store)
    pattern = None if expression is None else read_pattern(expression, patterns)
    with progress_bar() as report:
        result = measure(opened, *head_of(head), dimensions, scale, pattern, site, unit=unit, on_progress=report)
    if parquet is not None:
        _written(result.examples).to_parquet(parquet, index=False)
    examples = first_rows(result.examples, top, all_rows=as_csv or as_json)
    if as_csv:
        print_csv(_written(examples), [*_measure_lines(result), *_remarks(result)])
    elif as_json:
        output = {
            "what_if": _summary(result),
            "measures": render.records(result.measures),
            "examples": render.records(examples),
        }
        print(render.to_json({**output, **render.fetched(opened)}))
    else:
        _print(result, examples)


def _written(examples: pd.DataFrame) -> pd.DataFrame:
    """Return the table with texts that files can hold."""
    from ..reading.data_frames import valid_text

    texts = {name: examples[name].map(valid_text) for name in ("id", "query", "key_before", "key_after")}
    return examples.assign(**texts)


def _summary(result: WhatIf) -> dict[str, Any]:
    from . import tables as render

    return {
        "site": result.site.name,
        "head": f"{result.layer}.{result.head}",
        "dimensions": result.dimensions,
        "factors": {str(dimension): factor for dimension, factor in result.factors.items()},
        "pattern": None if result.pattern is None else str(result.pattern),
        "rows": result.rows,
        "examples": len(result.examples),
        "matching_rows": result.matching_rows,
        "matching_examples": result.matching_examples,
        "uniform": render.plain(result.uniform),
        "query_key": result.codec,
        "unit": result.units.name,
        "units": result.n_units,
    }


def _cell(row: dict[str, Any], name: str, *, is_signed: bool = False) -> str:
    """Return a value with its interval; a dash if the measure has none."""
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if not math.isfinite(value):
        return "–"
    sign = "+" if is_signed else ""
    text = f"{value:{sign}.3f}"
    return f"{text} ({low:{sign}.3f} to {high:{sign}.3f})" if math.isfinite(low) else text


def _measure_lines(result: WhatIf) -> list[str]:
    """Return a line for each measure."""
    lines = []
    for row in result.measures.to_dict("records"):
        difference = _cell(row, "difference", is_signed=row["measure"] in ("mass", "decay"))
        has_sides = math.isfinite(float(row["before"]))
        sides = f"{_cell(row, 'before')} before, {_cell(row, 'after')} after, difference " if has_sides else ""
        lines.append(f"{row['measure']}: {sides}{difference}")
    return lines


def _remarks(result: WhatIf) -> list[str]:
    """Return the sentences that the numbers need beside them."""
    n_examples = len(result.examples)
    lines = [
        f"Head {result.layer}.{result.head} with dimensions {result.dimensions}, from query and key ({result.codec}). "
        f"{result.rows:,} rows in {n_examples:,} examples. {result.units.describe(result.n_units)}"
    ]
    if result.pattern is not None:
        without = n_examples - result.matching_examples
        mass = (
            f"mass: attention on matching keys, over {result.matching_rows:,} rows in {result.matching_examples:,} examples; "
            f"uniform attention has {result.uniform:.3f}."
            if result.matching_rows
            else "No row has a matching key."
        )
        lines.append(f"{mass} {without:,} examples have no such row and are left out of it." if without else mass)
    elif result.site.query_sequence != result.site.key_sequence:
        lines.append("Query and key belong to two texts, so there is no decay over distance.")
    else:
        lines.append("decay: slope of ln mass over ln distance at the offsets −1 to −64.")
    lines.append(
        "divergence: Jensen–Shannon, of a row before and after, in bits (0 equal, 1 disjoint); moved: share of a row at other "
        "keys. Intervals: 95 %."
    )
    return lines


def _print(result: WhatIf, examples: pd.DataFrame) -> None:
    from . import tables as render

    console = output_console()
    names = ("before", "after", "difference", "p")
    table = render.plain_table(("", "left"), *((name, "right") for name in names))
    for row in result.measures.to_dict("records"):
        is_signed = row["measure"] in ("mass", "decay")
        cells = _cell(row, "before"), _cell(row, "after"), _cell(row, "difference", is_signed=is_signed)
        table.add_row(row["measure"], *cells, render.probability(float(row["p_value"])))
    print_table(console, table)
    for line in _remarks(result):
        console.print(line, style="dim", markup=False, soft_wrap=True, highlight=False)
    if len(examples):
        console.print("\nExamples that change most, and the row that changes most:", highlight=False)
    for row in examples.to_dict("records"):
        mass = ""
        if result.pattern is not None:
            mass = f"  mass {render.number(row['mass_before'])} → {render.number(row['mass_after'])}"
        console.print(
            f"{row['divergence']:.3f}{mass}  {render.printable(row['id'])}  {row['query_pos']} "
            f"{render.printable(row['query'])}: {render.printable(row['key_before'])} {row['weight_before']:.2f} → "
            f"{render.printable(row['key_after'])} {row['weight_after']:.2f}",
            markup=False,
            soft_wrap=True,
            highlight=False,
        )
