"""Projections count every array. Projected memory is that of this process plus that of the job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.pipeline.job.resources import machine as machine_module
from headatlas.pipeline.job.resources.device_memory import CONTEXT_BYTES, rounded_to_power_of_two
from headatlas.pipeline.job.resources.job_projection import (
    FIRST_USE_BYTES,
    DeviceUse,
    FixedMemory,
    JobProjection,
    ModelShape,
    project,
)
from headatlas.pipeline.job.resources.machine import Machine, describe_accelerator, read_machine, resident_bytes
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
    block = np.ones(256 << 20, np.uint8)  # far more than the system takes back at the same time
    assert resident_bytes() - base_bytes > 192 << 20
    del block


LLAMA = Site(
    name="decoder",
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    d_head=128,
    causal=True,
    scaling=(128**-0.5,) * 32,
    softcap=(None,) * 32,
    window=(None,) * 32,
)
LLAMA_SHAPE = ModelShape(weight_bytes=15 << 30, hidden_size=4096, intermediate_size=14336, element_bytes=2)
H100 = Machine("cuda:0", "NVIDIA H100", 80 << 30, 256 << 30, 1 << 40)


def llama_projection(
    device: DeviceUse = "kernel",
    n_tokens=(4096,),
    max_tokens=16_384,
    seconds_per_token=None,
    device_bytes=80 << 30,
    **keep,
) -> JobProjection:
    spec = TraceSpec(sites=(LLAMA,), keep=Keep(**keep), statistics=("entropy",))
    counts = {"source": np.asarray(n_tokens)}
    segments = plan_segments(spec, counts, 1024, 256 << 20)
    limits = BatchLimits(max_tokens=max_tokens)
    fixed = FixedMemory(process_bytes=0, tile_bytes=64 << 20, check_bytes=0)
    return project(spec, counts, segments, limits, LLAMA_SHAPE, fixed, seconds_per_token, device, device_bytes)


def test_memory_of_a_gpu_is_planned_apart_from_that_of_the_host():
    """Check the codes of one text of 4,096 tokens, 8.6 GB: on the device, and rounded to a power of two on the host."""
    codes = 32 * 32 * 4096 * 4097 // 2
    projection = llama_projection(edges=None, query_key=None, statistics=False)
    assert codes == projection.raw_bytes == 8_592_031_744
    assert projection.device_memory["segments"] == 2 * (codes + codes // 8)  # an eighth of reserve, two segments
    assert projection.pinned_bytes == 2 * 2**34  # 9.7 GB become 16 GiB
    assert projection.device_memory["model"] == LLAMA_SHAPE.weight_bytes
    assert projection.device_memory["libraries"] == CONTEXT_BYTES
    assert "activations" not in projection.memory
    assert projection.memory["segments"] == 0
    assert projection.peak_bytes == sum(projection.memory.values()) + projection.pinned_bytes
    on_host = llama_projection("none", edges=None, query_key=None, statistics=False)
    assert (on_host.device_memory, on_host.pinned_bytes) == ({}, 0)
    assert on_host.memory["activations"] == projection.device_memory["activations"]
    by_torch = llama_projection("torch", edges=None, query_key=None, statistics=False)
    assert by_torch.device_memory["tiles"] == 8 * (64 << 20)
    small_gpu = llama_projection(edges=None, query_key=None, statistics=False, device_bytes=24 << 30)
    layer = codes // 32  # a segment that is large beside the memory is held layer by layer, two at a time
    assert small_gpu.device_memory["segments"] == 2 * 2 * (layer + layer // 8)
    assert [rounded_to_power_of_two(n) for n in (1, 2, 3, 512, 513)] == [1, 2, 4, 512, 1024]


def test_a_sparse_codec_has_slots_on_the_device():
    sparse = llama_projection("torch", attention="top_k:16", query_key=None, edges=None, statistics=False)
    slots = 32 * 32 * 4096 * 16 * (1 + 2)  # a code and a key
    rows = 32 * 32 * 4096
    assert slots + rows < sparse.device_memory["segments"] / 2 / 1.125 <= slots + 4 * rows  # count and dropped mass


def test_what_exceeds_a_machine_is_said_with_advice():
    assert llama_projection().limits(H100) == ()
    four_texts = llama_projection(n_tokens=(4096,) * 4, device_bytes=24 << 30)
    (device,) = four_texts.limits(Machine("cuda:1", "RTX 4090", 18 << 30, 256 << 30, 1 << 40))
    assert device.startswith("cuda:1 (RTX 4090) has 19.3 GB for the job, which may need ")
    assert device.endswith("lower run.max_batch_tokens to avoid that.")
    (device,) = llama_projection().limits(Machine("cuda:0", "T4", 15 << 30, 256 << 30, 1 << 40))
    assert "model.dtype" in device
    (host,) = llama_projection().limits(Machine("cuda:0", "H100", 80 << 30, 16 << 30, 1 << 40))
    assert host.startswith("the host has 17.2 GB of memory for the job, which may need ")
    assert llama_projection().limits(Machine()) == ()  # nothing is known


@pytest.mark.parametrize(("free", "seconds"), [(4 << 30, None), (1 << 40, 1e-3)])
def test_a_disk_that_limits_the_job_is_said_with_the_preset_long(free, seconds):
    """Check too little free space, and a device that computes 4,096 tokens in 4 s and would wait for the disk."""
    machine = Machine("cuda:0", "NVIDIA H100", 80 << 30, 256 << 30, free)
    (sentence,) = llama_projection(seconds_per_token=seconds).limits(machine)
    assert ("the disk is the limit" in sentence) == (seconds is not None)
    assert 'keep.preset = "long" stores about 1.' in sentence
    assert llama_projection(seconds_per_token=seconds, attention=None).limits(machine) == ()


def test_the_preset_long_is_not_proposed_if_attention_cannot_be_rebuilt():
    machine = Machine(disk_bytes=1000)
    biased = LLAMA.model_copy(update={"has_position_bias": True})
    spec = TraceSpec(sites=(biased,), keep=Keep(), statistics=("entropy",))
    counts = {"source": np.asarray([512])}
    fixed = FixedMemory(0, 0, 0)
    projection = project(spec, counts, plan_segments(spec, counts, 8, 1 << 30), BatchLimits(), SHAPE, fixed)
    (sentence,) = projection.limits(machine)
    assert "keep.preset" not in sentence
    assert sentence.endswith("Keep less, or free space.")


def test_this_machine_is_read(tmp_path):
    machine = read_machine(torch.device("cpu"), tmp_path / "not" / "yet")
    assert (machine.device, machine.device_bytes) == ("cpu", None)
    assert machine.disk_bytes is not None
    assert machine.disk_bytes > 0
    assert machine.host_bytes is None or resident_bytes() < machine.host_bytes < 1 << 50
    assert describe_accelerator(torch.device("cpu")) == {}


def test_the_limit_of_a_control_group_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_module, "_GROUP_FOLDER", tmp_path)
    free = read_machine(torch.device("cpu"), tmp_path).host_bytes
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert read_machine(torch.device("cpu"), tmp_path).host_bytes == pytest.approx(free, rel=0.2)
    (tmp_path / "memory.max").write_text("1073741824\n", encoding="ascii")
    assert read_machine(torch.device("cpu"), tmp_path).host_bytes == 1 << 30


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86  Release Build  (b@c)", "570.86"),
        ("NVRM version: unknown", None),
    ],
)
def test_the_version_of_the_driver_is_read_from_the_kernel(line, version, tmp_path, monkeypatch):
    path = tmp_path / "version"
    path.write_text(f"{line}\nGCC version:  gcc version 12.2.0 \n" if version else line, encoding="ascii")
    monkeypatch.setattr(machine_module, "_DRIVER_FILE", path)
    assert machine_module._driver_version() == version
