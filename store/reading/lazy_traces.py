"""Traces of all segments of a store as labelled dask arrays, which are read when they are computed.

One dask chunk is one head of one segment, so no chunk is read twice. Tasks can run on any worker: a task carries the
store's path and snapshot number (a few hundred bytes), and opens the store itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Shaped

from ..codecs.companding import decode_attention
from ..codecs.pairs import pair_positions
from ..schema.traces import Keep, SequenceName, Site
from .pair_attention import read_pairs
from .segment import Segment
from .segment_index import SegmentIndex
from .stored_vectors import decode_block


@dataclass(frozen=True)
class _SegmentArray:
    """Array of one segment that dask indexes. Indexing calls `read` for the block."""

    store: SegmentIndex
    segment: int
    read: Callable[[Segment, tuple[slice, ...]], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray:
        return self.read(self.store.segments[self.segment], selection)


@dataclass(frozen=True)
class _TraceReader:
    """Reader that decodes a block of a trace array."""

    path: str
    keep: Keep

    def __call__(self, segment: Segment, selection: tuple[slice, ...]) -> np.ndarray:
        site, _, name = self.path.partition("/")
        if name in ("query", "key"):
            return decode_block(segment, segment.spec.site(site), name, selection)
        return decode(name, segment.read(self.path, selection), self.keep)


@dataclass(frozen=True)
class _AttentionReader:
    """Reader that decodes a block of attention on the shared pair axis, for any codec."""

    site: Site
    codec: str

    def __call__(self, segment: Segment, selection: tuple[slice, ...]) -> np.ndarray:
        layers, heads, pairs = selection
        n_pairs = int(segment.pair_offset(self.site.name)[-1])
        span = slice(*pairs.indices(n_pairs)[:2])
        blocks = [
            read_pairs(segment, self.site, layer, heads, span) for layer in range(*layers.indices(self.site.n_layers))
        ]
        return decode_attention(np.stack(blocks), self.codec)


@dataclass(frozen=True)
class _CoordinateReader:
    """Reader of one coordinate of a long axis: the example, query_pos or key_pos of each item."""

    site: Site
    axis: str
    coordinate: str

    def __call__(self, segment: Segment, selection: tuple[slice, ...]) -> np.ndarray:
        items = selection[0]
        if self.axis == "pair":
            offset = segment.pair_offset(self.site.name)
        else:
            offset = segment.token_offset(_sequence(self.site, self.axis))
        item = np.arange(items.start or 0, offset[-1] if items.stop is None else items.stop)
        row = np.searchsorted(offset, item, side="right") - 1
        if self.coordinate == "example":
            return segment.first_example + row
        position = item - offset[row]
        if self.axis != "pair":
            return position
        if self.site.causal:
            return pair_positions(position, 0, causal=True)[0 if self.coordinate == "query_pos" else 1]
        n_keys = np.diff(segment.token_offset(self.site.key_sequence))[row]
        return position // n_keys if self.coordinate == "query_pos" else position % n_keys


def decode(name: str, stored: Shaped[np.ndarray, "*shape"], keep: Keep) -> Shaped[np.ndarray, "*shape"]:
    """Decode stored numbers of a trace array other than attention, query and key."""
    if name == "edge_key":
        return np.where(stored == np.iinfo(stored.dtype).max, -1, stored.astype(np.int64))
    return stored.astype(np.float32, copy=False)


def lazy_traces(store: SegmentIndex, site: Site, name: str) -> xr.DataArray:
    """Return a trace array of all segments, joined along its long axis.

    Raises
    ------
    NotFoundError
        The array was not kept.
    """
    import dask.array as da

    path, keep = f"{site.name}/{name}", store.spec.keep
    if name == "attention" and keep.attention:
        read: _AttentionReader | _TraceReader = _AttentionReader(site, keep.attention)
        maps = (site.n_layers, site.n_heads)
        shapes = [(*maps, int(segment.pair_offset(site.name)[-1])) for segment in store.segments]
        axes = ("layer", "head", "pair")
    else:
        read = _TraceReader(path, keep)
        arrays = [segment.array(path) for segment in store.segments]
        shapes = [array.shape for array in arrays]
        axes = arrays[0].axes if arrays else ("layer", "head", "item")
    dtype = np.dtype(np.int64 if name == "edge_key" else np.float32)
    parts = [
        _chunked(_SegmentArray(store, i, read, shape, dtype), (1, 1, *shape[2:]), path)
        for i, shape in enumerate(shapes)
    ]
    data = da.concatenate(parts, axis=2) if parts else da.zeros((site.n_layers, site.n_heads, 0), np.float32)
    coords: dict[str, Any] = {axes[0]: np.array(site.layers), axes[1]: np.arange(data.shape[1])}
    coordinates = {"pair": ("query_pos", "key_pos"), "query_token": ("query_pos",), "key_token": ("key_pos",)}
    for coordinate in ("example", *coordinates.get(axes[2], ())) if shapes else ():
        values = [
            _chunked(
                _SegmentArray(store, i, _CoordinateReader(site, axes[2], coordinate), shape[2:3], np.dtype(np.int64)),
                (-1,),
                f"{axes[2]}/{coordinate}/{site.name}",
            )
            for i, shape in enumerate(shapes)
        ]
        coords[coordinate] = (axes[2], da.concatenate(values))
    attributes = {}
    if name == "attention" and keep.attention:
        attributes = {"long_name": "attention weight", "max_absolute_error": store.spec.attention_error}
    return xr.DataArray(data, coords, axes, name, attributes)


def _chunked(part: _SegmentArray, chunks: Any, label: str) -> Any:
    """Return a dask array of one segment's array. Equal arrays of equal snapshots have equal names."""
    import dask.array as da
    from dask.base import tokenize

    segment = part.store.segments[part.segment]
    token = tokenize(part.store.location, part.store.manifest.number, segment.index, label)
    meta = np.empty((0,) * part.ndim, part.dtype)
    return da.from_array(part, chunks, name=f"headatlas-{token}", asarray=False, fancy=False, meta=meta)


def _sequence(site: Site, axis: str) -> SequenceName:
    return site.key_sequence if axis == "key_token" else site.query_sequence
