"""The commands about statistics: `stats`, `head`, `compare` and `export-headvis`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from .cluster import shares_tasks
from .options import AsCsv, AsJson, SiteName, StorePath, Top, Unit, head_of
from .printing import first_rows, incomplete_text, output_console, print_csv, print_table, progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from ..comparisons.statistic_intervals import StatisticIntervals
    from ..store import Store

app = typer.Typer(rich_markup_mode="rich")
_PANEL = "Query"


@app.command(rich_help_panel=_PANEL)
@shares_tasks
def stats(
    store: StorePath,
    statistic: Annotated[
        list[str] | None,
        typer.Option(
            "--statistic",
            help="Statistic to rank by; repeat or separate by commas for more columns. The ending _sink_free leaves out the "
            "first and special tokens.",
            show_default=False,
        ),
    ] = None,
    definition: Annotated[
        str | None,
        typer.Option(
            "--definition",
            metavar="NAME",
            help="Definition of another tool: clark, vig, voita, olsson, transformerlens or headvis.",
            show_default=False,
        ),
    ] = None,
    spread: Annotated[
        bool,
        typer.Option("--spread", help="Add deviation and quantiles over examples; with --json also histograms."),
    ] = False,
    ascending: Annotated[bool, typer.Option("--ascending", help="List the smallest values first.")] = False,
    top: Top = None,
    average: Annotated[
        Literal["rows", "examples"],
        typer.Option(help="Weight of the mean: every token equal (rows), or every example equal."),
    ] = "rows",
    site: SiteName = None,
    unit: Unit = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Rank heads by statistics. Without --statistic, list the behaviour in which each head exceeds uniform attention.

    Example: [bold]headatlas stats traces/demo --statistic entropy,entropy_sink_free --top 5[/bold]
    """
    from ..comparisons.head_overview import head_overview
    from ..comparisons.statistic_intervals import statistic_intervals
    from ..queries.evidence.sampling_units import sampling_units
    from ..statistics.definitions import known_names
    from ..statistics.published import published_table
    from ..statistics.specialisation import CORPUS_STATISTICS, statistics_table
    from ..store import open_store
    from . import statistics_tables as render_statistics
    from . import tables as render

    opened = open_store(store)
    names = list(dict.fromkeys(name for text in statistic or () for name in text.split(",") if name))
    if definition and (names or spread):
        raise ConfigError("--definition has its own columns; leave out --statistic and --spread")
    if definition and unit:
        raise ConfigError("numbers of --definition have no intervals; leave out --unit")
    if spread and not names:
        raise ConfigError(f"--spread needs --statistic; expected one or more of {', '.join(known_names())}")
    if "decay" in names and "decay_fit" not in names:
        names.insert(names.index("decay") + 1, "decay_fit")
    if spread and (corpus_names := [name for name in names if name in CORPUS_STATISTICS]):
        raise ConfigError(f"{corpus_names[0]} has no value for each example; leave out --spread")
    intervals = None
    with progress_bar() as report:
        if names:
            intervals = statistic_intervals(opened, names, site, average, unit=unit, on_progress=report)
        if definition:
            heads = published_table(opened, definition, site, report)
            columns = [str(name) for name in heads if name not in ("layer", "head")]
        elif spread:
            assert intervals is not None
            _print_spread(
                opened, names, average, site, top, intervals, ascending=ascending, as_csv=as_csv, as_json=as_json
            )
            return
        elif names:
            heads, columns = statistics_table(opened, names, site, average, report), names
        else:
            heads, columns = head_overview(opened, site, average, report, unit), []
    sampling, n_units = sampling_units(opened, unit), 0
    if intervals is not None:
        n_units = intervals.n_units
        for name in intervals.low:
            position = list(heads.columns).index(name) + 1
            heads.insert(position, f"{name}_low", intervals.low[name].ravel())
            heads.insert(position + 1, f"{name}_high", intervals.high[name].ravel())
    elif not definition:
        n_units = sampling.count(opened.example_numbers())
    if columns:
        heads = heads.sort_values(columns[0], ascending=ascending, kind="stable", na_position="last")
    elif ascending:
        raise ConfigError("--ascending needs --statistic or --definition; without them heads have no single number")
    without_sinks = heads.attrs.get("without_sinks")
    heads = first_rows(heads, top, all_rows=as_csv or as_json)
    if as_json:
        source = {"definition": definition} if definition else {"unit": sampling.name, "units": n_units}
        print(render.to_json({**source, "heads": render.records(heads), **render.fetched(opened)}))
    elif as_csv:
        print_csv(heads)
    else:
        console, fetched = output_console(), render.fetched_text(opened)
        site_spec = opened.site(site)
        overlays = [
            overlay for overlay in opened.overlays if overlay.kind == "statistic" and overlay.group == site_spec.name
        ]
        units = {overlay.name: overlay.unit for overlay in overlays}
        if columns:
            table = render_statistics.statistics_rich_table(heads, columns, units)
        else:
            table = render.specialised_table(heads)
        print_table(console, table)
        console.print(
            f"{len(heads)} of {site_spec.n_layers * site_spec.n_heads} heads of {site_spec.name}, over {opened.n_examples:,} "
            f"examples, {_weighing(definition, average)}. "
            + " ".join(filter(None, (sampling.describe(n_units) if n_units else "", incomplete_text(opened), fetched))),
            style="dim",
            soft_wrap=True,
        )
        if "after_sinks" in heads:
            console.print(
                "after sinks: the behaviour that exceeds uniform attention most on rows without the first and special "
                "tokens; share and uniform are those of such rows; q: false-discovery rate of a share above uniform, over "
                "all heads and behaviours.",
                style="dim",
                soft_wrap=True,
            )
        elif without_sinks is not None:
            console.print(
                f"Behaviours after sinks are missing: {render.printable(without_sinks)}", style="dim", markup=False
            )
        for overlay in overlays:
            unit = f" ({overlay.unit})" if overlay.unit else ""
            n_covered = opened.n_covered(overlay.name)
            cover = f", of {n_covered:,} of the examples" if n_covered < opened.n_examples else ""
            line = f"Added later: {overlay.name}{unit}{cover}. {overlay.description}".rstrip(" ")
            console.print(render.printable(line), style="dim", markup=False, soft_wrap=True)


def _weighing(definition: str | None, average: str) -> str:
    from ..statistics.published import DEFINITIONS

    if definition:
        source, average = DEFINITIONS[definition].source, DEFINITIONS[definition].average
        return f"as defined by {source}: every {'token' if average == 'rows' else 'example'} has the same weight"
    return f"every {'token' if average == 'rows' else 'example'} has the same weight"


def _print_spread(
    store: Store,
    names: list[str],
    average: Literal["rows", "examples"],
    site: str | None,
    top: int | None,
    intervals: StatisticIntervals,
    *,
    ascending: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    from ..statistics.corpus import corpus_summary, summary_frame
    from ..statistics.measurement import measured_statistics
    from . import statistics_tables as render_statistics
    from . import tables as render

    statistics = measured_statistics(store, names, site)
    summary = corpus_summary(
        {name: statistic.values for name, statistic in statistics.items()},
        {name: statistic.rows for name, statistic in statistics.items()},
        average,
        layers=store.site(site).layers,
    )
    frames = [
        summary_frame(summary, name, (intervals.low[name], intervals.high[name])).sort_values(
            "mean", ascending=ascending, kind="stable"
        )
        for name in names
    ]
    ranked = [first_rows(frame, top, all_rows=as_csv or as_json) for frame in frames]
    if as_json:
        output = []
        for name, frame in zip(names, ranked, strict=True):
            statistic = summary.sel(statistic=name)
            heads = render.records(frame)
            for row in heads:
                row["histogram"] = statistic["histogram"].sel(layer=row["layer"], head=row["head"]).to_numpy().tolist()
            output.append({"statistic": name, "bin_edge": statistic["bin_edge"].to_numpy().tolist(), "heads": heads})
        print(render.to_json({"statistics": output, "unit": intervals.units.name, "units": intervals.n_units}))
        return
    if as_csv:
        import pandas as pd

        joined: pd.DataFrame = pd.concat(
            [frame.assign(statistic=name) for name, frame in zip(names, ranked, strict=True)], ignore_index=True
        )
        print_csv(joined)
        return
    console = output_console()
    for name, frame in zip(names, ranked, strict=True):
        print_table(console, render_statistics.spread_table(frame, name))
    console.print(intervals.units.describe(intervals.n_units), style="dim", soft_wrap=True)


@app.command(rich_help_panel=_PANEL)
def head(
    store: StorePath,
    name: Annotated[str, typer.Argument(metavar="LAYER.HEAD", help="Head, such as 4.11.", show_default=False)],
    pairs: Annotated[int, typer.Option("--pairs", min=0, help="Number of token pairs.")] = 12,
    reach: Annotated[int, typer.Option("--reach", min=0, help="Largest distance of an offset, in tokens.")] = 64,
    special: Annotated[
        bool, typer.Option("--special/--no-special", help="Include pairs with a special token.")
    ] = False,
    site: SiteName = None,
    as_json: AsJson = False,
) -> None:
    """Show the weight of one head over the whole corpus, by offset and by pairs of tokens.

    Example: [bold]headatlas head traces/demo 0.2[/bold]
    """
    from ..statistics.profiles import offset_profiles, token_pairs
    from ..store import open_store
    from . import statistics_tables as render_statistics
    from . import tables as render

    opened = open_store(store)
    layer, number = head_of(name)
    table = token_pairs(opened, layer, number, pairs, site, special=special)
    profile = offset_profiles(opened, site, reach).sel(layer=layer, head=number)
    if as_json:
        output = {
            "layer": layer,
            "head": number,
            "offsets": [
                {
                    "offset": int(offset),
                    **{name: render.plain(profile[name].sel(offset=offset).item()) for name in ("mass", "share")},
                    "rows": int(profile["rows"].sel(offset=offset)),
                }
                for offset in profile["offset"].to_numpy()
            ],
            "beyond": render.plain(profile["beyond"].item()),
            "pairs": render.records(table),
            "pairs_forgotten": table.attrs["forgotten"],
        }
        print(render.to_json(output))
        return
    console = output_console()
    print_table(console, render_statistics.offsets_table(profile))
    print_table(console, render_statistics.token_pairs_table(table))


@app.command(rich_help_panel=_PANEL)
def compare(
    store: StorePath,
    reference: Annotated[
        Path,
        typer.Argument(
            metavar="REF", help="HeadVis metric file, scatter_data.json, or exported folder.", show_default=False
        ),
    ],
    top: Annotated[int, typer.Option("--top", min=0, help="Number of heads of each metric.")] = 3,
    site: SiteName = None,
    as_json: AsJson = False,
) -> None:
    """Compare a store's heads with published HeadVis metrics: rank correlation and the largest differences.

    Example: [bold]headatlas compare traces/gpt2 headvis_ref_openai-community-gpt2.json[/bold]
    """  # fmt: skip
    from ..statistics.headvis import compare_headvis, read_headvis
    from ..store import open_store
    from . import statistics_tables as render_statistics
    from . import tables as render

    result = compare_headvis(open_store(store), read_headvis(reference), site, top)
    if as_json:
        print(render.to_json({"metrics": render.records(result.metrics), "heads": render.records(result.heads)}))
        return
    console = output_console()
    print_table(console, render_statistics.comparison_table(result.metrics))
    print_table(console, render_statistics.differences_table(result.heads))


@app.command("export-headvis", rich_help_panel="Store")
def export(
    store: StorePath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the export, new or empty.", show_default=False)],
    site: SiteName = None,
) -> None:
    """Export a store's heads to the files that HeadVis shows: config.json, scatter_data.json, heads/L0H0.json, ...

    Example: [bold]headatlas export-headvis traces/demo build/headvis[/bold]
    """
    from ..statistics.headvis import export_headvis
    from ..store import open_store

    with progress_bar("heads") as report:
        n_heads = export_headvis(open_store(store), out, site, on_progress=report)
    print(f"{n_heads} heads in {out}")
