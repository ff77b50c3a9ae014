"""Arguments that several commands share, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    typer.Option("--site", help="Which attention: encoder, decoder or cross; default the first.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
HeadsAsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs; all heads unless --top is given.")]
HeadsAsCsv = Annotated[bool, typer.Option("--csv", help="Print the heads as CSV; all of them unless --top is given.")]
Select = Annotated[str | None, typer.Option("--select", metavar="STORE", help="Choose on this store…", show_default=False)]  # fmt: skip
Score = Annotated[str | None, typer.Option("--score", metavar="STORE", help="…and report on this one.", show_default=False)]  # fmt: skip
Top = Annotated[int | None, typer.Option("--top", min=0, help=f"How many heads; default {TOP} for people.", show_default=False)]  # fmt: skip
Patterns = Annotated[Path | None, typer.Option("--patterns", metavar="FILE", help="A TOML file of named patterns to use beside the built-in ones.", show_default=False)]  # fmt: skip
ExamplesShown = Annotated[int, typer.Option("--examples", min=0, help="How many examples of the head.")]
HeadShown = Annotated[str | None, typer.Option("--head", metavar="LAYER.HEAD", help="Show this head's examples; default the best.", show_default=False)]  # fmt: skip


def chosen_stores(store: str | None, select: str | None, score: str | None) -> tuple[Store | None, Store]:
    """The store to choose on (None: the other one) and the store to report on; STORE stands for the one not named."""
    from ..queries.held_out import check_same_heads
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


def read_pattern(expression: str, patterns: Path | None) -> Pattern:
    """Read an expression, with the named patterns of a file if one is given."""
    from ..patterns import LIBRARY, Pattern, read_patterns

    return Pattern.parse(expression, LIBRARY if patterns is None else read_patterns(patterns))


def head_of(text: str) -> tuple[int, int]:
    """Layer and head of ``4.11``."""
    layer, _, head = text.partition(".")
    if not (layer.isdecimal() and head.isdecimal()):
        raise ConfigError(f"the head is {text!r}; expected LAYER.HEAD, such as 4.11")
    return int(layer), int(head)
