"""Arguments and options that several commands share, and functions that interpret them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from .printing import TOP

if TYPE_CHECKING:
    from ..patterns import Pattern
    from ..store import Store

StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a trace store.", show_default=False)]
StorePath = Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of a trace store.", show_default=False)]
SiteName = Annotated[
    str | None,
    typer.Option(
        "--site", help="Attention site: encoder, decoder or cross; default the first of the store.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Select = Annotated[str | None, typer.Option("--select", metavar="STORE", help="Store to choose heads on.", show_default=False)]  # fmt: skip
Score = Annotated[str | None, typer.Option("--score", metavar="STORE", help="Store to report on.", show_default=False)]  # fmt: skip
Top = Annotated[int | None, typer.Option("--top", min=0, help=f"Number of rows; default {TOP} in tables, all in JSON and CSV.", show_default=False)]  # fmt: skip
Patterns = Annotated[Path | None, typer.Option("--patterns", metavar="FILE", help="TOML file of named patterns, in addition to the built-in ones.", show_default=False)]  # fmt: skip
ExamplesShown = Annotated[int, typer.Option("--examples", min=0, help="Number of examples to show for the head.")]
HeadShown = Annotated[str | None, typer.Option("--head", metavar="LAYER.HEAD", help="Head whose examples are shown; default the best.", show_default=False)]  # fmt: skip
Basis = Annotated[
    Literal["auto", "exact", "attention", "edges", "rebuilt"],
    typer.Option(
        "--basis",
        help="Data to read: stored attention, stored edges (a lower bound of the mass), or query and key, from which "
        "attention is rebuilt; exact: attention, else rebuilt.",
    ),
]
MergeTokens = Annotated[
    Literal["mean", "first"],
    typer.Option("--merge", help="Row of a word: mean of the rows of its tokens, or row of its first token."),
]


def open_stores(store: str | None, select: str | None, score: str | None) -> tuple[Store | None, Store]:
    """Open the store to choose heads on (None if it is the other one) and the store to report on.

    STORE stands for the option that is missing.
    """
    from ..queries.held_out import check_same_heads
    from ..store import open_store

    if store is not None and select is not None and score is not None:
        raise ConfigError(f"STORE is {store}, but --select and --score name both stores; expected no STORE")
    first, second = select or store, score or store
    if first is None or second is None:
        raise ConfigError("no store; expected STORE, or --select STORE --score STORE")
    opened = open_store(second)
    if first == second:
        return None, opened
    selection = open_store(first)
    check_same_heads(selection, opened)
    return selection, opened


def read_pattern(expression: str, patterns: Path | None) -> Pattern:
    """Parse an expression, with the named patterns of a file unless `patterns` is None."""
    from ..patterns import LIBRARY, Pattern, read_patterns

    return Pattern.parse(expression, LIBRARY if patterns is None else read_patterns(patterns))


def head_of(text: str) -> tuple[int, int]:
    """Parse ``LAYER.HEAD``, such as ``4.11``."""
    layer, _, head = text.partition(".")
    if not (layer.isdecimal() and head.isdecimal()):
        raise ConfigError(f"the head is {text!r}; expected LAYER.HEAD, such as 4.11")
    return int(layer), int(head)


Unit = Annotated[str | None, typer.Option("--unit", metavar="COLUMN", help="Annotation whose values are the sampling units of intervals and tests, or example; default the coarsest of template, document, window_of and pair.", show_default=False)]  # fmt: skip
IgnoreSpace = Annotated[
    bool, typer.Option("--ignore-space", help="Begin even if the disk seems to have too little free space.")
]
