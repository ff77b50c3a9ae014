"""Test that the launches of the Triton kernel compile for GPUs that may be absent, and fit them."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headatlas.pipeline.reduce.device_call import DeviceLimits, choose_block_sizes

DEVICES = ("sm_75", "sm_80", "sm_86", "sm_90", "gfx942")
SAMPLE = (
    "everything,bfloat16,128,sm_90",
    "everything,bfloat16,256,sm_86",
    "everything,float32,64,sm_75",
    "terms,float16,64,gfx942",
)
ALL = (
    *(
        f"everything,{dtype},{d_head},{device}"
        for dtype, d_head, device in itertools.product(("bfloat16", "float16", "float32"), (64, 128, 256), DEVICES)
    ),
    *(
        f"{variant},bfloat16,128,{device}"
        for variant, device in itertools.product(("terms", "short", "edges", "logsumexp"), DEVICES)
    ),
    *(f"everything,bfloat16,{d_head},sm_90" for d_head in (80, 512)),
)
SIZES = ("bias_00", "bias_01", "bias_02", "n_pairs", "n_rows_all", "n_examples", "longest_key")
STRIDES = ("query_0", "query_1", "query_2", "key_0", "key_1", "key_2")


def compile_cases(repository: Path, *cases: str) -> dict[str, dict]:
    """Compile in a process in which Triton does not interpret. Triton caches machine code by source and options."""
    script = Path(__file__).with_name("compile_triton.py")
    folder = str(repository / "build" / "triton")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": folder}
    command = [sys.executable, script, *cases]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


@pytest.mark.usefixtures("triton_kernel")
@pytest.mark.parametrize("cases", [SAMPLE, pytest.param(ALL, marks=pytest.mark.slow)], ids=["sample", "all"])
def test_what_is_launched_compiles_and_fits(cases, repository):
    """Compile the arguments that `prepare_launch` gives to the launch. They decide types and alignment as well."""
    report = compile_cases(repository, *cases)
    assert list(report) == list(cases)
    for name, binary in report.items():
        _, dtype, _, device = name.split(",")
        print(f"{name}: {binary['registers']} registers, {binary['shared']} bytes shared, {binary['spilled']} spilled")
        assert binary["spilled"] == 0, name
        assert binary["shared"] <= binary["shared_limit"], name
        has_matrix_units = device != "sm_75" and (dtype != "float32" or device == "gfx942")
        assert binary["matrix_units"] == has_matrix_units, name
        assert binary["types"]["n_keys_ptr"] == "*i64"  # lengths of a batch come from numpy
        assert {binary["types"][argument] for argument in SIZES + STRIDES} == {"i64"}, name


@pytest.mark.parametrize("shared_kib", [48, 64, 99, 163, 227])
@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("has_tensor_cores", [True, False])
def test_block_sizes_fit_every_shared_memory(shared_kib, element_bytes, has_tensor_cores):
    limits = DeviceLimits(shared_kib * 1024, has_tensor_cores)
    for d_head, n_edges, n_biases in itertools.product((8, 64, 80, 128, 256, 512, 1024), (0, 8, 64), (0, 2)):
        blocks = choose_block_sizes(element_bytes, d_head, n_edges, n_biases, 4096, limits)
        n_bytes = element_bytes * blocks.depth * (blocks.queries + blocks.n_stages * blocks.keys)
        assert n_bytes <= limits.shared_bytes
        assert blocks.queries == 64 or (n_edges, n_biases) in {(0, 0), (8, 0)}


def test_short_texts_use_small_blocks():
    limits = DeviceLimits(227 * 1024, has_tensor_cores=True)
    assert choose_block_sizes(2, 64, 8, 0, 128, limits).queries == 128
    assert choose_block_sizes(2, 64, 8, 0, 64, limits).queries == 64
