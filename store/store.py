"""A store opened for reading: a snapshot of its segments, and the examples in them.

Opening reads one manifest. What is committed later is not seen until `Store.refresh`; what this snapshot lists is
never changed, so readers take no locks.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Shaped

from .errors import ConfigError, NotFoundError, located
from .files.byte_cache import ByteCache
from .files.leases import hold_manifest
from .files.manifest import Manifest, read_manifest
from .files.object_source import CACHE_BYTES, ObjectSource, open_source
from .files.overlays import Layer
from .questions import Questions
from .reading.committed_segment import CommittedSegment
from .reading.data_frames import FrameLibrary, as_library, examples_frame, tokens_frame
from .reading.example import Example as Example
from .reading.examples import Examples, join_columns
from .reading.lazy_traces import lazy_traces
from .reading.segment import TABLES_MAX_BYTES
from .reading.statistic_arrays import read_statistics
from .reading.stored_edges import EDGES_MAX_BYTES
from .schema.token_table import Column
from .schema.traces import Site, TraceSpec

if TYPE_CHECKING:
    import polars as pl


def open_store(
    path: str | os.PathLike[str],
    manifest: int | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_bytes: int = CACHE_BYTES,
    cache_dir: str | os.PathLike[str] | None = None,
    edges_bytes: int = EDGES_MAX_BYTES,
) -> Store:
    """Open the store at `path`: the newest snapshot, or the one of a manifest number.

    Parameters
    ----------
    path
        A folder, or a URL of any protocol that fsspec knows: ``s3://bucket/traces``, ``https://host/traces``. Stores
        are read from URLs, not written.
    manifest
        The number of a snapshot. One that is not among the newest 16 may be gone after any commit, unless it is open
        somewhere.
    storage_options
        For fsspec, with a URL: credentials, ``{"endpoint_url": "http://127.0.0.1:9000"}``. They go into pickles.
    cache_bytes
        What is kept in memory of what came from a URL.
    cache_dir
        A folder that keeps whole objects from URLs, under their hash; default ``objects`` in the folder that the
        environment variable ``HEADATLAS_CACHE_DIR`` names. Without either, nothing from URLs is kept on disk, and only
        the ranges that are needed are fetched.
    edges_bytes
        Decoded edges that searches keep in memory, at most; 0: none.

    Raises
    ------
    NotFoundError
        There is no store, or no manifest of that number.
    FormatError, CorruptSegmentError
        The manifest is of a newer format, or was cut or changed.
    ConfigError, RemoteError
        A URL of an unknown protocol, or a package for it is missing; the server failed.
    """
    kept = None if cache_dir is None else os.fspath(cache_dir)
    return Store(Opening(os.fspath(path), dict(storage_options or {}), cache_bytes, kept, edges_bytes), manifest)


@dataclass(frozen=True)
class Opening:
    """How a store is opened, see `open_store`."""

    path: str
    storage_options: Mapping[str, Any]
    cache_bytes: int
    cache_dir: str | None
    edges_bytes: int
    without: frozenset[int] = frozenset()
    """Indices of the segments that are left out."""


class Store(Questions):
    """A snapshot of a trace store. Safe from many threads; pickles as how it was opened and its manifest number."""

    def __init__(self, opening: Opening, manifest: int | None = None) -> None:
        source = open_source(opening.path, opening.storage_options, opening.cache_bytes, opening.cache_dir)
        self.source: ObjectSource = source
        self._opening = opening if source.folder is None else replace(opening, path=source.location)
        self._lease: weakref.finalize | None = None
        with located(source.location):
            self.manifest: Manifest = self._hold(manifest)
        self.spec: TraceSpec = self.manifest.spec
        self.sites: dict[str, Site] = {site.name: site for site in self.spec.sites}
        cache, traces = ByteCache(TABLES_MAX_BYTES), ByteCache(opening.edges_bytes)
        self.segments: Sequence[CommittedSegment] = tuple(
            CommittedSegment(source, entry, self.spec, cache=cache, traces=traces)
            for entry in self.manifest.segments
            if entry.index not in opening.without
        )
        self._starts = np.array([s.first_example for s in self.segments], dtype=np.int64)

    def __repr__(self) -> str:
        return f"Store({self.location!r}, manifest {self.manifest.number}, {self.n_examples} examples)"

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Any, ...]]:
        return Store, (self._opening, self.manifest.number)

    @property
    def location(self) -> str:
        """Where it lies: an absolute path, or a URL."""
        return self.source.location

    @property
    def name(self) -> str:
        """The last part of its location."""
        return self.location.rstrip("/").rpartition("/")[2]

    @property
    def path(self) -> Path:
        """Its folder.

        Raises
        ------
        ConfigError
            It was opened from a URL.
        """
        if self.source.folder is None:
            raise ConfigError(f"{self.location} is a URL; expected a store in a folder. Copy it to one first.")
        return self.source.folder

    @property
    def bytes_fetched(self) -> int:
        """Bytes of objects that came over a network so far; 0 for a folder."""
        return self.source.bytes_fetched

    @property
    def n_requests(self) -> int:
        """Requests to a server so far."""
        return self.source.n_requests

    def _hold(self, number: int | None) -> Manifest:
        """A manifest; while this object lives nothing that it lists is collected (from a URL it may be)."""
        if self.source.folder is None:
            return read_manifest(self.source, number)[0]
        found, lease = hold_manifest(self.path, number)
        if lease is not None:
            self._lease = weakref.finalize(self, os.close, lease)
        return found

    def close(self) -> None:
        """Let go of the snapshot: from now on `gc` may remove what only this one uses. Else done when it is freed."""
        if self._lease is not None:
            self._lease()

    def refresh(self) -> Store:
        """The newest snapshot of the same store, whole; this one stays as it is."""
        return Store(replace(self._opening, without=frozenset()))

    def without(self, segments: Collection[int]) -> Store:
        """The same snapshot as if the segments of these indices were not committed: what damage leaves."""
        left_out = self._opening.without.union(segments)
        return Store(replace(self._opening, without=left_out), self.manifest.number)

    def site(self, name: str | None = None) -> Site:
        """The site of that name; without a name the first."""
        return next(iter(self.sites.values())) if name is None else self.spec.site(name)

    @property
    def n_examples(self) -> int:
        """Examples that are committed."""
        return sum(segment.n_examples for segment in self.segments)

    @property
    def n_tokens(self) -> dict[str, int]:
        """Tokens that are committed, by sequence."""
        entries = [segment.entry for segment in self.segments]
        return {name: sum(entry.n_tokens[name] for entry in entries) for name in self.spec.sequences}

    @property
    def is_complete(self) -> bool:
        """Whether every planned segment is committed, or was dropped."""
        return len(self.segments) + len(self.manifest.dropped) == self.manifest.n_segments_planned

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all listed objects of this snapshot."""
        entries = [segment.entry for segment in self.segments]
        return sum(row.bytes + row.data_bytes for entry in entries for row in (entry, *entry.layers))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What was added after the capture: annotations and statistics."""
        return self.manifest.layers

    def statistic_names(self, site: str | None = None) -> tuple[str, ...]:
        """The statistics that `statistics` has: those kept, then those added."""
        kept = self.spec.statistics if self.spec.keep.statistics else ()
        place = self.site(site).name
        return (*kept, *(row.name for row in self.layers if row.level == "statistic" and row.place == place))

    @cached_property
    def examples(self) -> Examples:
        """The examples by number, id or slice."""
        return Examples(self)

    def example_ids(self) -> list[str]:
        """Every example's id, in order; kept."""
        return self._ids

    @cached_property
    def _ids(self) -> list[str]:
        return [name for segment in self.segments for name in segment.ids()]

    def example_texts(self) -> list[str]:
        """Every example's text, in order; kept."""
        return self._texts

    @cached_property
    def _texts(self) -> list[str]:
        return [text for segment in self.segments for text in segment.texts()]

    def example_columns(self) -> dict[str, Column]:
        """Every example's annotations; a column that some segments lack is missing (None, -1, NaN of floats) there. Kept."""
        return self._columns

    @cached_property
    def _columns(self) -> dict[str, Column]:
        parts = [segment.columns() for segment in self.segments]
        lengths = [segment.n_examples for segment in self.segments]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: join_columns([part.get(name) for part in parts], lengths) for name in names}

    def statistics(self, site: str | None = None) -> xr.Dataset:
        """One float32 variable a statistic, dims (layer, head, example), with units; NaN where no row counts.

        `example` holds the examples' numbers, with their ids beside.

        Raises
        ------
        NotFoundError
            Statistics were not kept.
        """
        return read_statistics(self, self.site(site))

    def attention(self, site: str | None = None) -> xr.DataArray:
        """Attention of every example, decoded when computed: dask-backed, dims (layer, head, pair).

        Coordinates along `pair`, lazy too: `example`, `query_pos`, `key_pos`. One chunk is one head of one segment.

        Raises
        ------
        NotFoundError
            Attention was not kept. `Example.attention` and `Example.iter_tiles` rebuild it from query and key.
        """
        return lazy_traces(self, self.site(site), "attention")

    def query(self, site: str | None = None) -> xr.DataArray:
        """Query vectors of every token, dask-backed, dims (layer, head, query_token, d_head)."""
        return lazy_traces(self, self.site(site), "query")

    def key(self, site: str | None = None) -> xr.DataArray:
        """Key vectors of every token, dask-backed, dims (layer, kv_head, key_token, d_head)."""
        return lazy_traces(self, self.site(site), "key")

    def logsumexp(self, site: str | None = None) -> xr.DataArray:
        """Logsumexp of every row, dask-backed, dims (layer, head, query_token)."""
        return lazy_traces(self, self.site(site), "logsumexp")

    def edges(self, site: str | None = None) -> xr.Dataset:
        """The strongest keys of every row: `key_pos` (-1: none) and `weight`, dims (layer, head, query_token, edge)."""
        names = {"key_pos": "edge_key", "weight": "edge_weight"}
        return xr.Dataset({name: lazy_traces(self, self.site(site), array) for name, array in names.items()})

    @overload
    def examples_frame(self, as_: Literal["pandas"] = "pandas") -> pd.DataFrame: ...
    @overload
    def examples_frame(self, as_: Literal["polars"]) -> pl.DataFrame: ...
    def examples_frame(self, as_: FrameLibrary = "pandas") -> pd.DataFrame | pl.DataFrame:
        """One row an example, by number: id, texts, tokens, segment, annotations. `as_` may be ``"polars"``."""
        return as_library(examples_frame(self), as_)

    @overload
    def tokens_frame(
        self, sequence: str = "source", examples: slice | None = None, as_: Literal["pandas"] = "pandas"
    ) -> pd.DataFrame: ...
    @overload
    def tokens_frame(
        self, sequence: str = "source", examples: slice | None = None, *, as_: Literal["polars"]
    ) -> pl.DataFrame: ...
    def tokens_frame(
        self, sequence: str = "source", examples: slice | None = None, as_: FrameLibrary = "pandas"
    ) -> pd.DataFrame | pl.DataFrame:
        """One row a token: example, position, id, text, piece, word, span, flags, and its word's annotations.

        `examples` is a slice of numbers; only the segments that it touches are read. `as_` may be ``"polars"``.
        """
        return as_library(tokens_frame(self, sequence, examples), as_)

    def annotate(
        self,
        name: str,
        values: Mapping[str, Any] | Mapping[int, Any],
        *,
        level: Literal["example", "word", "token"] = "example",
        sequence: str = "source",
        description: str = "",
        replace: bool = False,
    ) -> Store:
        """Add an annotation to the store on disk, without writing a segment anew; returns the new snapshot.

        `values` are by example id or number: a number or text each, or for words and tokens a list as long as the
        example has of them. Patterns then know ``query.NAME``, or ``example.NAME``.

        Raises
        ------
        ConfigError
            The name is taken, or values are of mixed types.
        NotFoundError, ShapeError
            There is no such example, or it has another number of words or tokens.
        """
        from .writing.annotate import annotate_store

        return annotate_store(
            self.path, name, values, level=level, sequence=sequence, description=description, replace=replace
        )

    def add_statistic(
        self,
        name: str,
        values: Shaped[np.ndarray, "layer head example"] | xr.DataArray,
        *,
        site: str | None = None,
        unit: str = "",
        description: str = "",
        replace: bool = False,
    ) -> Store:
        """Add a statistic, one value a head and example in the order of `example_numbers`; returns the new snapshot.

        Raises
        ------
        ConfigError, ShapeError
            The name is taken, or the shape is another.
        """
        from .writing.annotate import add_statistic

        return add_statistic(
            self, name, np.asarray(values), site=site, unit=unit, description=description, replace=replace
        )

    def example_numbers(self) -> np.ndarray:
        """The numbers of the committed examples, ascending, int64."""
        spans = [np.arange(s.first_example, s.first_example + s.n_examples) for s in self.segments]
        return np.concatenate([np.empty(0, np.int64), *spans]).astype(np.int64)

    def segment_of(self, example: int) -> CommittedSegment:
        """The segment that holds an example.

        Raises
        ------
        NotFoundError
            The example is outside the store, or its segment is not committed.
        """
        at = int(np.searchsorted(self._starts, example, side="right")) - 1
        if at >= 0 and example < self._starts[at] + self.segments[at].n_examples:
            return self.segments[at]
        planned = self.manifest.n_examples_planned
        why = "its segment is not committed yet" if 0 <= example < planned else f"the job has {planned} examples"
        raise NotFoundError(f"{self.location}: no example {example}: {why}.")
