"""A committed segment: its listing, its tables, and slices of its arrays.

Opening touches nothing. The first use reads `segment.json` (its hash is in the manifest), checks that every object is
there with its size, and holds the listed arrays against the shapes that the specification and the examples' lengths
demand. After that a read decodes the chunks that it needs and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Int64

from ..containers.container import ContainerReader, SegmentListing, guard_fork
from ..errors import ConfigError, FormatError, HeadAtlasError, NotFoundError, ShapeError, located
from ..layers import layer_path
from ..manifest import SegmentEntry
from ..objects import ObjectDamageError
from ..schema import ArrayLayout, TraceSpec, band_array, entries_of, has_early_edges, pair_offset, segment_layout
from ..source import ObjectSource
from ..tables import (
    SegmentTables,
    check_offset,
    examples_of_rows,
    read_columns,
    read_optional_text,
    read_text,
    read_token_table,
)
from ..tokens import Column, TokenTable
from .cache import ByteCache
from .lazy_array import Index, LazyArray
from .listed import Listed, open_arrays, read_listing, read_whole
from .segment_layer import SegmentLayer

__all__ = ["LazyArray", "Segment", "SegmentTables"]

TABLES_MAX_BYTES = 512 << 20
"""Decoded texts, token tables and annotations that a store keeps in memory."""
EDGES_MAX_BYTES = 1 << 30
"""Decoded edges that a store keeps in memory, where nothing else is said: 2.3 kB a token of a model of 72 heads."""
Rows = TypeVar("Rows", bound=Sized)


class Segment:
    """One segment of a store. Safe from many threads; arrays are read when asked for.

    Decoded texts, token tables and annotations are kept in `cache`, decoded edges in `traces` (without one they are
    not); the segments of a store share both.

    Without `check_presence` damaged segments open too, so that what is left of them can be told.
    """

    def __init__(
        self,
        source: ObjectSource,
        entry: SegmentEntry,
        spec: TraceSpec,
        *,
        check_presence: bool = True,
        cache: ByteCache | None = None,
        traces: ByteCache | None = None,
    ) -> None:
        self.entry, self.spec, self.source, self._check_presence = entry, spec, source, check_presence
        self.index, self.first_example, self.n_examples = entry.index, entry.first_example, entry.n_examples
        self._cache = ByteCache(TABLES_MAX_BYTES) if cache is None else cache
        self.traces = ByteCache(0) if traces is None else traces
        """What searches keep of decoded traces (`edges.py`); shared like `cache`."""

    def __repr__(self) -> str:
        last = self.first_example + self.n_examples
        return f"Segment({self.index}, examples {self.first_example}:{last}, {self.source.location})"

    @property
    def folder(self) -> Path:
        """Its folder on this machine.

        Raises
        ------
        ConfigError
            The store was opened from a URL.
        """
        if self.source.folder is None:
            raise ConfigError(f"{self.source.location} is a URL; expected a store in a folder.")
        return self.source.folder / self.entry.path

    @cached_property
    def where(self) -> str:
        """For messages: the store and this segment."""
        return f"{self.source.location}, segment {self.index}"

    @cached_property
    def listing(self) -> SegmentListing:
        """What segment.json lists; read and checked on first use.

        Raises
        ------
        CorruptSegmentError
            An object is missing or has another size, or segment.json is not the committed one.
        FormatError
            The listing does not agree with the manifest, or something in the segment is a link.
        """
        with located(self.where):
            listing = self.read_listing()
            if self._check_presence:
                try:
                    self.source.check_segment(self.entry.path, listing.objects)
                except ObjectDamageError as error:
                    lenient = Segment(self.source, self.entry, self.spec, check_presence=False)
                    error.args = (f"{error} {examples_text(lenient.examples_of_object(error.object_path))}",)
                    raise
            return listing

    def read_listing(self) -> SegmentListing:
        """segment.json alone, held against the manifest; the objects are not looked at."""
        entry = self.entry
        own = Listed(
            entry.path, entry.bytes, entry.sha256, self.index, self.first_example, self.n_examples, entry.n_tokens
        )
        return read_listing(self.source, own)

    @cached_property
    def reader(self) -> ContainerReader:
        """The container's reader over the checked listing."""
        with located(self.where):
            return open_arrays(self.source, self.entry.path, self.listing)

    @cached_property
    def layers(self) -> dict[str, SegmentLayer]:
        """The annotation layers beside it, by name."""
        return {entry.name: SegmentLayer(self, entry) for entry in self.entry.layers}

    @cached_property
    def _layer_of(self) -> dict[str, SegmentLayer]:
        """Which layer has an array."""
        with self._located():
            return {path: layer for layer in self.layers.values() for path in layer.layouts}

    def without_layers(self) -> Segment:
        """The segment as it was written."""
        bare = self.entry.model_copy(update={"layers": ()})
        return Segment(self.source, bare, self.spec, check_presence=self._check_presence)

    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]:
        """Every array of the segment by path, traces held against the specification and the examples' lengths."""
        listed = {entry.path: entry.layout() for entry in self.listing.arrays}
        with self._located():
            lengths = {}
            for sequence in self.spec.sequences:
                offset = self._whole(listed, f"{sequence}/token_offset")
                if len(offset) != self.n_examples + 1:
                    raise FormatError(
                        f"{sequence}/token_offset has {len(offset)} entries; expected {self.n_examples + 1}."
                    )
                check_offset(offset, self.entry.n_tokens.get(sequence, -1), f"{sequence}/token_offset")
                lengths[sequence] = np.diff(offset)
            try:
                n_entries = entries_of(self.spec, lengths, {path: layout.shape for path, layout in listed.items()})
            except ShapeError as error:
                raise FormatError(str(error)) from None
            early = has_early_edges({path: layout.dtype for path, layout in listed.items()})
            for path, expected in segment_layout(self.spec, lengths, n_entries, early_edges=early).items():
                found = listed.get(path)
                if found != expected:
                    raise FormatError(
                        f"array {path} is listed as {found and (found.dtype.name, found.shape)}; expected "
                        f"{(expected.dtype.name, expected.shape)} from the specification and the examples' lengths."
                    )
        return listed

    def _whole(self, layouts: dict[str, ArrayLayout], path: str) -> np.ndarray:
        return read_whole(self.reader, layouts, path)

    def _table(self, path: str) -> np.ndarray:
        return read_whole(self.reader, self.layouts, path)

    def _table_or_layer(self, path: str) -> np.ndarray:
        """A table array of the segment or of a layer, whole."""
        layer = self._layer_of.get(path)
        return self._table(path) if layer is None else layer.read(path)

    def _table_paths(self, place: str) -> list[str]:
        """The table arrays below a place, those of layers last; over a network all are fetched at once."""
        paths = [path for path in self.layouts if path.startswith(f"{place}/")]
        self._prefetch(paths)
        return [*paths, *(path for path in self._layer_of if path.startswith(f"{place}/"))]

    def _prefetch(self, paths: list[str]) -> None:
        self.reader.prefetch(paths)

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
            lambda: read_token_table(self._table_or_layer, self._table_paths(sequence), sequence),
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

    def read_block(self, path: str, selection: tuple[slice, ...]) -> np.ndarray:
        """Items of an array by slices of step 1 inside its bounds, errors with their place."""
        with self._located():
            return self.reader.read(path, selection)

    def statistics(self, site: str) -> Float32[np.ndarray, "statistic layer head example"]:
        """All statistics of a site."""
        self.array(f"{site}/statistics")
        with self._located():
            return self._table(f"{site}/statistics")

    def layer_statistic(self, name: str, site: str) -> Float32[np.ndarray, "layer head example"]:
        """A statistic that was added later; NaN where this segment does not have it."""
        layer = self.layers.get(name)
        if layer is None:
            found = self.spec.site(site)
            return np.full((found.n_layers, found.n_heads, self.n_examples), np.nan, np.float32)
        with self._located():
            return layer.read(layer_path(name, "statistic", site))

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
        columns = read_columns(self._table_or_layer, self._table_paths(place), place)
        for name, column in columns.items():
            self._counted(column.data, f"column/{name}")
        return columns

    def examples_of(self, array: str, start: int = 0, stop: int | None = None) -> range:
        """The examples (numbers in the store) that items `start:stop` of an array's long axis belong to."""
        everything = range(self.first_example, self.first_example + self.n_examples)
        site, _, name = array.partition("/")
        if stop is None or not any(site == s.name for s in self.spec.sites):
            return everything
        try:
            axis = self.layouts[array].axes[-1 if name == "statistics" else 2]
            if axis == "entry":
                return everything
            if axis == "pair":
                found = examples_of_rows(self.stored_pair_offset(array), start, stop)
            elif axis == "example":
                found = range(start, stop)
            elif axis in ("distance", "sink"):
                return everything
            else:
                spec = self.spec.site(site)
                sequence = spec.key_sequence if axis == "key_token" else spec.query_sequence
                found = examples_of_rows(self._offsets[sequence], start, stop)
        except HeadAtlasError:  # the offsets themselves are damaged
            return everything
        return range(self.first_example + found.start, self.first_example + found.stop)

    def examples_of_object(self, object_path: str, *, damaged: bool = False) -> range:
        """The examples that a file of this segment serves; with `damaged` those of its chunks that cannot be decoded."""
        try:
            spans = (self.reader.damaged_spans if damaged else self.reader.spans)(object_path)
        except HeadAtlasError:
            spans = []
        touched = [self.examples_of(*span) for span in spans] or [self.examples_of("")]
        return range(min(found.start for found in touched), max(found.stop for found in touched))

    def _located(self) -> _Located:
        return _Located(self)


class _Located:
    """Adds the segment, and for damage the examples it touches, to errors raised inside the block."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment

    def __enter__(self) -> None:
        guard_fork()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, HeadAtlasError) or str(error).startswith(self._segment.where):
            return
        message = f"{self._segment.where}: {error}"
        if isinstance(error, ObjectDamageError):
            touched = self._segment.examples_of(error.array, error.start, error.stop)
            message += f" {examples_text(touched)}"
        error.args = (message, *error.args[1:])


def examples_text(examples: range) -> str:
    """For messages: which examples a damaged object touches."""
    if not examples:
        return "No example is touched."
    return f"Examples {examples.start} to {examples.stop - 1} are touched."


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
