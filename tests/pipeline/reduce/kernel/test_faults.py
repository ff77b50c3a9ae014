"""Faults of the GPU path, raised where a GPU would raise them: the store equals an undisturbed one, or says what it lacks."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from headatlas.pipeline.calls import device_arrays
from headatlas.pipeline.calls.batch import Batch
from headatlas.pipeline.calls.device_arrays import DeviceArrays
from headatlas.pipeline.calls.out_of_memory import is_out_of_memory
from headatlas.pipeline.calls.segment_buffers import SiteArrays
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job import job_runner, reduction_check
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.progress import BatchDone, BatchHalved, Stage
from headatlas.pipeline.reduce import torch_reduction
from headatlas.pipeline.reduce.torch_reduction import TorchReduction
from headatlas.pipeline.reduce.triton_reduction import TritonReduction
from headatlas.pipeline.tokens import model_inputs
from headatlas.store.errors import HeadAtlasError
from headatlas.store.store import open_store

pytestmark = [
    pytest.mark.usefixtures("triton_gpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install headatlas[gpu]"
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter computes padding too
]

OUT_OF_MEMORY = {
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"),
    "pinned": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "driver": RuntimeError("CUDA driver error: out of memory"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cublas handle": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
    "hip": RuntimeError("HIP error: hipErrorOutOfMemory"),
    "xpu": RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    "host": MemoryError("Unable to allocate 512. MiB for an array with shape (64, 1048576)"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "errno": OSError(12, "Cannot allocate memory"),
}
CHECK = job_runner.check_job
NOT_MEMORY = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    OSError(28, "No space left on device"),
    ValueError("out"),
]


def job_on_kernel(tiny_job, monkeypatch, name, checked=False):
    """Return a job of four examples in two batches whose kernel is Triton's, and the reductions that it makes."""
    reductions = []

    def choose(keep, statistics, device=None, capture="interface"):
        reductions.append(TritonReduction(keep, statistics))
        return reductions[-1]

    def unchecked(job, *_):
        return choose(job.spec.keep, job.spec.statistics, job.loaded.model.device), "Triton kernel"

    if checked:
        monkeypatch.setattr(reduction_check, "choose_reduction", choose)
        monkeypatch.setattr(job_runner, "check_job", CHECK)
    else:  # the interpreter is slow
        monkeypatch.setattr(job_runner, "check_job", unchecked)
    document = {
        **tiny_job,
        "model": {**tiny_job["model"], "device": "cuda", "dtype": "float32"},
        "corpus": {**tiny_job["corpus"], "max_examples": 4},
        "keep": {"edges": 2},
        "store": {**tiny_job["store"], "path": tiny_job["store"]["path"] + name},
        "run": {"batch_size": 2, "threads": 1},
    }
    return parse_config(document), reductions


def arrays_of(path):
    return {
        entry.path: segment.read(entry.path)
        for segment in open_store(path).segments
        for entry in segment.listing.arrays
    }


def check_same(path, expected):
    """Check that a store holds the numbers of an undisturbed one, up to rounding of batches of another size."""
    arrays = arrays_of(path)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        if name == "encoder/attention":
            assert np.abs(arrays[name].astype(int) - array).max() <= 1, name
        elif array.dtype.kind == "f":
            np.testing.assert_allclose(arrays[name].astype(float), array.astype(float), rtol=2e-3, atol=2e-3)
        elif name != "encoder/edge_key":  # ties
            np.testing.assert_array_equal(arrays[name], array)


_UNDISTURBED = {}


@pytest.fixture
def undisturbed(tiny_job, monkeypatch):
    if not _UNDISTURBED:
        config, _ = job_on_kernel(tiny_job, monkeypatch, "-undisturbed")
        run_job(config)
        _UNDISTURBED.update(arrays_of(config.store.path))
    return _UNDISTURBED


def fail_at(monkeypatch, owner, name, call, error):
    """Make one call of a function fail. Return a list with one entry for each call."""
    original = getattr(owner, name)
    calls = []

    def wrapped(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)
    return calls


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_want_of_memory_is_recognised_in_the_words_of_every_library(kind):
    assert is_out_of_memory(OUT_OF_MEMORY[kind])


@pytest.mark.parametrize("error", NOT_MEMORY, ids=str)
def test_other_errors_are_not_want_of_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("owner", "name", "kind"),
    [
        (TritonReduction, "_launch", "triton"),
        (TorchReduction, "store_statistics", "device"),
        (torch_reduction, "place_vectors", "pinned"),
        (Batch, "shape", "pinned"),
        (Batch, "end_pass", "pinned"),
        (model_inputs, "to_device", "pinned"),
    ],
)
def test_want_of_memory_in_every_place_halves_the_batch(tiny_job, monkeypatch, undisturbed, owner, name, kind):
    config, _ = job_on_kernel(tiny_job, monkeypatch, "-place")
    original_run = job_runner.SegmentRun.start

    def start(self, *arguments):
        fail_at(monkeypatch, owner, name, 2, OUT_OF_MEMORY[kind])
        original_run(self, *arguments)

    monkeypatch.setattr(job_runner.SegmentRun, "start", start)
    events = []
    run_job(config, events.append)
    assert [event.n_examples for event in events if isinstance(event, BatchHalved)] == [2]
    assert sum(event.n_examples for event in events if isinstance(event, BatchDone)) == 4
    check_same(config.store.path, undisturbed)


def test_an_error_of_a_copy_ends_the_job(tiny_job, monkeypatch):
    config, _ = job_on_kernel(tiny_job, monkeypatch, "-ended")
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    fail_at(monkeypatch, DeviceArrays, "wait", 1, error)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_job(config)
    assert not open_store(config.store.path).segments


def test_a_segment_that_does_not_fit_the_device_is_copied_by_layer(tiny_job, monkeypatch, undisturbed):
    config, _ = job_on_kernel(tiny_job, monkeypatch, "-layers")
    whole = []
    original = DeviceArrays.__init__

    def record(self, *arguments):
        original(self, *arguments)
        whole.append(not self.by_layer)

    monkeypatch.setattr(DeviceArrays, "__init__", record)
    monkeypatch.setattr(device_arrays, "_SHARE_OF_MEMORY", 1 << 60)
    run_job(config)
    assert whole == [False]
    check_same(config.store.path, undisturbed)


def test_want_of_memory_for_a_segment_leads_to_copies_by_layer(tiny_job, monkeypatch, undisturbed):
    config, _ = job_on_kernel(tiny_job, monkeypatch, "-segment")
    original = device_arrays._allocate
    n_failures = []

    def allocate(n_bytes, device, is_pinned):
        if device is not None and not n_failures:
            n_failures.append(n_bytes)
            raise OUT_OF_MEMORY["device"]
        return original(n_bytes, device, is_pinned)

    monkeypatch.setattr(device_arrays, "_allocate", allocate)
    run_job(config)
    assert n_failures
    check_same(config.store.path, undisturbed)


def test_a_single_example_without_memory_is_run_again_by_layer(tiny_job, monkeypatch, undisturbed):
    config, _ = job_on_kernel(tiny_job, monkeypatch, "-single")
    original, n_failures = TritonReduction._launch, []

    def launch(self, call, site, layer, batch, *arguments):
        if layer == 1 and len(n_failures) < 2:  # of two examples, then of one
            n_failures.append(layer)
            raise OUT_OF_MEMORY["device"]
        return original(self, call, site, layer, batch, *arguments)

    monkeypatch.setattr(TritonReduction, "_launch", launch)
    run_job(config)
    assert len(n_failures) == 2
    check_same(config.store.path, undisturbed)


def cannot_run(kind):
    from triton.runtime.errors import OutOfResources

    return {
        "shared memory": OutOfResources(147456, 101376, "shared memory"),
        "no compiler": RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        "no driver": RuntimeError("0 active drivers ([]). There should only be one."),
        "launch": RuntimeError("Triton Error [CUDA]: invalid device function"),
        "import": ImportError("libcuda.so.1: cannot open shared object file"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "call"),
    [("shared memory", 1), ("no compiler", 1), ("no driver", 1), ("launch", 1), ("import", 1), ("shared memory", 3)],
)
def test_a_kernel_that_cannot_run_is_replaced_by_torch_operations(tiny_job, monkeypatch, undisturbed, kind, call):
    config, reductions = job_on_kernel(tiny_job, monkeypatch, "-cannot", checked=call == 1)
    fail_at(monkeypatch, TritonReduction, "_launch", call, cannot_run(kind))
    events = []
    run_job(config, events.append)
    check_same(config.store.path, undisturbed)
    texts = [event.text for event in events if isinstance(event, Stage) and "cannot run on this device" in event.text]
    assert len(texts) == 1
    assert str(cannot_run(kind)).splitlines()[0] in texts[0]
    notes = open_store(config.store.path).manifest.provenance["reduction"]
    assert any("torch operations, because the Triton kernel cannot run" in note for note in notes)
    assert reductions[0].problem is not None


def test_a_map_that_was_not_written_is_not_committed(tiny_job, monkeypatch):
    config, _ = job_on_kernel(tiny_job, monkeypatch, "-lost")
    original, calls = SiteArrays.mark_filled, []

    def mark(self, layer, placement):
        calls.append(layer)
        if len(calls) > 1:
            original(self, layer, placement)

    monkeypatch.setattr(SiteArrays, "mark_filled", mark)
    with pytest.raises(HeadAtlasError, match="were not computed"):
        run_job(config)
    assert not open_store(config.store.path).segments


def test_padding_that_overflows_rejects_no_example(tiny_job, monkeypatch):
    config, _ = job_on_kernel(tiny_job, monkeypatch, "-padding")
    original = torch_reduction.place_vectors

    def with_infinite_padding(call, site, layer, batch, arrays, codec):
        query, key = call.query.clone(), call.key.clone()  # the model goes on with its own numbers
        for row, n in enumerate(batch.placements[site.name].n_queries):
            query[row, :, n:] = key[row, :, n:] = float("inf")
        original(replace(call, query=query, key=key), site, layer, batch, arrays, codec)

    monkeypatch.setattr(torch_reduction, "place_vectors", with_infinite_padding)
    assert run_job(config).n_skipped == 0
