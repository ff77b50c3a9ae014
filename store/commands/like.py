"""The command `headatlas like`: query by example."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cluster import shares_tasks
from .example_hits import print_hits
from .options import AsCsv, AsJson, Basis, ExamplesShown, HeadShown, Patterns, SiteName, StorePath, Top, Unit, head_of
from .printing import first_rows, output_console, print_csv, print_table

if TYPE_CHECKING:
    import pandas as pd

    from ..queries.marked_arcs import Arc
    from ..queries.pattern_search import ExampleHit
    from ..queries.query_by_example import LikeResult
    from ..queries.segment_scan import RequestedBasis
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Query")
@shares_tasks
def like(
    store: StorePath,
    arcs: Annotated[
        list[str],
        typer.Argument(
            metavar="ARCS",
            help="Arcs EXAMPLE:QUERY>KEY in quotes, with the id of an example and two token positions: 'a1:5>2 7>4'.",
            show_default=False,
        ),
    ],
    numbers: Annotated[
        bool, typer.Option("--numbers", help="Examples in ARCS are given by their numbers, not by their ids.")
    ] = False,
    top: Top = None,
    examples: ExamplesShown = 5,
    head: HeadShown = None,
    candidates: Annotated[
        int, typer.Option("--candidates", min=1, help="Number of patterns to search, of those that hold for the arcs.")
    ] = 8,
    basis: Basis = "auto",
    patterns: Patterns = None,
    site: SiteName = None,
    unit: Unit = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Query by example: find heads that attend along marked arcs and do the same in the whole corpus.

    Example: [bold]headatlas like traces/demo --numbers '12:5>2 12:7>4'[/bold]
    """
    from ..queries.marked_arcs import parse_arcs
    from ..store import open_store
    from . import tables as render

    opened = open_store(store)
    marked = parse_arcs(opened, arcs, numbers=numbers)
    result = _like_with_progress(opened, marked, site, candidates, basis, patterns, unit)
    ranked = result.table()
    heads = first_rows(ranked, top, all_rows=as_csv or as_json)
    best = head_of(head) if head else (int(ranked["layer"].to_numpy()[0]), int(ranked["head"].to_numpy()[0]))
    hits = result.top_examples(*best, examples)
    if as_csv:
        print_csv(heads)
    elif as_json:
        print(render.to_json({**_json(result, heads, hits), **render.fetched(opened)}))
    else:
        _print(result, heads, best, hits)


def _like_with_progress(
    store: Store,
    arcs: list[Arc],
    site: str | None,
    n_candidates: int,
    basis: RequestedBasis,
    patterns: Path | None,
    unit: str | None,
) -> LikeResult:
    from ..patterns import LIBRARY, read_patterns
    from ..queries.query_by_example import like as find

    library = LIBRARY if patterns is None else read_patterns(patterns)
    if not sys.stderr.isatty():
        return find(store, arcs, site, library=library, n_candidates=n_candidates, basis=basis, unit=unit)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("patterns", total=None)
        return find(
            store,
            arcs,
            site,
            library=library,
            n_candidates=n_candidates,
            basis=basis,
            unit=unit,
            on_progress=lambda done, planned: progress.update(task, completed=done, total=planned),
        )


def _json(result: LikeResult, heads: pd.DataFrame, hits: list[ExampleHit]) -> dict[str, Any]:
    from . import tables as render

    candidate = result.chosen
    summary = {
        "arcs": [{"example": arc.example, "query_pos": arc.query, "key_pos": arc.key} for arc in result.arcs],
        "site": result.site.name,
        "pattern": candidate.hypothesis.expression,
        "basis": candidate.result.basis,
        "rows": candidate.rows,
        "examples": candidate.n_examples,
        "supported": candidate.is_supported,
        "hypotheses": result.n_hypotheses,
        "unit": result.units.name,
        "units": result.n_units,
        "notes": _notes(result),
    }
    return {
        "like": summary,
        "patterns": render.records(result.patterns()),
        "heads": render.records(heads),
        "examples": [render.hit_json(hit) for hit in hits],
    }


def _print(result: LikeResult, heads: pd.DataFrame, best: tuple[int, int], hits: list[ExampleHit]) -> None:
    from rich.text import Text

    from . import tables as render

    console, candidate = output_console(), result.chosen
    _print_arcs(result)
    columns = ("score", "head", "mass", "uniform", "rows", "bits")
    table = render.plain_table(("", "left"), *((name, "right") for name in columns))
    table.add_column("pattern", overflow="fold")
    for row in result.patterns().to_dict("records"):
        table.add_row(
            "▸" if row["chosen"] else "",
            render.number(row["score"]),
            f"{row['layer']}.{row['head']}",
            render.number(row["mass"]),
            render.number(row["baseline"]),
            f"{row['rows']:,}" + ("" if row["supported"] else " (few)"),
            f"{row['bits']:.1f}",
            Text(render.printable(row["pattern"])),
        )
    console.print(table)
    table = render.plain_table(
        ("head", "right"), ("score", "right"), ("there", "right"), ("mass", "right"), ("", "left"), ("95 %", "right"),
        ("uniform", "right"), ("lift", "right")
    )  # fmt: skip
    for row in heads.to_dict("records"):
        table.add_row(
            f"{row['layer']}.{row['head']}",
            render.number(row["score"]),
            render.number(row["there"]),
            render.number(row["mass"]),
            render.bar(row["mass"], 6),
            render.interval(row["low"], row["high"]),
            render.number(row["baseline"]),
            render.lift(row["lift"]),
        )
    print_table(console, table)
    bound = ", a lower bound" if "mass_upper" in candidate.result.heads else ""
    console.print(
        f"Pattern: {render.printable(candidate.hypothesis.expression)}. {result.n_hypotheses:,} patterns hold for "
        f"{'the arc' if len(result.arcs) == 1 else f'the {len(result.arcs)} arcs'}, {len(result.candidates)} were "
        f"searched. there: mean attention on the arcs. mass: over {candidate.rows:,} rows in {candidate.n_examples:,} other examples, "
        f"from {candidate.result.basis}{bound}. score: there × information of the pattern in bits for each row. "
        f"{result.units.describe(result.n_units)}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    for note in _notes(result):
        console.print(f"Note: {render.printable(note)}", style="yellow", markup=False, soft_wrap=True)
    if not candidate.is_supported:
        console.print(
            "Too few rows or unmarked examples to rank heads: only the attention on the arcs is reliable.",
            style="yellow",
        )
    print_hits(console, candidate.result, best, hits)


def _notes(result: LikeResult) -> list[str]:
    """Return the notes of the search for the chosen pattern, and those on arcs that the masks of some layers hide."""
    notes, hidden = [], result.hidden_arcs
    for mask, layers in result.site.layers_of_masks.items():
        if n_hidden := int(hidden[layers[0]]):
            numbers = ", ".join(str(result.site.layers[layer]) for layer in layers)
            notes.append(
                f"{n_hidden} of {len(result.arcs)} arcs do not count in layer{'s' * (len(layers) > 1)} {numbers}: {mask} "
                "hides them"
            )
    return [*notes, *result.chosen.result.notes]


def _print_arcs(result: LikeResult) -> None:
    from . import tables as render

    console = output_console()
    for arc in result.arcs:
        example = result.store.examples[arc.example]
        query = example.tokens(result.site.query_sequence)
        same = result.site.key_sequence == result.site.query_sequence
        key = query if same else example.tokens(result.site.key_sequence)
        console.print(render.edge_text(query, key, arc.query, arc.key), soft_wrap=True)
