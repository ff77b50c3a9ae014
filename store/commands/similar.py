"""The command `headatlas similar`: similar heads in one model or in two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cluster import shares_tasks
from .options import AsCsv, AsJson, MergeTokens, SiteName, StorePath, Top, Unit, head_of
from .printing import TOP, first_rows, output_console, print_csv, print_table, progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from ..comparisons.head_similarity import SimilarHeads

app = typer.Typer(rich_markup_mode="rich")
_N_EXAMPLES, _N_WORDS = 200, 4_000


@app.command(rich_help_panel="Query")
@shares_tasks
def similar(
    store: StorePath,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="STORE2",
            help="Store of another model over the same corpus; default STORE itself.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head", metavar="LAYER.HEAD", help="Head of STORE to compare with all others.", show_default=False
        ),
    ] = None,
    examples: Annotated[int, typer.Option("--sample", min=1, help="Number of examples to sample.")] = _N_EXAMPLES,
    words: Annotated[
        int, typer.Option("--sample-words", min=1, help="Number of query words to sample from these examples.")
    ] = _N_WORDS,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every query word of the sampled examples.")] = False,
    merge: MergeTokens = "mean",
    sink_free: Annotated[
        bool,
        typer.Option("--sink-free", help="Leave out the first token and special tokens, and normalise the rows again."),
    ] = False,
    top: Top = None,
    site: SiteName = None,
    unit: Unit = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Find similar heads, in one model or in two over the same corpus, by their word-to-word attention.

    Example: [bold]headatlas similar traces/ewt traces/ewt-smollm2 --head 2.0[/bold]
    """
    from ..comparisons.head_similarity import similar as compare
    from ..store import open_store
    from . import tables as render

    head_index = head_of(head) if head else None
    first, second = open_store(store), None if other is None else open_store(other)
    with progress_bar("words") as report:
        result = compare(
            first,
            second,
            site,
            merge,
            head=head_index,
            sink_free=sink_free,
            n_examples=examples,
            n_words=None if exact else words,
            on_progress=report,
        )
    table = result.table(n=top if top is not None or as_csv or as_json else TOP, unit=unit)
    table = first_rows(table, top, all_rows=as_csv or as_json)
    if as_csv:
        print_csv(table, result.left_out)
    elif as_json:
        print(render.to_json({"similar": _summary(result, unit), "pairs": render.records(table)}))
    else:
        _print(result, table, unit)


def _summary(result: SimilarHeads, unit: str | None) -> dict[str, Any]:
    from ..schema.omissions import Omissions
    from . import tables as render

    return {
        "store": result.store.location,
        "other": result.other.location,
        "measure": "Jensen-Shannon distance of word rows, bits",
        "merge": result.merge,
        "sink_free": result.sink_free,
        "rows": result.rows,
        "sampled_from": result.n_words,
        "largest_error": render.plain(result.largest_error),
        "examples": result.n_examples,
        "shared": result.n_shared,
        "refused": result.refused,
        "left_out": Omissions(result.left_out).to_json(),
        "median": render.plain(result.median),
        "unit": result.units(unit).name,
        "units": result.n_units(unit),
    }


def _error_text(result: SimilarHeads) -> str:
    """Return the sentence about the error of sampling words; empty if every word was compared."""
    if result.rows == result.n_words:
        return ""
    return (
        f" error: sampling words moves a distance by at most that in 95 % of samples, for no pair by more than "
        f"{result.largest_error:.3f}; --exact compares every word."
    )


def _print(result: SimilarHeads, pairs: pd.DataFrame, unit: str | None) -> None:
    from . import tables as render

    console = output_console()
    columns = (("distance", "right"), ("95 %", "right"), ("/median", "right"), ("error", "right"))
    table = render.plain_table(("head", "right"), ("similar to", "right"), *columns)
    for row in pairs.to_dict("records"):
        table.add_row(
            f"{row['layer']}.{row['head']}",
            f"{row['other_layer']}.{row['other_head']}",
            render.number(row["distance"]),
            render.interval(row["low"], row["high"]),
            render.number(row["distance"] / result.median, 2) if result.median else "–",
            f"±{render.number(row['error'])}" if result.rows < result.n_words else "0",
        )
    print_table(console, table)
    refused = "; ".join(f"{count:,} {reason}" for reason, count in result.refused.items())
    stores = "" if result.is_same_store else f" Heads of {result.store.name} and similar heads of {result.other.name}."
    sampled = f" of {result.n_words:,}" if result.rows < result.n_words else ""
    pairs_compared = "all pairs" if result.head is None else "these pairs"
    console.print(
        f"Jensen-Shannon distance of word rows in bits (0 equal, 1 disjoint); median of {pairs_compared} "
        f"{render.number(result.median)}. {result.rows:,}{sampled} words in {result.n_examples:,} of "
        f"{result.n_shared:,} examples, "
        f"tokens merged by {result.merge}{', without first and special tokens' if result.sink_free else ''}."
        f"{stores} Examples left out: {refused or 'none'}.{_error_text(result)} "
        f"{result.units(unit).describe(result.n_units(unit))}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    for omission in result.left_out:
        console.print(str(omission), style="dim", markup=False, soft_wrap=True)
