"""Memory of a job on a GPU and of its copies in pinned memory of the host, from shapes alone.

The Triton kernel leaves the results of each layer on the device. They are copied to pinned memory, and from there into
the segment. PyTorch takes pinned memory in blocks whose sizes are powers of two.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headatlas.store.codecs.attention_layout import pair_offset
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Site, TraceSpec

from ..tokens.batch_plan import BatchPlan, Lengths

CONTEXT_BYTES = 768 << 20
"""Device memory of CUDA, its libraries and the workspaces of their matrix products."""
PINNED_BATCHES = 2
"""Batches whose results are in pinned memory: one is computed, the other is written into the segment."""
_VECTOR_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}


def layer_results(spec: TraceSpec, site: Site, band: int | None, batch: BatchPlan, lengths: Lengths) -> Iterator[int]:
    """Yield the bytes of each result of one layer of a batch: codes, edges, sums and padded vectors.

    Each result is a tensor on the device and a block of pinned memory.
    """
    queries, keys = (
        np.asarray(lengths[name], np.int64)[list(batch.examples)] for name in (site.query_sequence, site.key_sequence)
    )
    n_examples, n_rows = len(queries), int(queries.sum())
    yield n_examples * site.n_heads  # True for examples whose numbers are finite
    if spec.keep.attention is not None:
        yield site.n_heads * int(pair_offset(site, queries, keys, band)[-1])
    if spec.keep.edges:
        yield from (site.n_heads * n_rows * spec.keep.edges * item for item in (4, 2))
    if spec.keep.statistics:
        yield len(STATISTIC_NAMES) * n_examples * site.n_heads * 4
    if spec.keep.query_key is not None:
        yield site.n_heads * n_rows * 4  # logsumexp
        for n_heads, longest in ((site.n_heads, queries.max()), (site.n_kv_heads, keys.max())):
            yield n_examples * 4
            yield n_examples * n_heads * int(longest) * site.d_head * _VECTOR_BYTES[spec.keep.query_key]


def batch_results(spec: TraceSpec, batch: BatchPlan, lengths: Lengths) -> tuple[int, int]:
    """Return the bytes of all results of a batch on the device, and those of their copies in pinned memory."""
    exact = pinned = 0
    for site in spec.sites:
        for band, layers in site.bands.items():
            for n_bytes in layer_results(spec, site, band, batch, lengths):
                exact += len(layers) * n_bytes
                pinned += len(layers) * rounded_to_power_of_two(n_bytes)
    return exact, pinned


def rounded_to_power_of_two(n_bytes: int) -> int:
    """Return the size of the block in which PyTorch's allocator keeps so many bytes of pinned memory."""
    return 1 << max(0, n_bytes - 1).bit_length()
