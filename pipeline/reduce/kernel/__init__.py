"""The fused CPU kernel: attention and everything that is kept of it in one pass, compiled if possible.

`prepare_attention` replaces scaled_dot_product_attention and writes statistics, codes, logsumexp and the strongest
keys into the arrays of a segment; `prepare_vectors` writes queries and keys. Both check a call, which can then be
repeated on other tensors and arrays (`prepared_calls.py`). `available` returns the instruction set that serves, or
None; `explain` says why. Torch operations serve what the kernel does not support: gradients, other devices, more than
16 edges.
"""

from .attention_call import AttentionInputs, Destination, prepare_attention
from .batch_placement import BatchPlacement
from .library import INSTRUCTIONS, Execution, Library, available, explain, load
from .prepared_calls import PreparedAttention, PreparedVectors
from .vector_call import VectorPlacement, is_served, prepare_vectors

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
    "is_served",
    "load",
    "prepare_attention",
    "prepare_vectors",
]
