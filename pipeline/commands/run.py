"""The commands `headatlas run` and `headatlas plan`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headatlas.store.commands.cluster import ClusterTarget, InsecureCluster, Workers, cluster_options
from headatlas.store.commands.options import AsJson, IgnoreSpace
from headatlas.store.files.locations import is_url, location_text
from headatlas.store.schema.omissions import Omission, Omissions, count_by_reason
from headatlas.store.schema.renamed import read_renamed

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..job.prepared_job import Job
    from ..job.resources.device_rates import ScaleProjection
    from ..job.resources.job_projection import JobProjection
    from ..job.resources.machine import Machine

app = typer.Typer(rich_markup_mode="rich")
_PANEL = "Pipeline"

ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A job file, or the name of a shipped one (bias, demo, prose, relevant, smollm2).",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="STORE", help="Folder or s3:// URL to write to, instead of store.path.", show_default=False
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting. May be repeated.", show_default=False),
]
MaxOption = Annotated[
    int | None,
    typer.Option("--max-examples", metavar="N", min=1, help="Use only the first N records.", show_default=False),
]
SampleOption = Annotated[
    int | None,
    typer.Option(
        "--sample",
        metavar="N",
        min=1,
        help="Use a random sample of N records (texts, before they are cut into windows), in file order. corpus.seed is its "
        "seed; --skip and --max-examples apply to it.",
        show_default=False,
    ),
]
SkipOption = Annotated[
    int | None,
    typer.Option("--skip", metavar="N", min=0, help="Skip the first N records.", show_default=False),
]
ExtendOption = Annotated[
    bool,
    typer.Option("--extend", help="Add to an existing store the examples of the corpus that it does not hold."),
]


@app.command(rich_help_panel=_PANEL)
def run(
    config: ConfigArgument,
    out: OutOption = None,
    changes: SetOption = None,
    max_examples: MaxOption = None,
    sample: SampleOption = None,
    skip: SkipOption = None,
    extend: ExtendOption = False,
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Write only part I of N of the segments. Several machines run all parts, into one store or into "
            "stores that `headatlas merge` joins.",
        ),
    ] = "1/1",
    cluster: ClusterTarget = None,
    workers: Workers = None,
    insecure_cluster: InsecureCluster = False,
    as_json: AsJson = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Verify every byte of the store, and write damaged and dropped segments again."),
    ] = False,
    ignore_space: IgnoreSpace = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="End with exit code 1 if anything of the corpus or the model was left out. The store is written.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not show progress.")] = False,
) -> None:
    """Run a model over a corpus and write its attention to a store. Run the same command again to resume it.

    A job file may name several models. Each has its own store, STORE/NAME, and all stores have the same examples.

    Example: [bold]headatlas run demo --out traces/demo[/bold]

    With four processes: [bold]headatlas run demo --out traces/demo --cluster local --workers 4[/bold]
    """
    from ..progress import open_display
    from ..tokens.batch_plan import Share

    share = Share.parse(part)
    jobs = load(config, out, changes, max_examples=max_examples, sample=sample, skip=skip)
    display = open_display(quiet)
    try:
        from ..job.multi_model import run_jobs

        reports = run_jobs(
            jobs,
            display,
            repair=repair,
            extend=extend,
            check_space=not ignore_space,
            share=share,
            cluster=cluster_options(cluster, workers, is_insecure_allowed=insecure_cluster),
        )
    except KeyboardInterrupt:
        display.close()
        stores = ", ".join(location_text(job.store.path) for job in jobs if job.store.path is not None)
        print(
            f"\nheadatlas: interrupted. Every committed segment is in {stores}. Run the same command again to resume.",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    finally:
        display.close()
    if as_json:
        _print_json([asdict(report) for report in reports])
    if strict and (left_out := [omission for report in reports for omission in report.left_out]):
        for omission in left_out:
            print(f"headatlas: --strict: {Omission.model_validate(omission)}", file=sys.stderr)
        raise typer.Exit(1)


@app.command(rich_help_panel=_PANEL)
def plan(
    config: ConfigArgument,
    out: OutOption = None,
    changes: SetOption = None,
    max_examples: MaxOption = None,
    sample: SampleOption = None,
    skip: SkipOption = None,
    extend: ExtendOption = False,
    as_json: AsJson = False,
    timed: Annotated[bool, typer.Option("--timed/--untimed", help="Run one batch to estimate the time.")] = True,
    measure: Annotated[
        int,
        typer.Option(
            "--measure", metavar="N", min=0, help="Capture N examples to measure the bytes on disk; 0 estimates them."
        ),
    ] = 192,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=1, help="Show the time on N workers of a cluster.", show_default=False
        ),
    ] = None,
    device: Annotated[
        Literal["a100", "h100", "h200"] | None,
        typer.Option(
            "--device",
            help="Device of each worker, whose time is computed from shapes and data sheets; default this machine, timed.",
            show_default=False,
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="PER_HOUR", min=0, help="Price of a worker for an hour.", show_default=False),
    ] = None,
) -> None:
    """Show the size of a job: examples, tokens, segments, bytes on disk by array, memory and time. Writes no store.

    Example: [bold]headatlas plan demo --set keep.query_key=none[/bold]

    On eight workers: [bold]headatlas plan smollm2 --workers 8 --device h100 --price 3[/bold]
    """
    from headatlas.store.errors import ConfigError

    from ..job.prepared_job import prepare_job
    from ..job.projection import project_job, project_on_workers
    from ..job.resources.machine import read_machine
    from ..tokens.corpus_encoding import open_corpus

    jobs = load(config, out, changes, max_examples=max_examples, sample=sample, skip=skip)
    corpus = open_corpus(jobs[0].corpus)
    results = []
    for config_of_model in jobs:
        if config_of_model.run.devices:
            config_of_model = config_of_model.on_device(config_of_model.run.devices[0])
        job = prepare_job(config_of_model, corpus=corpus, extend=extend)
        if not job.segments:
            raise ConfigError(f"{location_text(job.path)} has all examples of the corpus; --extend has nothing to add.")
        machine = read_machine(job.loaded.model.device, job.path)
        projection = project_job(job, timed, measure)
        scale = None
        if workers is not None or device is not None or price is not None:
            scale = project_on_workers(job, projection, workers or 1, device, price)
        if as_json:
            results.append(_projection_json(projection, job, machine, scale))
        else:
            _print_projection(projection, job, machine)
            if scale is not None:
                print("\n".join(scale.lines()))
    if as_json:
        _print_json(results)


def load(config: str, out: Path | None, changes: list[str] | None, **corpus_options: int | None) -> list[JobConfig]:
    """Read the jobs of a file, with settings changed on the command line."""
    from ..config import load_jobs

    return load_jobs(config, with_selection(changes, **corpus_options), out)


def with_selection(changes: list[str] | None, **corpus_options: int | None) -> list[str]:
    """Return the settings of ``--set`` with those of options that select examples."""
    selection = [f"corpus.{name}={value}" for name, value in corpus_options.items() if value is not None]
    return [*(changes or ()), *selection]


def _print_json(results: list[dict[str, Any]]) -> None:
    """Print one object, or a list if there are several models."""
    print(json.dumps(results[0] if len(results) == 1 else results, indent=1))


def _projection_json(
    projection: JobProjection, job: Job, machine: Machine, scale: ScaleProjection | None
) -> dict[str, Any]:
    return {
        "store": location_text(job.path),
        "model": job.loaded.identity.name,
        "n_skipped": len(job.skipped),
        "n_quarantined": job.n_quarantined,
        "left_out": _left_out(job).to_json(),
        "notes": {name: list(notes) for name, notes in job.notes.items()},
        **asdict(projection),
        "raw_bytes": projection.raw_bytes,
        "stored_bytes": projection.stored_bytes,
        "n_files": projection.n_files(in_folder=not is_url(job.path)),
        "peak_bytes": projection.peak_bytes,
        "machine": asdict(machine),
        "limits": list(projection.limits(machine)),
        "scale": None if scale is None else scale.to_json(),
    }


def _left_out(job: Job) -> Omissions:
    """Return what the corpus or the model holds and the store would not."""
    skipped = ((job.examples[i].example.id, reason) for i, reason in job.skipped.items())
    return Omissions([*count_by_reason("examples", skipped), *job.left_out])


def _print_projection(projection: JobProjection, job: Job, machine: Machine) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..progress import format_bytes, format_seconds

    console = Console()
    tokens = ", ".join(f"{count:,} {name} tokens" for name, count in projection.n_tokens.items())
    sites = "; ".join(f"{site.name}: {site.n_layers} layers x {site.n_heads} heads" for site in job.spec.sites)
    n_files = projection.n_files(in_folder=not is_url(job.path))
    console.print(f"[bold]{job.loaded.identity.name}[/bold] ({sites}) → {location_text(job.path)}", highlight=False)
    console.print(
        f"{projection.n_examples:,} examples, {tokens}, in {projection.n_segments} segments ({n_files:,} files) and "
        f"{projection.n_batches} batches ("
        f"{projection.wasted_tokens:.1%} of computed tokens are padding)",
        highlight=False,
    )
    lines = [*chain.from_iterable(job.notes.values()), *map(str, _left_out(job)), *read_renamed(job.provenance).lines()]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    origin = "from a sample" if projection.besides else "an estimate"
    table = Table("array", "raw", f"on disk ({origin})", box=None, header_style="bold")
    table.columns[1].justify = table.columns[2].justify = "right"
    for array in (*projection.arrays, *projection.besides):
        raw, stored = format_bytes(array.raw_bytes), format_bytes(array.stored_bytes)
        about = ("\u2264 ", "about ") if array.is_estimate else ("", "")
        table.add_row(array.path, about[0] + raw, about[1] + stored)
    table.add_row("all", format_bytes(projection.raw_bytes), format_bytes(projection.stored_bytes), style="bold")
    console.print(table)
    if any(array.is_estimate for array in projection.arrays):
        console.print(
            f"The number of weights that {job.spec.keep.attention} keeps depends on the weights, so its bytes are an estimate.",
            highlight=False,
        )
    pinned = {"pinned for copies from the GPU": projection.pinned_bytes} if projection.pinned_bytes else {}
    memories = {"peak memory": projection.memory | pinned}
    if projection.device_memory:
        memories[f"memory of {machine.device} {machine.device_name}".rstrip()] = projection.device_memory
    for name, memory in memories.items():
        parts = ", ".join(f"{cause} {format_bytes(n)}" for cause, n in memory.items())
        console.print(f"{name} at most {format_bytes(sum(memory.values()))} ({parts})", highlight=False)
    if projection.time_s is not None:
        console.print(f"about {format_seconds(projection.time_s)}, from one timed batch", highlight=False)
    for sentence in projection.limits(machine):
        console.print(sentence, style="yellow", highlight=False, markup=False)
