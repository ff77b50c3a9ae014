"""The commands `headatlas search` and `headatlas patterns`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from .options import (
    ExamplesShown,
    HeadsAsCsv,
    HeadsAsJson,
    HeadShown,
    Patterns,
    Score,
    Select,
    SiteName,
    Top,
    chosen_stores,
    head_of,
    read_pattern,
)
from .printing import console_for_people, first_rows, incomplete_text, print_csv, print_hits, print_table
from .scheduler import cluster

if TYPE_CHECKING:
    from ..patterns import Pattern
    from ..queries.pattern_search import SearchResult
    from ..queries.search_plan import Client
    from ..queries.segment_scan import RequestedBasis
    from ..reading.word_attention import Merge
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")
_PANEL = "Query"


@app.command(rich_help_panel=_PANEL)
def search(
    store: Annotated[
        str,
        typer.Argument(metavar="STORE", help="Folder or URL of a trace store; none with --select.", show_default=False),
    ],
    expression: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPR", help="A pattern, such as 'key.position == query.position - 1'.", show_default=False
        ),
    ] = None,
    top: Top = None,
    examples: ExamplesShown = 5,
    head: HeadShown = None,
    by: Annotated[
        Literal["mass", "hit_rate", "lift", "offset_lift"], typer.Option(help="What heads are ranked by.")
    ] = "mass",
    basis: Annotated[
        Literal["auto", "exact", "attention", "edges", "rebuilt"],
        typer.Option(
            help="What to read: the whole attention, the stored edges (a lower bound), or query and key, from which "
            "attention is rebuilt; exact: attention, else rebuilt."
        ),
    ] = "auto",
    patterns: Patterns = None,
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="Stop at the bound that the stored edges give: a fraction of the time."),
    ] = False,
    words: Annotated[
        Literal["mean", "first"] | None,
        typer.Option(
            help="Ask about words: columns of a word's tokens are summed, its rows averaged, or its first token's row taken.",
            show_default=False,
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="ADDRESS",
            help="Let the workers of this dask scheduler read, each segment a task; they see the store at the same path.",
            show_default=False,
        ),
    ] = None,
    site: SiteName = None,
    select: Select = None,
    score: Score = None,
    as_csv: HeadsAsCsv = False,
    as_json: HeadsAsJson = False,
) -> None:
    """Rank heads by how much of their attention follows a pattern, and show the examples that show it best.

    Example: [bold]headatlas search traces/demo 'induction and not key.special'[/bold]
    """
    from ..queries.held_out import SplitSearch
    from . import tables as render

    if approximate and basis != "auto":
        raise ConfigError(f"--approximate chooses what to read; expected it without --basis {basis}")
    if words and (approximate or basis not in ("auto", "exact")):
        raise ConfigError("--words reads all that it takes to be exact; expected it without --basis and --approximate")
    first, second, expression = _stores_and_expression(store, expression, select, score)
    pattern = read_pattern(expression, patterns)
    with cluster(scheduler) as client:
        asked = "approximate" if approximate else basis
        result = searched(second, pattern, site, asked, client, words)
        chosen = None if first is None else searched(first, pattern, site, asked, client, words)
    if chosen is None:
        proof, ranked = result.evidence, result.table(by)
    else:
        split = SplitSearch(chosen, result)
        proof, ranked = split.evidence, split.table(by)
    heads = first_rows(ranked, top, everything=as_csv or as_json)
    if as_csv:
        print_csv(heads)
        return
    best = head_of(head) if head else (int(ranked["layer"].to_numpy()[0]), int(ranked["head"].to_numpy()[0]))
    hits = result.top_examples(*best, examples)
    if as_json:
        print(render.to_json({**render.search_json(result, heads, hits, proof), **render.fetched(first, second)}))
        return
    console = console_for_people()
    print_table(console, render.heads_table(heads))
    for note in result.notes:
        console.print(f"Note: {render.printable(note)}", style="yellow", markup=False, soft_wrap=True)
    console.print(_summary(result, second), style="dim", soft_wrap=True)
    console.print(render.evidence_text(proof, "tokens" if words is None else "words"), style="dim", soft_wrap=True)
    if first is not None:
        console.print(f"Ranked and offset chosen on {render.printable(first.location)}.", style="dim", soft_wrap=True)
    print_hits(console, result, best, hits)
    if fetched := render.fetched_text(first, second):
        console.print(fetched, style="dim")


@app.command(rich_help_panel=_PANEL)
def patterns(
    patterns: Annotated[
        Path | None,
        typer.Option(
            "--patterns", metavar="FILE", help="Also those of a TOML file; it is checked.", show_default=False
        ),
    ] = None,
    as_json: HeadsAsJson = False,
) -> None:
    """List the named patterns: each may be used by its name in an expression, with its parameters in parentheses.

    Example: [bold]headatlas patterns[/bold]
    """
    from ..patterns import LIBRARY, read_patterns
    from ..patterns.tree import value_text
    from . import tables as render

    library = LIBRARY if patterns is None else read_patterns(patterns)
    if as_json:
        keys = ("name", "label", "expression", "description", "parameters")
        print(render.to_json({"patterns": [{key: getattr(p, key) for key in keys} for p in library.values()]}))
        return
    from rich.text import Text

    console = console_for_people()
    for pattern in library.values():
        given = ", ".join(f"{name}={value_text(value)}" for name, value in pattern.parameters.items())
        console.print(Text(pattern.name, "bold") + Text(f"({given})" if given else ""), Text(render.printable(pattern.description)), sep="  ", soft_wrap=True)  # fmt: skip
        console.print(f"  {pattern.expression}", style="blue", markup=False, highlight=False, soft_wrap=True)


def _stores_and_expression(
    store: str, expression: str | None, select: str | None, score: str | None
) -> tuple[Store | None, Store, str]:
    """With both --select and --score the one argument is the expression."""
    if expression is None:
        if select is None or score is None:
            raise ConfigError(f"one argument, {store!r}; expected STORE EXPR, such as traces/demo induction")
        return *chosen_stores(None, select, score), store
    return *chosen_stores(store, select, score), expression


def searched(
    store: Store,
    expression: str | Pattern,
    site: str | None,
    basis: RequestedBasis,
    client: Client | None = None,
    words: Merge | None = None,
) -> SearchResult:
    """Search with a progress bar where a person is looking."""
    from ..queries.pattern_search import search

    if not sys.stderr.isatty():
        return search(store, expression, site, basis, words=words, client=client)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("searching", total=store.n_examples)
        return search(
            store,
            expression,
            site,
            basis,
            words=words,
            client=client,
            on_progress=lambda done: progress.update(task, completed=done.n_examples_done),
        )


def _summary(result: SearchResult, store: Store) -> str:
    attention = f"stored attention ({store.spec.keep.attention})"
    if result.basis == "attention" and "mass_upper" in result.heads:
        attention += ", of which weights were left out: mass is at least the first number, at most the second"
    source = {
        "attention": attention,
        "edges": f"stored edges ({store.spec.keep.edges} a row): mass is at least the first number, at most the second",
        "rebuilt": f"attention rebuilt from query and key ({store.spec.keep.query_key})",
    }
    rows, how = "rows with a matching key", ""
    if result.words is not None:
        rows, how = "words with a matching word", f", rows of a word {'averaged' if result.words == 'mean' else 'of its first token'}"  # fmt: skip
    return (
        f"{result.rows:,} {rows} in {result.n_examples:,} of {result.n_examples_searched:,} examples, "
        f"from {source[result.basis]}{how}, {result.seconds:.2f} s. {incomplete_text(store)}"
    )
