"""The command `headatlas contrast`: minimal pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .cluster import shares_tasks
from .comparison_tables import print_pair_correlation
from .options import AsCsv, AsJson, Patterns, SiteName, StorePath, Top, Unit, head_of, read_pattern
from .printing import first_rows, output_console, print_csv, print_table, progress_bar
from .search import search_with_progress

if TYPE_CHECKING:
    from ..queries.minimal_pairs import Contrast
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Query")
@shares_tasks
def contrast(
    store: StorePath,
    expression: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPR",
            help="Pattern whose mass is compared; without it attention itself is compared.",
            show_default=False,
        ),
    ] = None,
    pair: Annotated[str, typer.Option(help="Annotation with the same value in both members of a pair.")] = "pair",
    variant: Annotated[str, typer.Option(help="Annotation that distinguishes the members.")] = "variant",
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B", help="Variants to compare; default the two with the most pairs.", show_default=False
        ),
    ] = None,
    top: Top = None,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="Number of example pairs to show for the head.")
    ] = 3,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="LAYER.HEAD",
            help="Head whose pairs are shown; default the one with the largest difference.",
            show_default=False,
        ),
    ] = None,
    correlate: Annotated[
        str | None,
        typer.Option(
            "--correlate",
            metavar="COLUMN",
            help="Correlate the difference within a pair with this numeric annotation of its members.",
            show_default=False,
        ),
    ] = None,
    patterns: Patterns = None,
    site: SiteName = None,
    unit: Unit = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Compare the members of minimal pairs: rank heads by the difference in a pattern's mass or in their attention.

    With --correlate: does the difference follow a number of the pair, such as the share of women in an occupation?

    Example: [bold]headatlas contrast traces/demo 'query.upos == "PRON" and key.entity == "occupation"' --between f m[/bold]
    """
    from ..queries import minimal_pairs as measure
    from ..store import open_store
    from . import tables as render

    opened = open_store(store)
    pairs = measure.minimal_pairs(opened, pair, variant, between)
    if expression is None:
        with progress_bar("pairs") as report:
            result = measure.attention_contrast(opened, pairs, site, unit=unit, on_progress=report)
    else:
        searched = search_with_progress(opened, read_pattern(expression, patterns), site, "auto")
        result = measure.contrast(searched, pairs, unit=unit)
    if correlate:
        print_pair_correlation(opened, result, correlate, head, top, as_csv=as_csv, as_json=as_json)
        return
    ranked = result.table()
    heads = first_rows(ranked, top, all_rows=as_csv or as_json)
    if as_csv:
        print_csv(heads)
        return
    best = head_of(head) if head else (int(ranked["layer"].to_numpy()[0]), int(ranked["head"].to_numpy()[0]))
    if as_json:
        print(render.to_json(_json(result, render.records(heads), best) | render.fetched(opened)))
        return
    _print(result, heads, best, examples, opened)


def _json(result: Contrast, heads: list[dict], best: tuple[int, int]) -> dict:
    """Build the output of --json. `pairs` are all pairs, with the differences of one head."""
    driving = [
        {"pair": name, "first": first, "second": second, "difference": difference}
        for name, first, second, difference in result.driving_pairs(*best, None)
    ]
    summary = {
        "pattern": None if result.search is None else str(result.search.pattern),
        "first": result.pairs.variants[0],
        "second": result.pairs.variants[1],
        "pairs": len(result.pair_index),
        "without_match": len(result.pairs.names) - len(result.pair_index),
        "refused": result.pairs.refused,
        "unit": result.units.name,
        "units": result.n_units,
        "rounding": result.rounding,
    }
    return {"contrast": summary, "heads": heads, "head": ".".join(map(str, best)), "pairs": driving}


def _print(result: Contrast, heads: object, best: tuple[int, int], n: int, store: Store) -> None:
    from . import tables as render

    console = output_console()
    first, second = map(render.printable, result.pairs.variants)
    print_table(console, render.contrast_table(heads, first, second))  # type: ignore[arg-type]
    refused = "; ".join(f"{count:,} {reason}" for reason, count in result.pairs.refused.items())
    n_without = len(result.pairs.names) - len(result.pair_index)
    explanation = (
        f"mass in {second} minus mass in {first}. Pairs without a matching row in both members: {n_without:,}."
    )
    if result.search is None:
        explanation = (
            f"distance between the attention in {second} and in {first}: 0 equal, 1 disjoint. "
            "q: false-discovery rate of a larger distance than that of the mean head."
        )
    console.print(
        f"{len(result.pair_index):,} pairs, {explanation} Left out: {refused or 'none'}. "
        f"{result.units.describe(result.n_units)}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    driving = result.driving_pairs(*best, n)
    if driving:
        console.print(f"\nPairs with the largest differences of head {best[0]}.{best[1]}:")
    for name, a, b, difference in driving:
        console.print(f"{difference:+.3f}  {render.printable(name)}", style="dim", markup=False)
        for number in (a, b):
            console.print("  " + render.printable(store.examples[number].text), markup=False, soft_wrap=True)
    if fetched := render.fetched_text(store):
        console.print(fetched, style="dim")
