"""Arrays of a segment while it is computed, and the position of each example of a batch in them.

Arrays are allocated once at their final size and filled in place, example by example, in any order of batches. They
need no padding, concatenation or further copies. The next segment reuses the memory, because new memory pages cost as
much time as compression. `check_filled` verifies that no values of the previous segment remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64

from headatlas.store.codecs.array_layout import ArrayLayout
from headatlas.store.codecs.attention_layout import band_array, pair_offset
from headatlas.store.codecs.pairs import pair_rows, unpack_rows
from headatlas.store.codecs.sparse_rows import SparseHeadRows, sparse_arrays
from headatlas.store.errors import HeadAtlasError
from headatlas.store.schema.layer_masks import LayerMask
from headatlas.store.schema.traces import Site, TraceSpec, segment_layout, zero_distance


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
    key: np.ndarray
    stored: np.ndarray
    count: np.ndarray
    dropped: np.ndarray

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

    attention: np.ndarray | None = None
    """Pairs of the layers without a window."""
    attention_bands: dict[int | None, np.ndarray] = field(default_factory=dict)
    """Pairs by band: None for layers without a window, else the window. Empty with a sparse codec."""
    sparse: SparseRows | None = None
    query: np.ndarray | None = None
    key: np.ndarray | None = None
    logsumexp: np.ndarray | None = None
    query_scale: np.ndarray | None = None
    key_scale: np.ndarray | None = None
    position_bias: np.ndarray | None = None
    sinks: np.ndarray | None = None
    visible_keys: np.ndarray | None = None
    """Masks that follow no rule, ``[stored layer, 1, pair]``."""
    edge_key: np.ndarray | None = None
    edge_weight: np.ndarray | None = None
    statistics: np.ndarray | None = None
    masks: tuple[LayerMask, ...] = ()
    """Masks of the layers."""
    is_filled: Bool[np.ndarray, "layer example"] = field(default_factory=lambda: np.zeros((0, 0), bool))
    """True for each map (one layer of one example) that is written."""
    zero_distance: int = 0
    """Index of key_pos − query_pos = 0 in `position_bias`."""
    written_distances: Bool[np.ndarray, "layer distance"] = field(default_factory=lambda: np.zeros((0, 0), bool))
    """True for each distance of `position_bias` that is written."""

    def mark_filled(self, layer: int, placement: SitePlacement) -> None:
        """Record that all arrays of a layer of a batch are written, and drop edges to keys that the mask hides."""
        self._drop_hidden_edges(layer, placement)
        self.is_filled[layer, list(placement.example)] = True

    def _drop_hidden_edges(self, layer: int, placement: SitePlacement) -> None:
        """Drop edges to hidden keys. A row that sees fewer keys than it has edges gets them with the weight 0."""
        mask = self.masks[layer]
        if self.edge_key is None or self.edge_weight is None or mask.is_open:
            return
        for i, start in enumerate(placement.query_start):
            n_queries, n_keys = placement.n_queries[i], placement.n_keys[i]
            query_pos = np.arange(n_queries)[:, None]
            key = self.edge_key[layer, :, start : start + n_queries]
            weight = self.edge_weight[layer, :, start : start + n_queries]
            key_pos = key.astype(np.int64)
            shown = mask.shows(query_pos[None], key_pos) & (key_pos < n_keys)
            if mask.stored is not None:
                assert self.visible_keys is not None, "the segment stores the mask"
                first = placement.pair_start[None][i]
                pairs = pair_rows(0, n_queries, n_keys, causal=mask.causal)
                visible = unpack_rows(
                    self.visible_keys[mask.stored, 0, first + pairs.start : first + pairs.stop],
                    slice(0, n_queries), n_keys, causal=mask.causal,
                )  # fmt: skip
                shown &= visible[query_pos, np.minimum(key_pos, n_keys - 1)] != 0
            if shown.all():
                continue
            order = np.argsort(~shown, axis=-1, kind="stable")
            no_key = np.iinfo(key.dtype).max
            key[:] = np.take_along_axis(np.where(shown, key, no_key), order, axis=-1)
            weight[:] = np.take_along_axis(np.where(shown, weight, 0), order, axis=-1)

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

    def attention_of(self, site: Site, layer: int) -> np.ndarray | None:
        """Return the array ``[head, pair]`` of a layer's pairs, or None if attention is not stored densely."""
        band = site.band(layer)
        array = self.attention_bands.get(band)
        return None if array is None else array[site.bands[band].index(layer)]


@dataclass
class BufferPool:
    """Memory blocks that are reused for the next segment."""

    _blocks: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an uninitialized array. It is valid until the next call with the same name."""
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        block = self._blocks.get(name)
        if block is None or block.nbytes < n_bytes:
            block = self._blocks[name] = np.empty(n_bytes + n_bytes // 8, dtype=np.uint8)
        return block[:n_bytes].view(dtype).reshape(shape)


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
        pool = pool or BufferPool()
        codec = spec.attention_codec
        self._sparse = codec is not None and codec.selection is not None
        self._arrays = {
            path: pool.take(path, layout.shape, layout.dtype)
            for path, layout in self.layout.items()
            if not (self._sparse and _is_attention(path))
        }
        self.sites: dict[str, SiteArrays] = {}
        self._offsets: dict[str, tuple[np.ndarray, np.ndarray, dict[int | None, np.ndarray]]] = {}
        for site in spec.sites:
            self.sites[site.name] = SiteArrays(masks=site.masks)
            bands = {band_array(band): band for band in site.bands}
            for path, array in self._arrays.items():
                owner, name = path.split("/", 1)
                if owner != site.name:
                    continue
                if name in bands:
                    self.sites[site.name].attention_bands[bands[name]] = array
                if name == "attention" or name not in bands:
                    setattr(self.sites[site.name], name, array)
            n_queries, n_keys = n_tokens[site.query_sequence], n_tokens[site.key_sequence]
            if self._sparse:
                self.sites[site.name].sparse = self._allocate_slots(site, int(n_keys.max(initial=0)), pool)
            pairs = {band: pair_offset(site, n_queries, n_keys, band) for band in (None, *site.bands)}
            self._offsets[site.name] = (_offsets(n_queries), _offsets(n_keys), pairs)
            self.sites[site.name].zero_distance = zero_distance(n_queries)
            self.sites[site.name].is_filled = np.zeros((site.n_layers, len(n_queries)), bool)
            self.sites[site.name].clear(n_queries == 0)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Trace arrays by path. Arrays of a sparse codec are computed at each access."""
        arrays = dict(self._arrays)
        for site in self.sites.values():
            arrays |= site.sparse.arrays() if site.sparse is not None else {}
        return {path: arrays[path] for path in self.layout}

    def _allocate_slots(self, site: Site, longest: int, pool: BufferPool) -> SparseRows:
        """Allocate the slots of a sparse codec for a site."""
        codec = self.spec.attention_codec
        assert codec is not None
        assert codec.selection is not None
        layout_by_name = {
            path.split("/", 1)[1]: layout for path, layout in self.layout.items() if path.startswith(f"{site.name}/")
        }
        layouts = {name: layout for name, layout in layout_by_name.items() if _is_attention(layout.path)}
        rows = layouts["attention_count"].shape
        slots = (*rows, min(codec.selection.n_kept, longest))
        shapes = {"attention": slots, "attention_key": slots, "attention_count": rows, "attention_dropped": rows}
        arrays = {n: pool.take(layouts[n].path, shape, layouts[n].dtype) for n, shape in shapes.items()}
        return SparseRows(
            list(layouts.values()),
            arrays["attention_key"],
            arrays["attention"],
            arrays["attention_count"],
            arrays["attention_dropped"],
        )

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
            missing = np.argwhere(~self.sites[site.name].is_filled & has_tokens)
            if len(missing):
                layer, example = missing[0]
                raise HeadAtlasError(
                    f"{len(missing)} maps of site {site.name} were not computed, the first in layer {site.layers[layer]} of example "
                    f"{example} of the segment. The segment is not stored. Please report this."
                )


def _is_attention(path: str) -> bool:
    return path.split("/", 1)[1].startswith("attention")


def _offsets(n_tokens: Int64[np.ndarray, "example"]) -> Int64[np.ndarray, "boundary"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(n_tokens, dtype=np.int64)])
