"""What a job will take on disk, measured: some of its examples go through the model and the writer, and are counted.

How well attention and edges compress depends on model, corpus and codec; no table of ratios is right for all of them.
The sample is short runs of neighbours at equal steps through the corpus: neighbours are often alike, and lie in one
chunk. Stored bytes of an array are its raw bytes (known exactly from the shapes) times the sample's ratio. Texts,
tokens and annotations need no model: whole segments of them are counted.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from headatlas.store.codecs.array_layout import ArrayLayout
from headatlas.store.containers.hdf5_metadata import INDEX_BYTES
from headatlas.store.containers.shard_writer import chunk_cutter, compressor_of, plan_grid
from headatlas.store.schema.text_tables import table_arrays
from headatlas.store.schema.traces import segment_layout
from headatlas.store.store import open_store
from headatlas.store.writing.store_writer import StoreWriter

from ..calls.segment_buffers import BufferPool
from ..capture.collector import TraceCollector
from ..reduce.reduction import choose_reduction
from ..tokens.batch_plan import SegmentSpec
from .job_runner import compute_segment, segment_tables, write_segment
from .prepared_job import Job
from .resources import ArrayProjection, JobProjection

SAMPLE_EXAMPLES = 192
SAMPLE_TOKENS = 8192
"""A sample holds so many tokens at most, but at least one example."""
RUN_EXAMPLES = 8
_TABLE_SEGMENTS = 4


def measure_sample(job: Job, projection: JobProjection, n_examples: int = SAMPLE_EXAMPLES) -> JobProjection:
    """A projection whose stored bytes come from `n_examples` of the job's examples, written and counted.

    Tables and metadata (of the files, and what lists them) come besides.
    """
    chosen = choose_sample(np.sum(np.stack(list(job.n_tokens.values())), axis=0), n_examples)
    whole = SegmentSpec(0, 0, len(chosen))
    part = replace(job, examples=[job.examples[i] for i in chosen], skipped={}, segments=(whole,))
    spec = job.spec
    reduction = choose_reduction(spec.keep, spec.statistics, job.loaded.model.device, spec.capture)
    collector = TraceCollector(spec, job.sites, reduction)
    computed = compute_segment(part, whole, collector, BufferPool())
    raw = {path: array.nbytes for path, array in computed.buffers.arrays.items()}
    with tempfile.TemporaryDirectory(prefix="headatlas-plan-") as folder:
        writer = StoreWriter.create(
            Path(folder) / "sample",
            spec=spec,
            provenance=job.provenance,
            n_examples_planned=whole.n_examples,
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
    if job.config.store.container == "hdf5":  # its index of chunks is in the file, and grows with them
        in_sample = len(job.segments) * _count_chunks(job, np.array(chosen))
        in_job = sum(_count_chunks(job, np.arange(len(job.examples))[s.examples]) for s in job.segments)
        metadata = max(0, round(metadata + INDEX_BYTES * (in_job - in_sample)))
    besides = (_project_tables(job), ArrayProjection("metadata", metadata, metadata))
    return replace(projection, arrays=arrays, besides=besides)


def choose_sample(n_tokens: np.ndarray, n_examples: int) -> list[int]:
    """Runs of neighbours at equal steps, ascending; examples without tokens are left out."""
    there = np.flatnonzero(n_tokens)
    count = max(1, min(n_examples, len(there), int(SAMPLE_TOKENS / n_tokens[there].mean())))
    n_runs = max(1, round(count / RUN_EXAMPLES))
    run = min(count, RUN_EXAMPLES)
    starts = ((np.arange(n_runs) + 0.5) * len(there) / n_runs - run / 2).astype(int).clip(0, len(there) - run)
    return there[np.unique(starts[:, None] + np.arange(run))].tolist()


def _project_tables(job: Job) -> ArrayProjection:
    """Tables of a few segments, the whole job's by their share of the examples."""
    at = np.unique(np.linspace(0, len(job.segments) - 1, _TABLE_SEGMENTS).astype(int))
    raw = stored = n_examples = 0
    for segment in (job.segments[i] for i in at):
        arrays = table_arrays(segment_tables(job.examples[segment.examples], job.spec.sequences))
        raw += sum(item.layout.raw_bytes for item in arrays.values())
        stored += sum(_array_bytes(item.layout, item.data) for item in arrays.values())
        n_examples += segment.n_examples
    share = len(job.examples) / max(1, n_examples)
    return ArrayProjection("texts, tokens, annotations", round(raw * share), round(stored * share))


def _count_chunks(job: Job, examples: np.ndarray) -> int:
    """Chunks of the traces of a segment of these examples."""
    lengths = {str(name): counts[examples] for name, counts in job.n_tokens.items()}
    grids = (plan_grid(layout) for layout in segment_layout(job.spec, lengths).values())
    return sum(math.prod(math.ceil(n / c) for n, c in zip(grid.shape, grid.chunk, strict=True)) for grid in grids)


def _array_bytes(layout: ArrayLayout, data: np.ndarray) -> int:
    """Bytes of an array's chunks with their checksums, and of the shards' indices."""
    grid = plan_grid(layout)
    compress, cut = compressor_of(grid), chunk_cutter(data, grid.chunk)
    total = 0
    for index in grid.files():
        starts = [start for start in grid.chunk_starts(index) if start is not None]
        total += sum(len(compress(cut(start))) + 4 for start in starts)
        if grid.shard is not None:
            total += 16 * math.prod(grid.chunks_per_shard) + 4
    return total
