"""The commands `headatlas search` and `headatlas patterns`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from .cluster import shares_tasks
from .comparison_tables import print_correlation, print_split, print_versus
from .example_hits import print_hits
from .options import (
    AsCsv,
    AsJson,
    Basis,
    ExamplesShown,
    HeadShown,
    Patterns,
    Score,
    Select,
    SiteName,
    Top,
    Unit,
    head_of,
    open_stores,
    read_pattern,
)
from .printing import first_rows, incomplete_text, output_console, print_csv, print_table, progress_bar

if TYPE_CHECKING:
    from ..patterns import Pattern
    from ..queries.pattern_search import SearchResult
    from ..queries.segment_scan import RequestedBasis
    from ..reading.word_attention import Merge
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")
_PANEL = "Query"


@app.command(rich_help_panel=_PANEL)
@shares_tasks
def search(
    store: Annotated[
        str,
        typer.Argument(metavar="STORE", help="Folder or URL of a trace store.", show_default=False),
    ],
    expression: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPR", help="Pattern, such as 'key.position == query.position - 1'.", show_default=False
        ),
    ] = None,
    top: Top = None,
    examples: ExamplesShown = 5,
    head: HeadShown = None,
    by: Annotated[
        Literal["mass", "hit_rate", "lift", "offset_lift"], typer.Option(help="Score to rank heads by.")
    ] = "mass",
    basis: Basis = "auto",
    patterns: Patterns = None,
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="Use the lower bound from stored edges, in a fraction of the time."),
    ] = False,
    words: Annotated[
        Literal["mean", "first"] | None,
        typer.Option(
            help="Search words, not tokens: columns are summed, rows are averaged (mean) or those of the first token.",
            show_default=False,
        ),
    ] = None,
    versus: Annotated[
        list[str] | None,
        typer.Option(
            "--versus",
            metavar="EXPR",
            help="Compare each head's mass with that of another pattern on the same examples; repeat for more patterns.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="COLUMN",
            help="Compare the groups of examples that have the same value of this annotation.",
            show_default=False,
        ),
    ] = None,
    correlate: Annotated[
        str | None,
        typer.Option(
            "--correlate",
            metavar="COLUMN",
            help="Correlate the mass on an example with this numeric annotation of examples.",
            show_default=False,
        ),
    ] = None,
    null: Annotated[
        list[str] | None,
        typer.Option(
            "--null",
            metavar="NULL",
            help="uniform, sink-free, habit, matched, labels, mismatched or offset: null that heads are compared with; repeat the option for several. Default: that of the pattern's kind.",
            show_default=False,
        ),
    ] = None,
    unit: Unit = None,
    site: SiteName = None,
    select: Select = None,
    score: Score = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Rank heads by the share of their attention that follows a pattern, and show the best examples.

    Example: [bold]headatlas search traces/demo 'induction and not key.special'[/bold]

    Two patterns, paired by example: [bold]headatlas search traces/demo previous_token --versus next_token[/bold]
    """
    from ..queries.evidence.nulls import null_names
    from ..queries.evidence.search_evidence import compute_evidence
    from ..queries.held_out import SplitSearch
    from . import tables as render

    if approximate and basis != "auto":
        raise ConfigError(f"--approximate and --basis {basis} both choose the data to read; leave one of them out")
    if words and (approximate or basis not in ("auto", "exact")):
        raise ConfigError("--words needs exact data; leave out --basis and --approximate")
    if sum(map(bool, (versus, split, correlate))) > 1:
        raise ConfigError("--versus, --split and --correlate are different questions; expected one of them")
    if (versus or split or correlate) and select is not None:
        raise ConfigError("--select chooses heads by one pattern; leave it out with --versus, --split and --correlate")
    first, second, expression = _stores_and_expression(store, expression, select, score)
    pattern = read_pattern(expression, patterns)
    options = (pattern, site, "approximate" if approximate else basis, words)
    result = search_with_progress(second, *options)
    selection = None if first is None else search_with_progress(first, *options)
    if versus:
        print_versus(
            result,
            versus,
            lambda other: search_with_progress(second, read_pattern(other, patterns), *options[1:]),
            head,
            top,
            examples,
            unit=unit,
            as_csv=as_csv,
            as_json=as_json,
        )
        return
    if split:
        print_split(result, split, top, unit=unit, as_csv=as_csv, as_json=as_json)
        return
    if correlate:
        print_correlation(result, correlate, head, top, unit=unit, as_csv=as_csv, as_json=as_json)
        return
    nulls = null_names(null or ())
    if selection is None:
        evidence = compute_evidence(result, nulls=nulls, unit=unit)
        ranked = result.table(by, evidence)
    else:
        held_out = SplitSearch(selection, result, nulls, unit)
        evidence, ranked = held_out.evidence, held_out.table(by)
    heads = first_rows(ranked, top, all_rows=as_csv or as_json)
    if as_csv:
        print_csv(heads, result.notes)
        return
    best = head_of(head) if head else (int(ranked["layer"].to_numpy()[0]), int(ranked["head"].to_numpy()[0]))
    hits = result.top_examples(*best, examples)
    if as_json:
        print(render.to_json({**render.search_json(result, heads, hits, evidence), **render.fetched(first, second)}))
        return
    console = output_console()
    print_table(console, render.heads_table(heads))
    for note in result.notes:
        console.print(f"Note: {render.printable(note)}", style="yellow", markup=False, soft_wrap=True)
    console.print(_summary(result, second), style="dim", soft_wrap=True)
    console.print(render.evidence_text(evidence, "tokens" if words is None else "words"), style="dim", soft_wrap=True)
    if best_sentence := "" if by != "mass" else render.best_text(evidence, heads):
        console.print(best_sentence, style="dim", soft_wrap=True)
    if first is not None:
        console.print(
            f"Ranks and offset were chosen on {render.printable(first.location)}.", style="dim", soft_wrap=True
        )
    print_hits(console, result, best, hits)
    if fetched := render.fetched_text(first, second):
        console.print(fetched, style="dim")


@app.command(rich_help_panel=_PANEL)
def patterns(
    patterns: Patterns = None,
    as_json: AsJson = False,
) -> None:
    """List the named patterns. Expressions use them by name, with parameters in parentheses.

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

    console = output_console()
    for pattern in library.values():
        parameters = ", ".join(f"{name}={value_text(value)}" for name, value in pattern.parameters.items())
        title = Text(pattern.name, "bold") + Text(f"({parameters})" if parameters else "")
        console.print(title, Text(render.printable(pattern.description)), sep="  ", soft_wrap=True)
        console.print(f"  {pattern.expression}", style="blue", markup=False, highlight=False, soft_wrap=True)


def _stores_and_expression(
    store: str, expression: str | None, select: str | None, score: str | None
) -> tuple[Store | None, Store, str]:
    """Open the stores. With --select and --score the only argument is the expression."""
    if expression is None:
        if select is None or score is None:
            raise ConfigError(f"the only argument is {store!r}; expected STORE EXPR, such as traces/demo induction")
        return *open_stores(None, select, score), store
    return *open_stores(store, select, score), expression


def search_with_progress(
    store: Store,
    expression: str | Pattern,
    site: str | None,
    basis: RequestedBasis,
    words: Merge | None = None,
) -> SearchResult:
    """Search, with a progress bar if the error stream is a terminal."""
    from ..queries.pattern_search import search

    with progress_bar() as report:
        return search(
            store,
            expression,
            site,
            basis,
            words=words,
            on_progress=lambda done: report(done.n_examples_done, done.n_examples),
        )


def _summary(result: SearchResult, store: Store) -> str:
    attention = f"stored attention ({store.spec.keep.attention})"
    if result.basis == "attention" and "mass_upper" in result.heads:
        attention += ", which is sparse: mass is between the two numbers"
    source = {
        "attention": attention,
        "edges": f"stored edges ({store.spec.keep.edges} for each row): mass is between the two numbers",
        "rebuilt": f"attention rebuilt from query and key ({store.spec.keep.query_key})",
    }
    rows, merging = "rows with a matching key", ""
    if result.words is not None:
        rows = "words with a matching word"
        merging = f", word rows {'averaged over tokens' if result.words == 'mean' else 'of the first token'}"
    return (
        f"{result.rows:,} {rows} in {result.n_examples:,} of {result.n_examples_searched:,} examples, "
        f"from {source[result.basis]}{merging}, {result.seconds:.2f} s. {incomplete_text(store)}"
    )
