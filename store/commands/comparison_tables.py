"""Output of `headatlas search` with --versus, --split or --correlate, and of `contrast` with --correlate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .options import head_of
from .printing import first_rows, output_console, print_csv, print_table

if TYPE_CHECKING:
    import pandas as pd

    from ..comparisons.search_comparisons import Versus
    from ..queries.minimal_pairs import Contrast
    from ..queries.pattern_search import SearchResult
    from ..store import Store

_BINS = 10


def print_versus(
    result: SearchResult,
    others: list[str],
    search: Callable[[str], SearchResult],
    head: str | None,
    top: int | None,
    examples: int,
    *,
    unit: str | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Compare a search with the searches for other patterns, and print the result."""
    from ..comparisons.search_comparisons import versus
    from . import tables as render

    comparisons = versus(result, [search(other) for other in others], unit)
    frames = [comparison.table() for comparison in comparisons]
    rows = [_rows(frame, top, as_csv or as_json) for frame in frames]
    if as_csv:
        import pandas as pd

        print_csv(pd.concat(rows, ignore_index=True), _notes(comparisons))
        return
    heads = [_head(frame, head) for frame in frames]
    if as_json:
        output = [
            {
                "versus": str(comparison.other.pattern),
                "examples": len(comparison.example),
                "unit": comparison.units.name,
                "units": comparison.n_units,
                "heads": render.records(frame),
                "head": ".".join(map(str, chosen)),
                "differences": [
                    {"example": number, "id": result.store.examples[number].id, "difference": difference}
                    for number, difference in comparison.extreme_examples(*chosen)
                ],
            }
            for comparison, frame, chosen in zip(comparisons, rows, heads, strict=True)
        ]
        print(render.to_json({"pattern": str(result.pattern), "comparisons": output, "notes": _notes(comparisons)}))
        return
    console = output_console()
    for comparison, frame, chosen in zip(comparisons, rows, heads, strict=True):
        titles = ("head", "difference", "95 %", "mass", "versus", "q")
        table = render.plain_table(*((title, "right") for title in titles))
        for row in frame.to_dict("records"):
            table.add_row(
                _name(row),
                _signed(row["difference"]),
                _signed_interval(row["low"], row["high"]),
                render.number(row["mass"]),
                render.number(row["mass_versus"]),
                render.probability(row["q_value"]),
            )
        print_table(console, table)
        _say(
            f"mass of {result.pattern} minus mass of {comparison.other.pattern}: means of {len(comparison.example):,} "
            "examples in which both match, each with the same weight. q: false-discovery rate of a difference from 0, over "
            f"all heads{' and patterns' if len(comparisons) > 1 else ''}. "
            f"{comparison.units.describe(comparison.n_units)}",
            *_notes([comparison]),
        )
        if examples and len(comparison.example):
            console.print(f"\nExamples with the largest differences of head {chosen[0]}.{chosen[1]}:")
        for number, difference in comparison.extreme_examples(*chosen, examples):
            text = render.printable(result.store.examples[number].text)
            console.print(f"{_signed(difference)}  {text}", markup=False, soft_wrap=True)


def print_split(
    result: SearchResult, column: str, top: int | None, *, unit: str | None, as_csv: bool, as_json: bool
) -> None:
    """Compare groups of examples, and print the result."""
    from ..comparisons.search_comparisons import split_by
    from ..queries.evidence.resampling import MINIMUM_UNITS
    from . import tables as render

    split = split_by(result, column, unit=unit)
    rows = _rows(split.table(), top, as_csv or as_json)
    if as_csv:
        print_csv(rows, result.notes)
        return
    if as_json:
        groups = [
            {"label": label, "examples": examples, "rows": n_rows}
            for label, examples, n_rows in zip(split.labels, split.examples, split.rows, strict=True)
        ]
        summary = {"pattern": str(result.pattern), "split": column, "groups": groups, "left_out": split.left_out}
        summary |= {"groups_too_small": list(split.few)}
        summary |= {"unit": split.units.name, "units": split.n_units}
        print(render.to_json(summary | {"heads": render.records(rows), "notes": list(result.notes)}))
        return
    columns = [column for label in split.labels for column in ((render.printable(label), "right"), ("95 %", "right"))]
    table = render.plain_table(("head", "right"), *columns, ("spread", "right"), ("q", "right"))
    for row in rows.to_dict("records"):
        cells = []
        for label in split.labels:
            cells += [render.number(row[f"mass_{label}"]), render.interval(row[f"low_{label}"], row[f"high_{label}"])]
        table.add_row(_name(row), *cells, render.number(row["spread"]), render.probability(row["q_value"]))
    print_table(output_console(), table)
    sizes = ", ".join(f"{label}: {n:,}" for label, n in zip(split.labels, split.examples, strict=True))
    _say(
        f"mass of {result.pattern} by {column}. Examples with a match: {sizes}; left out: {split.left_out:,}. "
        f"q: false-discovery rate of different masses, over all heads. {split.units.describe(split.n_units)}"
        + (
            f" No test: fewer than {MINIMUM_UNITS} sampling units have the value {' or '.join(split.few)}."
            * bool(split.few)
        ),
        *result.notes,
    )


def print_correlation(
    result: SearchResult,
    column: str,
    head: str | None,
    top: int | None,
    *,
    unit: str | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Correlate the mass with a number of the examples, and print the result."""
    from ..comparisons.search_comparisons import correlate
    from . import tables as render

    correlated = correlate(result, column, unit)
    frame = correlated.table()
    rows, chosen = _rows(frame, top, as_csv or as_json), _head(frame, head)
    if as_csv:
        print_csv(rows, result.notes)
        return
    scatter = correlated.scatter(*chosen)
    if as_json:
        summary = {
            "pattern": str(result.pattern),
            "correlate": column,
            "examples": len(correlated.example),
            "left_out": correlated.left_out,
            "unit": correlated.units.name,
            "units": correlated.n_units,
        }
        points = {"head": ".".join(map(str, chosen)), "points": render.records(scatter)}
        print(render.to_json(summary | {"heads": render.records(rows)} | points | {"notes": list(result.notes)}))
        return
    console = output_console()
    table = render.plain_table(("head", "right"), ("ρ", "right"), ("95 %", "right"), ("q", "right"))
    for row in rows.to_dict("records"):
        interval = _signed_interval(row["low"], row["high"])
        table.add_row(_name(row), _signed(row["rho"]), interval, render.probability(row["q_value"]))
    print_table(console, table)
    _say(
        f"Spearman's ρ of the mass of {result.pattern} on an example and its {column}, over {len(correlated.example):,} "
        f"examples; without a number: {correlated.left_out:,}. q: false-discovery rate of a correlation, over all heads. "
        f"{correlated.units.describe(correlated.n_units)}",
        *result.notes,
    )
    console.print(f"\nMass of head {chosen[0]}.{chosen[1]} by {render.printable(column)}:")
    print_table(console, _scatter_table(scatter, column))


def print_pair_correlation(
    store: Store, result: Contrast, column: str, head: str | None, top: int | None, *, as_csv: bool, as_json: bool
) -> None:
    """Correlate the differences of minimal pairs with a number of the pairs, and print the result."""
    from ..comparisons.pair_correlations import correlate_pairs
    from . import tables as render

    correlated = correlate_pairs(store, result, column)
    frame = correlated.table()
    rows, chosen = _rows(frame, top, as_csv or as_json), _head(frame, head)
    notes = () if result.search is None else result.search.notes
    if as_csv:
        print_csv(rows, notes)
        return
    scatter = correlated.scatter(*chosen)
    first, second = result.pairs.variants
    if as_json:
        summary = {
            "pattern": None if result.search is None else str(result.search.pattern),
            "correlate": column,
            "first": first,
            "second": second,
            "pairs": len(correlated.pair),
            "left_out": correlated.left_out,
            "without_match": len(result.pairs.names) - len(result.pair_index),
            "refused": result.pairs.refused,
            "unit": result.units.name,
            "units": correlated.n_units,
            "heads_below_05": correlated.n_below,
        }
        points = {"head": ".".join(map(str, chosen)), "points": render.records(scatter)}
        print(render.to_json(summary | {"heads": render.records(rows)} | points | {"notes": list(notes)}))
        return
    console = output_console()
    table = render.plain_table(*((title, "right") for title in ("head", "ρ", "95 %", "difference", "q")))
    for row in rows.to_dict("records"):
        table.add_row(
            _name(row),
            _signed(row["rho"]),
            _signed_interval(row["low"], row["high"]),
            _signed(row["difference"]),
            render.probability(row["q_value"]),
        )
    print_table(console, table)
    subject = (
        f"mass of {result.search.pattern} in {second} minus that in {first}"
        if result.search
        else (f"distance between the attention in {second} and in {first}")
    )
    left_out = {
        **correlated.left_out,
        "without a matching row in both members": len(result.pairs.names) - len(result.pair_index),
        **result.pairs.refused,
    }
    reasons = "; ".join(f"{n:,} {reason}" for reason, n in left_out.items() if n)
    _say(
        f"Spearman's ρ of the {subject} in a pair and its {column}, over {len(correlated.pair):,} pairs. Left out: "
        f"{reasons or 'none'}. q: false-discovery rate of a correlation, over all heads; below .05 in "
        f"{correlated.n_below:,} of {len(frame):,}. {result.units.describe(correlated.n_units)}",
        *notes,
    )
    console.print(f"\nDifference of head {chosen[0]}.{chosen[1]} by {render.printable(column)}:")
    print_table(console, _scatter_table(scatter, column, "difference"))


def _scatter_table(scatter: pd.DataFrame, column: str, measured: str = "mass") -> Any:
    """Create a table of a scatter: rows in bins of equal numbers by value, with mean and quartiles of what is measured."""
    from . import tables as render

    values = np.sort(scatter["value"].to_numpy())
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    value, mass = (scatter[name].to_numpy() for name in ("value", measured))
    show = render.number if measured == "mass" else _signed
    bin_of_value = np.searchsorted(edges, value, side="right")
    table = render.plain_table(
        (render.printable(column), "right"),
        ("examples" if measured == "mass" else "pairs", "right"),
        (measured, "right"),
        ("", "left"),
        ("quartiles", "right"),
    )
    for number in np.unique(bin_of_value).tolist():
        in_bin = bin_of_value == number
        low, high = value[in_bin].min(), value[in_bin].max()
        quartiles = np.quantile(mass[in_bin], [0.25, 0.75]).tolist()
        name = f"{low:g}" if low == high else f"{low:g} – {high:g}"
        mean = float(mass[in_bin].mean())
        span = render.interval(*quartiles) if measured == "mass" else _signed_interval(*quartiles)
        table.add_row(name, f"{in_bin.sum():,}", show(mean), render.bar(mean) if mean > 0 else "", span)
    return table


def _rows(frame: pd.DataFrame, top: int | None, all_rows: bool) -> pd.DataFrame:
    return first_rows(frame, top, all_rows=all_rows)


def _head(frame: pd.DataFrame, head: str | None) -> tuple[int, int]:
    """Return the requested head, or the first of the table."""
    return head_of(head) if head else (int(frame["layer"].to_numpy()[0]), int(frame["head"].to_numpy()[0]))


def _name(row: dict[Any, Any]) -> str:
    return f"{row['layer']}.{row['head']}"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if np.isfinite(value) else "–"


def _signed_interval(low: float, high: float) -> str:
    return f"{low:+.3f} to {high:+.3f}" if np.isfinite(low) else "–"


def _notes(comparisons: list[Versus]) -> list[str]:
    notes = [note for c in comparisons for note in (*c.search.notes, *c.other.notes)]
    return list(dict.fromkeys(notes))


def _say(text: str, *notes: str) -> None:
    from . import tables as render

    console = output_console()
    for note in notes:
        console.print(f"Note: {render.printable(note)}", style="yellow", markup=False, soft_wrap=True)
    console.print(render.printable(text), style="dim", markup=False, soft_wrap=True)
