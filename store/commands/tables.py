"""Results as text: tables with small bars for the terminal, and JSON.

Corpus text can contain terminal escape sequences, so all of it passes through `printable`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from ..patterns.lexer import printable
from ..schema.omissions import Omissions
from .printing import size_text

if TYPE_CHECKING:
    from ..queries.dependents import Dependents
    from ..queries.evidence.search_evidence import Evidence, NullEvidence
    from ..queries.pattern_search import ExampleHit, SearchResult
    from ..schema.token_table import TokenTable
    from ..store import Store

BAR_WIDTH = 12
CONTEXT_TOKENS = 8
_EIGHTHS = " ▏▎▍▌▋▊▉"


def plain(value: Any) -> Any:
    """Convert a value of numpy for JSON; missing and non-finite values become null."""
    if value is pd.NA:
        return None
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert the rows of a table for JSON."""
    return [{str(k): plain(v) for k, v in row.items()} for row in table.to_dict("records")]


def to_json(value: Any) -> str:
    """Serialise to JSON without NaN."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False)


def search_json(
    result: SearchResult, heads: pd.DataFrame, hits: Sequence[ExampleHit], evidence: Evidence | None = None
) -> dict[str, Any]:
    """Build the output of `headatlas search --json`."""
    evidence = evidence or result.evidence
    return {
        "search": {
            "pattern": str(result.pattern),
            "site": result.site.name,
            "basis": result.basis,
            "words": result.words,
            "rows": result.rows,
            "examples": result.n_examples,
            "examples_searched": result.n_examples_searched,
            "complete": result.is_complete,
            "notes": list(result.notes),
            "offset_baseline": plain(evidence.offset_baseline),
            "offsets": list(evidence.offsets),
            "is_offset": evidence.is_offset,
            "supported": evidence.is_supported,
            "minimum_rows": evidence.minimum_rows,
            "minimum_units": evidence.minimum_units,
            "unit": evidence.units.name,
            "units": evidence.n_units,
            "kind": evidence.kind,
            "nulls": [null_json(null) for null in evidence.nulls],
            "best": best_json(evidence, heads),
        },
        "heads": records(heads),
        "examples": [hit_json(hit) for hit in hits],
    }


def null_json(null: NullEvidence) -> dict[str, Any]:
    """Convert the summary of a comparison with a null."""
    from ..queries.evidence.nulls import NULLS

    return {
        "null": null.name,
        "above": NULLS[null.name].sentence,
        "examples": null.n_examples,
        "units": null.n_units,
        "heads_above": null.n_above,
        "heads_explained": null.n_explained,
        "heads_undecided": null.n_undecided,
        "note": null.note,
    }


def best_json(evidence: Evidence, heads: pd.DataFrame) -> dict[str, Any] | None:
    """Return the head that ranks first, with the interval that holds for all heads at once; None without a rank."""
    ranked = heads.take(np.flatnonzero(heads["rank"].notna().to_numpy()).tolist())
    if not evidence.is_supported or ranked.empty:
        return None
    layer, head = int(ranked["layer"].iloc[0]), int(ranked["head"].iloc[0])
    row = evidence.heads.sel(layer=layer, head=head)
    interval = [plain(row["joint_low"].item()), plain(row["joint_high"].item())]
    return {"layer": layer, "head": head, "of": evidence.heads["mass_low"].size, "joint_interval": interval}


def hit_json(hit: ExampleHit) -> dict[str, Any]:
    """Convert one example of a head for JSON."""
    return {
        "example": hit.example,
        "id": hit.id,
        "layer": hit.layer,
        "head": hit.head,
        "score": plain(hit.score),
        "edge": {"query_pos": hit.query_pos, "key_pos": hit.key_pos, "weight": plain(hit.weight)},
    }


def relations_json(table: pd.DataFrame, dependents: Dependents, notes: Sequence[str]) -> dict[str, Any]:
    """Build the output of `headatlas relations --json`."""
    rows = []
    for row in records(table):
        low, high = row.pop("low"), row.pop("high")
        rows.append({**row, "interval": [low, high]})
    order = ["relation", "n", "layer", "head", "direction", "accuracy", "interval", "baseline", "offset_baseline"]
    return {
        "relations": [{name: row[name] for name in (*order, "offsets")} for row in rows],
        "left_out": Omissions(dependents.left_out).to_json(),
        "notes": notes,
        "unit": dependents.units.name,
        "units": dependents.n_units,
    }


def bar(share: float, width: int = BAR_WIDTH) -> Text:
    """Draw a share from 0 to 1 as a bar of text."""
    share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    n_blocks, eighths = divmod(round(share * width * 8), 8)
    return Text(("█" * n_blocks + (_EIGHTHS[eighths] if eighths else "")).ljust(width), "blue")


def number(value: float, digits: int = 3) -> str:
    """Format a number for a table; a dash if it is not finite."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def lift(value: float, digits: int = 1) -> str:
    """Format a lift for a table."""
    return f"{value:.{digits}f}×" if math.isfinite(value) else "–"


def interval(low: float, high: float) -> str:
    """Format an interval of shares for a table."""
    return f"{number(low)}–{number(high)}" if math.isfinite(low) else "–"


def probability(value: float) -> str:
    """Format a p-value or false-discovery rate for a table."""
    if not math.isfinite(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def heads_table(heads: pd.DataFrame) -> Table:
    """Create a table of ranked heads from `SearchResult.table` or `SplitSearch.table`.

    Each null has two columns: the mass that it expects, and q.
    """
    nulls = [str(name).removeprefix("q_") for name in heads if str(name).startswith("q_")]
    selection_column = next((str(name) for name in heads if str(name).startswith("selected_")), None)
    columns = [
        "95 %",
        "hit rate",
        "uniform",
        "lift",
        "/offset",
        *(title for null in nulls for title in (f"null {null}", f"q {null}")),
        *(["chosen"] if selection_column else []),
    ]
    bounded = "mass_upper" in heads
    bars = [] if selection_column or bounded else [("", "left")]
    table = plain_table(("head", "right"), ("mass", "right"), *bars, *((title, "right") for title in columns))
    for row in heads.to_dict("records"):
        mass = number(row["mass"]) + (f"–{number(row['mass_upper'])}" if bounded else "")
        cells = [
            interval(row["mass_low"], row["mass_high"]),
            number(row["hit_rate"]),
            number(row["baseline"]),
            lift(row["lift"]),
            lift(row["offset_lift"], 2),
        ]
        for null in nulls:
            cells += [number(row[f"expected_{null}"]), probability(row[f"q_{null}"])]
        cells += [number(row[selection_column])] if selection_column else []
        bar_cells = [bar(row["mass"], 6)] if bars else []
        table.add_row(f"{row['layer']}.{row['head']}", mass, *bar_cells, *cells)
    return table


def evidence_text(evidence: Evidence, unit: str = "tokens") -> str:
    """Describe the sampling units, the nulls and the best fixed offset of a search."""
    from ..queries.evidence.nulls import KINDS

    units = evidence.units.describe(evidence.n_units)
    if not evidence.is_supported:
        return (
            f"Heads are not ranked: there are too few rows or sampling units (expected {evidence.minimum_rows} rows in "
            f"{evidence.minimum_units} units). {units}"
        )
    lines = [f"This is {KINDS[evidence.kind].label}.", *map(null_text, evidence.nulls), units]
    if evidence.is_offset:
        lines.append("The pattern is a fixed offset itself, so it is not compared with one.")
    elif evidence.offsets:
        offsets = " or ".join(f"{offset:+d}" for offset in evidence.offsets)
        lines.append(f"Best fixed offset: {offsets} {unit}, hit rate {number(evidence.offset_baseline)}.")
    lines.append("Attention is not effect: an ablation of a head can differ from what its attention suggests.")
    return " ".join(lines)


def null_text(null: NullEvidence) -> str:
    """Name a null in words, and count the heads above it."""
    from ..queries.evidence.nulls import NULLS
    from ..queries.evidence.search_evidence import EXPLAINED

    if null.note:
        return f"No comparison with the null {null.name}: {null.note}."
    others = (
        f" It explains {null.n_explained} of the others (at most {EXPLAINED} times what it expects, with 95 % "
        f"confidence); {null.n_undecided} are undecided: more data may show them above it."
    )
    return (
        f"{null.n_above} of {null.heads['q_value'].size} heads are above {null.name} (q < 0.05): "
        f"{NULLS[null.name].sentence}; {null.n_examples:,} examples read."
        + others
        * bool(null.n_explained + null.n_undecided)
    )


def best_text(evidence: Evidence, heads: pd.DataFrame) -> str:
    """State the interval of the head that ranks first; empty without a rank."""
    best = best_json(evidence, heads)
    if best is None or best["joint_interval"][0] is None:
        return ""
    low, high = best["joint_interval"]
    return (
        f"Head {best['layer']}.{best['head']} is the best of {best['of']}; its mass is {interval(low, high)} with 95 % "
        "confidence for all heads at once."
    )


def relations_table(relations: pd.DataFrame) -> Table:
    """Create a table from `RelationAtlas.table`."""
    columns = (("head", "right"), ("accuracy", "right"), ("95 %", "right"), ("chance", "right"))
    table = plain_table(("relation", "left"), ("n", "right"), *columns, ("offset", "right"), ("gain", "right"))
    for row in relations.to_dict("records"):
        arrow = "→" if row["direction"] == "to_head" else "←"
        table.add_row(
            printable(row["relation"]),
            f"{row['n']:,}",
            f"{row['layer']}.{row['head']} {arrow}",
            percent(row["accuracy"]),
            f"{percent(row['low'])}–{percent(row['high'])}",
            percent(row["baseline"]),
            f"{percent(row['offset_baseline'])} ({'/'.join(f'{offset:+d}' for offset in row['offsets'])})",
            f"{100 * (row['accuracy'] - row['offset_baseline']):+.1f}",
        )
    return table


def contrast_table(heads: pd.DataFrame, first: str, second: str) -> Table:
    """Create a table from `Contrast.table`."""
    columns = (("difference", "right"), ("95 %", "right"), (first, "right"), (second, "right"), ("q", "right"))
    table = plain_table(("head", "right"), *columns)
    for row in heads.to_dict("records"):
        table.add_row(
            f"{row['layer']}.{row['head']}",
            f"{row['difference']:+.3f}" if math.isfinite(row["difference"]) else "–",
            f"{row['low']:+.3f} to {row['high']:+.3f}" if math.isfinite(row["low"]) else "–",
            number(row["mass_first"]),
            number(row["mass_second"]),
            probability(row["q_value"]),
        )
    return table


def percent(share: float) -> str:
    """Format a share in percent, without the sign."""
    return f"{100 * share:.1f}" if math.isfinite(share) else "–"


def fetched(*stores: Store | None) -> dict[str, int]:
    """Return the bytes and requests that remote stores have fetched; empty for folders."""
    sources = [store.source for store in stores if store is not None and store.source.folder is None]
    if not sources:
        return {}
    sums = sum(source.bytes_fetched for source in sources), sum(source.n_requests for source in sources)
    return dict(zip(("bytes_fetched", "requests"), sums, strict=True))


def fetched_text(*stores: Store | None) -> str:
    """Return `fetched` as a sentence."""
    counts = fetched(*stores)
    return f"{size_text(counts['bytes_fetched'])} fetched in {counts['requests']:,} requests." if counts else ""


def specialised_table(heads: pd.DataFrame) -> Table:
    """Create a table of the most specialised heads."""
    columns = ("head", "right"), ("behaviour", "left"), ("share", "right"), ("", "left"), ("uniform", "right"), ("lift", "right")  # fmt: skip
    has_rest = "after_sinks" in heads
    rest = ("after sinks", "left"), ("share", "right"), ("95 %", "right"), ("uniform", "right"), ("q", "right")
    table = plain_table(*columns, ("entropy", "right"), *(rest if has_rest else ()))
    for row in heads.to_dict("records"):
        cells = number(row["baseline"]), lift(row["lift"]), number(row.get("entropy", math.nan), 2)
        if has_rest:
            evidence = interval(row["after_low"], row["after_high"]), number(row["after_baseline"])
            cells += row["after_sinks"], number(row["after_value"]), *evidence, probability(row["after_q"])
        table.add_row(
            f"{row['layer']}.{row['head']}", row["behaviour"], number(row["value"]), bar(row["value"], 6), *cells
        )
    return table


def plain_table(*columns: tuple[str, str]) -> Table:
    """Create a table with a line below its header only; columns are (title, justification)."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title, justify in columns:
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def edge_text(query: TokenTable, key: TokenTable, query_pos: int, key_pos: int) -> Text:
    """Format an example around an edge: the query token in [brackets], the key token in «guillemets» and reversed.

    If query and key are different texts, the query text comes first.
    """
    if query is key:
        return _marked(query, {query_pos: "query", key_pos: "both" if key_pos == query_pos else "key"})
    return _marked(query, {query_pos: "query"}) + Text(" → ") + _marked(key, {key_pos: "key"})


def _marked(tokens: TokenTable, marks: dict[int, str]) -> Text:
    positions = set()
    for position in marks:
        positions |= set(range(max(0, position - CONTEXT_TOKENS), min(len(tokens), position + CONTEXT_TOKENS + 1)))
    texts, end, last = tokens.text, None, -1
    line = Text()
    for position in sorted(positions):
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
