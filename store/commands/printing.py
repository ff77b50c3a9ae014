"""Tables and examples on the terminal, tables for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from ..queries.pattern_search import ExampleHit, SearchResult
    from ..store import Store

TOP = 12
"""Rows of a table for people."""
_WIDEST = 2_000
"""Characters of a table's line, at most."""


def incomplete_text(store: Store) -> str:
    """How much of the job is there, if not all."""
    if store.is_complete:
        return ""
    return (
        f"The store is not complete: {store.n_examples:,} of {store.manifest.n_examples_planned:,} examples are there."
    )


def first_rows(heads: pd.DataFrame, top: int | None, *, everything: bool) -> pd.DataFrame:
    """As many rows as were asked for; without a number all of them for programs, twelve for people."""
    return heads.head(len(heads) if top is None and everything else TOP if top is None else top)


def print_csv(heads: pd.DataFrame) -> None:
    """Print a table as CSV."""
    print(heads.to_csv(index=False, lineterminator="\n"), end="")


def size_text(n_bytes: float) -> str:
    """Bytes for people, in decimal units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


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


def print_hits(console: Console, result: SearchResult, head: tuple[int, int], hits: list[ExampleHit]) -> None:
    """Print examples of a head, each with its strongest matching edge."""
    from . import tables as render

    if hits:
        console.print(
            f"\nExamples of head {head[0]}.{head[1]}: \\[query] «key», weight of that edge, mass of the example"
        )
    for hit in hits:
        query, key = result.tokens(hit.example)
        console.print(f"{hit.weight:.3f}  {hit.score:.3f}  {render.printable(hit.id)}", style="dim", markup=False)
        console.print(render.edge_text(query, key, hit.query_pos, hit.key_pos), soft_wrap=True)
