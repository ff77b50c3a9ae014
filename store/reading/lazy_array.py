"""Lazy array of a segment: indexing reads it, with integers and slices as in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import EllipsisType

import numpy as np

from ..codecs.array_layout import ArrayLayout
from ..errors import ConfigError, NotFoundError

Index = int | slice | EllipsisType


@dataclass(frozen=True)
class LazyArray:
    """Array of a segment with shape, type and axes. Indexing reads the required chunks and returns a numpy array.

    `read_block` takes a path and one slice of step 1 for each axis.
    """

    layout: ArrayLayout
    read_block: Callable[[str, tuple[slice, ...]], np.ndarray]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis}: {length}" for axis, length in zip(self.axes, self.shape, strict=True))
        return f"LazyArray({self.layout.path}, {self.dtype}, {sizes})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return self.layout.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored numbers."""
        return self.layout.dtype

    @property
    def axes(self) -> tuple[str, ...]:
        """Name of each axis."""
        return self.layout.axes

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of items."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[...].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, selection: tuple[Index, ...] | Index) -> np.ndarray:
        """Read items by integers and slices, as in numpy. An element is an array without axes.

        Raises
        ------
        NotFoundError
            An index is outside the bounds.
        """
        block, inner = self._plan(selection if isinstance(selection, tuple) else (selection,))
        return np.asarray(self.read_block(self.layout.path, block)[inner])

    def _plan(self, keys: tuple[Index, ...]) -> tuple[tuple[slice, ...], tuple[int | slice, ...]]:
        """Return the block to read, and the index into the block that gives the selected items."""
        if (n_ellipses := sum(key is ... for key in keys)) > 1 or len(keys) - n_ellipses > self.ndim:
            raise ConfigError(
                f"{len(keys)} indices for {self.layout.path} with axes {', '.join(self.axes)}; expected at most one "
                "for each axis and one ellipsis."
            )
        position = next((i for i, key in enumerate(keys) if key is ...), len(keys))
        fill = (slice(None),) * (self.ndim - len(keys) + n_ellipses)
        full = (*keys[:position], *fill, *keys[position + 1 :])
        block: list[slice] = []
        inner: list[int | slice] = []
        for key, length, axis in zip(full, self.shape, self.axes, strict=True):
            if isinstance(key, slice):
                span = range(*key.indices(length))
                low, high = (min(span[0], span[-1]), max(span[0], span[-1])) if span else (0, -1)
                block.append(slice(low, high + 1))
                step_back = span.step < 0 and len(span)
                inner.append(slice(None, None, span.step) if not step_back else slice(high - low, None, span.step))
            elif isinstance(key, int | np.integer):
                index = int(key) + (length if key < 0 else 0)
                if not 0 <= index < length:
                    raise NotFoundError(f"{self.layout.path}: {axis} {int(key)} is outside 0:{length}.")
                block.append(slice(index, index + 1))
                inner.append(0)
            else:
                raise ConfigError(f"index {key!r} for {axis} of {self.layout.path}; expected an integer or a slice.")
        return tuple(block), tuple(inner)
