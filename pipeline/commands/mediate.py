"""The command `headatlas mediate`: how much of a text's effect on a model's choice passes through each head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headatlas.store.commands.options import AsCsv, AsJson, Top

from .intervene import JobArgument, display
from .run import MaxOption, SampleOption, SetOption, with_selection

if TYPE_CHECKING:
    from ..interventions.mediation.mediation_result import Mediation

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Pipeline")
def mediate(
    job_or_store: JobArgument,
    pair: Annotated[str, typer.Option(metavar="COLUMN", help="Column that both texts of a pair share.")] = "pair",
    variant: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column that distinguishes the texts of a pair.")
    ] = "variant",
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B", help="Variants of x and of x'; default the two that the corpus has.", show_default=False
        ),
    ] = None,
    continuations: Annotated[
        str,
        typer.Option(metavar="COLUMN,COLUMN", help="Columns with the two continuations: y = P(second) / P(first)."),
    ] = "first,second",
    above_quantile: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="Q",
            help="Keep the pairs with y(x') / y(x) above 1 and above this quantile of those; default all pairs.",
            show_default=False,
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Estimate the effects of heads from gradients, and measure the largest ones."),
    ] = False,
    exact: Annotated[
        int, typer.Option(min=2, metavar="N", help="With --estimate: number of heads that are measured.")
    ] = 20,
    controls: Annotated[int, typer.Option(min=0, help="Number of control heads for each.")] = 20,
    unit: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column whose values are the units of intervals and tests; default every pair.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the number of passes and the time, and stop.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write the effects of every pair to a Parquet or CSV file.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Add the effects of heads to the store as the statistics NAME_indirect and NAME_direct.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        Literal["heads", "layers"],
        typer.Option(help="Table of --csv: effects of heads, or of all heads of each layer together."),
    ] = "heads",
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a map of the indirect effects of all heads as SVG.", show_default=False
        ),
    ] = None,
    changes: SetOption = None,
    max_examples: MaxOption = None,
    sample: SampleOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the tests.")] = 0,
    top: Top = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not show progress.")] = False,
) -> None:
    """Compute which heads carry the effect of one word on a model's choice between two continuations.

    The texts of a pair differ in one word. The total effect is the change of the odds of the continuations. The indirect
    effect of a head is the change if only its attention is that of the other text. The direct effect is the change
    that remains if its attention stays.

    With a store the model runs over the examples that it holds. It must be the model that the store was made with.

    Example: [bold]headatlas mediate bias --between female male --estimate[/bold]
    """
    from headatlas.store.commands.printing import print_csv
    from headatlas.store.errors import ConfigError

    from ..interventions.kept_effects import check_out, write_table
    from ..interventions.mediation.continuation_sequences import PairColumns
    from ..interventions.mediation.effects_map import effects_map
    from ..interventions.mediation.mediated_effects import MediationRequest
    from ..interventions.mediation.mediated_effects import mediate as run
    from ..interventions.subjects.stored_job import open_job

    job = open_job(job_or_store, with_selection(changes, max_examples=max_examples, sample=sample))
    columns = [name.strip() for name in continuations.split(",")]
    if len(columns) != 2 or not all(columns):
        raise ConfigError(f"--continuations is {continuations!r}; expected two columns, such as first,second")
    request = MediationRequest(
        PairColumns(pair, variant, between, (columns[0], columns[1])), above_quantile=above_quantile, estimate=estimate,
        n_exact=exact, n_controls=controls, unit=unit, seed=seed, only_plan=plan,
    )  # fmt: skip
    if out is not None:
        check_out(out)
    with display(quiet, after_interrupt="nothing was written") as receivers:
        say, show_progress = receivers
        result = run(job, request, keep=keep, on_event=say, on_progress=show_progress)
    if result is None:
        return
    if out is not None:
        write_table(result.effects_table(), out)
    if figure is not None:
        figure.write_text(effects_map(result), encoding="utf-8")
    if as_csv and table == "layers":
        print_csv(result.layers_table(), result.remarks())
        return
    _print(result, top, as_csv=as_csv, as_json=as_json)


def _print(result: Mediation, top: int | None, *, as_csv: bool, as_json: bool) -> None:
    from headatlas.store.commands import tables as render
    from headatlas.store.commands.printing import first_rows, output_console, print_csv, print_table

    from ..interventions.mediation.mediation_result import MeanEffect

    rows = first_rows(result.table(), top, all_rows=as_csv or as_json)
    if as_csv:
        print_csv(rows, result.remarks())
        return
    if as_json:
        print(
            render.to_json(
                {
                    "mediation": _summary(result),
                    "heads": render.records(rows),
                    "layers": render.records(result.layers_table()),
                }
            )
        )
        return
    console = output_console()
    columns = [("indirect", "right"), ("95 %", "right"), ("direct", "right"), ("95 %", "right"), ("controls", "right")]
    text = render.plain_table(("head", "right"), *columns, ("q", "right"), ("", "left"))
    for name, indirect, direct in (
        ("total", result.total, None),
        ("all heads", result.indirect_of_all, result.direct_of_all),
    ):
        cells = [_cells(result.mean(effects)) if effects is not None else ("", "") for effects in (indirect, direct)]
        text.add_row(name, *cells[0], *cells[1], "", "", "")
    for row in result.layers_table().to_dict("records"):
        means = [
            _cells(MeanEffect(row[name], row[f"{name}_low"], row[f"{name}_high"])) for name in ("indirect", "direct")
        ]
        text.add_row(f"layer {row['layer']}", *means[0], *means[1], "", "", "")
    for row in rows.to_dict("records"):
        text.add_row(
            f"{'~' if row['estimated'] else ''}{row['layer']}.{row['head']}",
            f"{row['indirect']:+.4f}",
            f"{row['indirect_low']:+.4f} – {row['indirect_high']:+.4f}",
            f"{row['direct']:+.4f}",
            f"{row['direct_low']:+.4f} – {row['direct_high']:+.4f}",
            f"{row['control']:+.4f} ± {row['control_spread']:.4f}",
            render.probability(row["q_value"]),
            "matters" if row["matters"] else "",
        )
    print_table(console, text)
    for line in result.remarks():
        console.print(line, style="dim", markup=False, soft_wrap=True, highlight=False)


def _cells(mean: Any) -> tuple[str, str]:
    return f"{mean.effect:+.4f}", f"{mean.low:+.4f} – {mean.high:+.4f}"


def _summary(result: Mediation) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "between": list(result.between),
        "site": result.site.name,
        "total": asdict(result.mean(result.total)),
        "indirect": asdict(result.mean(result.indirect_of_all)),
        "direct": asdict(result.mean(result.direct_of_all)),
        "unit": result.unit,
        "units": result.evidence.n_units,
        "pairs": len(result.pair_ids),
        "pairs_loaded": result.n_loaded,
        "pairs_aligned": result.n_aligned,
        "threshold": result.threshold,
        "exact_heads": int(result.is_exact.sum()),
        "agreement": result.agreement,
        "left_out": result.left_out,
        "notes": list(result.notes),
    }
