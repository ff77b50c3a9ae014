"""Traffic of reading a store behind a URL: bytes and requests of each kind of question, Zarr beside HDF5.

A store is put on an S3-compatible server of this machine (moto) in both containers. Each line is a fresh `open_store`
with empty caches, and both containers must give the same answer. The benchmark counts and does not time, because a
server of this machine has no latency. It counts bytes, requests, and waits: a wait is one request, or several sent at
once, that must be answered before the next can be sent. ``HEADATLAS_BENCH_STORE`` names a store to take, as for
`reads`; else one is made.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import fsspec.config
import numpy as np
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from headatlas.store import Store, open_store
from headatlas.store.commands.info import app as info_app
from headatlas.store.commands.stats import app as statistics_app
from headatlas.store.files.remote.remote_source import RemoteSource
from headatlas.store.queries.pattern_search import search
from headatlas.store.writing.convert import convert_store

from .reads import make_store
from .report import Row, described, report

BUCKET = "s3://bucket"
EDGE_PATTERN = 'key.word == query.head and query.deprel == "nsubj"'
"""Pattern that needs a treebank; `ATTENTION_PATTERN` works on any store."""
ATTENTION_PATTERN = "key.position == query.position - 1"


def main() -> None:
    """Count every question and write build/bench/network.json."""
    with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as name, serve() as options:
        folder = Path(name)
        source = open_store(os.environ.get("HEADATLAS_BENCH_STORE") or make_store(folder / "made"))
        counts_by_question: dict[str, dict[str, Counts]] = {}
        answers: dict[str, Any] = {}
        for container in ("zarr", "hdf5"):
            convert_store(source.path, folder / container, container=container)
            url = f"{BUCKET}/{container}"
            bucket = fsspec.filesystem("s3", **options)
            bucket.put(str(folder / container), url, recursive=True)
            for question, ask in questions(source).items():
                with counting_waits() as waits:
                    answer, n_bytes, n_requests = ask(url, options)
                if not same(answers.setdefault(question, answer), answer):
                    raise SystemExit(f"{question}: the answer of {container} differs from that of zarr.")
                counts_by_question.setdefault(question, {})[container] = Counts(n_bytes, n_requests, len(waits))
            bucket.rm(url, recursive=True)
    show(counts_by_question, source)
    rows = []
    for question, containers in counts_by_question.items():
        for container, counts in containers.items():
            rows += [Row(f"{question} · {container}", value, unit) for unit, value in counts._asdict().items()]
    report("network", rows, shown=False, measured=described(source))


@contextmanager
def serve() -> Iterator[dict[str, Any]]:
    """Run a server with an empty bucket; yields the options for fsspec."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "key", "secret": "secret"}
    fsspec.filesystem("s3", **options).mkdir("bucket")
    before = fsspec.config.conf.get("s3")
    fsspec.config.conf["s3"] = options  # commands take a URL without options
    try:
        yield options
    finally:
        fsspec.config.conf.pop("s3") if before is None else fsspec.config.conf.update(s3=before)
        server.stop()


class Counts(NamedTuple):
    """Traffic of one answer."""

    bytes: int
    requests: int
    waits: int


@contextmanager
def counting_waits() -> Iterator[list[None]]:
    """Count waits; yields a list with one entry for each."""
    waits: list[None] = []
    before = {name: getattr(RemoteSource, name) for name in ("fetch", "manifest_numbers")}

    def counted(name: str) -> Callable[..., Any]:
        def call(self: RemoteSource, *arguments: Any) -> Any:
            waits.extend([None] if arguments != ([],) else [])
            return before[name](self, *arguments)

        return call

    for name in before:
        setattr(RemoteSource, name, counted(name))
    try:
        yield waits
    finally:
        for name, method in before.items():
            setattr(RemoteSource, name, method)


Ask = Callable[[str, dict[str, Any]], tuple[Any, int, int]]
"""Function that asks a store at a URL; returns the answer, its bytes and its requests."""


def questions(local_store: Store) -> dict[str, Ask]:
    """Return the questions; each opens the store anew."""
    example = local_store.n_examples * 3 // 4
    site = local_store.site()
    layer, head = site.n_layers // 2, min(5, site.n_heads - 1)

    def of(ask: Callable[[Store], Any]) -> Ask:
        def counted(url: str, options: dict[str, Any]) -> tuple[Any, int, int]:
            store = open_store(url, storage_options=options)
            answer = ask(store)
            return answer, store.bytes_fetched, store.n_requests

        return counted

    asks = {
        "open": of(lambda store: store.n_examples),
        "`headatlas info`": command(info_app),
        f"one example, one head (`examples[{example}].attention({layer}, {head})`)": of(
            lambda store: store.examples[example].attention(layer, head).values
        ),
        "one example's tokens": of(lambda store: store.examples[example].tokens().id),
        f"one example, all {site.n_layers * site.n_heads} heads": of(
            lambda store: store.examples[example].attention().values
        ),
        "`Store.statistics()`": of(lambda store: np.stack([v.values for v in store.statistics().data_vars.values()])),
        "`headatlas stats`": command(statistics_app, "stats"),
    }
    if "deprel" in local_store.segments[0].tokens().word_columns:
        asks[f"search, stored edges (`{EDGE_PATTERN}`)"] = of(
            lambda store: search(store, EDGE_PATTERN, basis="edges").table("mass")
        )
    asks[f"search, whole attention (`{ATTENTION_PATTERN}`)"] = of(
        lambda store: store.search(ATTENTION_PATTERN).table("mass")
    )
    return asks


def command(app: Any, *names: str) -> Ask:
    """Return a question that runs a command with ``--json``; an app of a single command takes no name."""

    def run(url: str, options: dict[str, Any]) -> tuple[Any, int, int]:
        result = CliRunner().invoke(app, [*names, url, "--json"])
        answer = json.loads(result.stdout)
        return answer.get("heads", answer.get("n_examples")), answer["bytes_fetched"], answer["requests"]

    return run


def same(first: Any, second: Any) -> bool:
    """Return True if two answers are equal."""
    if hasattr(first, "equals"):
        return first.equals(second)
    return np.array_equal(first, second, equal_nan=True) if isinstance(first, np.ndarray) else first == second


def show(counts_by_question: dict[str, dict[str, Counts]], store: Store) -> None:
    """Print the table of docs/benchmarks.md."""
    table = Table("question", title=f"over a network: {store.bytes_on_disk:,} bytes, {len(store.segments)} segments")
    for container in ("zarr", "hdf5"):
        for column in ("bytes", "of the store", "requests", "waits"):
            table.add_column(f"{container}, {column}", justify="right")
    for question, containers in counts_by_question.items():
        cells = []
        for counts in containers.values():
            cells += [f"{counts.bytes:,}", f"{counts.bytes / store.bytes_on_disk:.3%}", *map(str, counts[1:])]
        table.add_row(question, *cells)
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
