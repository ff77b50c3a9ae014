"""Interface of a segment: the tables of its examples, and slices of its arrays.

`CommittedSegment` reads them from a store, and `MemorySegment` holds them in memory. `Example`, searches and views use
this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float32, Int64

from ..codecs.array_layout import ArrayLayout
from ..codecs.attention_layout import band_array, pair_offset
from ..errors import FormatError, NotFoundError, located
from ..files.byte_cache import ByteCache
from ..files.containers.container import guard_fork
from ..files.overlays import overlay_path
from ..schema.omissions import Omission
from ..schema.text_tables import read_columns, read_optional_text, read_text, read_token_table
from ..schema.token_table import Column, TokenTable
from ..schema.traces import TraceSpec
from .lazy_array import Index, LazyArray

if TYPE_CHECKING:
    from .segment_overlay import SegmentOverlay

TABLES_MAX_BYTES = 512 << 20
"""Size of a store's cache of decoded texts, token tables and annotations."""
Rows = TypeVar("Rows", bound=Sized)


class Segment(ABC):
    """Examples of one segment. It is thread-safe. Arrays are read on access.

    `cache` holds decoded texts, token tables and annotations. `traces` holds data that searches decode
    (`stored_edges.py`); without it that data is not cached. The segments of a store share both caches. `where` is the
    location in messages.
    """

    def __init__(
        self,
        spec: TraceSpec,
        index: int,
        first_example: int,
        n_examples: int,
        where: str,
        *,
        cache: ByteCache | None = None,
        traces: ByteCache | None = None,
    ) -> None:
        self.spec, self.index, self.first_example, self.n_examples = spec, index, first_example, n_examples
        self.where = where
        self.overlays: dict[str, SegmentOverlay] = {}
        """Overlays of the segment, by name."""
        self.left_out: tuple[Omission, ...] = ()
        """Omissions of a segment in memory. Those of a store are listed in its manifest, for all segments together."""
        self._cache = ByteCache(TABLES_MAX_BYTES) if cache is None else cache
        self.traces = ByteCache(0) if traces is None else traces

    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]:
        """Every array of the segment by path. Traces were checked against the specification and lengths."""
        return self._read_layouts()

    @abstractmethod
    def _read_layouts(self) -> dict[str, ArrayLayout]: ...

    @abstractmethod
    def read_block(self, path: str, selection: tuple[slice, ...]) -> np.ndarray:
        """Read items of an array by slices of step 1 inside its bounds. Errors name the location."""

    @abstractmethod
    def _table(self, path: str) -> np.ndarray:
        """Read a complete table array or the statistics."""

    @abstractmethod
    def _prefetch(self, paths: list[str]) -> None:
        """Prepare for reading these arrays completely. Over a network they are fetched together."""

    def _located(self) -> AbstractContextManager[None]:
        """Add the location to errors raised inside the block."""
        return located(self.where)

    @cached_property
    def _overlay_of(self) -> dict[str, SegmentOverlay]:
        """Overlay of each added array, by path. No array may be one of the segment itself."""
        with self._located():
            overlays = {path: overlay for overlay in self.overlays.values() for path in overlay.layouts}
            for path in overlays.keys() & self.layouts.keys():
                raise FormatError(f"overlay {overlays[path].entry.name} lists {path}, which its segment has itself.")
            return overlays

    def _table_or_overlay(self, path: str) -> np.ndarray:
        """Read a complete table array of the segment or of an overlay."""
        overlay = self._overlay_of.get(path)
        return self._table(path) if overlay is None else overlay.read(path)

    def _table_paths(self, folder: str) -> list[str]:
        """Return the paths of the table arrays below a folder, with overlays last, and prefetch them."""
        paths = [path for path in self.layouts if path.startswith(f"{folder}/")]
        self._prefetch(paths)
        return [*paths, *(path for path in self._overlay_of if path.startswith(f"{folder}/"))]

    def tokens(self, sequence: str = "source") -> TokenTable:
        """Return the token table of a sequence. It is cached.

        Raises
        ------
        NotFoundError
            The store has no such sequence.
        """
        if sequence not in self.spec.sequences:
            raise NotFoundError(f"no sequence {sequence!r}; this store has {', '.join(self.spec.sequences)}.")
        return self._cached(
            "tokens",
            sequence,
            lambda: read_token_table(self._table_or_overlay, self._table_paths(sequence), sequence),
        )

    def token_offset(self, sequence: str) -> Int64[np.ndarray, "boundary"]:
        """Return the offset of each example's tokens on the flat token axis of a sequence."""
        return self._offsets[sequence]

    @cached_property
    def _offsets(self) -> dict[str, np.ndarray]:
        with self._located():
            return {sequence: self._table(f"{sequence}/token_offset") for sequence in self.spec.sequences}

    def pair_offset(self, site: str, band: int | None = None) -> Int64[np.ndarray, "boundary"]:
        """Return the offset of each example's pairs on the flat pair axis of a site, or on the axis of a band."""
        site_spec = self.spec.site(site)
        n_queries, n_keys = (
            np.diff(self._offsets[name]) for name in (site_spec.query_sequence, site_spec.key_sequence)
        )
        return pair_offset(site_spec, n_queries, n_keys, band)

    def stored_pair_offset(self, path: str) -> Int64[np.ndarray, "boundary"]:
        """Return the offset of each example's pairs in an array of pairs (``decoder/attention_window_512``)."""
        site, _, name = path.partition("/")
        bands = {band_array(band): band for band in self.spec.site(site).bands} | {"visible_keys": None}
        return self.pair_offset(site, bands[name])

    def array(self, path: str) -> LazyArray:
        """Return a lazy array by path (``encoder/attention``). Its items are read when it is indexed.

        Raises
        ------
        NotFoundError
            The segment has no such array. The message names the setting that the job needs.
        """
        layouts = self.layouts
        if path not in layouts:
            raise NotFoundError(f"{self.where}: {missing_array(path, self.spec)}")
        return LazyArray(layouts[path], self.read_block)

    def read(self, path: str, selection: tuple[Index, ...] | Index = ...) -> np.ndarray:
        """Read items of an array by integers and slices, as in numpy.

        Raises
        ------
        CorruptSegmentError
            A required chunk fails its checksum. The message names the object and its examples.
        """
        return self.array(path)[selection]

    def statistics(self, site: str) -> Float32[np.ndarray, "statistic layer head example"]:
        """Read all statistics of a site that the capture computed."""
        self.array(f"{site}/statistics")
        with self._located():
            return self._table(f"{site}/statistics")

    def overlay_statistic(self, name: str, site: str) -> Float32[np.ndarray, "layer head example"]:
        """Read a statistic that was added to the store. NaN if this segment does not have it."""
        overlay = self.overlays.get(name)
        if overlay is None:
            site_spec = self.spec.site(site)
            return np.full((site_spec.n_layers, site_spec.n_heads, self.n_examples), np.nan, np.float32)
        with self._located():
            return overlay.read(overlay_path(name, "statistic", site))

    def ids(self) -> list[str]:
        """Return the ids of the examples."""
        return [row or "" for row in self._texts_of("id")]

    def texts(self, name: str = "text") -> list[str]:
        """Return ``text``, ``text_pair`` or ``target_text`` of every example, "" if an example has none."""
        return [row or "" for row in self._texts_of(name)]

    def optional_texts(self, name: str) -> list[str | None]:
        """Return ``text_pair`` or ``target_text`` of every example, None if an example has none."""
        return list(self._texts_of(name))

    def example_text(self, name: str, row: int) -> str | None:
        """Return ``id`` or a text of one example, without a copy of those of the others."""
        return self._texts_of(name)[row]

    def _texts_of(self, name: str) -> Sequence[str | None]:
        """Return the cached texts of a name, which callers must not change."""
        if name not in ("id", "text", "text_pair", "target_text"):
            raise NotFoundError(f"no text {name!r}; expected id, text, text_pair or target_text.")

        def read() -> list[str] | list[str | None]:
            if name in ("id", "text"):
                return self._check_length(read_text(self._table, f"example/{name}"), name)
            return self._check_length(read_optional_text(self._table, list(self.layouts), name, self.n_examples), name)

        return self._cached("text", name, read)

    def _cached(self, kind: str, name: str, read: Callable[[], Rows]) -> Rows:
        """Return a decoded table from the cache, reading it if it is missing. Errors name the location."""

        def located_read() -> Rows:
            with self._located():
                return read()

        guard_fork()  # before the lock of the cache, which another thread of the parent may have held
        return self._cache.get((self.index, kind, name), located_read)

    def _check_length(self, rows: Rows, name: str) -> Rows:
        if len(rows) != self.n_examples:
            raise FormatError(f"{self.where}: example/{name} has {len(rows)} entries; expected {self.n_examples}.")
        return rows

    def columns(self) -> dict[str, Column]:
        """Return the annotations of the examples."""
        return dict(self._cached("columns", "", self._read_columns))

    def _read_columns(self) -> dict[str, Column]:
        folder = "example/column"
        columns = read_columns(self._table_or_overlay, self._table_paths(folder), folder)
        for name, column in columns.items():
            self._check_length(column.data, f"column/{name}")
        return columns


def missing_array(path: str, spec: TraceSpec) -> str:
    """Return the reason why a store does not have an array, with the setting that the job needs."""
    site, _, name = path.partition("/")
    keeps = {
        "attention": 'keep.attention = "sqrt8"',
        "attention_dropped": 'keep.attention = "top_k:16"',
        "statistics": "keep.statistics = true",
        "edge_key": "keep.edges = 8",
        "edge_weight": "keep.edges = 8",
        **dict.fromkeys(("query", "key", "logsumexp"), 'keep.query_key = "float16"'),
        **dict.fromkeys(("query_scale", "key_scale"), 'keep.query_key = "int8"'),
    }
    if name in keeps and any(s.name == site for s in spec.sites):
        return f"{path} was not kept. Run the job into another store with {keeps[name]}."
    sites = ", ".join(s.name for s in spec.sites)
    return f"no array {path!r}; expected <site>/<{'|'.join(keeps)}> with a site of {sites}."
