"""Checks of a call that writes queries or keys of one layer into their array, in the stored type.

As in `attention_call`, Python checks everything and C checks nothing.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np
import torch

from headatlas.store.errors import ConfigError, ShapeError

from .attention_call import element_strides
from .batch_placement import LONGEST, Numbers, check_no_overlap, copy_whole_numbers
from .c_structures import VECTOR_CODECS, Vectors
from .library import DEFAULT_EXECUTION, Execution
from .prepared_calls import PreparedVectors, array_properties, tensor_properties

_DTYPES = {"float32": "f4", "float16": "f2", "bfloat16": "u2"}


@dataclass(frozen=True, eq=False)
class VectorPlacement:
    """Number of vectors of each example of a batch, and the row of the first one. Arrays are checked and copied once.

    Raises
    ------
    ShapeError
        Sizes or types do not match, or two examples overlap.
    """

    lengths: Numbers
    starts: Numbers
    longest: int = field(init=False)
    stop: int = field(init=False)
    """Smallest sufficient number of rows of the array."""

    def __post_init__(self) -> None:
        """Check all fields, and compute the derived ones."""
        lengths = copy_whole_numbers("lengths", self.lengths, np.size(self.lengths), LONGEST)
        starts = copy_whole_numbers("starts", self.starts, len(lengths), 1 << 60)
        object.__setattr__(self, "stop", check_no_overlap("starts", starts, lengths))
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
    """Check a call that writes the vectors of a right-padded batch to their rows. `run` of the result makes the call.

    Padding is neither read nor stored.

    Parameters
    ----------
    vectors
        float32 [example, head, position, d_head] on the CPU. Strides are free, except that d_head must be contiguous.
    placement
        Lengths, and the first row of each example.
    into
        [head, row, d_head] in the dtype of the codec: float32, float16, or uint16 for bfloat16. Numbers are rounded to
        nearest even, as in torch.
    codec
        "float32", "float16" or "bfloat16".
    execution
        Largest number of threads (few numbers take one); for tests and benchmarks also instruction set and library.

    Returns
    -------
    PreparedVectors
        Its `run` returns the largest absolute value of each example, float32 [example]. It is infinite or NaN if any
        value is, and 0 without vectors.

    Raises
    ------
    ShapeError
        Sizes, types or strides do not match, or an example lies outside the array.
    ConfigError
        The codec is unknown, or there is no compiled kernel.
    """
    library, n_threads = execution.resolve()
    if codec not in VECTOR_CODECS:
        raise ConfigError(f"codec is {codec!r}; expected {', '.join(VECTOR_CODECS)}")
    if not is_supported(vectors):
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
    steps = element_strides("vectors", into, (_DTYPES[codec],), ("head", "row", "d_head"), n_heads, 1)
    if into.shape[2] != d_head or placement.stop > into.shape[1]:
        raise ShapeError(
            f"into has {into.shape[1]} rows of {into.shape[2]} numbers; expected at least {placement.stop} rows "
            f"of {d_head}"
        )
    largest = np.zeros(n_examples, np.int32)
    call = Vectors(ctypes.sizeof(Vectors), n_examples, n_heads, d_head)
    call.source, call.source_stride[:] = vectors.data_ptr(), vectors.stride()[:3]
    call.length, call.start = np.asarray(placement.lengths).ctypes.data, np.asarray(placement.starts).ctypes.data
    call.to, call.to_stride[:] = into.ctypes.data, steps[:2]
    call.codec, call.largest = VECTOR_CODECS.index(codec), largest.ctypes.data
    properties = (*tensor_properties(vectors), *array_properties(into))
    return PreparedVectors(
        call, library, execution.instructions, n_threads, properties, largest, (vectors, into), references=(placement,)
    )


def is_supported(vectors: torch.Tensor) -> bool:
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
