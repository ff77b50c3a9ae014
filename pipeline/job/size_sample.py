"""Measure the size of a store on a sample: some examples are captured and written, and their bytes are counted.

The compression of attention and edges depends on model, corpus and codec, so fixed ratios would be wrong. The sample
consists of short runs of consecutive examples at equal distances in the corpus, because neighbours are often similar
and share chunks. The stored bytes of an array are its raw bytes (known from the shapes) times the ratio of the sample.
Texts, tokens and annotations do not need the model; they are measured on whole segments.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from headatlas.store.codecs.array_layout import ArrayLayout
from headatlas.store.files.containers.hdf5_metadata import INDEX_BYTES
from headatlas.store.files.containers.shard_writer import chunk_cutter, compressor_of, plan_grid
from headatlas.store.schema.text_tables import table_arrays
from headatlas.store.schema.traces import segment_layout
from headatlas.store.store import open_store
from headatlas.store.writing.store_writer import StoreWriter

from ..calls.device_arrays import BufferPool
from ..capture.collector import TraceCollector
from ..reduce.reduction import choose_reduction
from ..tokens.batch_plan import SegmentSpec
from ..tokens.segment_tables import segment_tables
from .job_runner import write_segment
from .prepared_job import Job
from .resources.job_projection import ArrayProjection, JobProjection
from .segment_computation import compute_segment

SAMPLE_EXAMPLES = 192
SAMPLE_TOKENS = 8192
"""Largest number of tokens in a sample. A sample has at least one example."""
RUN_EXAMPLES = 8
_TABLE_SEGMENTS = 4


def measure_sample(job: Job, projection: JobProjection, n_examples: int = SAMPLE_EXAMPLES) -> JobProjection:
    """Return the projection with stored bytes measured on `n_examples` examples of the job.

    It also has the bytes of tables and of metadata (manifest and metadata of the files).
    """
    indices = choose_sample(np.sum(np.stack(list(job.n_tokens.values())), axis=0), n_examples)
    sample_segment = SegmentSpec(0, 0, len(indices))
    sample_job = replace(job, examples=[job.examples[i] for i in indices], skipped={}, segments=(sample_segment,))
    spec = job.spec
    reduction = choose_reduction(spec.keep, spec.statistics, job.loaded.model.device, spec.capture)
    collector = TraceCollector(spec, job.sites, reduction)
    computed = compute_segment(sample_job, sample_segment, collector, BufferPool(job.loaded.model.device))
    raw = {path: array.nbytes for path, array in computed.buffers.arrays.items()}
    with tempfile.TemporaryDirectory(prefix="headatlas-plan-") as folder:
        writer = StoreWriter.create(
            Path(folder) / "sample",
            spec=spec,
            provenance=job.provenance,
            n_examples_planned=sample_segment.n_examples,
            n_segments_planned=1,
            container=job.config.store.container,
        )
        write_segment(writer, computed)
        store = open_store(writer.path)
        (segment,) = store.segments
        stored = {path: segment.reader.stored_bytes(path) for path in segment.layouts}
        metadata = store.bytes_on_disk - sum(stored.values())
    arrays = tuple(
        replace(array, stored_bytes=round(array.raw_bytes * stored[array.path] / max(1, raw[array.path])))
        for array in projection.arrays
    )
    metadata *= len(job.segments)
    if job.config.store.container == "hdf5":  # the chunk index is part of the file and grows with the number of chunks
        in_sample = len(job.segments) * _count_chunks(job, np.array(indices))
        in_job = sum(_count_chunks(job, np.arange(len(job.examples))[s.examples]) for s in job.segments)
        metadata = max(0, round(metadata + INDEX_BYTES * (in_job - in_sample)))
    besides = (_project_tables(job), ArrayProjection("metadata", metadata, metadata))
    return replace(projection, arrays=arrays, besides=besides)


def choose_sample(n_tokens: np.ndarray, n_examples: int) -> list[int]:
    """Choose runs of consecutive examples at equal distances, ascending. Examples without tokens are skipped."""
    candidates = np.flatnonzero(n_tokens)
    count = max(1, min(n_examples, len(candidates), int(SAMPLE_TOKENS / n_tokens[candidates].mean())))
    n_runs = max(1, round(count / RUN_EXAMPLES))
    run_length = min(count, RUN_EXAMPLES)
    starts = (
        ((np.arange(n_runs) + 0.5) * len(candidates) / n_runs - run_length / 2)
        .astype(int)
        .clip(0, len(candidates) - run_length)
    )
    return candidates[np.unique(starts[:, None] + np.arange(run_length))].tolist()


def _project_tables(job: Job) -> ArrayProjection:
    """Measure the tables of a few segments and scale them to the number of examples of the job."""
    segment_indices = np.unique(np.linspace(0, len(job.segments) - 1, _TABLE_SEGMENTS).astype(int))
    raw = stored = n_examples = 0
    for segment in (job.segments[i] for i in segment_indices):
        arrays = table_arrays(segment_tables(job.examples[segment.examples], job.spec.sequences))
        raw += sum(item.layout.raw_bytes for item in arrays.values())
        stored += sum(_array_bytes(item.layout, item.data) for item in arrays.values())
        n_examples += segment.n_examples
    share = len(job.examples) / max(1, n_examples)
    return ArrayProjection("texts, tokens, annotations", round(raw * share), round(stored * share))


def _count_chunks(job: Job, examples: np.ndarray) -> int:
    """Count the chunks of the traces of a segment with these examples."""
    lengths = {str(name): counts[examples] for name, counts in job.n_tokens.items()}
    grids = (plan_grid(layout) for layout in segment_layout(job.spec, lengths).values())
    return sum(math.prod(math.ceil(n / c) for n, c in zip(grid.shape, grid.chunk, strict=True)) for grid in grids)


def _array_bytes(layout: ArrayLayout, data: np.ndarray) -> int:
    """Count the bytes of the chunks of an array, their checksums, and the shard indices."""
    grid = plan_grid(layout)
    compress, cut = compressor_of(grid), chunk_cutter(data, grid.chunk)
    total = 0
    for index in grid.files():
        starts = [start for start in grid.chunk_starts(index) if start is not None]
        total += sum(len(compress(cut(start))) + 4 for start in starts)
        if grid.shard is not None:
            total += 16 * math.prod(grid.chunks_per_shard) + 4
    return total
