"""Script that compiles the launches of given Triton calls for GPUs that may be absent, and prints properties as JSON.

It needs a process of its own, because the tests run the kernel in Triton's interpreter, which is chosen at import.
`prepare_launch` gives the arguments, as it does for a launch: types, constants, alignment and options are the same.
Arguments: names of cases, such as `everything,bfloat16,128,sm_90`.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from headatlas.pipeline.reduce import triton_kernel
from headatlas.pipeline.reduce.device_call import DeviceCall, DeviceLimits, DeviceRequest

KIB = 1024
DEVICES = {
    "sm_75": (GPUTarget("cuda", 75, 32), DeviceLimits(64 * KIB, has_tensor_cores=False)),
    "sm_80": (GPUTarget("cuda", 80, 32), DeviceLimits(163 * KIB, has_tensor_cores=True)),
    "sm_86": (GPUTarget("cuda", 86, 32), DeviceLimits(99 * KIB, has_tensor_cores=True)),
    "sm_90": (GPUTarget("cuda", 90, 32), DeviceLimits(227 * KIB, has_tensor_cores=True)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), DeviceLimits(64 * KIB, has_tensor_cores=True, warp_size=64)),
}
EVERYTHING = DeviceRequest(n_steps=255, root=True, n_edges=8, logsumexp=True, statistics=True)
REQUESTS = {
    "everything": EVERYTHING,
    "terms": EVERYTHING,
    "short": EVERYTHING,
    "edges": DeviceRequest(n_steps=0, root=False, n_edges=64, logsumexp=True, statistics=True),
    "logsumexp": DeviceRequest(n_steps=0, root=False, n_edges=0, logsumexp=True, statistics=False),
}


class TargetDriver:
    """What Triton asks a driver before it compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def make_call(variant: str, dtype: torch.dtype, d_head: int) -> DeviceCall:
    """Return a call without memory: three texts, 32 heads that share 8 key heads, projections as models lay them out."""
    n_examples, n_tokens = 3, 40 if variant == "short" else 4096

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    has_terms = variant == "terms"
    biases = tuple(empty(n, 32, n_tokens, n_tokens, dtype=torch.float32) for n in (1, 3)) if has_terms else ()
    return DeviceCall(
        query=empty(n_examples, n_tokens, 32, d_head, dtype=dtype).transpose(1, 2),
        key=empty(n_examples, n_tokens, 8, d_head, dtype=dtype).transpose(1, 2),
        n_queries=empty(n_examples),
        n_keys=empty(n_examples),
        pair_of_row=empty(n_examples * n_tokens),
        row_start=empty(n_examples),
        n_pairs=n_examples * n_tokens**2,
        n_rows=n_examples * n_tokens,
        scaling=0.1,
        causal=not has_terms,
        same_tokens=True,
        before=2 * n_tokens,
        after=2 * n_tokens if has_terms else 0,
        band=2 * n_tokens,
        softcap=30.0 if has_terms else None,
        biases=biases,
        sinks=empty(32, dtype=torch.float32) if has_terms else None,
        special=empty(n_examples, n_tokens, dtype=torch.int8),
    )


def measure(binary: Any) -> dict[str, int | bool]:
    """Return registers of a thread, bytes that it spills, and whether matrix units multiply."""
    if "amdgcn" in binary.asm:
        text = binary.asm["amdgcn"]
        numbers = {name: int(re.findall(rf"\.{name}:\s+(\d+)", text)[0]) for name in ("vgpr_count", "vgpr_spill_count")}
        return {
            "registers": numbers["vgpr_count"],
            "spilled": numbers["vgpr_spill_count"],
            "matrix_units": "mfma" in text,
        }
    tool = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(number) for number in re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    return {"registers": registers, "spilled": stack, "matrix_units": "mma" in binary.asm["ptx"]}


def compile_case(name: str) -> dict[str, Any]:
    """Compile the launch of one case, and return its properties."""
    variant, dtype, d_head, device = name.split(",")
    target, limits = DEVICES[device]
    kernel: Any = triton_kernel._reduce
    driver.set_active(TargetDriver(target))
    kernel.device_caches.clear()  # Triton keeps binaries by device, and all targets are device 0 here
    call = make_call(variant, getattr(torch, dtype), int(d_head))
    launch = triton_kernel.prepare_launch(call, REQUESTS[variant], limits)
    binary = kernel.warmup(*launch.arguments, grid=launch.grid, **launch.keywords)
    return {
        "shared": binary.metadata.shared,
        "shared_limit": limits.shared_bytes,
        "threads": binary.metadata.num_warps * limits.warp_size,
        "types": {name: str(value) for name, value in binary.src.signature.items()},
        **measure(binary),
    }


if __name__ == "__main__":
    print(json.dumps({name: compile_case(name) for name in sys.argv[1:]}))
