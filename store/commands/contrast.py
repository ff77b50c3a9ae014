"""The command `headatlas contrast`: minimal pairs, head by head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import HeadsAsCsv, HeadsAsJson, Patterns, SiteName, StorePath, Top, read_pattern
from .printing import first_rows, print_table
from .search import searched

if TYPE_CHECKING:
    from ..queries.minimal_pairs import Contrast
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Query")
def contrast(
    store: StorePath,
    expression: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPR", help="The pattern whose mass is compared; none: attention itself.", show_default=False
        ),
    ] = None,
    pair: Annotated[str, typer.Option(help="Annotation that both members of a pair share.")] = "pair",
    variant: Annotated[str, typer.Option(help="Annotation that tells the members apart.")] = "variant",
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="The variants to compare; default the two of most pairs.", show_default=False),
    ] = None,
    top: Top = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="How many pairs of the head.")] = 3,
    patterns: Patterns = None,
    site: SiteName = None,
    as_csv: HeadsAsCsv = False,
    as_json: HeadsAsJson = False,
) -> None:
    """Compare the members of minimal pairs: which heads follow a pattern more in one, or attend otherwise.

    Example: [bold]headatlas contrast traces/demo 'query.upos == "PRON" and key.entity == "occupation"' --between f m[/bold]
    """
    from ..queries import minimal_pairs as measure
    from ..store import open_store
    from . import tables as render

    opened = open_store(store)
    pairs = measure.minimal_pairs(opened, pair, variant, between)
    if expression is None:
        result = measure.attention_contrast(opened, pairs, site)
    else:
        result = measure.contrast(searched(opened, read_pattern(expression, patterns), site, "auto"), pairs)
    ranked = result.table()
    heads = first_rows(ranked, top, everything=as_csv or as_json)
    if as_csv:
        print(heads.to_csv(index=False, lineterminator="\n"), end="")
        return
    best = (int(ranked["layer"].to_numpy()[0]), int(ranked["head"].to_numpy()[0]))
    if as_json:
        print(render.to_json(_json(result, render.records(heads), best, examples) | render.fetched(opened)))
        return
    _print(result, heads, best, examples, opened)


def _json(result: Contrast, heads: list[dict], best: tuple[int, int], n: int) -> dict:
    driving = [
        {"pair": name, "first": first, "second": second, "difference": difference}
        for name, first, second, difference in result.driving_pairs(*best, n)
    ]
    about = {
        "pattern": None if result.search is None else str(result.search.pattern),
        "first": result.pairs.variants[0],
        "second": result.pairs.variants[1],
        "pairs": len(result.kept),
        "without_match": len(result.pairs.names) - len(result.kept),
        "refused": result.pairs.refused,
    }
    return {"contrast": about, "heads": heads, "pairs": driving}


def _print(result: Contrast, heads: object, best: tuple[int, int], n: int, store: Store) -> None:
    from rich.console import Console

    from . import tables as render

    console = Console()
    first, second = map(render.printable, result.pairs.variants)
    print_table(console, render.contrast_table(heads, first, second))  # type: ignore[arg-type]
    refused = "; ".join(f"{count:,} {reason}" for reason, count in result.pairs.refused.items())
    without = len(result.pairs.names) - len(result.kept)
    what = f"mass in {second} less mass in {first}. Without a matching row in both: {without:,}."
    if result.search is None:
        what = (
            f"share of attention that lies elsewhere in {second} than in {first}. q: of moving more than the mean head."
        )
    console.print(
        f"{len(result.kept):,} pairs, {what} Refused: {refused or 'none'}.",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    driving = result.driving_pairs(*best, n)
    if driving:
        console.print(f"\nPairs that drive head {best[0]}.{best[1]}:")
    for name, a, b, difference in driving:
        console.print(f"{difference:+.3f}  {render.printable(name)}", style="dim", markup=False)
        for number in (a, b):
            console.print("  " + render.printable(store.examples[number].text), markup=False, soft_wrap=True)
    if fetched := render.fetched_text(store):
        console.print(fetched, style="dim")
