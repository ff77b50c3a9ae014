"""Selections along an axis: one index, several or all, and ranges of positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError, NotFoundError
from ..schema.traces import Site

AxisSelection = int | slice | Sequence[int] | None
"""Selection of layers or heads: one (its dimension is dropped), several, or all (None)."""


class AxisLabels:
    """Dimensions and coordinates of a selection. An integer drops its dimension and leaves a scalar coordinate."""

    def __init__(self, selections: dict[str, tuple[AxisSelection, np.ndarray]]) -> None:
        self.dims = tuple(dim for dim, (item, _) in selections.items() if not isinstance(item, int | np.integer))
        self.coords = {dim: (i if dim in self.dims else int(i[0])) for dim, (_, i) in selections.items()}


def dropped_axes(*selections: AxisSelection) -> tuple[int | slice, ...]:
    """Return the index that drops the first axes of an array whose selection is an integer."""
    return tuple(0 if isinstance(selection, int | np.integer) else slice(None) for selection in selections)


def layer_indices(site: Site, selection: AxisSelection) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices on the layer axis, and the numbers, of a selection of a site's layers.

    Raises
    ------
    NotFoundError
        The site has no such layer.
    """
    numbers = np.array(site.layers)
    if site.layer_numbers and selection is not None:  # a model with layers without attention
        every_number = axis_indices(selection, int(numbers[-1]) + 1, "layer").tolist()
        if isinstance(selection, slice):
            every_number = [number for number in every_number if number in site.layers]
        indices = np.array([site.layer_index(number) for number in every_number], np.int64)
    else:
        indices = axis_indices(selection, site.n_layers, "layer")
    return indices, numbers[indices]


def axis_indices(selection: AxisSelection, length: int, name: str) -> np.ndarray:
    """Return the indices of a selection.

    Raises
    ------
    NotFoundError
        An index is outside the axis.
    """
    if selection is None:
        return np.arange(length)
    if isinstance(selection, slice):
        return np.arange(length)[selection]
    try:
        indices = np.atleast_1d(np.asarray(selection, dtype=np.int64))
    except (TypeError, ValueError):
        raise ConfigError(f"{name} {selection!r}; expected an integer, a slice or a list of integers.") from None
    for index in indices.tolist():
        if not -length <= index < length:
            raise NotFoundError(f"{name} {index} is outside 0:{length}.")
    return np.where(indices < 0, indices + length, indices)


def position_span(selection: slice | None, length: int, name: str) -> slice:
    """Return the positions of a slice, whose bounds have the meaning of numpy.

    Raises
    ------
    ConfigError
        The selection is not a slice of step 1.
    """
    if selection is None:
        return slice(0, length)
    if not isinstance(selection, slice) or selection.step not in (None, 1):
        raise ConfigError(f"{name} is {selection!r}; expected a slice of positions of step 1, such as slice(0, 64).")
    start, stop, _ = selection.indices(length)
    return slice(start, max(start, stop))
