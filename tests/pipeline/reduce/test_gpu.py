"""The demo's first sentences, captured on a GPU by the Triton kernel: the same traces as on the CPU."""

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


def captured(device: str, dtype: str, folder: Path) -> Store:
    """By a process of its own: Triton must compile there what it interprets here."""
    out = folder / f"{device}-{dtype}"
    job = ["run", "configs/demo.toml", "--out", str(out), "--max-examples", "96", "--json"]
    changes = [f"--set=model.device={device}", f"--set=model.dtype={dtype}", "--set=store.segment_examples=40"]
    command = [sys.executable, "-m", "headatlas.store.commands.main", *job, *changes]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)
    return open_store(out)


def check_same(found: Store, expected: Store, n_codes: int, atol: float) -> None:
    """Codes of attention differ by at most `n_codes`, statistics by `atol`."""
    assert found.example_ids() == expected.example_ids()
    for mine, theirs in zip(found.segments, expected.segments, strict=True):
        codes, wanted = (segment.read("encoder/attention").astype(np.int16) for segment in (mine, theirs))
        assert np.abs(codes - wanted).max() <= n_codes
        np.testing.assert_allclose(mine.read("encoder/statistics"), theirs.read("encoder/statistics"), atol=atol)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize(("dtype", "n_codes", "atol"), [("float32", 1, 0.005), ("bfloat16", 12, 0.15)])
def test_traces_are_those_of_the_cpu(dtype, n_codes, atol, tmp_path):
    on_gpu = captured("cuda", dtype, tmp_path)
    assert on_gpu.manifest.provenance["device"].startswith("cuda")
    assert on_gpu.manifest.provenance["reduction"] == ["Triton kernel, 6 of 6 layers"]
    check_same(on_gpu, captured("cpu", "float32", tmp_path), n_codes, atol)
