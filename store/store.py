"""`open_store` and `Store`: a snapshot with the queries and the ways to add columns. Each method calls one function."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import xarray as xr
from jaxtyping import Shaped

from .files.object_source import CACHE_BYTES
from .reading.segment_index import Opening
from .reading.snapshot import Snapshot
from .reading.stored_edges import EDGES_MAX_BYTES

if TYPE_CHECKING:
    from .patterns import Pattern
    from .queries.head_similarity import SimilarHeads
    from .queries.pattern_search import SearchResult
    from .queries.query_by_example import LikeResult
    from .queries.vector_dimensions import NeuronResult
    from .reading.word_attention import Merge


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


class Store(Snapshot):
    """A snapshot of a store with queries.

    The functions that the methods call take further options: progress, cancellation, seeds, the data that is read.
    """

    def search(self, pattern: str | Pattern, site: str | None = None, *, words: Merge | None = None) -> SearchResult:
        """Rank the heads of a site by how much of their attention follows a pattern, between tokens or between `words`.

        `headatlas.store.queries.pattern_search.search` is the same with progress, cancelling and a choice of what is read.

        Raises
        ------
        PatternError
            The expression cannot be read, or names something unknown.
        """
        from .queries.pattern_search import search

        return search(self, pattern, site, words=words)

    def like(self, arcs: str | Sequence[str] | Sequence[tuple[int, int, int]], site: str | None = None) -> LikeResult:
        """Which heads draw the marked arcs and do the same everywhere: ``store.like("12:5>2 12:7>4")``.

        An arc is an example, a query position and a key position.

        Raises
        ------
        ConfigError, NotFoundError
            An arc cannot be read, or there is no such example or position.
        """
        from .queries.query_by_example import like

        return like(self, arcs, site)

    def neurons(self, pattern: str | Pattern, layer: int, head: int, site: str | None = None) -> NeuronResult:
        """Which dimensions of a head's query and key tell a pattern's keys from the other keys of the same rows.

        Raises
        ------
        NotFoundError
            Query and key were not kept, or there is no such head.
        PatternError
            The expression cannot be read, or names something unknown.
        """
        from .queries.vector_dimensions import neurons

        return neurons(self, pattern, layer, head, site)

    def similar(
        self, other: Store | None = None, site: str | None = None, *, sink_free: bool = False, n_examples: int = 200
    ) -> SimilarHeads:
        """How far apart heads are that look at words, those of this store among each other or from another model's.

        `headatlas.store.queries.head_similarity.similar` is the same with progress, a seed and the other merging of tokens.

        Raises
        ------
        NotFoundError
            No example is in both stores with the same words.
        """
        from .queries.head_similarity import similar

        return similar(self, other, site, sink_free=sink_free, n_examples=n_examples)

    def annotate(
        self,
        name: str,
        values: Mapping[str, Any] | Mapping[int, Any],
        *,
        kind: Literal["example", "word", "token"] = "example",
        sequence: str = "source",
        description: str = "",
        replace: bool = False,
    ) -> Self:
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

        annotate_store(self.path, name, values, kind=kind, sequence=sequence, description=description, replace=replace)
        return self.refresh()

    def add_statistic(
        self,
        name: str,
        values: Shaped[np.ndarray, "layer head example"] | xr.DataArray,
        *,
        site: str | None = None,
        unit: str = "",
        description: str = "",
        replace: bool = False,
    ) -> Self:
        """Add a statistic, one value a head and example in the order of `example_numbers`; returns the new snapshot.

        Raises
        ------
        ConfigError, ShapeError
            The name is taken, or the shape is another.
        """
        from .writing.annotate import add_statistic

        add_statistic(
            self.path, name, np.asarray(values), site=site, unit=unit, description=description, replace=replace
        )
        return self.refresh()
