"""Projection of the resources of a prepared job. The time comes from a short timed capture."""

from __future__ import annotations

import time

import numpy as np
import torch

from headatlas.store.errors import ConfigError

from ..calls.segment_buffers import SegmentBuffers
from ..capture.collector import TraceCollector
from ..capture.eager import forwarding
from ..checks.selfcheck import CHECK_BYTES
from ..reduce.reduction import choose_reduction
from ..reduce.torch_reduction import DEVICE_TILE_WEIGHTS, TILE_WEIGHTS
from ..reduce.triton_reduction import TritonReduction
from ..tokens.batch_plan import plan_batches
from .prepared_job import Job, model_shape
from .resources.device_rates import DEVICES, ScaleProjection, project_scale, work_of
from .resources.job_projection import DeviceUse, FixedMemory, JobProjection, project
from .resources.machine import resident_bytes, total_device_bytes
from .size_sample import measure_sample

_TRIAL_TOKENS = 2048
WRITING_SHARE = 1.15
"""Factor for the time of writing and bookkeeping on top of the computation."""


def project_job(job: Job, timed: bool = True, n_sampled: int = 0) -> JobProjection:
    """Project the resources of a job.

    With `timed`, one batch of typical length runs twice to estimate the time. With `n_sampled` above 0, this number of
    examples is captured and written to measure the bytes on disk; otherwise the bytes are estimated.
    """
    process_bytes = resident_bytes() - job.resident_model_bytes
    n_tokens = job.n_tokens
    check = min(CHECK_BYTES, 3 * _attention_bytes(job, n_tokens))
    device, device_bytes = device_use(job), total_device_bytes(job.loaded.model.device)
    tile_weights = TILE_WEIGHTS if device == "none" else DEVICE_TILE_WEIGHTS
    projection = project(
        job.spec,
        n_tokens,
        job.segments,
        job.limits,
        model_shape(job.loaded),
        FixedMemory(process_bytes=process_bytes, tile_bytes=4 * tile_weights, check_bytes=check),
        seconds_per_token(job) if timed else None,
        device,
        **({} if device_bytes is None else {"device_bytes": device_bytes}),
    )
    return measure_sample(job, projection, n_sampled) if n_sampled else projection


def project_on_workers(
    job: Job, projection: JobProjection, n_workers: int, device: str | None, price_per_hour: float | None
) -> ScaleProjection:
    """Project time and price of a job on workers: with a device from shapes, otherwise from the timed batch.

    Raises
    ------
    ConfigError
        There is no device, and no batch was timed.
    """
    n_segments, model = len(job.segments), job.loaded.model
    if device is None:
        if projection.time_s is None:
            raise ConfigError("--untimed leaves no time to share among workers; add --device, or leave out --untimed.")
        description = f"{model.device}, as on this machine"
        return ScaleProjection(n_segments, n_workers, description, "measured", "", projection.time_s, price_per_hour)
    shape = model_shape(job.loaded)
    embeddings = model.get_input_embeddings()
    n_embedded = sum(parameter.numel() for parameter in embeddings.parameters()) if embeddings is not None else 0
    work = work_of(
        job.spec,
        job.n_tokens,
        projection.n_batches,
        n_weights=sum(parameter.numel() for parameter in model.parameters()) - n_embedded,
        hidden=shape.hidden_size,
        inner=shape.intermediate_size,
        raw_bytes=projection.raw_bytes,
        stored_bytes=projection.stored_bytes,
    )
    return project_scale(work, job.spec.keep, DEVICES[device], n_segments, n_workers, price_per_hour)


def device_use(job: Job) -> DeviceUse:
    """Return the work of a job on a GPU."""
    spec, device = job.spec, job.loaded.model.device
    if device.type == "cpu":
        return "none"
    reduction = choose_reduction(spec.keep, spec.statistics, device, spec.capture)
    return "kernel" if isinstance(reduction, TritonReduction) else "torch"


def seconds_per_token(job: Job) -> float:
    """Measure the seconds of capture per token on a batch of typical length."""
    n_tokens = job.n_tokens
    total = np.sum(np.stack(list(n_tokens.values())), axis=0)
    order = np.argsort(total, kind="stable")
    order = order[total[order] > 0]
    # `middle` splits the tokens in half: one half is in shorter examples, the other half in longer ones.
    middle = int(np.searchsorted(np.cumsum(total[order]), total.sum() / 2))
    n_around = max(1, _TRIAL_TOKENS // max(1, int(total[order[min(middle, len(order) - 1)]])) // 2)
    indices = [int(i) for i in order[max(0, middle - n_around) : middle + n_around]] or [int(order[0])]
    examples = [job.examples[i] for i in indices]
    lengths = {name: counts[indices] for name, counts in n_tokens.items()}
    spec = job.spec
    reduction = choose_reduction(spec.keep, spec.statistics, job.loaded.model.device, spec.capture)
    collector = TraceCollector(spec, job.sites, reduction)
    buffers = SegmentBuffers(job.spec, lengths)
    batches = plan_batches(lengths, job.limits)
    seconds = 0.0
    for _ in range(2):  # the first pass is a warm-up
        started = time.perf_counter()
        with torch.inference_mode(), forwarding(job.loaded.model, job.sites, collector) as forward:
            for batch in batches:
                inputs = job.inputs.build([examples[i] for i in batch.examples])
                collector.begin(buffers, batch.examples, inputs.special)
                forward(inputs)
        seconds = time.perf_counter() - started
    return WRITING_SHARE * seconds / int(sum(counts.sum() for counts in lengths.values()))


def _attention_bytes(job: Job, n_tokens: dict[str, np.ndarray]) -> int:
    maps = sum(site.n_layers * site.n_heads for site in job.spec.sites)
    longest = max(int(counts.max(initial=0)) for counts in n_tokens.values())
    return 4 * 8 * maps * longest * longest
