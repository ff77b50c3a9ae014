"""Checked calls that can be repeated: the layers of a batch differ in the addresses of their arrays only.

Checking a call takes half a millisecond a layer, because its Python code runs after some 10 ms of matrix products that
evicted it from the processor's caches. Moving a checked call takes a fifth of that. Every call is compared with the
checked one; if it differs in more than addresses it is checked anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .c_structures import Call, Vectors
from .library import Instructions, Library


def traits(tensor: torch.Tensor) -> tuple[object, ...]:
    """Properties of a tensor that the checks read, except the address."""
    wants_gradients = tensor.requires_grad and torch.is_grad_enabled()
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.layout, tensor.is_neg(), wants_gradients


@dataclass
class PreparedAttention:
    """A checked call of the attention kernel; the caller keeps the arrays that it is moved to.

    `tensors` are query, key and value until it was run, `held` is what else it reads.
    """

    call: Call
    library: Library
    instructions: Instructions | None
    n_threads: int
    traits: tuple[tuple[object, ...], ...]
    """Of query, key and value."""
    output_shape: tuple[int, ...] | None
    tensors: tuple[torch.Tensor, ...]
    held: tuple[object, ...]

    def fits(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Return True if these tensors differ from the checked ones in their addresses only."""
        return self.traits == (traits(query), traits(key), traits(value))

    def move(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, addresses: Mapping[str, int]) -> None:
        """Point it at tensors that fit, and at other arrays alike those that were checked, by the names of its fields."""
        self.tensors = (query, key, value)
        self.call.query, self.call.key, self.call.value = query.data_ptr(), key.data_ptr(), value.data_ptr()
        for name, address in addresses.items():
            setattr(self.call, name, address)

    def run(self) -> torch.Tensor | None:
        """Make the call; see `prepare_attention`."""
        result = None
        if self.output_shape is not None:
            result = torch.empty(self.output_shape, dtype=torch.float32)
            self.call.output, self.call.output_stride[:] = result.data_ptr(), result.stride()[:3]
        if self.call.n_examples and self.call.n_heads:
            self.library.run(self.call, self.instructions, self.n_threads)
        self.tensors = ()
        return result


@dataclass
class PreparedVectors:
    """A checked call that stores vectors; `ends` are these and the array they go to, until it was run."""

    call: Vectors
    library: Library
    instructions: Instructions | None
    n_threads: int
    traits: tuple[object, ...]
    largest: np.ndarray
    """int32 [example]: bits of the largest absolute values."""
    ends: tuple[object, ...]
    held: tuple[object, ...]

    def fits(self, vectors: torch.Tensor, into: np.ndarray, n_threads: int) -> bool:
        """Return True if these differ from the checked ones in their addresses only."""
        return self.traits == (*traits(vectors), *array_traits(into)) and n_threads == self.n_threads

    def move(self, vectors: torch.Tensor, into: np.ndarray) -> None:
        """Point it at others that fit."""
        self.ends = (vectors, into)
        self.call.source, self.call.to = vectors.data_ptr(), into.ctypes.data

    def run(self) -> np.ndarray:
        """Make the call; float32 [example], the largest absolute values, valid until the next."""
        self.largest.fill(0)
        self.library.run(self.call, self.instructions, self.n_threads)
        self.ends = ()
        return self.largest.view(np.float32)


def array_traits(array: np.ndarray) -> tuple[object, ...]:
    """Properties of an array that the checks read, except the address."""
    return array.shape, array.strides, array.dtype, array.flags.num
