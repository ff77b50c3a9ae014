"""The time of a job on another device and on several workers, from shapes and rates.

Sizes come from the shapes of the model and of the traces. Rates come from data sheets, times the share of them that a
job can expect; nothing of a device is measured here. Device, PCIe, processors and disk work at the same time, so the
slowest of them limits a worker.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from headatlas.store.codecs.attention_codecs import attention_codec
from headatlas.store.schema.traces import Keep, TraceSpec

from ...progress import format_seconds
from ...reduce.triton_reduction import TRITON_CODE_KINDS
from ...tokens.batch_plan import Lengths

ELEMENT_BYTES = 2
"""Bytes of a number of the model, in bfloat16."""
_SCORE_PASSES = 12
"""Times that torch operations read or write a float32 score: product, mask, softmax, statistics, codes, strongest keys."""
_INSTRUCTIONS = {64: 1178, 128: 1298, 256: 1510}
"""Instructions of warps of the kernel for 1,024 scores, by `d_head` (docs/benchmarks.md, SM 9.0, bfloat16)."""


@dataclass(frozen=True)
class DeviceRates:
    """Rates that a job can expect of a GPU and its host. Each is a share of the data sheet."""

    name: str
    matrix_flops: float
    """Operations of matrix products a second in bfloat16: 60 % of the data sheet."""
    hbm_bytes: float
    """Bytes of device memory a second: 80 %."""
    warp_instructions: float
    """Instructions of warps that all multiprocessors issue a second: 70 %."""
    pcie_bytes: float
    """Bytes that are copied to pinned memory a second: 85 %."""
    memory_bytes: float
    """Size of the device memory."""
    encoded_bytes: float = 16 * 0.4e9
    """Bytes that 16 processors of the host compress and hash a second."""
    disk_bytes: float = 2e9
    """Bytes that the disk writes a second."""


DEVICES = {
    "a100": DeviceRates("A100 SXM 80 GB", 0.6 * 312e12, 0.8 * 2.04e12, 0.7 * 108 * 4 * 1.4e9, 0.85 * 32e9, 80e9),
    "h100": DeviceRates("H100 SXM", 0.6 * 989e12, 0.8 * 3.35e12, 0.7 * 132 * 4 * 1.7e9, 0.85 * 64e9, 80e9),
    "h200": DeviceRates("H200 SXM", 0.6 * 989e12, 0.8 * 4.8e12, 0.7 * 132 * 4 * 1.7e9, 0.85 * 64e9, 141e9),
}


@dataclass(frozen=True)
class Work:
    """The sizes of a job that its time depends on, summed over all examples."""

    n_tokens: int
    """Tokens of all sequences."""
    n_batches: int
    n_scores: float
    """Scores of all heads. Causal sites skip the later keys."""
    d_head: int
    vector_bytes: float
    """Bytes of query and key in the model's precision."""
    n_weights: float
    """Parameters of all layers, without embeddings."""
    hidden: int
    inner: int
    n_layers: int
    raw_bytes: float
    """Bytes of the traces that leave the device."""
    stored_bytes: float


def work_of(
    spec: TraceSpec,
    n_tokens: Lengths,
    n_batches: int,
    *,
    n_weights: float,
    hidden: int,
    inner: int,
    raw_bytes: float,
    stored_bytes: float,
) -> Work:
    """Sum the scores and vectors of a job's sites over its examples."""
    n_scores = vector_bytes = 0.0
    for site in spec.sites:
        queries, keys = (n_tokens[name].astype(np.float64) for name in (site.query_sequence, site.key_sequence))
        pairs = keys * (keys + 1) / 2 if site.causal else queries * keys
        n_scores += float(pairs.sum()) * site.n_layers * site.n_heads
        n_vectors = float(queries.sum()) * site.n_heads + float(keys.sum()) * site.n_kv_heads
        vector_bytes += n_vectors * site.d_head * site.n_layers * ELEMENT_BYTES
    return Work(
        n_tokens=int(sum(int(counts.sum()) for counts in n_tokens.values())),
        n_batches=n_batches,
        n_scores=n_scores,
        d_head=max(site.d_head for site in spec.sites),
        vector_bytes=vector_bytes,
        n_weights=n_weights,
        hidden=hidden,
        inner=inner,
        n_layers=sum(site.n_layers for site in spec.sites),
        raw_bytes=raw_bytes,
        stored_bytes=stored_bytes,
    )


@dataclass(frozen=True)
class Bound:
    """Seconds by resource, and the bound that follows from them if all of them work at the same time."""

    bare_s: float
    """Time of the model alone."""
    capture_s: float
    """Time of the reduction on the device, which the model's own work waits for."""
    flops: float
    hbm_bytes: float
    pcie_bytes: float
    disk_bytes: float
    pcie_s: float
    encoding_s: float
    disk_s: float

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by resource."""
        return {
            "device": self.bare_s + self.capture_s,
            "PCIe": self.pcie_s,
            "processors": self.encoding_s,
            "disk": self.disk_s,
        }

    @property
    def limit(self) -> str:
        """Name of the resource that takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    def share(self, *, written: bool) -> float:
        """Return the largest speed of the capture, as a share of the bare model's speed."""
        seconds = self.seconds if written else {name: self.seconds[name] for name in ("device", "PCIe")}
        return self.bare_s / max(seconds.values())


def bound(work: Work, keep: Keep, device: DeviceRates) -> Bound:
    """Compute the bound of a job."""
    score_flops = 2.0 * work.n_scores * work.d_head
    model_flops = 2.0 * work.n_weights * work.n_tokens + 2 * score_flops
    activations = 2.0 * work.n_tokens * (8 * work.hidden + 3 * work.inner) * work.n_layers * ELEMENT_BYTES
    model_bytes = work.n_batches * work.n_weights * ELEMENT_BYTES + activations
    bare_s = max(model_flops / device.matrix_flops, model_bytes / device.hbm_bytes)
    if is_served_by_kernel(keep):
        reduction_flops, reduction_bytes = 2 * score_flops, 2.0 * work.vector_bytes + 2.0 * work.raw_bytes
        needs_scores = keep.attention is not None or keep.edges or keep.statistics or keep.query_key is not None
        width = next((width for width in _INSTRUCTIONS if work.d_head <= width), max(_INSTRUCTIONS))
        instructions = work.n_scores / 1024 * _INSTRUCTIONS[width] if needs_scores else 0.0
    else:
        reduction_flops, reduction_bytes = score_flops, 4.0 * _SCORE_PASSES * work.n_scores + 2.0 * work.raw_bytes
        instructions = 0.0
    capture_s = max(
        reduction_flops / device.matrix_flops,
        reduction_bytes / device.hbm_bytes,
        instructions / device.warp_instructions,
    )
    return Bound(
        bare_s,
        capture_s,
        model_flops + reduction_flops,
        model_bytes + reduction_bytes,
        work.raw_bytes,
        work.stored_bytes,
        work.raw_bytes / device.pcie_bytes,
        work.raw_bytes / device.encoded_bytes,
        work.stored_bytes / device.disk_bytes,
    )


def is_served_by_kernel(keep: Keep) -> bool:
    """Return True if the Triton kernel computes the attention that is kept, False if torch operations do."""
    codec = None if keep.attention is None else attention_codec(keep.attention)
    return codec is None or (codec.selection is None and codec.kind in TRITON_CODE_KINDS)


@dataclass(frozen=True)
class ScaleProjection:
    """Time and price of a job on several workers."""

    n_segments: int
    n_workers: int
    device: str
    """Name of the device of each worker."""
    origin: Literal["measured", "computed"]
    """``measured``: one batch was timed on this machine; ``computed``: from shapes and rates of data sheets."""
    limit: str
    """Resource that takes longest; empty if the time was measured."""
    job_s: float
    """Time of one worker for the whole job, without loading the model."""
    price_per_hour: float | None = None
    n_devices: int = 1
    """Devices that the parameters of the model fill. More than one need tensor parallelism."""

    @property
    def n_busy(self) -> int:
        """Number of workers that get a segment."""
        return min(self.n_workers, self.n_segments)

    @property
    def hours(self) -> float:
        """Hours until the last worker ends. A segment is a task, and the worker with most segments ends last."""
        return self.job_s * math.ceil(self.n_segments / self.n_busy) / self.n_segments / 3600

    @property
    def price(self) -> float | None:
        """Price of all workers until the last one ends, in the currency of `price_per_hour`."""
        return None if self.price_per_hour is None else self.price_per_hour * self.n_workers * self.hours

    def lines(self) -> list[str]:
        """Return the projection as sentences."""
        origin = "from one timed batch" if self.origin == "measured" else "computed from shapes and data sheets"
        limit = f"; {self.limit} takes longest" if self.limit else ""
        workers = f"{self.n_workers:,} worker{'s' * (self.n_workers != 1)}"
        lines = [f"{workers} ({self.device}): about {format_seconds(3600 * self.hours)}, {origin}{limit}"]
        if self.price is not None:
            lines.append(
                f"price about {self.price:,.2f} ({workers} x {self.hours:,.3g} h x {self.price_per_hour:,.2f} an hour)"
            )
        if self.n_busy < self.n_workers:
            lines.append(
                f"{self.n_workers - self.n_busy:,} workers get no segment: the job has {self.n_segments:,}. Lower "
                "store.segment_examples, or start fewer workers."
            )
        if self.n_devices > 1:
            lines.append(
                f"The parameters of the model fill {self.n_devices} of these devices. headatlas runs a model on one device, "
                "so this job cannot run there."
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return all values, and hours and price."""
        return {**asdict(self), "hours": self.hours, "price": self.price}


def project_scale(
    work: Work, keep: Keep, device: DeviceRates, n_segments: int, n_workers: int, price_per_hour: float | None = None
) -> ScaleProjection:
    """Project a job onto workers with a device, from shapes and rates."""
    result = bound(work, keep, device)
    return ScaleProjection(
        n_segments,
        n_workers,
        device.name,
        "computed",
        result.limit,
        max(result.seconds.values()),
        price_per_hour,
        math.ceil(work.n_weights * ELEMENT_BYTES / device.memory_bytes),
    )
