"""Stored edges of a layer of a segment, with a cache for searches.

A search reads the edges of every row that its pattern selects, and the next search mostly reads the same rows. If at
least half of a layer's rows are requested, the full layer is read and kept in the store's bounded cache
(`Segment.traces`). For fewer rows only the required chunks are decoded, without caching.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, UInt

from ..errors import FormatError
from ..files.containers.container import guard_fork
from ..schema.traces import Site
from .segment import Segment

_NOT_FINITE = 0x7C00  # bits of infinity in half precision; NaN is above
EDGES_MAX_BYTES = 1 << 30
"""Default size of a store's cache of decoded edges. A model with 72 heads needs 2.3 kB per token."""


@dataclass(frozen=True)
class Edges:
    """Strongest keys of some rows in all heads of one layer."""

    key: UInt[np.ndarray, "head row edge"]
    """Positions within the example, strongest first. Short rows are filled with the largest value of the type."""
    weight: Float16[np.ndarray, "head row edge"]
    first_row: int
    """Query token of the segment that belongs to row 0."""


def read_edges(segment: Segment, site: Site, layer: int, first: int, last: int) -> Edges:
    """Return the edges of the query tokens `first` to `last`, and possibly of more rows. The arrays are read-only.

    Raises
    ------
    FormatError
        A weight is infinite or NaN.
    """
    name = (segment.index, "edges", site.name, layer)
    guard_fork()
    if name not in segment.traces and not _covers_half(segment, site, first, last):
        return Edges(*_read(segment, site, layer, slice(first, last + 1)), first)
    return Edges(*segment.traces.get(name, lambda: _read(segment, site, layer, slice(None))), 0)


def read_strongest(segment: Segment, site: Site, layer: int, first: int, last: int) -> UInt[np.ndarray, "head row"]:
    """Return the strongest key of each of the query tokens `first` to `last`. The array is read-only."""
    path, rows = f"{site.name}/edge_key", slice(first, last + 1)
    guard_fork()
    if (segment.index, "edges", site.name, layer) in segment.traces:
        return read_edges(segment, site, layer, first, last).key[:, rows, 0]
    name = (segment.index, "strongest", site.name, layer)
    if name not in segment.traces and not _covers_half(segment, site, first, last):
        return segment.read(path, (layer, slice(None), rows, 0))

    def read() -> np.ndarray:
        return np.ascontiguousarray(segment.read(path, (layer, slice(None), slice(None), 0)))

    return segment.traces.get(name, read)[:, rows]


def _read(segment: Segment, site: Site, layer: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    selection = (layer, slice(None), rows)
    weight = segment.read(f"{site.name}/edge_weight", selection)
    if weight.size and (weight.view(np.uint16) & 0x7FFF).max() >= _NOT_FINITE:
        raise FormatError(
            f"{segment.where}: edge_weight of layer {site.layers[layer]} holds a value that is not finite; "
            "expected weights. Verify "
            "the store."
        )
    return segment.read(f"{site.name}/edge_key", selection), weight


def _covers_half(segment: Segment, site: Site, first: int, last: int) -> bool:
    return 2 * (last + 1 - first) >= int(segment.token_offset(site.query_sequence)[-1])
