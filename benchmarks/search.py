"""How long questions to a corpus take: statistics, edges, attention, a rare pair of tokens; beside a loop of numpy.

EWT's training set (12,544 sentences) through MiniLM's 72 heads. Every repeat asks patterns that were not asked before.
What is read is in the page cache; *cached* means decoded edges in the store's memory (of which `exact` takes the
strongest keys; attention is read in any case). Wall time of the whole answer,
two threads; the CPU time beside it says what another job on the machine added. The loop is what a user would write:
files of float16 padded to the longest of 64 sentences, cut, masked and summed one sentence at a time; some files are
timed and taken for all. Its sums must equal ours.

``HEADATLAS_BENCH_SEARCH_STORE`` names a store to take (attention, edges and statistics must be kept); else one is made
and kept in ``build/bench/search-store`` (minutes, 3.3 GB). ``ARGS=--no-growth`` leaves out how times grow from 1,000 to
100,000 examples (a store of random numbers, 1.6 GB, removed again), ``ARGS=--growth`` measures that alone; the rows of
the other part stay in build/bench/search.json.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
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
"""Of words that are in some sentences together."""


@dataclass
class Clock:
    """Seconds of some questions, wall and CPU."""

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
    part.add_argument("--no-growth", action="store_true", help="only the questions to the treebank")
    part.add_argument("--growth", action="store_true", help="only how times grow from 1,000 to 100,000 examples")
    asked, rows = parser.parse_args(list(arguments)), list[Row]()
    with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder:
        if not asked.growth:
            rows += corpus_rows(Path(folder))
        if not asked.no_growth:
            rows += growth_rows(Path(folder))
    keep_rows(rows, "search")


def corpus_rows(folder: Path) -> list[Row]:
    """Every kind of question to the treebank, and the loop beside them."""
    store = open_store(os.environ.get("HEADATLAS_BENCH_SEARCH_STORE") or made_store())
    clocks = measure(store)
    beside = f"{store.n_examples:,} examples, {sum(store.n_tokens.values()):,} tokens, median of {len(PATTERNS)}"
    rows = [row for name, clock in clocks.items() for row in clock.rows(name, beside)]
    return rows + loop_rows(store, folder, clocks)


def made_store() -> Path:
    """EWT's training set through MiniLM; the demo's grammar where the treebank cannot be found."""
    from headatlas.pipeline.config import load_config
    from headatlas.pipeline.job.run import run_job

    place = FOLDER / "search-store"
    data = Path(os.environ.get("HEADATLAS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    packed = data / "ud-english-ewt" / "en_ewt-ud-train.conllu.gz"
    corpus = ["corpus.examples=12544"]
    if packed.is_file():
        sentences = FOLDER / "en_ewt-ud-train.conllu"
        FOLDER.mkdir(parents=True, exist_ok=True)
        with gzip.open(packed) as source, sentences.open("wb") as target:
            shutil.copyfileobj(source, target)
        corpus = ["corpus.kind=conllu", f"corpus.path={sentences}"]
    run_job(load_config("demo", [*corpus, f"store.path={place}"]))  # goes on, or finds that all is done
    return place


def ask(store: Store, pattern: str, level: RequestedBasis = "auto") -> SearchResult:
    """One question, answered by two threads."""
    return search(store, pattern, basis=level, workers=THREADS)


def measure(store: Store) -> dict[str, Clock]:
    """Every kind of question by its row's name; the kinds take turns."""
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
    """The loop over padded files, and how many times longer it takes than each of ours for the same two patterns."""
    files = PaddedFiles.write(store, folder)
    clock, rows = Clock(), []
    for pattern in PATTERNS[:2]:
        result = ask(store, pattern, "exact")
        wall, cpu = loop_seconds(files, pattern, result)
        clock.wall_s.append(wall)
        clock.cpu_s.append(cpu)
    told = f"{len(files.sampled)} of {files.n_files} files of {files.n_bytes / 1e6 / len(files.sampled):.0f} MB timed"
    rows += clock.rows("loop", told)
    for name in ("edges · warm disk", "edges · cached", "exact", "exact · cached"):
        ratios = [loop / ours for loop, ours in zip(clock.wall_s, clocks[name].wall_s, strict=False)]
        rows.append(Row(f"loop / {name}", statistics.median(ratios), "times", (min(ratios), max(ratios)), "wall time"))
        ratios = [loop / ours for loop, ours in zip(clock.cpu_s, clocks[name].cpu_s, strict=False)]
        rows.append(Row(f"loop / {name} · CPU", statistics.median(ratios), "times", (min(ratios), max(ratios)), "CPU"))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
