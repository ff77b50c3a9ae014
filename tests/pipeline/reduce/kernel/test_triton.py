"""The Triton kernel, run by Triton's interpreter on the CPU: it stores what torch operations store."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.pipeline import reduce as reduce_package
from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
from headatlas.pipeline.capture.collector import TorchReduction, TraceCollector
from headatlas.pipeline.capture.eager import forwarding
from headatlas.pipeline.capture.kernel_agreement import check_agreement
from headatlas.pipeline.capture.sites import discover_sites
from headatlas.pipeline.reduce.fused_reduction import choose_reduction
from headatlas.pipeline.reduce.triton_reduction import TritonReduction
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, TraceSpec

interpreted = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install headatlas[gpu]"
)
LENGTHS = {"source": [6, 4, 1], "target": [3, 5, 2]}


@pytest.fixture(autouse=True)
def interpreter():
    """Import the kernel for the interpreter, and as it is written: Triton reads functions that nothing wraps."""
    name = "headatlas.pipeline.reduce.triton_kernel"
    if importlib.util.find_spec("triton") is not None and not hasattr(sys.modules.get(name), "_read_as_written"):
        path = Path(reduce_package.__path__[0]) / "triton_kernel.py"
        spec = importlib.util.spec_from_file_location(name, path)  # past the hook that checks annotations
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module._read_as_written = True
        reduce_package.triton_kernel = module


def agreement(name, model_of, inputs_of, keep=None, lengths=LENGTHS, **options):
    model, keep = model_of(name), keep or Keep()
    inputs = inputs_of(name, *lengths.values())
    probe = {key: values[:1, : 2 if key.startswith("decoder") else 3] for key, values in inputs.items()}
    sites = discover_sites(model, probe)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=STATISTIC_NAMES if keep.statistics else ())
    used = lengths if "decoder_input_ids" in inputs else {"source": lengths["source"]}
    special = {key: torch.arange(max(n))[None].expand(len(n), -1) % 3 == 0 for key, n in used.items()}
    reduction = TritonReduction(keep, spec.statistics)
    return check_agreement(model, sites, spec, ModelInputs(inputs, special), used, reduction), reduction


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes padding too
@pytest.mark.parametrize(
    "name",
    [
        "gpt-oss",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("bert", "modernbert", "mistral", "gemma2", "t5", "bart")),
    ],
)
def test_agrees_with_torch_operations(name, model_of, inputs_of):
    """Causal or not, grouped keys, window, soft cap, sinks, a learned bias, two sequences."""
    found, reduction = agreement(name, model_of, inputs_of)
    assert found.difference is None
    assert (reduction.n_fused > 0, reduction.n_torch) == (True, 0)


@interpreted
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "keep",
    [
        Keep(attention="linear8", query_key="bfloat16", edges=3),
        Keep(attention=None, query_key=None, edges=None),
        Keep(attention="sqrt7", query_key=None, edges=16, statistics=False),
    ],
    ids=str,
)
def test_keeps_what_is_asked_for(keep, model_of, inputs_of):
    found, reduction = agreement("llama", model_of, inputs_of, keep)
    assert found.difference is None
    assert reduction.n_fused > 0


@interpreted
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_longer_than_a_block_of_keys(model_of, inputs_of):
    found, _ = agreement("llama", model_of, inputs_of, lengths={"source": [67, 2], "target": [3, 3]})
    assert found.difference is None


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_kernel_that_differs_is_noticed(model_of, inputs_of, monkeypatch):
    from headatlas.pipeline.reduce import triton_kernel

    right = triton_kernel.reduce_on_device

    def wrong(call, wanted):
        return right(type(call)(**{**vars(call), "scaling": call.scaling * 1.5}), wanted)

    monkeypatch.setattr(triton_kernel, "reduce_on_device", wrong)
    found, _ = agreement("llama", model_of, inputs_of)
    assert found.difference is not None


def begun(reduction, model_of, inputs_of, name="llama"):
    """A collector over one batch, what runs its model, and the buffers it fills."""
    model, inputs = model_of(name), inputs_of(name, *LENGTHS.values())
    sites = discover_sites(model, {key: values[:1, :3] for key, values in inputs.items()})
    spec = TraceSpec(sites=sites.sites, keep=Keep(), statistics=STATISTIC_NAMES)
    buffers = SegmentBuffers(spec, {"source": np.array(LENGTHS["source"])})
    collector = TraceCollector(spec, sites, reduction)
    special = {"source": torch.zeros((3, 6), dtype=torch.bool)}
    return collector, lambda: forwarding(model, sites, collector), buffers, ModelInputs(inputs, special), model


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_traces_go_to_their_places_while_the_next_pass_runs(model_of, inputs_of):
    """A pass ends before they are there; they are when the block ends."""
    reduction, held = TritonReduction(Keep(), STATISTIC_NAMES), threading.Event()
    reduction._thread.submit(held.wait)
    collector, block, buffers, inputs, _ = begun(reduction, model_of, inputs_of)
    before = {name: array.copy() for name, array in buffers.arrays.items()}
    with torch.inference_mode(), block() as forward:
        collector.begin(buffers, range(3), inputs.special)
        forward(inputs)
        for name, array in buffers.arrays.items():
            np.testing.assert_array_equal(array, before[name])
        held.set()
    expected_of, torch_block, expected, inputs, _ = begun(None, model_of, inputs_of)
    with torch.inference_mode(), torch_block() as forward:
        expected_of.begin(expected, range(3), inputs.special)
        forward(inputs)
    assert np.abs(buffers.arrays["decoder/attention"].astype(int) - expected.arrays["decoder/attention"]).max() <= 1
    for name in ("decoder/query", "decoder/key", "decoder/edge_key"):
        np.testing.assert_array_equal(buffers.arrays[name], expected.arrays[name])


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_pass_that_was_given_up_leaves_nothing_behind(model_of, inputs_of):
    reduction = TritonReduction(Keep(), STATISTIC_NAMES)
    collector, block, buffers, inputs, model = begun(reduction, model_of, inputs_of)
    hook = model.layers[-1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError))
    with torch.inference_mode(), block() as forward:
        given_up = collector.begin(buffers, range(3), inputs.special)
        with pytest.raises(MemoryError):
            forward(inputs)
        hook.remove()
        with torch.no_grad():
            model.layers[0].self_attn.q_proj.weight.fill_(float("nan"))
        waiting = len(reduction._waiting)
        batch = collector.begin(buffers, range(3), inputs.special)
        forward(inputs)
    assert waiting > 0
    assert set(batch.failures) == {0, 1, 2}
    assert given_up.failures == {}


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_error_on_the_way_is_raised_when_the_block_ends(model_of, inputs_of, monkeypatch):
    reduction = TritonReduction(Keep(), STATISTIC_NAMES)
    collector, block, buffers, inputs, _ = begun(reduction, model_of, inputs_of)

    def store(*_):
        raise OSError("no place")

    monkeypatch.setattr(reduction._torch, "store_statistics", store)

    def run():
        with torch.inference_mode(), block() as forward:
            collector.begin(buffers, range(3), inputs.special)
            forward(inputs)

    with pytest.raises(OSError, match="no place"):
        run()


@interpreted
def test_it_compiles_for_gpus(repository):
    """To machine code, by the compiler that a GPU would be given it by; tensor cores where query and key are of half width.

    Triton keeps what it has compiled by a hash of the kernel's source, of its own version and of the options.
    """
    script = Path(__file__).with_name("compile_triton.py")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(repository / "build" / "triton")}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert len(report) == 8
    for name, binary in report.items():
        assert binary["elf"], name
        assert binary["shared"] <= 48 * 1024, name  # what every GPU gives a block
        assert binary["tensor_cores"] == ("float32" not in name), name


def test_a_gpu_is_served_by_triton_where_it_is_installed(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert isinstance(choose_reduction(Keep(), STATISTIC_NAMES, device), TritonReduction)
    assert isinstance(choose_reduction(Keep(attention="float16"), STATISTIC_NAMES, device), TorchReduction)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert isinstance(choose_reduction(Keep(), STATISTIC_NAMES, device), TorchReduction)
