"""The arrays of a segment while it is computed, and where each example of a batch lies in them.

Arrays are allocated once at their final size and filled in place, example by example, in whatever order batches come:
nothing is padded, concatenated or copied again. Memory is reused from segment to segment (fresh pages cost as much as
compression does), so `check_filled` proves that nothing of the segment before is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64

from headatlas.store.codecs.array_layout import ArrayLayout
from headatlas.store.codecs.attention_layout import band_array, pair_offset
from headatlas.store.codecs.sparse_rows import SparseHeadRows, sparse_arrays
from headatlas.store.schema.traces import Site, TraceSpec, segment_layout, zero_distance


@dataclass(frozen=True)
class Run:
    """Consecutive rows `start:stop` of a batch that have the same lengths, so that they need no padding among them."""

    start: int
    stop: int
    n_queries: int
    n_keys: int


@dataclass(frozen=True)
class SitePlacement:
    """Where the examples of one batch lie in the arrays of one site; lists have one entry for each row of the batch."""

    example: tuple[int, ...]
    """Index within the segment."""
    query_start: tuple[int, ...]
    key_start: tuple[int, ...]
    pair_start: dict[int | None, tuple[int, ...]]
    """By band (`Site.bands`): layers with a window have a pair axis of their own."""
    runs: tuple[Run, ...]

    @cached_property
    def n_queries(self) -> tuple[int, ...]:
        """Tokens of each row's query sequence."""
        return tuple(run.n_queries for run in self.runs for _ in range(run.start, run.stop))

    @cached_property
    def n_keys(self) -> tuple[int, ...]:
        """Tokens of each row's key sequence."""
        return tuple(run.n_keys for run in self.runs for _ in range(run.start, run.stop))


@dataclass
class SparseRows:
    """What a sparse codec keeps, before its length is known: each row has as many slots as it may need.

    `count` of them are filled, by ascending key.
    """

    layouts: list[ArrayLayout]
    key: np.ndarray
    stored: np.ndarray
    count: np.ndarray
    dropped: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """As they are stored, by path."""
        slots = np.arange(self.key.shape[-1])
        maps = []
        for key, stored, count, dropped in zip(self.key, self.stored, self.count, self.dropped, strict=True):
            filled = slots < count[..., None]  # [head, row, slot]
            maps.append(
                [
                    SparseHeadRows(k[at], s[at], n.astype(np.int64), left)
                    for k, s, n, left, at in zip(key, stored, count, dropped, filled, strict=True)
                ]
            )
        return sparse_arrays(self.layouts, maps)


@dataclass
class SiteArrays:
    """The arrays of one site of a segment (see `headatlas.store.schema.traces.segment_layout`); None: not kept."""

    attention: np.ndarray | None = None
    """Of the layers without a window."""
    attention_bands: dict[int | None, np.ndarray] = field(default_factory=dict)
    """The same, and those of each window; empty where a sparse codec is used."""
    sparse: SparseRows | None = None
    query: np.ndarray | None = None
    key: np.ndarray | None = None
    logsumexp: np.ndarray | None = None
    query_scale: np.ndarray | None = None
    key_scale: np.ndarray | None = None
    position_bias: np.ndarray | None = None
    sinks: np.ndarray | None = None
    edge_key: np.ndarray | None = None
    edge_weight: np.ndarray | None = None
    statistics: np.ndarray | None = None
    n_filled: int = 0
    """Maps (one layer of one example) written so far."""
    zero_distance: int = 0
    """Where key_pos − query_pos = 0 lies in `position_bias`."""
    known_distances: Bool[np.ndarray, "layer distance"] = field(default_factory=lambda: np.zeros((0, 0), bool))
    """Which of its numbers are written."""

    def clear(self, absent: Bool[np.ndarray, "example"]) -> None:
        """Set what nothing is computed for: examples without tokens, and distances that no example has."""
        if self.statistics is not None:
            self.statistics[..., absent] = np.nan
        for scale in (self.query_scale, self.key_scale):
            if scale is not None:
                scale[:, :, absent] = 0
        if self.position_bias is not None:
            self.position_bias[:] = 0
            self.known_distances = np.zeros(self.position_bias.shape[::2], bool)

    def band(self, site: Site, layer: int) -> int | None:
        """The window whose band a layer's pairs are stored in; None: all pairs are, or none."""
        return site.band(layer) if self.attention_bands else None

    def attention_of(self, site: Site, layer: int) -> np.ndarray | None:
        """Where the pairs of a layer go, ``[head, pair]``; None: attention is not kept densely."""
        band = site.band(layer)
        array = self.attention_bands.get(band)
        return None if array is None else array[site.bands[band].index(layer)]


@dataclass
class BufferPool:
    """Memory that is handed out again for the next segment."""

    _blocks: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array whose contents are undefined; it is valid until the same name is taken again."""
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        block = self._blocks.get(name)
        if block is None or block.nbytes < n_bytes:
            block = self._blocks[name] = np.empty(n_bytes + n_bytes // 8, dtype=np.uint8)
        return block[:n_bytes].view(dtype).reshape(shape)


class SegmentBuffers:
    """The trace arrays of one segment of examples with known lengths.

    Parameters
    ----------
    spec
        Sites and what is kept.
    n_tokens
        Tokens of each example, by sequence; examples of no tokens take no room.
    pool
        Memory to use; None allocates afresh.
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
            self.sites[site.name] = SiteArrays()
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
                self.sites[site.name].sparse = self._slots(site, int(n_keys.max(initial=0)), pool)
            pairs = {band: pair_offset(site, n_queries, n_keys, band) for band in site.bands}
            self._offsets[site.name] = (_offsets(n_queries), _offsets(n_keys), pairs)
            self.sites[site.name].zero_distance = zero_distance(n_queries)
            self.sites[site.name].clear(n_queries == 0)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The trace arrays by path; those of a sparse codec are made anew at each call."""
        made = dict(self._arrays)
        for site in self.sites.values():
            made |= site.sparse.arrays() if site.sparse is not None else {}
        return {path: made[path] for path in self.layout}

    def _slots(self, site: Site, longest: int, pool: BufferPool) -> SparseRows:
        """Room for what a sparse codec keeps of a site."""
        codec = self.spec.attention_codec
        assert codec is not None
        assert codec.selection is not None
        own = {
            path.split("/", 1)[1]: layout for path, layout in self.layout.items() if path.startswith(f"{site.name}/")
        }
        layouts = {name: layout for name, layout in own.items() if _is_attention(layout.path)}
        rows = layouts["attention_count"].shape
        slots = (*rows, min(codec.selection.n_kept, longest))
        shapes = {"attention": slots, "attention_key": slots, "attention_count": rows, "attention_dropped": rows}
        made = {n: pool.take(layouts[n].path, shape, layouts[n].dtype) for n, shape in shapes.items()}
        return SparseRows(
            list(layouts.values()),
            made["attention_key"],
            made["attention"],
            made["attention_count"],
            made["attention_dropped"],
        )

    def place(self, site: Site, examples: Sequence[int]) -> SitePlacement:
        """Where a batch of these examples (by index within the segment) lies."""
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
        """Every map of every example was written exactly once."""
        for site in self.spec.sites:
            n_examples = int((self.n_tokens[site.query_sequence] > 0).sum())
            filled = self.sites[site.name].n_filled
            assert filled == n_examples * site.n_layers, (
                f"{site.name}: {filled} maps written of {n_examples * site.n_layers}"
            )


def _is_attention(path: str) -> bool:
    return path.split("/", 1)[1].startswith("attention")


def _offsets(n_tokens: Int64[np.ndarray, "example"]) -> Int64[np.ndarray, "boundary"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(n_tokens, dtype=np.int64)])
