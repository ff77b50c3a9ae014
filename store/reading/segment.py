"""The examples of a segment: their tables, and slices of their arrays, wherever these are.

`CommittedSegment` reads them from a store, `MemorySegment` has them; `Example`, searches and views know one interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sized
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float32, Int64

from ..codecs.array_layout import ArrayLayout
from ..codecs.attention_layout import band_array, pair_offset
from ..containers.container import guard_fork
from ..errors import FormatError, NotFoundError, located
from ..files.byte_cache import ByteCache
from ..files.overlays import overlay_path
from ..schema.text_tables import read_columns, read_optional_text, read_text, read_token_table
from ..schema.token_table import Column, TokenTable
from ..schema.traces import TraceSpec
from .lazy_array import Index, LazyArray

if TYPE_CHECKING:
    from .segment_overlay import SegmentOverlay

TABLES_MAX_BYTES = 512 << 20
"""Decoded texts, token tables and annotations that a store keeps in memory."""
Rows = TypeVar("Rows", bound=Sized)


class Segment(ABC):
    """The examples of one segment. Safe from many threads; arrays are read when asked for.

    Decoded texts, token tables and annotations are kept in `cache`; `traces` is for what searches decode (`edges.py`),
    without one nothing is kept of that. The segments of a store share both. `where` is for messages.
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
        """The overlays beside it, by name."""
        self._cache = ByteCache(TABLES_MAX_BYTES) if cache is None else cache
        self.traces = ByteCache(0) if traces is None else traces

    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]:
        """Every array of the segment by path, traces held against the specification and the examples' lengths."""
        return self._read_layouts()

    @abstractmethod
    def _read_layouts(self) -> dict[str, ArrayLayout]: ...

    @abstractmethod
    def read_block(self, path: str, selection: tuple[slice, ...]) -> np.ndarray:
        """Items of an array by slices of step 1 inside its bounds, errors with their place."""

    @abstractmethod
    def _table(self, path: str) -> np.ndarray:
        """A table array or the statistics, whole."""

    @abstractmethod
    def _prefetch(self, paths: list[str]) -> None:
        """Arrays that will be read whole: over a network they are fetched at once."""

    def _located(self) -> AbstractContextManager[None]:
        """Adds the place to errors raised inside the block."""
        return located(self.where)

    @cached_property
    def _overlay_of(self) -> dict[str, SegmentOverlay]:
        """The overlay that holds each array, by path."""
        with self._located():
            return {path: overlay for overlay in self.overlays.values() for path in overlay.layouts}

    def _table_or_overlay(self, path: str) -> np.ndarray:
        """A table array of the segment or of an overlay, whole."""
        overlay = self._overlay_of.get(path)
        return self._table(path) if overlay is None else overlay.read(path)

    def _table_paths(self, place: str) -> list[str]:
        """The table arrays below a place, those of overlays last; over a network all are fetched at once."""
        paths = [path for path in self.layouts if path.startswith(f"{place}/")]
        self._prefetch(paths)
        return [*paths, *(path for path in self._overlay_of if path.startswith(f"{place}/"))]

    def tokens(self, sequence: str = "source") -> TokenTable:
        """The token table of a sequence; kept after the first call.

        Raises
        ------
        NotFoundError
            This store has no such sequence.
        """
        if sequence not in self.spec.sequences:
            raise NotFoundError(f"no sequence {sequence!r}; this store has {', '.join(self.spec.sequences)}.")
        return self._kept(
            "tokens",
            sequence,
            lambda: read_token_table(self._table_or_overlay, self._table_paths(sequence), sequence),
        )

    def token_offset(self, sequence: str) -> Int64[np.ndarray, "boundary"]:
        """Where each example's tokens begin on the flat token axis of a sequence."""
        return self._offsets[sequence]

    @cached_property
    def _offsets(self) -> dict[str, np.ndarray]:
        with self._located():
            return {sequence: self._table(f"{sequence}/token_offset") for sequence in self.spec.sequences}

    def pair_offset(self, site: str, band: int | None = None) -> Int64[np.ndarray, "boundary"]:
        """Where each example's pairs begin on the flat pair axis of a site, or on that of a band of it."""
        found = self.spec.site(site)
        n_queries, n_keys = (np.diff(self._offsets[name]) for name in (found.query_sequence, found.key_sequence))
        return pair_offset(found, n_queries, n_keys, band)

    def stored_pair_offset(self, path: str) -> Int64[np.ndarray, "boundary"]:
        """Where each example's pairs begin in an array of attention (``decoder/attention_window_512``)."""
        site, _, name = path.partition("/")
        bands = {band_array(band): band for band in self.spec.site(site).bands}
        return self.pair_offset(site, bands[name])

    def array(self, path: str) -> LazyArray:
        """An array by path (``encoder/attention``): shape and dtype now, items when indexed.

        Raises
        ------
        NotFoundError
            The segment has no such array; the message says what the job must keep.
        """
        layouts = self.layouts
        if path not in layouts:
            raise NotFoundError(f"{self.where}: {missing_array(path, self.spec)}")
        return LazyArray(layouts[path], self.read_block)

    def read(self, path: str, selection: tuple[Index, ...] | Index = ...) -> np.ndarray:
        """Items of an array: integers and slices, as in numpy.

        Raises
        ------
        CorruptSegmentError
            A chunk that is needed fails its checksum; the object and the examples in it are named.
        """
        return self.array(path)[selection]

    def statistics(self, site: str) -> Float32[np.ndarray, "statistic layer head example"]:
        """All statistics of a site."""
        self.array(f"{site}/statistics")
        with self._located():
            return self._table(f"{site}/statistics")

    def overlay_statistic(self, name: str, site: str) -> Float32[np.ndarray, "layer head example"]:
        """A statistic that was added later; NaN where this segment does not have it."""
        overlay = self.overlays.get(name)
        if overlay is None:
            found = self.spec.site(site)
            return np.full((found.n_layers, found.n_heads, self.n_examples), np.nan, np.float32)
        with self._located():
            return overlay.read(overlay_path(name, "statistic", site))

    def ids(self) -> list[str]:
        """The ids of the examples."""
        return self._text("id")

    def texts(self, name: str = "text") -> list[str]:
        """``text`` of every example; ``text_pair`` or ``target_text`` with "" where an example has none."""
        return [row or "" for row in self.optional_texts(name)]

    def optional_texts(self, name: str) -> list[str | None]:
        """``text_pair`` or ``target_text`` of every example, None where it has none."""
        if name in ("id", "text"):
            return list(self._text(name))
        if name not in ("text_pair", "target_text"):
            raise NotFoundError(f"no text {name!r}; expected id, text, text_pair or target_text.")
        names = list(self.layouts)

        def read() -> list[str | None]:
            return self._counted(read_optional_text(self._table, names, name, self.n_examples), name)

        return list(self._kept("optional", name, read))

    def _text(self, name: str) -> list[str]:
        return list(self._kept("text", name, lambda: self._counted(read_text(self._table, f"example/{name}"), name)))

    def _kept(self, kind: str, name: str, read: Callable[[], Rows]) -> Rows:
        """A decoded table out of the cache, or read now, errors with their place."""

        def located_read() -> Rows:
            with self._located():
                return read()

        guard_fork()  # before a lock of the cache that another thread may have held
        return self._cache.get((self.index, kind, name), located_read)

    def _counted(self, rows: Rows, name: str) -> Rows:
        if len(rows) != self.n_examples:
            raise FormatError(f"{self.where}: example/{name} has {len(rows)} entries; expected {self.n_examples}.")
        return rows

    def columns(self) -> dict[str, Column]:
        """The annotations of the examples."""
        return dict(self._kept("columns", "", self._read_columns))

    def _read_columns(self) -> dict[str, Column]:
        place = "example/column"
        columns = read_columns(self._table_or_overlay, self._table_paths(place), place)
        for name, column in columns.items():
            self._counted(column.data, f"column/{name}")
        return columns


def missing_array(path: str, spec: TraceSpec) -> str:
    """Why a store does not have an array, and what the job must keep."""
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
        return f"{path} was not kept. Run the job again with {keeps[name]}."
    return f"no array {path!r}; expected <site>/<{'|'.join(keeps)}> with a site of {', '.join(s.name for s in spec.sites)}."
