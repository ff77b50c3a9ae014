"""Check a call that writes queries or keys of one layer into their array, in the type they are kept in.

As in `attention_call`, everything is checked here and nothing in C.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np
import torch

from headatlas.store.errors import ConfigError, ShapeError

from .attention_call import destination_steps
from .batch_placement import LONGEST, Numbers, check_apart, whole_numbers
from .c_structures import VECTOR_CODECS, Vectors
from .library import DEFAULT_EXECUTION, Execution
from .prepared_calls import PreparedVectors, array_traits, traits

_DTYPES = {"float32": "f4", "float16": "f2", "bfloat16": "u2"}


@dataclass(frozen=True, eq=False)
class VectorPlacement:
    """Number of vectors of each example of a batch, and the row of the first. Checked once, copied, read-only.

    Raises
    ------
    ShapeError
        Sizes or types do not fit together, or two examples overlap.
    """

    lengths: Numbers
    starts: Numbers
    longest: int = field(init=False)
    stop: int = field(init=False)
    """Least number of rows of the array."""

    def __post_init__(self) -> None:
        """Check everything; see the class."""
        lengths = whole_numbers("lengths", self.lengths, np.size(self.lengths), LONGEST)
        starts = whole_numbers("starts", self.starts, len(lengths), 1 << 60)
        object.__setattr__(self, "stop", check_apart("starts", starts, lengths))
        object.__setattr__(self, "longest", int(lengths.max(initial=0)))
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "starts", starts)


def prepare_vectors(
    vectors: torch.Tensor,
    placement: VectorPlacement,
    into: np.ndarray,
    codec: str,
    *,
    execution: Execution = DEFAULT_EXECUTION,
) -> PreparedVectors:
    """Write the vectors of a right padded batch to their rows: checked here, made by `run` of the result.

    Padding is neither read nor stored.

    Parameters
    ----------
    vectors
        float32 [example, head, position, d_head] on the CPU; any strides but along d_head, which must have no gaps.
    placement
        Lengths, and where each example lies among the rows.
    into
        [head, row, d_head] of the codec: float32, float16, or uint16 for bfloat16. Numbers are rounded to even, as
        torch does.
    codec
        "float32", "float16" or "bfloat16".
    execution
        Threads at most (few numbers take one), and for tests and benchmarks instruction set and library.

    Returns
    -------
    PreparedVectors
        Its `run` gives float32 [example]: the largest absolute value of each example, infinite or NaN where one is; 0
        without vectors.

    Raises
    ------
    ShapeError
        Sizes, types or strides do not fit together, or a place lies outside its array.
    ConfigError
        Unknown codec, or no compiled kernel is there.
    """
    library, n_threads = execution.resolve()
    if codec not in VECTOR_CODECS:
        raise ConfigError(f"codec {codec!r}: the kernel knows {', '.join(VECTOR_CODECS)}")
    if not is_served(vectors):
        raise ShapeError(
            f"vectors are {tuple(vectors.shape)} {vectors.dtype} on {vectors.device} with strides {vectors.stride()}; "
            "expected float32 [example, head, position, d_head] on the CPU without gaps along d_head, and no gradients"
        )
    n_examples, n_heads, n_positions, d_head = vectors.shape
    if len(placement.lengths) != n_examples or placement.longest > n_positions:
        raise ShapeError(
            f"the placement is for {len(placement.lengths)} examples of up to {placement.longest} positions; "
            f"vectors have {n_examples} of {n_positions}"
        )
    steps = destination_steps("vectors", into, (_DTYPES[codec],), ("head", "row", "d_head"), n_heads, 1)
    if into.shape[2] != d_head or placement.stop > into.shape[1]:
        raise ShapeError(
            f"into has {into.shape[1]} rows of {into.shape[2]}; the examples reach up to row {placement.stop}, "
            f"d_head is {d_head}"
        )
    largest = np.zeros(n_examples, np.int32)
    call = Vectors(ctypes.sizeof(Vectors), n_examples, n_heads, d_head)
    call.source, call.source_stride[:] = vectors.data_ptr(), vectors.stride()[:3]
    call.length, call.start = np.asarray(placement.lengths).ctypes.data, np.asarray(placement.starts).ctypes.data
    call.to, call.to_stride[:] = into.ctypes.data, steps[:2]
    call.codec, call.largest = VECTOR_CODECS.index(codec), largest.ctypes.data
    checked = (*traits(vectors), *array_traits(into))
    return PreparedVectors(
        call, library, execution.instructions, n_threads, checked, largest, (vectors, into), held=(placement,)
    )


def is_served(vectors: torch.Tensor) -> bool:
    """Return True if the kernel can read this tensor."""
    return (
        vectors.ndim == 4
        and vectors.dtype == torch.float32
        and vectors.device.type == "cpu"
        and vectors.layout == torch.strided
        and (vectors.stride(3) == 1 or vectors.shape[3] == 1)
        and not vectors.is_neg()
        and not (vectors.requires_grad and torch.is_grad_enabled())
    )
