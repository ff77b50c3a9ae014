"""Project the bytes on disk, memory and time of a job from token counts and shapes, before it runs.

Memory is projected for the host, for a GPU, and for pinned memory of the host, and compared with what a machine has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from headatlas.store.codecs.attention_layout import entry_counts, smallest_unsigned
from headatlas.store.codecs.expected_sizes import compression_factor, expected_row_entries
from headatlas.store.files.containers.container import FILES_OF_A_SEGMENT
from headatlas.store.files.manifest import N_RECENT_MANIFESTS
from headatlas.store.reading.attention_rebuild import why_not_rebuilt
from headatlas.store.schema.traces import TraceSpec, segment_layout

from ...calls.attention_hook import OUTPUT_WEIGHTS
from ...calls.lazy_mask import DENSE_PAIRS
from ...progress import format_bytes, format_seconds
from ...tokens.batch_plan import BatchLimits, BatchPlan, Lengths, SegmentSpec, plan_batches
from .device_memory import CONTEXT_BYTES, N_SEGMENTS, rounded_to_power_of_two, segment_on_device, with_reserve
from .machine import Machine

FIRST_USE_BYTES = 96 << 20
"""Memory that libraries allocate on first use: code, thread stacks, caches."""
DISK_RATE = 10**9
"""Bytes that an ordinary SSD writes in a second. An assumption, for jobs whose writing was not timed."""
DeviceUse = Literal["none", "kernel", "torch"]
"""Work on a GPU: none, or the reduction by the Triton kernel or by torch operations."""


@dataclass(frozen=True)
class ArrayProjection:
    """Bytes of one array over the whole job."""

    path: str
    raw_bytes: int
    stored_bytes: int
    """Predicted bytes after compression."""
    is_estimate: bool = False
    """True for arrays of a sparse codec, where the weights determine the size. `raw_bytes` is then an upper bound."""


@dataclass(frozen=True)
class JobProjection:
    """Resources of a job; `time_s` is None if nothing was timed."""

    n_examples: int
    n_tokens: dict[str, int]
    n_segments: int
    n_batches: int
    wasted_tokens: float
    """Fraction of the computed tokens that are padding, 0 to 1."""
    arrays: tuple[ArrayProjection, ...]
    memory: dict[str, int] = field(default_factory=dict)
    """Peak bytes of the host's memory by cause, without pinned memory."""
    device_memory: dict[str, int] = field(default_factory=dict)
    """Peak bytes on the GPU by cause. Empty for a job on the CPU."""
    pinned_bytes: int = 0
    """Peak bytes of pinned memory of the host."""
    long_bytes: int | None = None
    """Predicted bytes of the store with ``keep.preset = "long"``. None if it is not smaller or keeps too little."""
    time_s: float | None = None
    besides: tuple[ArrayProjection, ...] = ()
    """Tables and metadata; empty if they were not measured."""

    @property
    def raw_bytes(self) -> int:
        """Bytes of all trace arrays before compression."""
        return sum(array.raw_bytes for array in self.arrays)

    @property
    def stored_bytes(self) -> int:
        """Predicted bytes of the store, without the parts that were not measured."""
        return sum(array.stored_bytes for array in (*self.arrays, *self.besides))

    def n_files(self, *, in_folder: bool) -> int:
        """Return the number of files of the finished store: those of its segments, and its manifests.

        A folder keeps the newest manifests and has `latest.json`. An object store keeps all manifests until `gc`.
        """
        n_manifests = self.n_segments + 1
        of_segments = FILES_OF_A_SEGMENT * self.n_segments
        return of_segments + (min(n_manifests, N_RECENT_MANIFESTS) + 1 if in_folder else n_manifests)

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory of the process on the host."""
        return sum(self.memory.values()) + self.pinned_bytes

    @property
    def writing_s(self) -> float:
        """Predicted time of the disk alone, in seconds, if it is an ordinary SSD."""
        return self.stored_bytes / DISK_RATE

    def limits(self, machine: Machine) -> tuple[str, ...]:
        """Return a sentence for each resource of which the job needs more than the machine has, or that slows it down."""
        sentences: list[str] = []
        device_bytes = sum(self.device_memory.values())
        if machine.device_bytes is not None and device_bytes > machine.device_bytes:
            advice = "run.max_batch_tokens"
            if self.device_memory["model"] + CONTEXT_BYTES > machine.device_bytes:
                advice = 'the precision (model.dtype = "bfloat16")'
            sentences.append(
                f"{machine.device} ({machine.device_name}) has {format_bytes(machine.device_bytes)} for the job, which may need "
                f"{format_bytes(device_bytes)}. Batches that do not fit are halved; lower {advice} to avoid that."
            )
        if machine.host_bytes is not None and self.peak_bytes > machine.host_bytes:
            causes = self.memory | {"pinned": self.pinned_bytes}
            settings = {"segments": "store.segment_bytes", "activations": "run.max_batch_tokens"}
            settings |= {"pinned": "store.segment_bytes", "model": 'the precision (model.dtype = "bfloat16")'}
            advice = settings[max(settings, key=lambda cause: causes.get(cause, 0))]
            sentences.append(
                f"the host has {format_bytes(machine.host_bytes)} of memory for the job, which may need "
                f"{format_bytes(self.peak_bytes)}. Lower {advice}."
            )
        proposal = ""
        if self.long_bytes is not None:
            proposal = (
                f' keep.preset = "long" stores about {format_bytes(self.long_bytes)}: query and key instead of attention, '
                "from which it is computed when it is read."
            )
        if machine.disk_bytes is not None and self.stored_bytes > machine.disk_bytes:
            sentences.append(
                f"the disk of the store has {format_bytes(machine.disk_bytes)} free, and the store needs about "
                f"{format_bytes(self.stored_bytes)}.{proposal or ' Keep less, or free space.'}"
            )
        elif self.time_s is not None and self.writing_s > self.time_s:
            sentences.append(
                f"the disk is the limit: an SSD that writes {format_bytes(DISK_RATE)} a second takes "
                f"{format_seconds(self.writing_s)} for {format_bytes(self.stored_bytes)}, longer than the model runs.{proposal}"
            )
        return tuple(sentences)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that its memory depends on."""

    weight_bytes: int
    hidden_size: int
    intermediate_size: int
    element_bytes: int


@dataclass(frozen=True)
class FixedMemory:
    """Memory that does not depend on the examples."""

    process_bytes: int
    """Current memory of the process without the model."""
    tile_bytes: int
    check_bytes: int


def project(
    spec: TraceSpec,
    n_tokens: Lengths,
    segments: Sequence[SegmentSpec],
    limits: BatchLimits,
    model: ModelShape,
    fixed: FixedMemory,
    seconds_per_token: float | None = None,
    device: DeviceUse = "none",
    device_bytes: int = 8 << 30,
) -> JobProjection:
    """Project bytes on disk, peak memory and time of a job from shapes alone.

    With a `device`, model, activations, tiles and segments are in its memory, which has `device_bytes`, and the
    segments of the host are pinned.
    """
    layouts: dict[str, int] = {}
    largest_segment = 0
    n_batches = n_padded = n_real = 0
    largest_batch = largest_slots = largest_on_device = 0
    expected_entries = max_entries = 0
    for segment in segments:
        lengths = {name: np.asarray(values[segment.examples], dtype=np.int64) for name, values in n_tokens.items()}
        raw, slots, segment_layouts = 0, _slot_bytes(spec, lengths), segment_layout(spec, lengths)
        for path, layout in segment_layouts.items():
            layouts[path] = layouts.get(path, 0) + layout.raw_bytes
            raw += layout.raw_bytes
        largest_segment = max(largest_segment, raw)
        largest_slots = max(largest_slots, slots)
        if device != "none":
            in_slots = ("/attention", "/attention_key") if slots else ()
            dense = {path: row for path, row in segment_layouts.items() if not path.endswith(in_slots)}
            on_device = segment_on_device(dense, slots // N_SEGMENTS, device_bytes)
            largest_on_device = max(largest_on_device, on_device)
        expected, maximum = _sparse_entries(spec, lengths)
        expected_entries, max_entries = expected_entries + expected, max_entries + maximum
        for batch in plan_batches(lengths, limits):
            n_batches += 1
            n_padded += batch.n_padded_tokens
            n_real += batch.n_tokens
            batch_bytes = (
                _activation_bytes(batch, model) + _mask_bytes(batch, spec, lengths) + _map_bytes(batch, spec, lengths)
            )
            largest_batch = max(largest_batch, batch_bytes)
    kept_fraction = expected_entries / max(1, max_entries)
    arrays = tuple(_project_array(spec, path, raw, kept_fraction) for path, raw in layouts.items())
    of_model = {"model": model.weight_bytes, "activations": largest_batch, "tiles": 8 * fixed.tile_bytes}
    segments_bytes = N_SEGMENTS * with_reserve(largest_segment)
    memory = {
        "process": fixed.process_bytes + FIRST_USE_BYTES,
        "segments": segments_bytes,
        "writing": min(largest_segment, 256 << 20),
        "sparse rows": largest_slots,
        "self-check": fixed.check_bytes,
        "corpus": sum(int(np.sum(values)) for values in n_tokens.values()) * 400,
    }
    device_memory: dict[str, int] = {}
    pinned_bytes = 0
    if device == "none":
        memory |= of_model
    else:
        pinned_bytes = N_SEGMENTS * rounded_to_power_of_two(with_reserve(largest_segment + largest_slots // N_SEGMENTS))
        memory |= {"segments": 0, "sparse rows": 0}  # they are pinned
        # The weights are on the host until they are loaded, and segments afterwards.
        memory["model"] = max(0, model.weight_bytes - pinned_bytes)
        device_memory = {"libraries": CONTEXT_BYTES, **of_model, "self-check": fixed.check_bytes}
        device_memory["segments"] = N_SEGMENTS * largest_on_device
        if device == "kernel":
            device_memory["tiles"] = 0
    return JobProjection(
        n_examples=len(next(iter(n_tokens.values()))),
        n_tokens={name: int(np.sum(values)) for name, values in n_tokens.items()},
        n_segments=len(segments),
        n_batches=n_batches,
        wasted_tokens=1 - n_real / n_padded if n_padded else 0.0,
        arrays=arrays,
        memory=memory,
        device_memory=device_memory,
        pinned_bytes=pinned_bytes,
        long_bytes=_long_bytes(spec, n_tokens, segments),
        time_s=None if seconds_per_token is None else seconds_per_token * n_real,
    )


def expected_bytes(spec: TraceSpec, n_tokens: Lengths, segments: Sequence[SegmentSpec]) -> int:
    """Return the expected bytes on disk of the traces of some segments, estimated from shapes alone."""
    total = 0
    for segment in segments:
        lengths = {name: np.asarray(values[segment.examples], dtype=np.int64) for name, values in n_tokens.items()}
        expected, maximum = _sparse_entries(spec, lengths)
        for path, layout in segment_layout(spec, lengths).items():
            total += _project_array(spec, path, layout.raw_bytes, expected / max(1, maximum)).stored_bytes
    return total


def _long_bytes(spec: TraceSpec, n_tokens: Lengths, segments: Sequence[SegmentSpec]) -> int | None:
    """Return the expected bytes of the traces with ``keep.preset = "long"``; None if they are not fewer.

    None also if the attention of a site cannot be computed from its query and key.
    """
    keep = spec.keep.model_copy(update={"attention": None, "query_key": spec.keep.query_key or "float16"})
    if spec.capture == "eager" or any(why_not_rebuilt(site, keep) is not None for site in spec.sites):
        return None
    n_bytes = expected_bytes(spec.model_copy(update={"keep": keep}), n_tokens, segments)
    return n_bytes if n_bytes < expected_bytes(spec, n_tokens, segments) else None


def _project_array(spec: TraceSpec, path: str, raw_bytes: int, kept_fraction: float) -> ArrayProjection:
    """Predict the stored bytes of one array; `kept_fraction` is the expected fraction of the entries of a sparse codec."""
    site_name, name = path.split("/", 1)
    codec, is_causal = spec.attention_codec, spec.site(site_name).causal
    is_sparse = codec is not None and codec.selection is not None and name.startswith("attention")
    factor = compression_factor(name, codec, causal=is_causal)
    if is_sparse and name in ("attention", "attention_key"):
        factor *= kept_fraction
    return ArrayProjection(path, raw_bytes, int(raw_bytes * factor), is_sparse)


def _activation_bytes(batch: BatchPlan, model: ModelShape) -> int:
    return batch.n_padded_tokens * (12 * model.hidden_size + 3 * model.intermediate_size) * model.element_bytes


def _mask_bytes(batch: BatchPlan, spec: TraceSpec, lengths: Lengths) -> int:
    """Bytes of dense masks, or of mask tiles and output weights if a batch has more than `DENSE_PAIRS` pairs."""
    longest = max(int(values[list(batch.examples)].max()) for values in lengths.values())
    pairs = len(batch.examples) * longest * longest
    n_heads = max(site.n_heads for site in spec.sites)
    weights = min(pairs * n_heads, OUTPUT_WEIGHTS) if pairs > DENSE_PAIRS else 0
    return 16 * min(pairs, DENSE_PAIRS) + 12 * weights


def _map_bytes(batch: BatchPlan, spec: TraceSpec, lengths: Lengths) -> int:
    """Bytes of all maps of a batch in eager mode, including those of the layer that is being computed."""
    if spec.capture == "interface":
        return 0
    longest = max(int(values[list(batch.examples)].max()) for values in lengths.values())
    maps = sum(site.n_layers * site.n_heads for site in spec.sites) + 3 * max(site.n_heads for site in spec.sites)
    return 4 * len(batch.examples) * longest * longest * maps


def _sparse_entries(spec: TraceSpec, lengths: Lengths) -> tuple[int, int]:
    """Return the expected and the largest number of weights that a sparse codec keeps, over all maps."""
    codec = spec.attention_codec
    if codec is None or codec.selection is None:
        return 0, 0
    expected = maximum = 0
    for site in spec.sites:
        queries, keys = lengths[site.query_sequence], lengths[site.key_sequence]
        n_expected, n_maximum = (
            int(entry_counts(queries, keys, n_kept, causal=site.causal).sum()) * site.n_layers * site.n_heads
            for n_kept in (expected_row_entries(codec.selection), codec.selection.n_kept)
        )
        expected, maximum = expected + n_expected, maximum + n_maximum
    return expected, maximum


def _slot_bytes(spec: TraceSpec, lengths: Lengths) -> int:
    """Bytes of the rows of a sparse codec for the two segments in memory."""
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
