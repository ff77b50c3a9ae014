"""Growth of a store with its corpus, 1,000 to 1,000,000 examples of random numbers: times, memory and files.

``python -m benchmarks.growth [--sizes 1000 10000] [--kinds edges statistics] [--folder FOLDER]``. Each question runs in
a process of its own, so the memory is that of this question. *first* includes opening the store, and the caches of the
user are empty; *again* is the same question in the same process. The default sizes need 12 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.traces import Keep, Site, TraceSpec, segment_layout
from headatlas.store.statistics.specialisation import statistics_table
from headatlas.store.store import open_store
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.merge import merge_stores
from headatlas.store.writing.store_writer import StoreWriter

from .report import Row, report
from .search_growth import random_array, random_tokens

SIZES = (1_000, 10_000, 100_000, 1_000_000)
SEGMENT = 1_024
N_VARIANTS = 3
PAGE = slice(-30, None)
MERGED_AT_MOST = 100_000
SHAPES = {"edges": (2, 6), "statistics": (12, 12)}
"""Layers and heads of each kind of store: 12 heads with edges, or 144 heads with statistics and texts."""
QUESTIONS: dict[str, Callable[[str], object]] = {
    "open": lambda path: open_store(path).n_examples,
    "statistics": lambda path: statistics_table(open_store(path)),
    "token pair": lambda path: open_store(path).search('query.text == "word3900" and key.text == "word80"'),
    "pattern": lambda path: open_store(path).search("key.position == query.position - 1"),
    "table page": lambda path: [
        (example.id, example.text, len(example.tokens())) for example in open_store(path).examples[PAGE]
    ],
    "ids": lambda path: open_store(path).example_ids(),
    "gc": lambda path: collect_store(path, grace_s=0),
    "merge": lambda path: merge_stores([path, f"{path}-more"], f"{path}-merged", append=True),
}
ASKED = {
    "edges": ("open", "statistics", "token pair", "pattern", "table page", "ids", "gc", "merge"),
    "statistics": ("open", "statistics", "table page", "ids", "gc", "merge"),
}


def write_growing(path: Path, n_examples: int, kind: str, name: str = "random") -> None:
    """Write a store of `n_examples` examples of 12 to 30 tokens. A few random segments are repeated under other ids."""
    n_layers, n_heads = SHAPES[kind]
    site = Site(name="encoder", n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads, d_head=8, causal=False,
                scaling=(1.0,) * n_layers, softcap=(None,) * n_layers, window=(None,) * n_layers)  # fmt: skip
    keep = Keep(attention=None, query_key=None, edges=8 if kind == "edges" else None)
    names = ("entropy", "self", "previous", "distance")
    if kind == "statistics":
        names += ("next", "first", "last", "special")
    spec = TraceSpec(sites=(site,), keep=keep, statistics=names)
    starts = range(0, n_examples, SEGMENT)
    writer = StoreWriter.create(
        path, spec=spec, provenance={}, n_examples_planned=n_examples, n_segments_planned=len(starts), threads=2
    )
    variants = [random_segment(spec, min(SEGMENT, n_examples), seed) for seed in range(min(N_VARIANTS, len(starts)))]
    for index, start in enumerate(starts):
        n = min(SEGMENT, n_examples - start)
        tables, arrays = variants[index % len(variants)] if n == len(variants[0][0].ids) else random_segment(spec, n, 9)
        ids = [f"{name}-{number}" for number in range(start, start + n)]
        writer.write(index, start, replace(tables, ids=ids), arrays)


def random_segment(spec: TraceSpec, n_examples: int, seed: int) -> tuple[SegmentTables, dict[str, np.ndarray]]:
    """Return random tables with texts, and arrays."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(12, 31, n_examples)
    tokens, none = random_tokens(rng, lengths), [None] * n_examples
    words = np.split(np.array(tokens.columns["text"].values)[tokens.id], np.cumsum(lengths)[:-1])
    texts = [" ".join(row) for row in words]
    layouts = segment_layout(spec, {"source": lengths})
    arrays = {path: random_array(rng, path, row.shape, row.dtype, lengths) for path, row in layouts.items()}
    return SegmentTables(texts, texts, none, none, tokens={"source": tokens}), arrays


def measure(question: str, path: Path, cache: str) -> dict[str, float]:
    """Run a question twice in a new process. Return the seconds of both runs, and the largest memory in bytes."""
    command = [sys.executable, "-m", "benchmarks.growth", "--ask", question, str(path)]
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def _answer(question: str, path: str) -> None:
    seconds = []
    for _ in range(1 if question in ("merge", "gc") else 2):
        began = time.perf_counter()
        QUESTIONS[question](path)
        seconds.append(time.perf_counter() - began)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = int(status["VmHWM"].split()[0]) * 1024  # unlike that of getrusage, without the parent's
    print(json.dumps({"first": seconds[0], "again": seconds[-1], "memory": memory}))


def main() -> None:
    """Print the table of growth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kinds", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--folder", type=Path, help="Folder for the stores, by default a temporary one.")
    parser.add_argument("--ask", nargs=2, metavar=("QUESTION", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args([] if sys.argv[0].endswith("benchmarks/__main__.py") else None)
    if options.ask:
        _answer(*options.ask)
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for kind in options.kinds:
            for size in options.sizes:
                rows += growth_rows(Path(folder), kind, size)
                for path in Path(folder).iterdir():
                    shutil.rmtree(path)
    report("growth", rows, measured="random numbers; 144 heads with 8 statistics, or 12 heads with 8 edges")


def growth_rows(folder: Path, kind: str, size: int) -> list[Row]:
    """Measure every question at one size."""
    path, label = folder / f"{kind}-{size}", f"{kind} · {size:,} examples"
    began = time.perf_counter()
    write_growing(path, size, kind)
    files = [file for file in path.rglob("*") if file.is_file()]
    rows = [
        Row(f"{label} · write", time.perf_counter() - began, "s"),
        Row(f"{label} · files", len(files), "files"),
        Row(f"{label} · bytes", sum(file.stat().st_size for file in files) / 2**20, "MiB"),
        Row(f"{label} · newest manifest", max(file.stat().st_size for file in path.glob("manifest-*")) / 2**20, "MiB"),
    ]
    for question in ASKED[kind]:
        if question == "merge":
            if size > MERGED_AT_MOST:
                continue
            write_growing(Path(f"{path}-more"), size // 10, kind, "more")
        result = measure(question, path, str(folder / f"cache-{kind}-{size}"))
        rows += [
            Row(f"{label} · {question} · {time_of}", result[time_of], "s")
            for time_of in ("first", "again")
            if time_of == "first" or question not in ("merge", "gc")
        ]
        rows.append(Row(f"{label} · {question} · memory", result["memory"] / 2**20, "MiB"))
    return rows


if __name__ == "__main__":
    main()
