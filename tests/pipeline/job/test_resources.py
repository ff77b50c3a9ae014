"""Projections count every array. Projected memory is that of this process plus that of the job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headatlas.pipeline.job.process_memory import resident_bytes
from headatlas.pipeline.job.resources import FIRST_USE_BYTES, FixedMemory, ModelShape, project
from headatlas.pipeline.tokens.batch_plan import BatchLimits, plan_segments
from headatlas.store.schema.example_sizes import example_bytes
from headatlas.store.schema.traces import Keep, Site, TraceSpec

COUNTS = {"source": np.asarray([10, 20, 30])}
SHAPE = ModelShape(weight_bytes=1000, hidden_size=32, intermediate_size=64, element_bytes=4)


def make_spec(**keep):
    site = Site(
        name="decoder",
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_head=8,
        causal=True,
        scaling=(1.0, 1.0),
        softcap=(None, None),
        window=(None, 3),
    )
    return TraceSpec(sites=(site,), keep=Keep(**keep), statistics=("entropy", "first"))


def projection_of(spec, seconds_per_token=None, process_bytes=0):
    segments = plan_segments(spec, COUNTS, 2, 1 << 30)
    return project(spec, COUNTS, segments, BatchLimits(), SHAPE, FixedMemory(process_bytes, 4096, 0), seconds_per_token)


def test_projection_counts_bytes_by_array():
    spec = make_spec()
    projection = projection_of(spec, seconds_per_token=0.5)
    by_path = {array.path: array.raw_bytes for array in projection.arrays}
    assert by_path["decoder/attention"] == 4 * (55 + 210 + 465)
    assert by_path["decoder/attention_window_3"] == 4 * sum(6 + 3 * (n - 3) for n in COUNTS["source"])
    assert by_path["decoder/query"] == 2 * 4 * 60 * 8 * 2
    assert by_path["decoder/key"] == 2 * 2 * 60 * 8 * 2
    assert by_path["decoder/statistics"] == 2 * 2 * 4 * 3 * 4
    assert projection.raw_bytes == example_bytes(spec, COUNTS).sum()
    assert projection.stored_bytes <= projection.raw_bytes
    assert projection.n_segments == 2
    assert projection.time_s == pytest.approx(30.0)
    assert projection.peak_bytes > 1000


def test_only_a_threshold_is_expected_to_keep_less_than_it_may():
    stored = {
        codec: {array.path: array for array in projection_of(make_spec(attention=codec)).arrays}
        for codec in ("top_k:16", "threshold:0.06")  # at most 16 weights a row, both
    }
    for name in ("decoder/attention", "decoder/attention_key"):
        strongest, threshold = (stored[codec][name] for codec in stored)
        assert strongest.is_estimate
        assert threshold.raw_bytes == strongest.raw_bytes
        assert threshold.stored_bytes < strongest.stored_bytes / 2
    assert not stored["top_k:16"]["decoder/edge_key"].is_estimate


def test_memory_begins_with_that_of_the_process():
    small, large = (projection_of(make_spec(), process_bytes=n) for n in (0, 500 << 20))
    assert large.peak_bytes - small.peak_bytes == 500 << 20
    assert small.memory["process"] == FIRST_USE_BYTES


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_of_the_process_is_measured():
    base_bytes = resident_bytes()
    block = np.ones(64 << 20, np.uint8)
    assert resident_bytes() - base_bytes > 48 << 20
    del block
