"""The stored edges of a layer of a segment, kept decoded where a search reads most of them.

A search reads the edges of every row that its pattern chooses, the next one mostly the same rows. So layers are read
whole and kept in the store's bounded cache (`Segment.traces`) once at least half of their rows are wanted; for fewer
rows only the chunks in which they lie are decoded, and nothing is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, UInt

from ..containers.container import guard_fork
from ..schema.traces import Site
from .segment import Segment

EDGES_MAX_BYTES = 1 << 30
"""Decoded edges that a store keeps in memory, where nothing else is said: 2.3 kB a token of a model of 72 heads."""


@dataclass(frozen=True)
class Edges:
    """The strongest keys of some rows in all heads of one layer."""

    key: UInt[np.ndarray, "head row edge"]
    """Positions within the example, strongest first; the largest value of the type where a row has fewer."""
    weight: Float16[np.ndarray, "head row edge"]
    first_row: int
    """Which query token of the segment `row` 0 is."""


def read_edges(segment: Segment, site: Site, layer: int, first: int, last: int) -> Edges:
    """The edges of the query tokens `first` to `last`, or of more rows around them; not to be written to."""
    name = (segment.index, "edges", site.name, layer)
    guard_fork()
    if name not in segment.traces and not _most(segment, site, first, last):
        return Edges(*_read(segment, site, layer, slice(first, last + 1)), first)
    return Edges(*segment.traces.get(name, lambda: _read(segment, site, layer, slice(None))), 0)


def read_strongest(segment: Segment, site: Site, layer: int, first: int, last: int) -> UInt[np.ndarray, "head row"]:
    """The strongest key of each of the query tokens `first` to `last`; not to be written to."""
    path, rows = f"{site.name}/edge_key", slice(first, last + 1)
    guard_fork()
    if (segment.index, "edges", site.name, layer) in segment.traces:
        return read_edges(segment, site, layer, first, last).key[:, rows, 0]
    name = (segment.index, "strongest", site.name, layer)
    if name not in segment.traces and not _most(segment, site, first, last):
        return segment.read(path, (layer, slice(None), rows, 0))

    def read() -> np.ndarray:
        return np.ascontiguousarray(segment.read(path, (layer, slice(None), slice(None), 0)))

    return segment.traces.get(name, read)[:, rows]


def _read(segment: Segment, site: Site, layer: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    where = (layer, slice(None), rows)
    return segment.read(f"{site.name}/edge_key", where), segment.read(f"{site.name}/edge_weight", where)


def _most(segment: Segment, site: Site, first: int, last: int) -> bool:
    return 2 * (last + 1 - first) >= int(segment.token_offset(site.query_sequence)[-1])
