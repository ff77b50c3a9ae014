"""Order of copies and reads on the pretend GPU, over whole jobs: no host buffer is read or reused before its copy."""

import contextlib
import threading

import numpy as np
import pytest

from headatlas.pipeline.calls import batch, device_arrays
from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job import job_runner
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.reduce.torch_reduction import TorchReduction
from headatlas.store.errors import HeadAtlasError
from headatlas.store.store import open_store

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def job(tiny_job, monkeypatch, device, name):
    """Return a job of five segments, reduced by torch operations."""

    def unchecked(job, *_):
        return TorchReduction(job.spec.keep, job.spec.statistics), "torch operations"

    monkeypatch.setattr(job_runner, "check_job", unchecked)
    document = {
        **tiny_job,
        "model": {**tiny_job["model"], "device": device, "dtype": "float32"},
        "store": {**tiny_job["store"], "path": tiny_job["store"]["path"] + name},
        "keep": {"edges": 2},
    }
    return parse_config(document)


def arrays_of(path):
    return [
        {entry.path: segment.read(entry.path) for entry in segment.listing.arrays}
        for segment in open_store(path).segments
    ]


def largest_difference(path, expected):
    """Return the largest difference of any array, infinite if arrays are missing or have other shapes."""
    largest, segments = 0.0, arrays_of(path)
    if len(segments) != len(expected):
        return np.inf
    for arrays, expected_arrays in zip(segments, expected, strict=True):
        for name, array in expected_arrays.items():
            if arrays[name].shape != array.shape:
                return np.inf
            if array.dtype.kind in "uif" and array.size and name != "encoder/edge_key":
                difference = np.nan_to_num(np.abs(arrays[name].astype(float) - array.astype(float)), nan=0.0)
                largest = max(largest, float(difference.max()))
    return largest


@pytest.fixture
def expected(tiny_job, monkeypatch):
    config = job(tiny_job, monkeypatch, "cpu", "-cpu")
    run_job(config)
    return arrays_of(config.store.path)


@pytest.fixture
def device_job(tiny_job, monkeypatch, expected, gpu):
    return job(tiny_job, monkeypatch, "cuda", "-cuda")


@pytest.mark.parametrize("is_by_layer", [False, True])
def test_a_job_waits_for_its_copies(device_job, expected, monkeypatch, is_by_layer):
    """Copies on the pretend GPU arrive as late as possible, so a read without a wait would find other numbers."""
    if is_by_layer:
        monkeypatch.setattr(device_arrays, "_SHARE_OF_MEMORY", 1 << 60)
    run_job(device_job)
    assert largest_difference(device_job.store.path, expected) <= 1  # codes; rounding


@pytest.mark.parametrize("is_by_layer", [False, True])
def test_the_check_fails_without_the_wait_for_the_segment(device_job, expected, monkeypatch, is_by_layer):
    if is_by_layer:
        monkeypatch.setattr(device_arrays, "_SHARE_OF_MEMORY", 1 << 60)
    monkeypatch.setattr(device_arrays.DeviceArrays, "wait", lambda self: None)
    run_job(device_job)
    assert largest_difference(device_job.store.path, expected) > 1


@pytest.mark.parametrize("waits", [True, False])
def test_a_layer_waits_for_the_copy_of_the_one_before_in_its_memory(device_job, expected, monkeypatch, waits):
    allocate = device_arrays.DeviceArrays._allocate
    monkeypatch.setattr(device_arrays, "_SHARE_OF_MEMORY", 1 << 60)
    monkeypatch.setattr(device_arrays.DeviceArrays, "_allocate", lambda self: allocate(self)[:1])
    if not waits:
        monkeypatch.setattr(device_arrays.DeviceArrays, "start_layer", lambda self, layer: 0)
    run_job(device_job)
    difference = largest_difference(device_job.store.path, expected)
    assert difference <= 1 if waits else difference > 1


def test_the_check_fails_without_the_wait_for_the_verdicts(device_job, monkeypatch):
    monkeypatch.setattr(batch.Batch, "settle", without_wait(batch.Batch.settle))
    is_complete = False
    with contextlib.suppress(HeadAtlasError):
        is_complete = run_job(device_job).n_skipped == 0
    assert not is_complete, "verdicts that were not copied look like those of examples without a fault"


def without_wait(settle):
    def settle_early(self):
        self._copied = None
        settle(self)

    return settle_early


@pytest.mark.parametrize("waits", [True, False])
def test_memory_is_reused_after_its_segment_is_written(device_job, expected, monkeypatch, gpu, waits):
    """A slow disk: the third segment needs the memory of the first, which is still being written."""
    gpu.copies_at_once = True
    write_segment, start_copy = job_runner.write_segment, SegmentBuffers.start_copy
    allocate = device_arrays._allocate
    monkeypatch.setattr(device_arrays, "_allocate", lambda n_bytes, *options: allocate(max(n_bytes, 1 << 20), *options))
    third_is_copied, copies = threading.Event(), []

    def write(writer, computed):
        third_is_copied.wait(0.2 if waits else 60)
        return write_segment(writer, computed)

    def copy(self):
        start_copy(self)
        copies.append(self)
        if len(copies) >= 3:
            third_is_copied.set()

    monkeypatch.setattr(job_runner, "write_segment", write)
    monkeypatch.setattr(SegmentBuffers, "start_copy", copy)
    if not waits:
        monkeypatch.setattr(job_runner._WriteQueue, "wait", lambda self, memory: None)
    run_job(device_job)
    difference = largest_difference(device_job.store.path, expected)
    assert difference <= 1 if waits else difference > 1
