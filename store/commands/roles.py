"""The command `headatlas roles`: what each head does, by one table of patterns and nulls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .cluster import shares_tasks
from .options import AsCsv, AsJson, SiteName, StorePath, Top, Unit
from .printing import output_console, print_csv, print_table, progress_bar

if TYPE_CHECKING:
    from ..queries.head_roles import HeadRoles

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Query")
@shares_tasks
def roles(
    store: StorePath,
    least_mass: Annotated[
        float, typer.Option("--min-mass", help="Smallest mass of a head that has a role, 0 to 1.")
    ] = 0.3,
    every_head: Annotated[
        bool, typer.Option("--every-head", help="List every head for each role, not only those that have it.")
    ] = False,
    top: Top = None,
    site: SiteName = None,
    unit: Unit = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Find the heads that have a role: previous token, induction, duplicate token, syntactic relations, local, sinks.

    A head has a role if its attention on the role's pattern exceeds the role's null (q < 0.05) and its mass is at least 0.3.

    Example: [bold]headatlas roles traces/demo[/bold]
    """
    from ..queries.head_roles import head_roles
    from ..store import open_store
    from . import tables as render

    opened = open_store(store)
    with progress_bar("roles") as report:
        answer = head_roles(opened, site, least_mass=least_mass, unit=unit, on_progress=report)
    table = answer.table(every_head=every_head)
    if top is not None:
        table = table.groupby("role", sort=False).head(top)
    if as_csv:
        print_csv(table, answer.left_out)
    elif as_json:
        summary = {"unit": answer.units.name, "units": answer.n_units, "left_out": list(answer.left_out)}
        print(render.to_json({"roles": render.records(table), **summary}))
    else:
        _print(answer, top or 5, every_head=every_head)


def _print(answer: HeadRoles, top: int, *, every_head: bool) -> None:
    from ..queries.evidence.nulls import NULLS
    from . import tables as render

    console = output_console()
    table = render.plain_table(
        ("role", "left"), ("heads", "right"), ("head", "right"), ("mass", "right"), ("expected", "right"),
        ("q", "right"), ("rows", "right"),
    )  # fmt: skip
    for role in answer.roles:
        heads = role.ranked(found=not every_head) or role.ranked(found=False)[:1]
        for rank, (layer, head) in enumerate(heads[:top]):
            index = answer.site.layer_index(layer), head
            table.add_row(
                role.role.pattern.label if rank == 0 else "",
                f"{int(role.is_found.sum())}" if rank == 0 else "",
                f"{layer}.{head}",
                render.number(float(role.mass[index])),
                render.number(float(role.evidence.heads["expected"].to_numpy()[index])),
                render.number(float(role.evidence.heads["q_value"].to_numpy()[index])),
                f"{int(role.result.example_rows.sum(axis=1)[index[0]]):,}" if rank == 0 else "",
            )
    print_table(console, table)
    nulls = {role.role.null: NULLS[role.role.null].sentence for role in answer.roles}
    sentences = [f"{name}: {sentence}." for name, sentence in nulls.items()]
    least = answer.roles[0].least_mass if answer.roles else 0.3
    lines = [
        f"heads: those with q < 0.05 against the null and a mass of at least {least:g}. Where it is 0, the best head is shown; "
        f"of each role at most {top} are listed (--top).",
        *sentences,
        answer.units.describe(answer.n_units),
        *(f"left out: {line}" for line in answer.left_out),
    ]
    for line in lines:
        console.print(line, style="dim", markup=False, soft_wrap=True)
