"""The command `headatlas intervene`: change heads of a running model, and measure what that does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.store.commands.options import AsCsv, AsJson, SiteName, Top

from .run import ConfigArgument, MaxOption, SampleOption, SetOption, load

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..interventions.head_effects import Intervention
    from ..interventions.request import Request

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Pipeline")
def intervene(
    config: ConfigArgument,
    action: Annotated[
        str,
        typer.Option(
            "--do",
            metavar="ACTION",
            help="zero: the head adds nothing; mean: its mean output over the corpus, by class of token; uniform: uniform "
            "attention to the visible keys; scale:F: its output times F; dimensions:12,44:F or dimensions:pairs:0-4:F: the "
            "contribution of dimensions or rotary pairs of query and key to its scores times F, as in what-if; block: no "
            "attention along --edges; patch or patch-attention: output or "
            "attention of the other member of a pair; resample: output of another example of the same length.",
        ),
    ] = "zero",
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="HEADS",
            help="Heads such as 3.1,5.8, or a JSON file: a list, or the output of search --json; default every head.",
            show_default=False,
        ),
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="Change all heads at the same time.")] = False,
    edges: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Pattern whose edges are blocked.", show_default=False)
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="MEASURE",
            help="loss, masked-loss, kl, candidates, label or embedding; default that of the model's output head.",
            show_default=False,
        ),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Two continuations whose log-ratio is measured.", show_default=False),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Label of a classifier whose logit is measured.", show_default=False)
    ] = None,
    controls: Annotated[int, typer.Option(min=0, help="Number of control heads, or sets of heads, for each.")] = 20,
    unit: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column whose values are the units of intervals and tests, or example; default corpus.sampling_unit, or "
            "the coarsest of template, document, window_of and pair that the corpus has.",
            show_default=False,
        ),
    ] = None,
    pair: Annotated[str, typer.Option(metavar="COLUMN", help="Column that both members of a pair share.")] = "pair",
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Estimate effects from gradients, and check the largest ones exactly."),
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show the number of passes and the time, and stop.")] = False,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Add the effects to the job's store as a statistic of this name.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write the effect on each example to a Parquet or CSV file.",
            show_default=False,
        ),
    ] = None,
    site: SiteName = None,
    changes: SetOption = None,
    max_examples: MaxOption = None,
    sample: SampleOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of control sets, masked tokens and resampling.")] = 0,
    top: Top = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not show progress.")] = False,
) -> None:
    """Change heads of a running model over a corpus, and measure what that does to its predictions.

    Each effect stands beside the same change of the 20 other heads that are nearest in output norm. A head matters if
    its effect is unlike theirs.

    Example: [bold]headatlas intervene smollm2 --heads 5.8,10.1 --do mean --max-examples 200[/bold]
    """
    from headatlas.store.errors import ConfigError

    from ..interventions.kept_effects import check_store, keep_effects, write_effects
    from ..interventions.request import Request

    (job, *others) = load(config, None, changes, max_examples=max_examples, sample=sample)
    if others:
        raise ConfigError(
            f"{config} names {len(others) + 1} models; expected one. Remove the others from the job file."
        )
    request = Request(
        action=action, heads=heads, together=together, measure=measure,
        candidates=tuple(name.strip() for name in (candidates or "").split(",") if name.strip()),
        label=label, edges=edges, site=site, n_controls=controls, unit=unit, estimate=estimate, pair=pair, seed=seed,
        only_plan=plan,
    )  # fmt: skip
    if keep is not None:
        check_store(job, keep)
    result = _intervene(job, request, quiet=quiet)
    if result is None:
        return
    if keep is not None:
        keep_effects(result, job, keep)
    if out is not None:
        write_effects(result, out)
    _print(result, top, as_csv=as_csv, as_json=as_json)


def _intervene(job: JobConfig, request: Request, *, quiet: bool) -> Intervention | None:
    """Run with a progress bar if the error stream is a terminal, otherwise with lines. None if it was only planned."""
    from rich.console import Console
    from rich.progress import Progress

    from ..interventions.head_effects import intervene as run
    from ..progress import Event, describe

    console = Console(stderr=True, quiet=quiet)

    def say(event: Event) -> None:
        if line := describe(event):
            console.print(line, highlight=False, markup=False)

    try:
        if quiet or not console.is_terminal:
            return run(job, request, say)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("passes")
            return run(job, request, say, lambda done, total: progress.update(task, completed=done, total=total))
    except KeyboardInterrupt:
        print("\nheadatlas: interrupted; nothing was written.", file=sys.stderr)
        raise typer.Exit(130) from None


def _print(result: Intervention, top: int | None, *, as_csv: bool, as_json: bool) -> None:
    from headatlas.store.commands import tables as render
    from headatlas.store.commands.printing import first_rows, output_console, print_csv, print_table
    from headatlas.store.patterns.lexer import printable

    table = result.table()
    rows = first_rows(table, top, all_rows=as_csv or as_json)
    if as_csv:
        print_csv(rows, result.remarks())
        return
    if as_json:
        tokens = [] if result.tokens is None else render.records(result.tokens)
        print(render.to_json({"intervention": _summary(result), "heads": render.records(rows), "tokens": tokens}))
        return
    console = output_console()
    columns = [("effect", "right"), ("95 %", "right"), ("controls", "right"), ("difference", "right"), ("q", "right")]
    text = render.plain_table(("head", "right"), *columns, ("", "left"))
    for row in rows.to_dict("records"):
        name = row["heads"] if "heads" in row else f"{row['layer']}.{row['head']}"
        text.add_row(
            str(name),
            f"{row['effect']:+.4f}",
            f"{row['low']:+.4f} – {row['high']:+.4f}",
            f"{row['control']:+.4f} ± {row['control_spread']:.4f}",
            f"{row['difference']:+.4f}",
            render.probability(row["q_value"]),
            "matters" if row["matters"] else "",
        )
    print_table(console, text)
    if result.tokens is not None and len(result.tokens):
        name = rows["heads"].iloc[0] if "heads" in rows else f"{rows['layer'].iloc[0]}.{rows['head'].iloc[0]}"
        changed = "  ".join(
            f"{printable(row['token'])} ({row['id']}:{row['position']}) {row['change']:+.2f}"
            for row in result.tokens.to_dict("records")
        )
        console.print(f"Tokens whose loss {name} raises most: {changed}", markup=False, soft_wrap=True, highlight=False)
    for line in result.remarks():
        console.print(line, style="dim", markup=False, soft_wrap=True, highlight=False)


def _summary(result: Intervention) -> dict[str, Any]:
    return {
        "action": result.action,
        "measure": result.measure,
        "meaning": result.meaning,
        "site": result.site.name,
        "unit": result.unit,
        "units": result.evidence.n_units,
        "controls": result.n_controls,
        "estimate": result.is_estimate,
        "agreement": result.agreement,
        "left_out": result.left_out,
        "notes": list(result.notes),
    }
