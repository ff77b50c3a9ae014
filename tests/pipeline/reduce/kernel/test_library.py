"""Tests of loading the kernel, of the explanation if there is none, and of an install without a compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headatlas.pipeline.reduce import kernel
from headatlas.pipeline.reduce.kernel import Library, load
from headatlas.pipeline.reduce.kernel import library as library_module
from headatlas.store.errors import ConfigError


@pytest.fixture
def no_kernel(monkeypatch):
    monkeypatch.setattr(library_module, "installed_path", lambda: None)
    library_module._installed.cache_clear()
    yield
    library_module._installed.cache_clear()


@pytest.mark.usefixtures("no_kernel")
def test_without_a_kernel_it_says_what_serves_and_why():
    import torch

    assert kernel.available() is None
    assert (
        kernel.explain()
        == "torch operations, without the fused kernel: it was not compiled; install a C++ compiler, then headatlas again"
    )
    inputs = kernel.AttentionInputs(*[torch.zeros(1, 1, 2, 8)] * 3, scaling=1.0)
    with pytest.raises(ConfigError, match=r"there is no fused kernel .*not compiled"):
        kernel.prepare_attention(inputs, kernel.BatchPlacement([2], causal=True))


def test_a_file_that_is_no_library_is_explained(monkeypatch, tmp_path):
    broken = tmp_path / "_attention.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(library_module, "installed_path", lambda: broken)
    library_module._installed.cache_clear()
    try:
        assert kernel.available() is None
        assert "does not load" in kernel.explain()
    finally:
        library_module._installed.cache_clear()


def test_an_installed_kernel_says_its_instructions(monkeypatch, library):
    monkeypatch.setattr(library_module, "installed_path", lambda: library.path)
    library_module._installed.cache_clear()
    try:
        assert kernel.available() == library.instructions[-1]
        assert kernel.explain() == f"fused kernel, {library.instructions[-1]}"
    finally:
        library_module._installed.cache_clear()


def test_another_version_of_the_source_is_refused(monkeypatch, library):
    shorter = type("Call", (library_module.ctypes.Structure,), {"_fields_": library_module.Call._fields_[:-1]})
    monkeypatch.setattr(library_module, "Call", shorter)
    with pytest.raises(ConfigError, match="another version"):
        load(library.path)


def test_a_kernel_of_other_statistics_is_refused(monkeypatch, library):
    monkeypatch.setattr(library_module, "STATISTIC_NAMES", ("distance", "entropy"))
    with pytest.raises(ConfigError, match=r"statistics entropy, distance, maximum.*expected distance, entropy"):
        load(library.path)


def test_plain_instructions_always_work(library: Library):
    assert library.instructions[0] == "plain"


def test_a_forked_child_can_use_threads(library: Library):
    code = f"""
import os, torch
from pathlib import Path
from headatlas.pipeline.reduce.kernel import AttentionInputs, BatchPlacement, Execution, load, prepare_attention
torch.set_num_threads(1)
library = load(Path({str(library.path)!r}))
inputs = AttentionInputs(*[torch.ones(4, 2, 9, 8)] * 3, scaling=1.0)
run = prepare_attention(inputs, BatchPlacement([9] * 4, causal=True), execution=Execution(3, library=library)).run
expected = run()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(run(), expected) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr


def test_no_compiler_leaves_the_kernel_out_and_goes_on(tmp_path):
    root = Path(__file__).parents[4]
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        str(tmp_path / "lib"),
        "--build-temp",
        str(tmp_path),
    ]
    environment = os.environ | {"CC": "/nowhere/cc", "CXX": "/nowhere/c++"}
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert not list(tmp_path.rglob("_attention*.so"))
