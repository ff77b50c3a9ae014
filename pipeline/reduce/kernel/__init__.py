"""The fused CPU kernel: attention and all that is kept of it in one pass, compiled with the package where possible.

`prepare_attention` stands in for scaled_dot_product_attention and writes statistics, codes, logsumexp and the strongest
keys straight to their places in a segment; `prepare_vectors` does so with queries and keys. Both check a call, which may
then be made again elsewhere (`prepared.py`). `available` says which
instruction set serves, or `None`; `explain` says why. What it does not cover (gradients, other devices, more than 16
edges) is for torch operations.
"""

from .attention_call import Destination, prepare_attention
from .batch_placement import Places
from .library import INSTRUCTIONS, Library, available, explain, load
from .prepared_calls import PreparedAttention, PreparedVectors
from .vector_call import VectorPlaces, is_served, prepare_vectors

__all__ = [
    "INSTRUCTIONS",
    "Destination",
    "Library",
    "Places",
    "PreparedAttention",
    "PreparedVectors",
    "VectorPlaces",
    "available",
    "explain",
    "is_served",
    "load",
    "prepare_attention",
    "prepare_vectors",
]
