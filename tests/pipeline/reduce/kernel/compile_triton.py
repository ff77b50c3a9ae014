"""Script that compiles the Triton kernel for GPUs that may be absent, and prints properties of the binaries as JSON.

It needs a process of its own, because the tests run the kernel in Triton's interpreter, which is chosen at import.
"""

import json
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from headatlas.pipeline.reduce import triton_kernel

EVERYTHING = {
    "CAUSAL": True, "SAME": True, "BIASES": 0, "SOFTCAP": False, "SINKS": False, "CODES": True, "ROOT": True,
    "LOGSUMEXP": True, "N_EDGES": 8, "EDGES": 8, "STATISTICS": True, "UPCAST": False,
    "BLOCK_Q": triton_kernel.BLOCK_QUERIES, "BLOCK_K": triton_kernel.BLOCK_KEYS, "BLOCK_D": 128,
}  # fmt: skip
VARIANTS = {
    "everything, bfloat16": ("*bf16", {}),
    "everything, float32": ("*fp32", {"UPCAST": True, "BLOCK_D": 64}),
    "biases, soft cap and sinks": ("*fp16", {"BIASES": 2, "SOFTCAP": True, "SINKS": True}),
    "statistics alone": ("*bf16", {"CODES": False, "ROOT": False, "N_EDGES": 0, "EDGES": 1, "LOGSUMEXP": False}),
}
TYPES = {
    "n_queries_ptr": "*i32", "n_keys_ptr": "*i32", "pair_ptr": "*i64", "row_ptr": "*i64", "bias_0": "*fp32", "bias_1": "*fp32",
    "sinks_ptr": "*fp32", "special_ptr": "*i8", "codes_ptr": "*u8", "logsumexp_ptr": "*fp32", "edge_key_ptr": "*i32",
    "edge_weight_ptr": "*fp16", "sums_ptr": "*fp32", "valid_ptr": "*i32", "scaling": "fp32", "softcap": "fp32", "n_steps": "fp32",
}  # fmt: skip


def compile_kernel(dtype: str, capability: int, constants: dict[str, Any]) -> Any:
    """Compile the kernel for `capability` (90: H100 and H200), with query and key of `dtype`."""
    kernel: Any = triton_kernel._reduce
    types = {**dict.fromkeys(kernel.arg_names, "i32"), **TYPES, "query_ptr": dtype, "key_ptr": dtype}
    source = ASTSource(
        fn=kernel,
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    return compile(source, target=GPUTarget("cuda", capability, 32))


if __name__ == "__main__":
    report = {}
    for name, (dtype, differing) in VARIANTS.items():
        for capability in (80, 90):
            binary = compile_kernel(dtype, capability, EVERYTHING | differing)
            report[f"{name}, {capability}"] = {
                "elf": binary.asm["cubin"][:4] == b"\x7fELF",
                "shared": binary.metadata.shared,
                "tensor_cores": "mma" in binary.asm["ptx"],
            }
    print(json.dumps(report))
