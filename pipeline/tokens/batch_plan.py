"""What a job will do and cost, decided from token counts alone: same lengths, same plan, same bytes.

Segments are consecutive examples. Within one, examples are sorted by length and cut into batches so that padded tokens
plus a price for each batch are least: dynamic programming finds the best cut. In file order two thirds of all
computed tokens would be padding; this wastes a few percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int, Int64

from headatlas.store.codecs.attention_codecs import AttentionCodec
from headatlas.store.codecs.attention_layout import most_entries, smallest_unsigned
from headatlas.store.codecs.companding import VECTOR_DTYPE
from headatlas.store.codecs.pairs import row_start
from headatlas.store.schema.traces import Site, TraceSpec, edge_key_dtype, segment_layout

BATCH_PRICE_TOKENS = 48
"""What starting a batch costs, in tokens: small batches are not worth it for a few tokens less padding."""

DENSE_PAIRS = 1 << 22
"""Masks of no more pairs than these are made at once (`tiled_mask.py`)."""
OUTPUT_WEIGHTS = 1 << 24
"""Weights that are held at once where attention output has to be made of them."""

Lengths = Mapping[str, Int[np.ndarray, "example"]]


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch may be; an example too long for `max_tokens` runs alone."""

    max_examples: int = 64
    max_tokens: int = 16_384
    """Padded tokens, both sequences together."""
    max_ratio: float = 2.0
    """Longest over shortest example (up to 8 tokens of difference are always allowed)."""
    max_pairs: int | None = None
    """Pairs of positions, padding included: for models whose maps are in memory at once, all layers' together."""


@dataclass(frozen=True)
class BatchPlan:
    """One batch: examples by index within their segment, shortest first."""

    examples: tuple[int, ...]
    n_tokens: int
    n_padded_tokens: int


@dataclass(frozen=True)
class SegmentSpec:
    """Consecutive examples of the corpus."""

    index: int
    first_example: int
    n_examples: int

    @property
    def examples(self) -> slice:
        """As a slice of the corpus."""
        return slice(self.first_example, self.first_example + self.n_examples)


def plan_segments(spec: TraceSpec, n_tokens: Lengths, max_examples: int, max_bytes: int) -> tuple[SegmentSpec, ...]:
    """Cut the corpus into segments of at most `max_examples` and `max_bytes` raw bytes (one example may exceed them)."""
    size = example_bytes(spec, n_tokens)
    segments: list[SegmentSpec] = []
    first, total = 0, 0
    for example, n_bytes in enumerate(size.tolist()):
        if example > first and (example - first >= max_examples or total + n_bytes > max_bytes):
            segments.append(SegmentSpec(len(segments), first, example - first))
            first, total = example, 0
        total += n_bytes
    if len(size) > first:
        segments.append(SegmentSpec(len(segments), first, len(size) - first))
    return tuple(segments)


def example_bytes(spec: TraceSpec, n_tokens: Lengths) -> Int64[np.ndarray, "example"]:
    """Raw bytes of the trace arrays of each example.

    They add up to those of `segment_layout` but for biases and sinks, which a segment has once. Of a sparse codec these
    are the most that there may be.
    """
    lengths = {name: np.asarray(values, dtype=np.int64) for name, values in n_tokens.items()}
    total = np.zeros(len(next(iter(lengths.values()))), dtype=np.int64)
    keep = spec.keep
    edge_key = edge_key_dtype(lengths).itemsize
    for site in spec.sites:
        queries, keys = lengths[site.query_sequence], lengths[site.key_sequence]
        maps = site.n_layers * site.n_heads
        if (codec := spec.attention_codec) is not None:
            total += _attention_bytes(site, codec, queries, keys)
        if keep.query_key:
            width = np.dtype(VECTOR_DTYPE[keep.query_key]).itemsize * site.d_head
            total += queries * maps * (width + 4) + keys * site.n_layers * site.n_kv_heads * width
            if keep.query_key == "int8":
                total += site.n_layers * (site.n_heads + site.n_kv_heads) * site.d_head * 4
        if keep.edges:
            total += queries * maps * keep.edges * (edge_key + 2)
        if keep.statistics:
            total += len(spec.statistics) * maps * 4
    return total


def _attention_bytes(
    site: Site, codec: AttentionCodec, queries: Int64[np.ndarray, "example"], keys: Int64[np.ndarray, "example"]
) -> Int64[np.ndarray, "example"]:
    """Raw bytes of the attention of each example in one site."""
    item = np.dtype(codec.dtype).itemsize
    if codec.selection is None:
        pairs = np.zeros_like(queries)
        for band, layers in site.bands.items():
            pairs += len(layers) * row_start(queries, keys, causal=site.causal, window=band)
        return pairs * site.n_heads * item
    n_kept, longest = codec.selection.n_kept, int(keys.max(initial=0))
    if site.causal:
        entries = row_start(queries, keys, causal=True, window=n_kept)
    else:
        entries = queries * np.minimum(keys, n_kept)
    a_row = smallest_unsigned(min(n_kept, longest)).itemsize + 2
    of_map = entries * (item + smallest_unsigned(max(0, longest - 1)).itemsize) + queries * a_row
    return of_map * site.n_layers * site.n_heads


def plan_batches(n_tokens: Lengths, limits: BatchLimits) -> tuple[BatchPlan, ...]:
    """Cut one segment's examples into batches; the longest batch comes first, so that memory runs out early or never.

    Examples of no tokens are left out.
    """
    lengths = [np.asarray(values, dtype=np.int64) for values in n_tokens.values()]
    order = [int(i) for i in np.lexsort(lengths[::-1]) if lengths[0][i] > 0]
    rows = [tuple(int(values[i]) for values in lengths) for i in order]
    best: list[float] = [0.0]
    cut: list[int] = [0]
    for stop in range(1, len(rows) + 1):
        longest = rows[stop - 1]
        least, at = float("inf"), stop - 1
        for start in range(stop - 1, max(-1, stop - 1 - limits.max_examples), -1):
            longest = tuple(map(max, longest, rows[start]))
            padded = (stop - start) * sum(longest)
            too_large = padded > limits.max_tokens or (
                limits.max_pairs is not None and (stop - start) * max(longest) ** 2 > limits.max_pairs
            )
            if start < stop - 1 and (too_large or _too_unlike(rows[start][0], longest[0], limits)):
                break
            price = best[start] + padded + BATCH_PRICE_TOKENS
            if price < least:
                least, at = price, start
        best.append(least)
        cut.append(at)
    batches: list[BatchPlan] = []
    stop = len(rows)
    while stop:
        start = cut[stop]
        part = rows[start:stop]
        padded = len(part) * sum(max(column) for column in zip(*part, strict=True))
        batches.append(BatchPlan(tuple(order[start:stop]), sum(map(sum, part)), padded))
        stop = start
    return tuple(batches)


def _too_unlike(shortest: int, longest: int, limits: BatchLimits) -> bool:
    return longest > shortest * limits.max_ratio and longest > shortest + 8


# Stored over raw bytes, measured on sentences of UD English EWT with MiniLM (full) and SmolLM2 (causal).
_COMPRESSED = {
    ("attention", False): 0.70,
    ("attention", True): 0.64,
    ("attention_key", False): 0.75,
    ("attention_count", False): 0.35,
    ("attention_dropped", False): 0.95,
    ("query", False): 1.0,
    ("key", False): 1.0,
    ("logsumexp", False): 1.0,
    ("edge_key", False): 0.64,
    ("edge_weight", False): 0.86,
    ("statistics", False): 0.91,
}
_CODEC_FACTOR = {
    "sqrt7": 0.83,
    "sqrt6": 0.68,
    "linear8": 0.71,
    "linear7": 0.58,
    "linear6": 0.47,
    "float16": 1.25,
    "float32": 1.31,
}
"""Compressed size of attention in other codecs, for each raw byte beside `sqrt8` (docs/codecs.md, 16 tokens)."""
_FILLED = 0.25
"""Rows have at most 1 / T weights of T or more, and about a fourth of that (docs/codecs.md: .05 to .4)."""


@dataclass(frozen=True)
class ArrayProjection:
    """Bytes of one array over the whole job."""

    path: str
    raw_bytes: int
    stored_bytes: int
    """Predicted, after compression."""
    is_estimate: bool = False
    """How many weights there are depends on the weights: a sparse codec. `raw_bytes` are the most there may be."""


@dataclass(frozen=True)
class JobProjection:
    """What a job will take; `time_s` is None where nothing was timed."""

    n_examples: int
    n_tokens: dict[str, int]
    n_segments: int
    n_batches: int
    wasted_tokens: float
    """Share of computed tokens that is padding."""
    arrays: tuple[ArrayProjection, ...]
    memory: dict[str, int] = field(default_factory=dict)
    """Peak bytes by cause."""
    time_s: float | None = None
    besides: tuple[ArrayProjection, ...] = ()
    """What lies beside the trace arrays: tables and metadata, where they were measured."""

    @property
    def raw_bytes(self) -> int:
        """All trace arrays before compression."""
        return sum(array.raw_bytes for array in self.arrays)

    @property
    def stored_bytes(self) -> int:
        """Predicted size of the store, as far as it is known."""
        return sum(array.stored_bytes for array in (*self.arrays, *self.besides))

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory of the process."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on."""

    weight_bytes: int
    hidden_size: int
    intermediate_size: int
    element_bytes: int


PROCESS_BYTES = 640 << 20
"""Interpreter, torch and transformers with nothing loaded."""


def project(
    spec: TraceSpec,
    n_tokens: Lengths,
    segments: Sequence[SegmentSpec],
    limits: BatchLimits,
    model: ModelShape,
    tile_bytes: int,
    check_bytes: int,
    seconds_per_token: float | None = None,
) -> JobProjection:
    """Bytes on disk, peak memory and time of a job, from shapes alone."""
    layouts: dict[str, int] = {}
    largest_segment = 0
    n_batches = n_padded = n_real = 0
    largest_batch = largest_slots = 0
    entries = np.zeros(2)
    for segment in segments:
        lengths = {name: np.asarray(values[segment.examples], dtype=np.int64) for name, values in n_tokens.items()}
        raw = 0
        for path, layout in segment_layout(spec, lengths).items():
            layouts[path] = layouts.get(path, 0) + layout.raw_bytes
            raw += layout.raw_bytes
        largest_segment = max(largest_segment, raw)
        largest_slots = max(largest_slots, _slot_bytes(spec, lengths))
        entries += _expected_entries(spec, lengths)
        for batch in plan_batches(lengths, limits):
            n_batches += 1
            n_padded += batch.n_padded_tokens
            n_real += batch.n_tokens
            here = (
                _activation_bytes(batch, model) + _mask_bytes(batch, spec, lengths) + _map_bytes(batch, spec, lengths)
            )
            largest_batch = max(largest_batch, here)
    causal = {site.name: site.causal for site in spec.sites}
    arrays = tuple(
        ArrayProjection(
            path, raw, *_predict_stored(path, raw, causal, spec.attention_codec, entries[0] / max(1.0, entries[1]))
        )
        for path, raw in layouts.items()
    )
    memory = {
        "process": PROCESS_BYTES,
        "model": model.weight_bytes,
        # One segment is written while the next is computed; buffers are an eighth larger than needed.
        "segments": 2 * largest_segment * 9 // 8,
        "writing": min(largest_segment, 256 << 20),
        "activations": largest_batch,
        "tiles": 8 * tile_bytes,
        "sparse rows": largest_slots,
        "self-check": check_bytes,
        "corpus": sum(int(np.sum(values)) for values in n_tokens.values()) * 400,
    }
    return JobProjection(
        n_examples=len(next(iter(n_tokens.values()))),
        n_tokens={name: int(np.sum(values)) for name, values in n_tokens.items()},
        n_segments=len(segments),
        n_batches=n_batches,
        wasted_tokens=1 - n_real / n_padded if n_padded else 0.0,
        arrays=arrays,
        memory=memory,
        time_s=None if seconds_per_token is None else seconds_per_token * n_real,
    )


def _activation_bytes(batch: BatchPlan, model: ModelShape) -> int:
    return batch.n_padded_tokens * (12 * model.hidden_size + 3 * model.intermediate_size) * model.element_bytes


def _mask_bytes(batch: BatchPlan, spec: TraceSpec, lengths: Lengths) -> int:
    """Masks as truth values and as numbers; of many pairs never more than a tile, and then the output's weights too."""
    longest = max(int(values[list(batch.examples)].max()) for values in lengths.values())
    pairs = len(batch.examples) * longest * longest
    n_heads = max(site.n_heads for site in spec.sites)
    weights = min(pairs * n_heads, OUTPUT_WEIGHTS) if pairs > DENSE_PAIRS else 0
    return 16 * min(pairs, DENSE_PAIRS) + 12 * weights


def _map_bytes(batch: BatchPlan, spec: TraceSpec, lengths: Lengths) -> int:
    """The maps that a model in eager mode holds at the end of a batch, and one layer's on the way."""
    if spec.capture == "interface":
        return 0
    longest = max(int(values[list(batch.examples)].max()) for values in lengths.values())
    maps = sum(site.n_layers * site.n_heads for site in spec.sites) + 3 * max(site.n_heads for site in spec.sites)
    return 4 * len(batch.examples) * longest * longest * maps


def _expected_entries(spec: TraceSpec, lengths: Lengths) -> np.ndarray:
    """Weights of a head that a threshold will keep, about, and the most that it may keep; all sites together."""
    codec, total = spec.attention_codec, np.zeros(2)
    if codec is not None and codec.selection is not None:
        n_kept = codec.selection.n_kept
        for site in spec.sites:
            sides = lengths[site.query_sequence], lengths[site.key_sequence]
            expected = most_entries(site, max(1, int(_FILLED * n_kept)), *sides)
            total += np.array([expected, most_entries(site, n_kept, *sides)]) * site.n_layers * site.n_heads
    return total


def _slot_bytes(spec: TraceSpec, lengths: Lengths) -> int:
    """Memory of what a sparse codec keeps while a segment is computed, two of them at a time."""
    codec = spec.attention_codec
    if codec is None or codec.selection is None:
        return 0
    total = 0
    for site in spec.sites:
        longest = int(lengths[site.key_sequence].max(initial=0))
        width = np.dtype(codec.dtype).itemsize + smallest_unsigned(max(0, longest - 1)).itemsize
        rows = int(lengths[site.query_sequence].sum())
        total += 2 * site.n_layers * site.n_heads * rows * min(codec.selection.n_kept, longest) * width
    return total


def _predict_stored(
    path: str, raw: int, causal: Mapping[str, bool], codec: AttentionCodec | None, filled: float
) -> tuple[int, bool]:
    """Bytes after compression, and whether that is an estimate; `filled` is the share of weights that a threshold keeps."""
    site, name = path.split("/", 1)
    is_sparse = codec is not None and codec.selection is not None and name.startswith("attention")
    if name.startswith("attention_window"):
        name = "attention"
    known = _COMPRESSED.get((name, causal.get(site, False)), _COMPRESSED.get((name, False), 1.0))
    if codec is not None and name == "attention":
        known *= _codec_factor(codec)
    if codec is not None and codec.selection and codec.selection.threshold and name in ("attention", "attention_key"):
        known *= filled
    return int(raw * known), is_sparse


def _codec_factor(codec: AttentionCodec) -> float:
    """Compressed size of attention for each raw byte beside `sqrt8`; between the codecs that were measured, straight."""
    if codec.steps is None or codec.values in _CODEC_FACTOR:
        return _CODEC_FACTOR.get(codec.values, 1.0)
    kind = "sqrt" if codec.steps.root else "linear"
    factors = [0.0, *(_CODEC_FACTOR.get(f"{kind}{bits}", 1.0) for bits in (6, 7, 8))]
    return float(np.interp(np.log2(codec.steps.n_steps + 1), [0, 6, 7, 8], factors))
