"""Examples of a search on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ..queries.pattern_search import ExampleHit, SearchResult


def print_hits(console: Console, result: SearchResult, head: tuple[int, int], hits: list[ExampleHit]) -> None:
    """Print examples of a head, each with its strongest matching edge."""
    from ..patterns.lexer import printable
    from .tables import edge_text

    if hits:
        console.print(
            f"\nExamples of head {head[0]}.{head[1]}: \\[query] «key», weight of that edge, mass of the example"
        )
    for hit in hits:
        query, key = result.tokens(hit.example)
        console.print(f"{hit.weight:.3f}  {hit.score:.3f}  {printable(hit.id)}", style="dim", markup=False)
        console.print(edge_text(query, key, hit.query_pos, hit.key_pos), soft_wrap=True)
