"""Growth of search times with the corpus: stores of random numbers over random texts, 1,000 to 100,000 examples."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from headatlas.store import Store, open_store
from headatlas.store.queries.pattern_search import search
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.token_table import Column, TokenTable
from headatlas.store.schema.traces import Keep, Site, TraceSpec, segment_layout
from headatlas.store.statistics.specialisation import statistics_table
from headatlas.store.writing.store_writer import StoreWriter

from .report import Row

SIZES = (1_000, 10_000, 100_000)
SEGMENT = 5_000
N_LAYERS, N_HEADS, N_EDGES = 2, 6, 8
WORDS = tuple(f"word{i}" for i in range(4_000))
REPEATS = 3


def growth_rows(folder: Path) -> list[Row]:
    """Measure each kind of question at each size: 12 heads, 21 tokens an example."""
    rows = []
    for size in SIZES:
        path = folder / f"random-{size}"
        write_random(path, size)
        for name, ask in questions(open_store(path), open_store(path, edges_bytes=0)).items():
            ask(0)  # warm
            seconds = []
            for repeat in range(1, REPEATS + 1):
                began = time.perf_counter()
                ask(repeat)
                seconds.append(time.perf_counter() - began)
            rows.append(Row(f"{name} · {size:,} examples", statistics.median(seconds), "s", (min(seconds), max(seconds)), "random numbers, 12 heads"))  # fmt: skip
        shutil.rmtree(path)
    return rows


def questions(store: Store, bare: Store) -> dict[str, Callable[[int], object]]:
    """Return each kind of question by its name. A question takes a number and asks a pattern of its own for it."""

    def apart(number: int) -> str:
        return f"key.position == query.position - {number + 1}"

    return {
        "statistics": lambda number: statistics_table(store, store.spec.statistics),
        "edges · warm disk": lambda number: search(bare, apart(number), basis="edges"),
        "edges · cached": lambda number: search(store, apart(number), basis="edges"),
        "exact": lambda number: search(bare, apart(number), basis="exact"),
        "token pair": lambda n: search(store, f'query.text == "word{n + 3900}" and key.text == "word{n + 80}"'),
    }


def write_random(path: Path, n_examples: int, seed: int = 0) -> None:
    """Write a store of examples of 12 to 30 tokens with Zipf frequencies and random edges, attention and statistics."""
    rng = np.random.default_rng(seed)
    fixed = dict.fromkeys(("softcap", "window"), (None,) * N_LAYERS)
    site = Site(name="encoder", n_layers=N_LAYERS, n_heads=N_HEADS, n_kv_heads=N_HEADS, d_head=8, causal=False,
                scaling=(1.0,) * N_LAYERS, **fixed)  # fmt: skip
    keep = Keep(attention="sqrt8", query_key=None, edges=N_EDGES)
    spec = TraceSpec(sites=(site,), keep=keep, statistics=("entropy", "self", "previous"))
    starts = range(0, n_examples, SEGMENT)
    writer = StoreWriter.create(
        path, spec=spec, provenance={}, n_examples_planned=n_examples, n_segments_planned=len(starts), threads=2
    )
    for index, start in enumerate(starts):
        lengths = rng.integers(12, 31, min(SEGMENT, n_examples - start))
        ids = [f"random-{number}" for number in range(start, start + len(lengths))]
        none = [None] * len(lengths)
        tables = SegmentTables(ids, [""] * len(lengths), none, none, tokens={"source": random_tokens(rng, lengths)})
        layouts = segment_layout(spec, {"source": lengths})
        arrays = {
            name: random_array(rng, name, layout.shape, layout.dtype, lengths) for name, layout in layouts.items()
        }
        writer.write(index, start, tables, arrays)


def random_tokens(rng: np.random.Generator, lengths: np.ndarray) -> TokenTable:
    """Return a table of random tokens, each a word."""
    n = int(lengths.sum())
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    weights = 1 / np.arange(1, len(WORDS) + 1)
    id_ = rng.choice(len(WORDS), n, p=weights / weights.sum()).astype(np.int32)
    word = (np.arange(n) - np.repeat(offset[:-1], lengths)).astype(np.int32)
    nothing, text = np.zeros(n, np.int32), Column(id_, WORDS)
    return TokenTable(
        offset,
        id_,
        word,
        nothing,
        nothing,
        np.zeros(n, np.uint8),
        {"text": text, "piece": text},
        offset,
        nothing,
        nothing,
    )


def random_array(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: np.dtype, lengths: np.ndarray
) -> np.ndarray:
    """Return random numbers that are valid for an array: edges point to existing keys and their weights fall."""
    kind = name.rpartition("/")[2]
    if kind == "edge_key":
        n_keys = np.repeat(lengths, lengths)[None, None, :, None]
        return ((rng.integers(0, 1 << 16, (*shape[:3], 1)) + 5 * np.arange(shape[3])) % n_keys).astype(dtype)
    if kind == "edge_weight":
        return np.broadcast_to((0.5 ** np.arange(1, shape[3] + 1)).astype(dtype), shape).copy()
    if kind == "attention":
        return (rng.integers(0, 256, shape, dtype=np.uint8) >> 2).astype(dtype)
    return rng.random(shape, dtype=np.float32).astype(dtype)
