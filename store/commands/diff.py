"""The command `headatlas diff`: the same heads in two or more stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from .cluster import shares_tasks
from .options import AsCsv, AsJson, SiteName, Top, Unit, head_of
from .printing import first_rows, output_console, print_csv, print_table, progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from ..comparisons.store_differences import StoreDifference

app = typer.Typer(rich_markup_mode="rich")
_SHADES = " ·░▒▓█"
_N_EXAMPLES = 200


@app.command(rich_help_panel="Query")
@shares_tasks
def diff(
    stores: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE STORE...",
            help="Stores of one corpus: two checkpoints or precisions of a model, or a series of them.",
            show_default=False,
        ),
    ],
    statistic: Annotated[
        list[str] | None,
        typer.Option(
            "--statistic",
            help="Statistic to compare; repeat or separate by commas. The default are those that all stores hold.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Number of examples to sample.")] = _N_EXAMPLES,
    top: Top = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="LAYER.HEAD",
            help="Head whose examples are shown; default the one that changed most.",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Number of examples to show for the head.")] = 5,
    site: SiteName = None,
    unit: Unit = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Compare each head with the same head of another store: what moved between two checkpoints or precisions.

    More than two stores are a series. Each is compared with the next.

    Example: [bold]headatlas diff traces/step1000 traces/step2000 --top 5[/bold]
    """
    from ..comparisons.store_differences import diff as compare
    from ..store import open_store
    from . import tables as render

    names = [name for text in statistic or () for name in text.split(",") if name] or None
    with progress_bar() as report:
        steps = compare(
            [open_store(store) for store in stores],
            site,
            statistics=names,
            n_examples=sample,
            unit=unit,
            on_progress=report,
        )
    tables = [first_rows(step.table(), top, all_rows=as_csv or as_json) for step in steps]
    if as_csv:
        import pandas as pd

        frames = [_with_stores(table, step) for table, step in zip(tables, steps, strict=True)]
        print_csv(pd.concat(frames, ignore_index=True))
        return
    if as_json:
        output = [_json(step, table, head, examples) for step, table in zip(steps, tables, strict=True)]
        print(render.to_json({"steps": output}))
        return
    largest = max(float(np.nanmax(step.heads["divergence"], initial=0.0)) for step in steps)
    for step, table in zip(steps, tables, strict=True):
        _print(step, table, head, examples, largest)


def _with_stores(table: pd.DataFrame, step: StoreDifference) -> pd.DataFrame:
    return table.assign(first=step.first.location, second=step.second.location)


def _chosen(step: StoreDifference, head: str | None) -> tuple[int, int]:
    """Return the requested head, or the one with the largest divergence."""
    if head:
        return head_of(head)
    best = step.table().iloc[0]
    return int(best["layer"]), int(best["head"])


def _json(step: StoreDifference, table: pd.DataFrame, head: str | None, n: int) -> dict[str, Any]:
    from . import tables as render

    chosen = _chosen(step, head)
    statistics = step.statistics.to_dataframe(dim_order=["statistic", "layer", "head"]).reset_index()
    return {
        "first": step.first.location,
        "second": step.second.location,
        "examples": len(step.example),
        "shared": step.n_shared,
        "refused": step.refused,
        "rows": int(step.rows.sum()),
        "rounding": list(step.rounding),
        "unit": step.units.name,
        "units": step.n_units,
        "heads": render.records(table),
        "statistics": render.records(statistics),
        "head": ".".join(map(str, chosen)),
        "changed_rows": [
            {
                "example": row.example,
                "id": row.id,
                "divergence": row.divergence,
                "query_pos": row.query_pos,
                "query": row.query_text,
                "keys": list(row.key_texts),
                "weights": list(row.weights),
            }
            for row in step.changed_rows(*chosen, n)
        ],
    }


def _print(step: StoreDifference, rows: pd.DataFrame, head: str | None, n: int, largest: float) -> None:
    from . import tables as render

    console = output_console()
    names = step.statistics["statistic"].to_numpy().tolist()
    changed = [
        (name, "right")
        for name in names
        if float(np.nanmax(np.abs(step.statistics["difference"].sel(statistic=name)), initial=0.0)) >= 0.0005
    ]
    columns = (("divergence", "right"), ("95 %", "right"), ("moved", "right"), ("95 %", "right"), *changed)
    table = render.plain_table(("head", "right"), *columns)
    table.title = f"{render.printable(step.first.name)} → {render.printable(step.second.name)}"
    for row in rows.to_dict("records"):
        cells = [
            render.number(row["divergence"]),
            render.interval(row["divergence_low"], row["divergence_high"]),
            render.number(row["moved"]),
            render.interval(row["moved_low"], row["moved_high"]),
        ]
        for name, _ in changed:
            difference, q_value = row[f"{name}_difference"], row[f"{name}_q"]
            star = "*" if q_value < 0.05 else ""
            cells.append(f"{difference:+.3f}{star}" if np.isfinite(difference) else "–")
        table.add_row(f"{row['layer']}.{row['head']}", *cells)
    print_table(console, table)
    console.print(_heatmap(step, largest), markup=False, highlight=False)
    refused = "; ".join(f"{count:,} {reason}" for reason, count in step.refused.items())
    more = (
        " *: the statistic changed, false-discovery rate below 0.05 over all heads and statistics." if changed else ""
    )
    console.print(
        f"divergence: Jensen–Shannon, bits a row (0 equal, 1 disjoint); moved: share of a row at other keys. "
        f"{int(step.rows.sum()):,} rows in {len(step.example):,} of {step.n_shared:,} examples; left out: "
        f"{refused or 'none'}. Stored weights are at most {step.rounding[0]:.2g} and {step.rounding[1]:.2g} from "
        f"the models'; smaller changes may be rounding.{more} {step.units.describe(step.n_units)}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    chosen = _chosen(step, head)
    if n:
        console.print(f"\nExamples in which head {chosen[0]}.{chosen[1]} changed most, and the row that changed most:")
    for row in step.changed_rows(*chosen, n):
        keys = [
            f"{render.printable(text)} {weight:.2f}" for text, weight in zip(row.key_texts, row.weights, strict=True)
        ]
        console.print(
            f"{row.divergence:.3f}  {render.printable(row.id)}  {row.query_pos} {render.printable(row.query_text)}: "
            f"{keys[0]} → {keys[1]}",
            markup=False,
            soft_wrap=True,
        )


def _heatmap(step: StoreDifference, largest: float) -> str:
    """Draw the divergence of every head: a line for each layer, a character for each head."""
    values = np.nan_to_num(step.heads["divergence"].to_numpy()) / (largest or 1.0)
    shades = np.ceil(values * (len(_SHADES) - 1)).astype(int).clip(0, len(_SHADES) - 1)
    width = len(str(max(step.site.layers)))
    lines = [
        f"{layer:>{width}} {''.join(2 * _SHADES[shade] for shade in row)}"
        for layer, row in zip(step.site.layers, shades.tolist(), strict=True)
    ]
    return "\n".join([f"divergence by layer and head; {_SHADES[-1]} is {largest:.3f}", *lines])
