"""Arrays of a segment while it is computed, and the position of each example of a batch in them.

Arrays are allocated once at their final size and filled in place, example by example, in any order of batches. They
need no padding, concatenation or further copies. The next segment reuses the memory, because new memory pages cost as
much time as compression. `check_filled` verifies that no values of the previous segment remain. The traces of a model on a GPU
gather in arrays of the same layout on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from headatlas.store.codecs.array_layout import ArrayLayout
from headatlas.store.codecs.attention_layout import band_array, pair_offset
from headatlas.store.codecs.pairs import first_key, row_start
from headatlas.store.codecs.sparse_rows import SparseHeadRows, sparse_arrays
from headatlas.store.errors import HeadAtlasError
from headatlas.store.schema.traces import Site, SiteName, TraceSpec, segment_layout, zero_distance

from ..tokens.model_inputs import to_device
from .device_arrays import SMALL_ARRAYS, BlockLayout, BufferPool, DeviceArrays

TraceArray = Any
"""An array of the host, or a tensor of a GPU with the same shape."""


@dataclass(frozen=True)
class Run:
    """Consecutive rows `start:stop` of a batch with the same lengths. Such rows need no padding."""

    start: int
    stop: int
    n_queries: int
    n_keys: int


@dataclass(frozen=True)
class SitePlacement:
    """Positions of the examples of one batch in the arrays of one site, with one entry for each row of the batch."""

    example: tuple[int, ...]
    """Index within the segment."""
    query_start: tuple[int, ...]
    key_start: tuple[int, ...]
    pair_start: dict[int | None, tuple[int, ...]]
    """First pair by band (`Site.bands`), and on the shared axis. Layers with a window have a pair axis of their own."""
    runs: tuple[Run, ...]

    @cached_property
    def n_queries(self) -> tuple[int, ...]:
        """Number of tokens of each row's query sequence."""
        return tuple(run.n_queries for run in self.runs for _ in range(run.start, run.stop))

    @cached_property
    def n_keys(self) -> tuple[int, ...]:
        """Number of tokens of each row's key sequence."""
        return tuple(run.n_keys for run in self.runs for _ in range(run.start, run.stop))


@dataclass
class SparseRows:
    """Weights that a sparse codec keeps, in a fixed number of slots for each row.

    The first `count` slots of a row are filled, by ascending key.
    """

    layouts: list[ArrayLayout]
    key: TraceArray
    stored: TraceArray
    count: TraceArray
    dropped: TraceArray

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays as they are stored, by path."""
        slots = np.arange(self.key.shape[-1])
        maps = []
        for key, stored, count, dropped in zip(self.key, self.stored, self.count, self.dropped, strict=True):
            filled = slots < count[..., None]  # [head, row, slot]
            maps.append(
                [
                    SparseHeadRows(k[mask], s[mask], n.astype(np.int64), mass)
                    for k, s, n, mass, mask in zip(key, stored, count, dropped, filled, strict=True)
                ]
            )
        return sparse_arrays(self.layouts, maps)


@dataclass
class SiteArrays:
    """Arrays of one site of a segment (see `headatlas.store.schema.traces.segment_layout`), None if not stored."""

    attention: TraceArray | None = None
    """Pairs of the layers without a window."""
    attention_bands: dict[int | None, TraceArray] = field(default_factory=dict)
    """Pairs by band: None for layers without a window, else the window. Empty with a sparse codec."""
    sparse: SparseRows | None = None
    query: TraceArray | None = None
    key: TraceArray | None = None
    logsumexp: TraceArray | None = None
    query_scale: TraceArray | None = None
    key_scale: TraceArray | None = None
    position_bias: TraceArray | None = None
    sinks: TraceArray | None = None
    visible_keys: TraceArray | None = None
    """Masks that follow no rule, ``[stored layer, 1, pair]``."""
    edge_key: TraceArray | None = None
    edge_weight: TraceArray | None = None
    statistics: TraceArray | None = None
    is_filled: Bool[np.ndarray, "layer example"] = field(default_factory=lambda: np.zeros((0, 0), bool))
    """True for each map (one layer of one example) that is written."""
    n_rows: int = 0
    """Number of rows of the segment."""
    pair_of_row: dict[int | None, Tensor] = field(default_factory=dict)
    """Index of the pair of each row of the segment with key 0, also if it is not stored; by band, on a GPU only."""
    zero_distance: int = 0
    """Index of key_pos − query_pos = 0 in `position_bias`."""
    written_distances: Bool[np.ndarray, "layer distance"] = field(default_factory=lambda: np.zeros((0, 0), bool))
    """True for each distance of `position_bias` that is written."""

    def mark_filled(self, layer: int, placement: SitePlacement) -> None:
        """Record that all arrays of a layer of a batch are written."""
        self.is_filled[layer, list(placement.example)] = True

    def clear(self, absent: Bool[np.ndarray, "example"]) -> None:
        """Fill the values that are never computed: examples without tokens, and distances that no example has."""
        if self.statistics is not None:
            self.statistics[..., absent] = np.nan
        for scale in (self.query_scale, self.key_scale):
            if scale is not None:
                scale[:, :, absent] = 0
        if self.position_bias is not None:
            self.position_bias[:] = 0
            self.written_distances = np.zeros(self.position_bias.shape[::2], bool)

    def band(self, site: Site, layer: int) -> int | None:
        """Return the window of the band that holds a layer's pairs. None if all pairs or no pairs are stored."""
        return site.band(layer) if self.attention_bands else None

    def attention_of(self, site: Site, layer: int) -> TraceArray | None:
        """Return the array ``[head, pair]`` of a layer's pairs, or None if attention is not stored densely."""
        band = site.band(layer)
        array = self.attention_bands.get(band)
        return None if array is None else array[site.bands[band].index(layer)]


class SegmentBuffers:
    """Trace arrays of one segment of examples.

    Parameters
    ----------
    spec
        Sites and the arrays to store.
    n_tokens
        Number of tokens of each example, by sequence. Examples without tokens occupy no pairs or rows.
    pool
        Memory to reuse. None allocates new memory.
    """

    def __init__(
        self, spec: TraceSpec, n_tokens: dict[str, Int64[np.ndarray, "example"]], pool: BufferPool | None = None
    ) -> None:
        self.spec = spec
        self.n_tokens = n_tokens
        self.layout = segment_layout(spec, n_tokens)
        self._pool = pool or BufferPool()
        codec = spec.attention_codec
        self._sparse = codec is not None and codec.selection is not None
        self._block_layout = BlockLayout({path: self._memory_shape(path) for path in self.layout})
        self._block = self._pool.take(self._block_layout.n_bytes)
        self._arrays = self._block_layout.numpy(self._block)
        self._device: DeviceArrays | None = None
        self._device_sites: list[dict[str, SiteArrays]] = []
        self._is_copied = False
        self._sites: dict[str, SiteArrays] = {}
        self._offsets: dict[str, tuple[np.ndarray, np.ndarray, dict[int | None, np.ndarray]]] = {}
        for site in spec.sites:
            n_queries, n_keys = n_tokens[site.query_sequence], n_tokens[site.key_sequence]
            self._sites[site.name] = self._site_arrays(site, self._arrays)
            pairs = {band: pair_offset(site, n_queries, n_keys, band) for band in (None, *site.bands)}
            self._offsets[site.name] = (_offsets(n_queries), _offsets(n_keys), pairs)
            self._sites[site.name].written_distances = np.zeros((site.n_layers, 0), bool)
            self._sites[site.name].n_rows = int(n_queries.sum())
            self._sites[site.name].zero_distance = zero_distance(n_queries)
            self._sites[site.name].is_filled = np.zeros((site.n_layers, len(n_queries)), bool)
            self._sites[site.name].clear(n_queries == 0)

    def _memory_shape(self, path: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and type of an array in memory. Weights of a sparse codec lie in slots."""
        layout, (site, name) = self.layout[path], path.split("/", 1)
        if not self._sparse or not _is_attention(path):
            return layout.shape, layout.dtype
        codec = self.spec.attention_codec
        assert codec is not None
        assert codec.selection is not None
        if name in ("attention_count", "attention_dropped"):
            return layout.shape, layout.dtype
        longest = int(self.n_tokens[self.spec.site(site).key_sequence].max(initial=0))
        rows = self.layout[f"{site}/attention_count"].shape
        return (*rows, min(codec.selection.n_kept, longest)), layout.dtype

    def _site_arrays(self, site: Site, arrays: Mapping[str, Any]) -> SiteArrays:
        """Return the arrays of a site from those of the segment, which may be tensors of a device."""
        result, bands = SiteArrays(), {band_array(band): band for band in site.bands}
        own = {
            name: array for path, array in arrays.items() for owner, name in [path.split("/", 1)] if owner == site.name
        }
        for name, array in own.items():
            if self._sparse and name.startswith("attention"):
                continue
            if name in bands:
                result.attention_bands[bands[name]] = array
            if name == "attention" or name not in bands:
                setattr(result, name, array)
        if self._sparse:
            names = ("attention_key", "attention", "attention_count", "attention_dropped")
            layouts = [layout for path, layout in self.layout.items() if path.startswith(f"{site.name}/attention")]
            result.sparse = SparseRows(layouts, *(own[name] for name in names))
        return result

    @property
    def sites(self) -> dict[str, SiteArrays]:
        """Trace arrays on the host by site, after their copies from the device."""
        if self._device is not None:
            self.start_copy()
            self._device.wait()
        return self._sites

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Trace arrays by path, as `sites`. Arrays of a sparse codec are computed at each access."""
        arrays = dict(self._arrays)
        for site in self.sites.values():
            arrays |= site.sparse.arrays() if site.sparse is not None else {}
        return {path: arrays[path] for path in self.layout}

    def _make_device_sites(self, device: torch.device) -> None:
        assert self._device is not None
        self._device_sites = [
            {
                name: replace(
                    self._site_arrays(self.spec.site(name), arrays),
                    is_filled=host.is_filled,
                    n_rows=host.n_rows,
                    pair_of_row=self._pairs_of_rows(self.spec.site(name), device),
                    zero_distance=host.zero_distance,
                    written_distances=host.written_distances,
                )
                for name, host in self._sites.items()
            }
            for arrays in self._device.sets
        ]

    def _pairs_of_rows(self, site: Site, device: torch.device) -> dict[int | None, Tensor]:
        """Return `SiteArrays.pair_of_row` of a site."""
        tables: dict[int | None, Tensor] = {}
        if self.spec.attention_codec is None or self._sparse:
            return tables
        rows, _, pairs = self._offsets[site.name]
        n_rows = np.diff(rows)
        query_pos = np.arange(rows[-1]) - np.repeat(rows[:-1], n_rows)
        n_keys = np.repeat(self.n_tokens[site.key_sequence], n_rows)
        for band in site.bands:
            first = row_start(query_pos, n_keys, causal=site.causal, window=band) - first_key(query_pos, window=band)
            tables[band] = to_device(np.repeat(pairs[band][:-1], n_rows) + first, device)
        return tables

    def target(self, site: SiteName, layer: int, device: torch.device) -> SiteArrays:
        """Return the arrays that a call on a device writes to. On a GPU they may hold this layer only."""
        if device.type == "cpu":
            return self._sites[site]
        self._is_copied = False
        if self._device is None:
            self._device = DeviceArrays(self._block_layout, self._block, self._pool, device)
            self._make_device_sites(device)
        return self._device_sites[self._device.start_layer(layer)][site]

    def end_layer(self, site: Site, layer: int, placement: SitePlacement) -> None:
        """Start the copy of a layer of a batch, if the device holds one layer at a time."""
        if self._device is not None and self._device.by_layer:
            self._device.copy_layer(layer, self._written_parts(site, layer, placement))

    def start_copy(self) -> None:
        """Start the copy of the traces from the device to the host. `arrays` waits for it."""
        if self._device is not None and not self._is_copied:
            self._device.start_copy()
            self._is_copied = True

    def shrink(self) -> bool:
        """Use less memory of the device from now on. Return False if that is not possible."""
        if self._device is None or not self._device.shrink():
            return False
        self._make_device_sites(self._device.device)
        return True

    def _written_parts(
        self, site: Site, layer: int, placement: SitePlacement
    ) -> Iterator[tuple[str, int, list[tuple[int, int]]]]:
        """Yield the arrays that a layer of a batch wrote, with the index of the layer and the spans of positions."""
        queries, keys, pairs = self._offsets[site.name]
        band = None if self._sparse else site.band(layer)
        for path in self._arrays:
            owner, name = path.split("/", 1)
            is_pairs, index, offsets = _is_attention(path) and not self._sparse, layer, queries
            if owner != site.name or name in SMALL_ARRAYS or (is_pairs and name != band_array(band)):
                continue
            if is_pairs:
                index, offsets = site.bands[band].index(layer), pairs[band]
            elif name == "visible_keys":
                stored = site.masks[layer].stored
                if stored is None:
                    continue
                index, offsets = stored, pairs[None]
            elif name == "key":
                offsets = keys
            yield path, index, _spans(offsets, placement.example)

    def place(self, site: Site, examples: Sequence[int]) -> SitePlacement:
        """Return the positions of a batch of these examples (by index within the segment)."""
        queries, keys, pairs = self._offsets[site.name]
        n_queries, n_keys = self.n_tokens[site.query_sequence], self.n_tokens[site.key_sequence]
        shapes = [(int(n_queries[i]), int(n_keys[i])) for i in examples]
        starts = [i for i in range(len(shapes)) if i == 0 or shapes[i] != shapes[i - 1]]
        runs = tuple(
            Run(start, stop, *shapes[start]) for start, stop in zip(starts, [*starts[1:], len(shapes)], strict=True)
        )
        return SitePlacement(
            example=tuple(examples),
            query_start=tuple(int(queries[i]) for i in examples),
            key_start=tuple(int(keys[i]) for i in examples),
            pair_start={band: tuple(int(offset[i]) for i in examples) for band, offset in pairs.items()},
            runs=runs,
        )

    def check_filled(self) -> None:
        """Check that every map of every example was written.

        Raises
        ------
        HeadAtlasError
            The capture left out a map. A part of an earlier segment would be stored in its place.
        """
        for site in self.spec.sites:
            has_tokens = self.n_tokens[site.query_sequence] > 0
            missing = np.argwhere(~self._sites[site.name].is_filled & has_tokens)
            if len(missing):
                layer, example = missing[0]
                raise HeadAtlasError(
                    f"{len(missing)} maps of site {site.name} were not computed, the first in layer {site.layers[layer]} of example "
                    f"{example} of the segment. The segment is not stored. Please report this."
                )


def as_stored(values: Tensor, target: TraceArray) -> TraceArray:
    """Return values as they are written to an array: of its type, and on the host if it lies there."""
    if isinstance(target, Tensor):
        return values.to(target.dtype)
    return values.cpu().numpy().astype(target.dtype, copy=False)


def _spans(offsets: Int64[np.ndarray, "boundary"], examples: Sequence[int]) -> list[tuple[int, int]]:
    """Return the positions of some examples as few spans."""
    spans: list[tuple[int, int]] = []
    for example in sorted(examples):
        start, stop = int(offsets[example]), int(offsets[example + 1])
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], stop)
        elif stop > start:
            spans.append((start, stop))
    return spans


def _is_attention(path: str) -> bool:
    return path.split("/", 1)[1].startswith("attention")


def _offsets(n_tokens: Int64[np.ndarray, "example"]) -> Int64[np.ndarray, "boundary"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(n_tokens, dtype=np.int64)])
