"""Time of similar heads: every pair of heads and one head, sampled and exact, beside a loop over whole maps.

The stores hold random numbers over random texts, with the shape of SmolLM2-135M: 30 layers of 9 heads, causal, one byte
a weight. The loop reads whole maps of one example, merges them to words and takes the logarithm of every cell of every
pair of heads, as headatlas did until it sampled words. It is timed on the first example and scaled to all. The sampled
distances are compared with the exact ones: *error* rows give the largest difference, and the error that the result
states.

``--examples N`` and ``--tokens N`` choose the size (default 8 examples of 256 tokens; the goals are stated for 200
examples of 512 tokens: 7 GB of weights, minutes to write). The store is written to a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from headatlas.store import Store, open_store
from headatlas.store.comparisons.head_similarity import SimilarHeads, similar
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.traces import Keep, Site, TraceSpec, segment_layout
from headatlas.store.writing.store_writer import StoreWriter

from .interleave import Mode, interleave
from .report import Row, report
from .search_growth import random_tokens

N_LAYERS, N_HEADS = 30, 9
SEGMENT = 10


def main(arguments: Iterable[str] = ()) -> None:
    """Measure and write build/bench/similar.json."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=similar", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args(list(arguments))
    with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder:
        write_random(Path(folder) / "store", options.examples, options.tokens)
        rows = measure(open_store(Path(folder) / "store"), options.repeats)
    report("similar", rows, measured=f"{options.examples} examples of {options.tokens} tokens, 270 heads")


def measure(store: Store, repeats: int = 1) -> list[Row]:
    """Time every way on the examples of a store."""
    results: dict[str, SimilarHeads] = {}

    def keep(name: str, compare: Callable[[], SimilarHeads]) -> Mode[int]:
        return Mode(lambda _: results.update({name: compare()}))

    n_rows = int(sum(segment.tokens().n_words.sum() for segment in store.segments))
    sample = min(4_000, n_rows // 2)
    head = store.site().layers[0], 0
    loop = "loop over whole maps · one example"
    modes = {
        loop: Mode(lambda _: loop_distances(store, 0)),
        "every pair · sample": keep("sample", lambda: similar(store, n_words=sample)),
        "every pair · exact": keep("exact", lambda: similar(store, n_words=None)),
        "one head · sample": keep("head", lambda: similar(store, head=head, n_words=sample)),
        "one head · exact": keep("exact head", lambda: similar(store, head=head, n_words=None)),
    }
    timings = interleave(modes, [0], repeats)
    rows = []
    for name, timing in timings.items():
        spread = min(timing.wall_s), max(timing.wall_s)
        rows.append(Row(name, float(np.median(timing.wall_s)), "s", spread))
        cpu = min(timing.cpu_s), max(timing.cpu_s)
        rows.append(Row(f"{name} · CPU", float(np.median(timing.cpu_s)), "s CPU", cpu))
    per_example = np.array(timings[loop].cpu_s) * store.n_examples
    for name in list(modes)[1:]:
        ratios = per_example / np.array(timings[name].cpu_s)
        rows.append(
            Row(
                f"{name} · speed",
                float(np.median(ratios)),
                "× CPU",
                (float(ratios.min()), float(ratios.max())),
                f"{loop}, times {store.n_examples}",
            )
        )
    difference = np.abs(results["sample"].distance - results["exact"].distance)
    rows.append(
        Row(f"error of a sample of {results['sample'].rows:,} of {n_rows:,} words", float(difference.max()), "bits")
    )
    rows.append(Row("error that the sample states", results["sample"].largest_error, "bits"))
    difference = np.abs(results["exact"].example_distance[..., 0] - loop_distances(store, 0))
    largest = float(difference.max() / len(store.examples[0].tokens()))
    rows.append(Row("difference of exact from the loop, a row", largest, "bits"))
    return rows


def loop_distances(store: Store, number: int) -> np.ndarray:
    """Return the summed distances of every pair of heads on one example, from whole maps."""
    example = store.examples[number]
    site = store.site()
    maps = np.concatenate([example.word_attention(layer, site=site.name).to_numpy() for layer in site.layers])
    special = np.clip(1 - maps.sum(axis=2), 0, None)[:, :, None]
    rows = np.concatenate([maps, special], axis=2).astype(np.float32)
    rows /= np.maximum(rows.sum(axis=2, keepdims=True), 1e-30)
    flat = rows.reshape(len(rows), -1)
    half_entropy = 0.5 * _p_log_p(flat).sum(axis=1, dtype=np.float64)
    result = np.zeros((len(rows), len(rows)))
    step = max(1, (1 << 22) // flat.shape[1])
    for head, weights in enumerate(flat):
        for start in range(head, len(flat), step):
            others = slice(start, start + step)
            joint = _p_log_p((weights + flat[others]) * np.float32(0.5)).sum(axis=1, dtype=np.float64)
            result[head, others] = half_entropy[head] + half_entropy[others] - joint
        result[head:, head] = result[head, head:]
    return result


def _p_log_p(weights: np.ndarray) -> np.ndarray:
    return weights * np.log2(np.maximum(weights, np.float32(1e-30)))


def write_random(path: Path, n_examples: int, n_tokens: int, seed: int = 0) -> None:
    """Write a store of causal attention: a sink, near tokens, and noise, different in every head."""
    rng = np.random.default_rng(seed)
    nothing = (None,) * N_LAYERS
    site = Site(name="decoder", n_layers=N_LAYERS, n_heads=N_HEADS, n_kv_heads=3, d_head=64, causal=True,
                scaling=(1.0,) * N_LAYERS, softcap=nothing, window=nothing)  # fmt: skip
    spec = TraceSpec(
        sites=(site,), keep=Keep(attention="sqrt8", query_key=None, edges=None, statistics=False), statistics=()
    )
    starts = range(0, n_examples, SEGMENT)
    writer = StoreWriter.create(
        path, spec=spec, provenance={}, n_examples_planned=n_examples, n_segments_planned=len(starts), threads=2
    )
    maps = _codes(rng, n_tokens)
    for index, start in enumerate(starts):
        lengths = np.full(min(SEGMENT, n_examples - start), n_tokens)
        none = [None] * len(lengths)
        ids = [f"random-{start + number}" for number in range(len(lengths))]
        tables = SegmentTables(ids, [""] * len(lengths), none, none, tokens={"source": random_tokens(rng, lengths)})
        layout = segment_layout(spec, {"source": lengths})["decoder/attention"]
        codes = np.empty(layout.shape, np.uint8)
        for number in range(len(lengths)):
            pairs = slice(number * maps.shape[1], (number + 1) * maps.shape[1])
            codes[:, :, pairs] = np.roll(maps, start + number, axis=0).reshape(N_LAYERS, N_HEADS, -1)
        writer.write(index, start, tables, {"decoder/attention": codes})


def _codes(rng: np.random.Generator, n_tokens: int) -> np.ndarray:
    """Return the codes of the maps of one example, uint8 [head, pair]."""
    query, key = np.tril_indices(n_tokens)
    result = np.empty((N_LAYERS * N_HEADS, len(query)), np.uint8)
    for codes in result:
        sink, reach = rng.random(), rng.uniform(1, 30)
        weights = np.exp(-(query - key) / reach) * rng.random(len(query)) ** 2
        weights /= np.bincount(query, weights)[query]
        weights *= 1 - sink
        weights[key == 0] += sink
        codes[:] = np.floor(255 * np.sqrt(np.minimum(weights, 1)) + 0.5)
    return result


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
