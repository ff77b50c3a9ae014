"""Output of tables and examples on the terminal, and of CSV."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from ..store import Store

TOP = 12
"""Default number of rows of a table on the terminal."""
_WIDEST = 2_000
"""Largest width of a table in characters."""


def incomplete_text(store: Store) -> str:
    """Return a sentence with the number of captured examples if the store is not complete."""
    if store.is_complete:
        return ""
    return f"The store is not complete: it has {store.n_examples:,} of {store.manifest.n_examples_planned:,} examples."


def first_rows(heads: pd.DataFrame, top: int | None, *, all_rows: bool) -> pd.DataFrame:
    """Return the first `top` rows; by default all rows with `all_rows`, else `TOP`."""
    return heads.head(len(heads) if top is None and all_rows else TOP if top is None else top)


def print_csv(heads: pd.DataFrame, notes: Iterable[object] = ()) -> None:
    """Print a table as CSV, and notes on it to the error stream."""
    from ..patterns.lexer import printable

    print(heads.to_csv(index=False, lineterminator="\n"), end="")
    for note in notes:
        print(f"Note: {printable(str(note))}", file=sys.stderr)


def size_text(n_bytes: float) -> str:
    """Format a number of bytes in decimal units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def output_console() -> Console:
    """Create the console for tables."""
    from rich.console import Console

    return Console()


def print_table(console: Console, table: Table) -> None:
    """Print a table with all of its columns, even if it is wider than the terminal, where rich would drop columns."""
    from rich.console import Console
    from rich.measure import Measurement

    width = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    wide_console = console if width <= console.width else Console(file=console.file, width=width)
    wide_console.print(table)


@contextmanager
def progress_bar(unit: str = "examples") -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on the error stream if it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(unit, total=None)
        yield lambda done, planned: progress.update(task, completed=done, total=planned)
