"""Time of questions to a corpus: statistics, edges, attention, a rare pair of tokens; beside a loop of numpy.

The store holds EWT's training set (12,544 sentences) through MiniLM's 72 heads. Every repeat asks a new pattern. All
files are in the page cache. *Cached* means that the store has decoded edges in memory; `exact` takes the strongest keys
from them and reads attention in any case. Rows give the wall time of the whole answer with two threads; the CPU time
beside it shows the effect of other jobs on the machine. The loop is the code that a user would write: files of float16
padded to the longest of 64 sentences, cut, masked and summed one sentence at a time. Some files are timed and scaled to
all. The sums of the loop must equal ours.

``HEADATLAS_BENCH_SEARCH_STORE`` names a store to search (it must hold attention, edges and statistics). Otherwise one
is captured and kept in ``build/bench/search-KEY`` (minutes, 3.3 GB), where KEY is a hash of the sentences.
``ARGS=--no-growth`` skips the growth of times from 1,000 to 100,000 examples (a store of random numbers, 1.6 GB,
removed again). ``ARGS=--growth`` measures that alone. The rows of the other part stay in build/bench/search.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from headatlas.store import Store, open_store
from headatlas.store.queries.pattern_search import SearchResult, search
from headatlas.store.queries.segment_scan import RequestedBasis
from headatlas.store.statistics.specialisation import statistics_table

from .inputs import EWT_TRAIN, content_key, ewt_file, unpacked
from .report import FOLDER, Row, keep_rows
from .search_growth import growth_rows
from .search_loop import PaddedFiles, loop_seconds

THREADS = 2
PATTERNS = (
    "key.position == query.position - 1",
    "key.id == query.id and key.position < query.position",
    "key.word == query.head and query.deprel == 'nsubj'",
    "key.previous.id == query.id and key.position < query.position",
    "query.upos == 'PRON' and key.upos in {'NOUN', 'PROPN'}",
    "key.text matches '^[,.;:!?]$' and not query.special",
)
PAIRS = (("he", "president"), ("she", "mother"), ("bank", "money"), ("war", "iraq"), ("dog", "cat"), ("food", "great"))
"""Pairs of words that occur together in some sentences."""


@dataclass
class Clock:
    """Wall and CPU seconds of some questions."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def time(self, work: Callable[[], object]) -> None:
        """Do one and note it."""
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)

    def rows(self, name: str, beside: str) -> list[Row]:
        """Median of the wall times, and of the CPU times."""
        return [
            Row(text, statistics.median(seconds), unit, (min(seconds), max(seconds)), beside)
            for text, unit, seconds in ((name, "s", self.wall_s), (f"{name} · CPU", "s CPU", self.cpu_s))
        ]


def main(arguments: Iterable[str] = ()) -> None:
    """Measure every kind of question and write build/bench/search.json."""
    parser = argparse.ArgumentParser(prog="make bench-search", description=__doc__.splitlines()[0] if __doc__ else None)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--no-growth", action="store_true", help="measure the questions to the treebank alone")
    part.add_argument("--growth", action="store_true", help="measure the growth from 1,000 to 100,000 examples alone")
    options, rows = parser.parse_args(list(arguments)), list[Row]()
    with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder:
        if not options.growth:
            rows += corpus_rows(Path(folder))
        if not options.no_growth:
            rows += growth_rows(Path(folder))
    keep_rows(rows, "search")


def corpus_rows(folder: Path) -> list[Row]:
    """Measure every kind of question to the treebank, and the loop."""
    store = open_store(os.environ.get("HEADATLAS_BENCH_SEARCH_STORE") or make_store())
    clocks = measure(store)
    beside = f"{store.n_examples:,} examples, {sum(store.n_tokens.values()):,} tokens, median of {len(PATTERNS)}"
    rows = [row for name, clock in clocks.items() for row in clock.rows(name, beside)]
    return rows + loop_rows(store, folder, clocks)


def make_store() -> Path:
    """Capture MiniLM over EWT's training set, unless the store of these sentences is there already."""
    from headatlas.pipeline.config import load_config
    from headatlas.pipeline.job.job_runner import run_job

    content = unpacked(ewt_file(EWT_TRAIN, "HEADATLAS_BENCH_SEARCH_STORE to a store"))
    folder = FOLDER / f"search-{content_key(content)}"
    folder.mkdir(parents=True, exist_ok=True)
    sentences, path = folder / "en_ewt-ud-train.conllu", folder / "store"
    sentences.write_bytes(content)
    # Resumes the job, or finds that it is complete.
    run_job(load_config("demo", ["corpus.kind=conllu", f"corpus.path={sentences}", f"store.path={path}"]))
    return path


def ask(store: Store, pattern: str, basis: RequestedBasis = "auto") -> SearchResult:
    """Search with two threads."""
    return search(store, pattern, basis=basis, workers=THREADS)


def measure(store: Store) -> dict[str, Clock]:
    """Time every kind of question, in turns; returns the clocks by the name of the row."""
    clocks = {
        name: Clock()
        for name in ("statistics", "edges · warm disk", "edges · cached", "exact", "exact · cached", "token pair")
    }
    bare = open_store(store.location, edges_bytes=0)
    for warm in (store, bare):  # tables, page cache, and for one of them decoded edges
        ask(warm, "key.position == query.position", "edges")
    ask(store, "key.position == query.position", "exact")
    statistics_table(store, store.spec.statistics)
    for pattern, (query, key) in zip(PATTERNS, PAIRS, strict=True):
        fresh = open_store(store.location)
        clocks["statistics"].time(lambda fresh=fresh: statistics_table(fresh, fresh.spec.statistics))
        clocks["edges · warm disk"].time(lambda pattern=pattern: ask(bare, pattern, "edges"))
        clocks["edges · cached"].time(lambda pattern=pattern: ask(store, pattern, "edges"))
        clocks["exact"].time(lambda pattern=pattern: ask(bare, pattern, "exact"))
        clocks["exact · cached"].time(lambda pattern=pattern: ask(store, pattern, "exact"))
        rare = f'query.lower == "{query}" and key.lower == "{key}"'
        clocks["token pair"].time(lambda rare=rare: ask(store, rare, "exact"))
    return clocks


def loop_rows(store: Store, folder: Path, clocks: dict[str, Clock]) -> list[Row]:
    """Time the loop over padded files, and its ratio to each of our searches for the same two patterns."""
    files = PaddedFiles.write(store, folder)
    clock, rows = Clock(), []
    for pattern in PATTERNS[:2]:
        result = ask(store, pattern, "exact")
        wall, cpu = loop_seconds(files, pattern, result)
        clock.wall_s.append(wall)
        clock.cpu_s.append(cpu)
    beside = f"{len(files.sampled)} of {files.n_files} files of {files.n_bytes / 1e6 / len(files.sampled):.0f} MB timed"
    rows += clock.rows("loop", beside)
    for name in ("edges · warm disk", "edges · cached", "exact", "exact · cached"):
        ratios = [loop / own for loop, own in zip(clock.wall_s, clocks[name].wall_s, strict=False)]
        rows.append(Row(f"loop / {name}", statistics.median(ratios), "times", (min(ratios), max(ratios)), "wall time"))
        ratios = [loop / own for loop, own in zip(clock.cpu_s, clocks[name].cpu_s, strict=False)]
        rows.append(Row(f"loop / {name} · CPU", statistics.median(ratios), "times", (min(ratios), max(ratios)), "CPU"))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
