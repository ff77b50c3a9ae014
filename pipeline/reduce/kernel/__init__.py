"""Fused CPU kernel: attention and all stored values in one pass, compiled at install time if there is a compiler.

`prepare_attention` replaces scaled_dot_product_attention and writes statistics, codes, logsumexp and the strongest
keys into the arrays of a segment. `prepare_vectors` writes queries and keys. Both check a call, which can then be
repeated on other tensors and arrays (`prepared_calls.py`). `available` returns the instruction set of the kernel, or
None; `explain` returns the reason. The kernel does not support gradients, other devices, or more than 16 edges. Those
calls fall back to torch operations.
"""

from .attention_call import AttentionInputs, Destination, prepare_attention
from .batch_placement import BatchPlacement
from .library import INSTRUCTIONS, Execution, Library, available, explain, load
from .prepared_calls import PreparedAttention, PreparedVectors
from .vector_call import VectorPlacement, is_supported, prepare_vectors

__all__ = [
    "INSTRUCTIONS",
    "AttentionInputs",
    "BatchPlacement",
    "Destination",
    "Execution",
    "Library",
    "PreparedAttention",
    "PreparedVectors",
    "VectorPlacement",
    "available",
    "explain",
    "is_supported",
    "load",
    "prepare_attention",
    "prepare_vectors",
]
