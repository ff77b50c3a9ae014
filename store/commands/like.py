"""The command `headatlas like`: query by example."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import ExamplesShown, HeadsAsCsv, HeadsAsJson, HeadShown, Patterns, SiteName, StorePath, Top, head_of
from .printing import console_for_people, first_rows, print_csv, print_hits, print_table

if TYPE_CHECKING:
    import pandas as pd

    from ..queries.pattern_search import ExampleHit
    from ..queries.query_by_example import LikeResult
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Query")
def like(
    store: StorePath,
    arcs: Annotated[
        list[str],
        typer.Argument(
            metavar="ARCS",
            help="Arcs as EXAMPLE:QUERY>KEY in quotes, an example's number or id and two positions of tokens: '12:5>2 7>4'.",
            show_default=False,
        ),
    ],
    top: Top = None,
    examples: ExamplesShown = 5,
    head: HeadShown = None,
    candidates: Annotated[
        int, typer.Option("--candidates", min=1, help="How many patterns that hold for the arcs are searched for.")
    ] = 8,
    basis: Annotated[
        Literal["auto", "exact", "attention", "edges", "rebuilt"], typer.Option(help="What to read, as in search.")
    ] = "auto",
    patterns: Patterns = None,
    site: SiteName = None,
    as_csv: HeadsAsCsv = False,
    as_json: HeadsAsJson = False,
) -> None:
    """Query by example: mark arcs, get the heads that draw them there and do the same over the whole corpus.

    Example: [bold]headatlas like traces/demo '12:5>2 12:7>4'[/bold]
    """
    from ..store import open_store
    from . import tables as render

    opened = open_store(store)
    result = _found(opened, arcs, site, candidates, basis, patterns)
    ranked = result.table()
    heads = first_rows(ranked, top, everything=as_csv or as_json)
    best = head_of(head) if head else (int(ranked["layer"].to_numpy()[0]), int(ranked["head"].to_numpy()[0]))
    hits = result.top_examples(*best, examples)
    if as_csv:
        print_csv(heads)
    elif as_json:
        print(render.to_json({**_json(result, heads, hits), **render.fetched(opened)}))
    else:
        _print(result, heads, best, hits)


def _found(
    store: Store,
    arcs: list[str],
    site: str | None,
    n_candidates: int,
    basis: Literal["auto", "exact", "attention", "edges", "rebuilt"],
    patterns: Path | None,
) -> LikeResult:
    from ..patterns import LIBRARY, read_patterns
    from ..queries.query_by_example import like as find

    library = LIBRARY if patterns is None else read_patterns(patterns)
    if not sys.stderr.isatty():
        return find(store, arcs, site, library=library, n_candidates=n_candidates, basis=basis)
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
            on_progress=lambda done, planned: progress.update(task, completed=done, total=planned),
        )


def _json(result: LikeResult, heads: pd.DataFrame, hits: list[ExampleHit]) -> dict[str, Any]:
    from . import tables as render

    chosen = result.chosen
    about = {
        "arcs": [{"example": arc.example, "query_pos": arc.query, "key_pos": arc.key} for arc in result.arcs],
        "site": result.site.name,
        "pattern": chosen.hypothesis.expression,
        "basis": chosen.result.basis,
        "rows": chosen.rows,
        "examples": chosen.n_examples,
        "supported": chosen.is_supported,
        "hypotheses": result.n_hypotheses,
    }
    return {
        "like": about,
        "patterns": render.records(result.patterns()),
        "heads": render.records(heads),
        "examples": [render.hit_json(hit) for hit in hits],
    }


def _print(result: LikeResult, heads: pd.DataFrame, best: tuple[int, int], hits: list[ExampleHit]) -> None:
    from rich.text import Text

    from . import tables as render

    console, chosen = console_for_people(), result.chosen
    _print_arcs(result)
    columns = ("score", "head", "mass", "uniform", "rows", "bits")
    drawn = render.plain_table(("", "left"), *((name, "right") for name in columns))
    drawn.add_column("pattern", overflow="fold")
    for row in result.patterns().to_dict("records"):
        drawn.add_row(
            "▸" if row["chosen"] else "",
            render.number(row["score"]),
            f"{row['layer']}.{row['head']}",
            render.number(row["mass"]),
            render.number(row["baseline"]),
            f"{row['rows']:,}" + ("" if row["supported"] else " (few)"),
            f"{row['bits']:.1f}",
            Text(render.printable(row["pattern"])),
        )
    console.print(drawn)
    drawn = render.plain_table(
        ("head", "right"), ("score", "right"), ("there", "right"), ("mass", "right"), ("", "left"), ("95 %", "right"), ("uniform", "right"), ("lift", "right")
    )  # fmt: skip
    for row in heads.to_dict("records"):
        drawn.add_row(
            f"{row['layer']}.{row['head']}",
            render.number(row["score"]),
            render.number(row["there"]),
            render.number(row["mass"]),
            render.bar(row["mass"], 6),
            render.interval(row["low"], row["high"]),
            render.number(row["baseline"]),
            render.lift(row["lift"]),
        )
    print_table(console, drawn)
    bound = ", a lower bound" if "mass_upper" in chosen.result.heads else ""
    console.print(
        f"Pattern: {render.printable(chosen.hypothesis.expression)}. {result.n_hypotheses:,} patterns hold for "
        f"{'the arc' if len(result.arcs) == 1 else f'the {len(result.arcs)} arcs'}, {len(result.candidates)} were searched "
        f"for. there: mean attention on the arcs. mass: over {chosen.rows:,} rows in {chosen.n_examples:,} other examples, "
        f"from {chosen.result.basis}{bound}. score: there × bits that the pattern tells of a row.",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    if not chosen.is_supported:
        console.print(
            "Too few rows or examples elsewhere to rank heads on: only what they do there is known.", style="yellow"
        )
    print_hits(console, chosen.result, best, hits)


def _print_arcs(result: LikeResult) -> None:
    from . import tables as render

    console = console_for_people()
    for arc in result.arcs:
        example = result.store.examples[arc.example]
        query = example.tokens(result.site.query_sequence)
        same = result.site.key_sequence == result.site.query_sequence
        key = query if same else example.tokens(result.site.key_sequence)
        console.print(render.edge_text(query, key, arc.query, arc.key), soft_wrap=True)
