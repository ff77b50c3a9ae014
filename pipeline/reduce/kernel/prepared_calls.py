"""Checked kernel calls that can be repeated for the layers of a batch, which differ only in array addresses.

A check takes 0.5 ms per layer, because the matrix products of the model evict its Python code from the processor's
caches. Changing the addresses of a checked call takes a fifth of that. Every call is compared with the checked one. If
more than addresses differ, it is checked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .c_structures import Call, Vectors
from .library import Instructions, Library


def tensor_properties(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return the properties of a tensor that the checks read, without the address."""
    wants_gradients = tensor.requires_grad and torch.is_grad_enabled()
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.layout, tensor.is_neg(), wants_gradients


@dataclass
class PreparedAttention:
    """A checked call of the attention kernel. The caller must keep the arrays alive that `move` points it to.

    `tensors` holds query, key and value until `run` has finished. `references` keeps the other inputs alive.
    """

    call: Call
    library: Library
    instructions: Instructions | None
    n_threads: int
    properties: tuple[tuple[object, ...], ...]
    """Properties of query, key and value."""
    output_shape: tuple[int, ...] | None
    tensors: tuple[torch.Tensor, ...]
    references: tuple[object, ...]

    def fits(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Return True if these tensors differ from the checked ones only in their addresses."""
        return self.properties == (tensor_properties(query), tensor_properties(key), tensor_properties(value))

    def move(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, addresses: Mapping[str, int]) -> None:
        """Point the call at tensors that fit, and at arrays with the same layout, by the field names of the call."""
        self.tensors = (query, key, value)
        self.call.query, self.call.key, self.call.value = query.data_ptr(), key.data_ptr(), value.data_ptr()
        for name, address in addresses.items():
            setattr(self.call, name, address)

    def run(self) -> torch.Tensor | None:
        """Make the call. See `prepare_attention` for the result."""
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
    """A checked call that stores vectors. `endpoints` holds vectors and target array until `run` has finished."""

    call: Vectors
    library: Library
    instructions: Instructions | None
    n_threads: int
    properties: tuple[object, ...]
    largest: np.ndarray
    """Largest absolute values as float32 bits, int32 [example]."""
    endpoints: tuple[object, ...]
    references: tuple[object, ...]

    def fits(self, vectors: torch.Tensor, into: np.ndarray, n_threads: int) -> bool:
        """Return True if vectors and array differ from the checked ones only in their addresses."""
        return self.properties == (*tensor_properties(vectors), *array_properties(into)) and n_threads == self.n_threads

    def move(self, vectors: torch.Tensor, into: np.ndarray) -> None:
        """Point the call at vectors and an array that fit."""
        self.endpoints = (vectors, into)
        self.call.source, self.call.to = vectors.data_ptr(), into.ctypes.data

    def run(self) -> np.ndarray:
        """Make the call. Return the largest absolute values, float32 [example], valid until the next call."""
        self.largest.fill(0)
        self.library.run(self.call, self.instructions, self.n_threads)
        self.endpoints = ()
        return self.largest.view(np.float32)


def array_properties(array: np.ndarray) -> tuple[object, ...]:
    """Return the properties of an array that the checks read, without the address."""
    return array.shape, array.strides, array.dtype, array.flags.num
