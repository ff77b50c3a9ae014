"""Test that the Triton kernel on a GPU captures the demo's first sentences with the traces of the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.store.store import Store, open_store

ROOT = Path(__file__).resolve().parents[3]


def capture_demo(device: str, dtype: str, folder: Path) -> Store:
    """Run the capture in a separate process, in which Triton compiles instead of interpreting."""
    out = folder / f"{device}-{dtype}"
    job = ["run", "configs/demo.toml", "--out", str(out), "--max-examples", "96", "--json"]
    changes = [f"--set=model.device={device}", f"--set=model.dtype={dtype}", "--set=store.segment_examples=40"]
    command = [sys.executable, "-m", "headatlas.store.commands.main", *job, *changes]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr[-2000:]
    assert json.loads(process.stdout)
    return open_store(out)


def check_same(store: Store, expected: Store, n_codes: int, atol: float) -> None:
    """Check that attention codes differ by at most `n_codes`, and statistics by at most `atol`."""
    assert store.example_ids() == expected.example_ids()
    for segment, expected_segment in zip(store.segments, expected.segments, strict=True):
        codes, expected_codes = (s.read("encoder/attention").astype(np.int16) for s in (segment, expected_segment))
        assert np.abs(codes - expected_codes).max() <= n_codes
        np.testing.assert_allclose(
            segment.read("encoder/statistics"), expected_segment.read("encoder/statistics"), atol=atol
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize(("dtype", "n_codes", "atol"), [("float32", 1, 0.005), ("bfloat16", 12, 0.15)])
def test_traces_are_those_of_the_cpu(dtype, n_codes, atol, tmp_path):
    on_gpu = capture_demo("cuda", dtype, tmp_path)
    assert on_gpu.manifest.provenance["device"].startswith("cuda")
    assert on_gpu.manifest.provenance["reduction"] == ["Triton kernel, 6 of 6 layers"]
    check_same(on_gpu, capture_demo("cpu", "float32", tmp_path), n_codes, atol)
