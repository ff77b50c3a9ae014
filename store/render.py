"""Answers as text: tables with small bars for people, CSV and JSON for programs.

Corpus text may hold anything, terminal escapes too: everything printed goes through `printable`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from .patterns.lexer import printable
from .statistics import STATISTICS

if TYPE_CHECKING:
    import pandas as pd

    from .search import ExampleHit, SearchResult
    from .tokens import TokenTable

BAR_WIDTH = 12
CONTEXT_TOKENS = 8
_EIGHTHS = " ▏▎▍▌▋▊▉"


def plain(value: Any) -> Any:
    """A number of numpy as one of JSON; what is not finite becomes null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table for JSON."""
    return [{str(k): plain(v) for k, v in row.items()} for row in table.to_dict("records")]


def to_json(value: Any) -> str:
    """JSON that every reader accepts: no NaN."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False)


def search_json(result: SearchResult, heads: pd.DataFrame, hits: Sequence[ExampleHit]) -> dict[str, Any]:
    """What `headatlas search --json` prints."""
    return {
        "search": {
            "pattern": str(result.pattern),
            "site": result.site.name,
            "level": result.level,
            "rows": result.rows,
            "examples": result.n_examples,
            "examples_searched": result.n_examples_searched,
            "complete": result.is_complete,
            "notes": list(result.notes),
        },
        "heads": records(heads),
        "examples": [
            {
                "example": hit.example,
                "id": hit.id,
                "layer": hit.layer,
                "head": hit.head,
                "score": plain(hit.score),
                "edge": {"query_pos": hit.query_pos, "key_pos": hit.key_pos, "weight": plain(hit.weight)},
            }
            for hit in hits
        ],
    }


def bar(share: float, width: int = BAR_WIDTH) -> Text:
    """A share from 0 to 1 as a bar of text."""
    share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    whole, part = divmod(round(share * width * 8), 8)
    return Text(("█" * whole + (_EIGHTHS[part] if part else "")).ljust(width), "blue")


def number(value: float, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def lift(value: float) -> str:
    """A lift for a table."""
    return f"{value:.1f}×" if math.isfinite(value) else "–"


def heads_table(result: SearchResult, heads: pd.DataFrame) -> Table:
    """Ranked heads of a search."""
    table = _table(("head", "right"), ("mass", "right"), ("", "left"), ("hit rate", "right"), ("baseline", "right"), ("lift", "right"))  # fmt: skip
    bounded = "mass_upper" in heads
    for row in heads.to_dict("records"):
        mass = number(row["mass"]) + (f"–{number(row['mass_upper'])}" if bounded else "")
        cells = number(row["hit_rate"]), number(row["baseline"]), lift(row["lift"])
        table.add_row(f"{row['layer']}.{row['head']}", mass, bar(row["mass"]), *cells)
    return table


def specialised_table(heads: pd.DataFrame) -> Table:
    """The most specialised heads."""
    columns = ("head", "right"), ("behaviour", "left"), ("share", "right"), ("", "left"), ("uniform", "right"), ("lift", "right")  # fmt: skip
    table = _table(*columns, ("entropy", "right"))
    for row in heads.to_dict("records"):
        cells = number(row["baseline"]), lift(row["lift"]), number(row.get("entropy", math.nan), 2)
        table.add_row(
            f"{row['layer']}.{row['head']}", row["behaviour"], number(row["value"]), bar(row["value"]), *cells
        )
    return table


def statistics_rich_table(heads: pd.DataFrame, names: Sequence[str]) -> Table:
    """Chosen statistics of every head."""
    titles = [f"{name} ({STATISTICS[name].unit})" if name in STATISTICS else name for name in names]
    table = _table(("head", "right"), *((title, "right") for title in titles))
    for row in heads.to_dict("records"):
        table.add_row(f"{row['layer']}.{row['head']}", *(number(row[name]) for name in names))
    return table


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, justify in columns:
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def edge_text(query: TokenTable, key: TokenTable, query_pos: int, key_pos: int) -> Text:
    """An example around an edge: the query token in [brackets], the key token in «guillemets» and reversed.

    Query and key of two different texts stand one after the other.
    """
    if query is key:
        return _marked(query, {query_pos: "query", key_pos: "both" if key_pos == query_pos else "key"})
    return _marked(query, {query_pos: "query"}) + Text(" → ") + _marked(key, {key_pos: "key"})


def _marked(tokens: TokenTable, marks: dict[int, str]) -> Text:
    shown = set()
    for position in marks:
        shown |= set(range(max(0, position - CONTEXT_TOKENS), min(len(tokens), position + CONTEXT_TOKENS + 1)))
    texts, end, last = tokens.text, None, -1
    line = Text()
    for position in sorted(shown):
        special = bool(tokens.special[position])
        if position != last + 1:
            line.append("… " if last < 0 else " … ", "dim")
        elif last >= 0 and (special or end is None or tokens.char_start[position] > end):
            line.append(" ")
        text, mark = printable(texts[position]), marks.get(position)
        if mark in ("query", "both"):
            line.append(
                f"[{text}]" if mark == "query" else f"[«{text}»]", "bold blue" if mark == "query" else "reverse"
            )
        elif mark == "key":
            line.append(f"«{text}»", "reverse")
        else:
            line.append(text, "dim" if special else "")
        end, last = (None if special else int(tokens.char_end[position])), position
    if last + 1 < len(tokens):
        line.append(" …", "dim")
    return line


def size_text(n_bytes: float) -> str:
    """Bytes for people, in decimal units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
