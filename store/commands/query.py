"""The commands `headatlas search` and `headatlas patterns`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from .cluster import cluster

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from ..patterns import Pattern
    from ..reading.words import Merge
    from ..search.scan import Asked
    from ..search.search import ExampleHit, SearchResult
    from ..search.tasks import Client
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")
_PANEL = "Query"
TOP = 12
"""Rows of a table for people."""
_WIDEST = 2_000
"""Characters of a table's line, at most."""

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of a trace store.", show_default=False)]
SiteName = Annotated[
    str | None,
    typer.Option("--site", help="Which attention: encoder, decoder or cross; default the first.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs; all heads unless --top is given.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print the heads as CSV; all of them unless --top is given.")]
Select = Annotated[str | None, typer.Option("--select", metavar="STORE", help="Choose on this store…", show_default=False)]  # fmt: skip
Score = Annotated[str | None, typer.Option("--score", metavar="STORE", help="…and report on this one.", show_default=False)]  # fmt: skip
Top = Annotated[int | None, typer.Option("--top", min=0, help=f"How many heads; default {TOP} for people.", show_default=False)]  # fmt: skip

Patterns = Annotated[Path | None, typer.Option("--patterns", metavar="FILE", help="A TOML file of named patterns to use beside the built-in ones.", show_default=False)]  # fmt: skip


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
    examples: Annotated[int, typer.Option("--examples", min=0, help="How many examples of the head.")] = 5,
    head: Annotated[
        str | None,
        typer.Option(
            "--head", metavar="LAYER.HEAD", help="Show this head's examples; default the best.", show_default=False
        ),
    ] = None,
    by: Annotated[
        Literal["mass", "hit_rate", "lift", "offset_lift"], typer.Option(help="What heads are ranked by.")
    ] = "mass",
    level: Annotated[
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
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Rank heads by how much of their attention follows a pattern, and show the examples that show it best.

    Example: [bold]headatlas search traces/demo 'induction and not key.special'[/bold]
    """
    from ..search.split import SplitSearch
    from . import render

    if approximate and level != "auto":
        raise ConfigError(f"--approximate chooses what to read; expected it without --level {level}")
    if words and (approximate or level not in ("auto", "exact")):
        raise ConfigError("--words reads all that it takes to be exact; expected it without --level and --approximate")
    first, second, expression = _stores_and_expression(store, expression, select, score)
    pattern = read_pattern(expression, patterns)
    with cluster(scheduler) as client:
        asked = "approximate" if approximate else level
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
    as_json: AsJson = False,
) -> None:
    """List the named patterns: each may be used by its name in an expression, with its parameters in parentheses.

    Example: [bold]headatlas patterns[/bold]
    """
    from ..patterns import LIBRARY, read_patterns
    from ..patterns.tree import value_text
    from . import render

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


def chosen_stores(store: str | None, select: str | None, score: str | None) -> tuple[Store | None, Store]:
    """The store to choose on (None: the other one) and the store to report on; STORE stands for the one not named."""
    from ..search.split import check_same_heads
    from ..store import open_store

    if store is not None and select is not None and score is not None:
        raise ConfigError(f"STORE is {store}, and --select and --score name both stores; expected only those two")
    first, second = select or store, score or store
    if first is None or second is None:
        raise ConfigError("no store to work on; expected STORE, or --select STORE --score STORE")
    opened = open_store(second)
    if first == second:
        return None, opened
    chosen = open_store(first)
    check_same_heads(chosen, opened)
    return chosen, opened


def _stores_and_expression(
    store: str, expression: str | None, select: str | None, score: str | None
) -> tuple[Store | None, Store, str]:
    """With both --select and --score the one argument is the expression."""
    if expression is None:
        if select is None or score is None:
            raise ConfigError(f"one argument, {store!r}; expected STORE EXPR, such as traces/demo induction")
        return *chosen_stores(None, select, score), store
    return *chosen_stores(store, select, score), expression


def read_pattern(expression: str, patterns: Path | None) -> Pattern:
    """Read an expression, with the named patterns of a file if one is given."""
    from ..patterns import LIBRARY, Pattern, read_patterns

    return Pattern.parse(expression, LIBRARY if patterns is None else read_patterns(patterns))


def searched(
    store: Store,
    expression: str | Pattern,
    site: str | None,
    level: Asked,
    client: Client | None = None,
    words: Merge | None = None,
) -> SearchResult:
    """Search with a progress bar where a person is looking."""
    from ..search.search import search

    if not sys.stderr.isatty():
        return search(store, expression, site, level, words=words, client=client)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("searching", total=store.n_examples)
        return search(
            store,
            expression,
            site,
            level,
            words=words,
            client=client,
            on_progress=lambda done: progress.update(task, completed=done.n_examples_done),
        )


def print_hits(console: Console, result: SearchResult, head: tuple[int, int], hits: list[ExampleHit]) -> None:
    """Print examples of a head, each with its strongest matching edge."""
    from . import render

    if hits:
        console.print(
            f"\nExamples of head {head[0]}.{head[1]}: \\[query] «key», weight of that edge, mass of the example"
        )
    for hit in hits:
        query, key = result.tokens(hit.example)
        console.print(f"{hit.weight:.3f}  {hit.score:.3f}  {render.printable(hit.id)}", style="dim", markup=False)
        console.print(render.edge_text(query, key, hit.query_pos, hit.key_pos), soft_wrap=True)


def _summary(result: SearchResult, store: Store) -> str:
    attention = f"stored attention ({store.spec.keep.attention})"
    if result.level == "attention" and "mass_upper" in result.heads:
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
        f"from {source[result.level]}{how}, {result.seconds:.2f} s. {incomplete_text(store)}"
    )


def incomplete_text(store: Store) -> str:
    """How much of the job is there, if not all."""
    if store.is_complete:
        return ""
    return (
        f"The store is not complete: {store.n_examples:,} of {store.manifest.n_examples_planned:,} examples are there."
    )


def head_of(text: str) -> tuple[int, int]:
    """Layer and head of ``4.11``."""
    layer, _, head = text.partition(".")
    if not (layer.isdecimal() and head.isdecimal()):
        raise ConfigError(f"the head is {text!r}; expected LAYER.HEAD, such as 4.11")
    return int(layer), int(head)


def first_rows(heads: pd.DataFrame, top: int | None, *, everything: bool) -> pd.DataFrame:
    """As many rows as were asked for; without a number all of them for programs, twelve for people."""
    return heads.head(len(heads) if top is None and everything else TOP if top is None else top)


def print_csv(heads: pd.DataFrame) -> None:
    """Print a table as CSV."""
    print(heads.to_csv(index=False, lineterminator="\n"), end="")


def console_for_people() -> Console:
    """Make the console that tables are printed on."""
    from rich.console import Console

    return Console()


def print_table(console: Console, table: Table) -> None:
    """Print a table whole: one wider than the terminal is not cut, since rich would leave out columns of it."""
    from rich.console import Console
    from rich.measure import Measurement

    needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    wide = console if needed <= console.width else Console(file=console.file, width=needed)
    wide.print(table)
