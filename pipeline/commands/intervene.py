"""The command `headatlas intervene`: change heads of a running model, and measure what that does."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headatlas.store.commands.cluster import shares_tasks
from headatlas.store.commands.options import AsCsv, AsJson, SiteName, Top

from .run import MaxOption, SampleOption, SetOption, with_selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

    from ..interventions.intervention import Intervention
    from ..progress import Event

app = typer.Typer(rich_markup_mode="rich")
JobArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB|STORE",
        help="A job file, the name of a shipped one (bias, demo, prose, relevant, smollm2), or a store.",
        show_default=False,
    ),
]
N_LISTED = 10
"""Number of examples and tokens that are listed for each intervention."""


@app.command(rich_help_panel="Pipeline")
@shares_tasks
def intervene(
    job_or_store: JobArgument,
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
    kv_groups: Annotated[
        str | None,
        typer.Option(
            metavar="GROUPS",
            help="Key heads such as 3.0,5.1, or all; the query heads that share one are changed together.",
            show_default=False,
        ),
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="Change all heads at the same time.")] = False,
    edges: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Pattern of the edges that are changed by block, zero, scale or uniform.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Change the output only of query tokens with an edge of this pattern.",
            show_default=False,
        ),
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
        typer.Option(
            metavar="A,B",
            help="One continuation, or two whose log-ratio is measured; @COLUMN is the value of a column of the corpus.",
            show_default=False,
        ),
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
            metavar="NAME",
            help="Add the effects to the store, or to that of the job, as a statistic of this name.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write a table to a Parquet or CSV file: the effect on each example, or that of --table.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        Literal["heads", "examples", "tokens", "layers"] | None,
        typer.Option(
            help="Table of --csv and --out: effects of heads (default of --csv), effects on examples (default of --out), "
            "the tokens whose loss rises most, or the change of the hidden state after each layer.",
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
    its effect is unlike theirs. With a store the model runs over the examples that it holds. It must be the model that the
    store was made with.

    Example: [bold]headatlas intervene smollm2 --heads 5.8,10.1 --do mean --max-examples 200[/bold]
    """
    from headatlas.store.commands.printing import first_rows, print_csv

    from ..interventions.head_effects import intervene, plan_intervention
    from ..interventions.kept_effects import check_out, write_table
    from ..interventions.request import Request
    from ..interventions.subjects.stored_job import open_job
    from ..progress import Stage

    job = open_job(job_or_store, with_selection(changes, max_examples=max_examples, sample=sample))
    request = Request(
        action=action, heads=heads, kv_groups=kv_groups, together=together, rows=rows, edges=edges, measure=measure,
        candidates=tuple(name.strip() for name in (candidates or "").split(",") if name.strip()),
        label=label, site=site, n_controls=controls, unit=unit, estimate=estimate, pair=pair, seed=seed,
    )  # fmt: skip
    if out is not None:
        check_out(out)
    with display(quiet) as (say, show_progress):
        if plan:
            say(Stage(str(plan_intervention(job, request, say))))
            return
        result = intervene(job, request, keep=keep, on_event=say, on_progress=show_progress)
    if out is not None:
        write_table(_table(result, table or "examples"), out)
    if as_csv:
        print_csv(first_rows(_table(result, table or "heads"), top, all_rows=True), result.remarks())
    elif as_json:
        _print_json(result, top)
    else:
        _print(result, top)


@contextmanager
def display(
    quiet: bool, *, after_interrupt: str = "the same command continues where it was"
) -> Iterator[tuple[Callable[[Event], None], Callable[[int, int], None]]]:
    """Yield functions that show events and progress: a bar with the remaining time on a terminal, lines otherwise."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from ..progress import describe

    console = Console(stderr=True, quiet=quiet)
    columns = ("{task.description}", "{task.completed:,.0f}/{task.total:,.0f}")
    progress = Progress(
        TextColumn(columns[0]), BarColumn(), TaskProgressColumn(), TextColumn(columns[1]), TimeRemainingColumn(),
        console=console, transient=True, disable=quiet or not console.is_terminal,
    )  # fmt: skip
    task = progress.add_task("passes", total=None, visible=False)

    def say(event: Event) -> None:
        if line := describe(event):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show_progress(done: int, total: int) -> None:
        if done == 0:
            progress.reset(task, total=total, visible=True)
        progress.update(task, completed=done)

    try:
        with progress:
            yield say, show_progress
    except KeyboardInterrupt:
        print(f"\nheadatlas: interrupted; {after_interrupt}.", file=sys.stderr)
        raise typer.Exit(130) from None


def _table(result: Intervention, name: str) -> pd.DataFrame:
    tables = {
        "heads": result.table,
        "examples": result.examples_table,
        "tokens": result.tokens_table,
        "layers": result.layers_table,
    }
    return tables[name]()


def _print_json(result: Intervention, top: int | None) -> None:
    from headatlas.store.commands import tables as render
    from headatlas.store.commands.printing import first_rows

    document = {
        "intervention": result.summary(),
        "heads": render.records(first_rows(result.table(), top, all_rows=True)),
        "examples": render.records(result.examples_table(N_LISTED)),
        "tokens": render.records(result.tokens_table()),
        "layers": render.records(result.layers_table()),
    }
    print(render.to_json(document))


def _print(result: Intervention, top: int | None) -> None:
    from headatlas.store.commands import tables as render
    from headatlas.store.commands.printing import first_rows, output_console, print_table
    from headatlas.store.patterns.lexer import printable

    rows = first_rows(result.table(), top, all_rows=False)
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
    name = result.names[result.order[0]]
    examples, tokens, layers = result.examples_table(N_LISTED), result.tokens_table(), result.layers_table()
    lists = {
        f"Examples that {name} changes most": [
            f"{printable(row['id'])} {row['effect']:+.3f}" for row in _records_of(examples, name)
        ],
        f"Tokens whose loss {name} raises most": [
            f"{printable(row['token'])} ({printable(row['id'])}:{row['position']}) {row['change']:+.2f}"
            for row in _records_of(tokens, name)
        ],
        f"1 − cosine of the mean hidden state after each layer, {name}": [
            f"{row['after_layer']}: {row['effect']:.4f}" for row in _records_of(layers, name)
        ],
    }
    for title, entries in lists.items():
        if entries:
            console.print(f"{title}: {'  '.join(entries)}", markup=False, soft_wrap=True, highlight=False)
    for line in result.remarks():
        console.print(line, style="dim", markup=False, soft_wrap=True, highlight=False)


def _records_of(table: pd.DataFrame, heads: str) -> list[dict[str, Any]]:
    """Return the rows of one intervention."""
    return [row for row in table.to_dict("records") if row["heads"] == heads]
