"""Index of the segments that one manifest of a store lists, and of their examples.

Opening reads one manifest. Segments that are committed later are visible after `SegmentIndex.refresh`. The segments of
a snapshot never change, so reading needs no locks.
"""

from __future__ import annotations

import operator
import os
import re
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..errors import ConfigError, NotFoundError, located
from ..files.byte_cache import ByteCache
from ..files.leases import hold_manifest
from ..files.locations import open_source
from ..files.manifest import Manifest, read_manifest
from ..files.object_source import CACHE_BYTES, ObjectSource
from ..files.overlays import Overlay
from ..schema.token_table import Column, join_columns
from ..schema.traces import Site, TraceSpec
from .committed_segment import CommittedSegment
from .segment import TABLES_MAX_BYTES
from .stored_edges import EDGES_MAX_BYTES

_NUMBERS = re.compile(r"-?[0-9]+(:[0-9]+)?")


@dataclass(frozen=True)
class Opening:
    """Arguments for opening a store, see `headatlas.store.open_store`."""

    path: str
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    cache_bytes: int = CACHE_BYTES
    cache_dir: str | None = None
    edges_bytes: int = EDGES_MAX_BYTES
    without: frozenset[int] = frozenset()
    """Indices of segments that are left out."""


class SegmentIndex:
    """Segments that one manifest lists, with lookup by example. It is thread-safe.

    A pickle holds the arguments for opening the store and the number of the manifest.
    """

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
        return f"{type(self).__name__}({self.location!r}, manifest {self.manifest.number}, {self.n_examples} examples)"

    def __reduce__(self) -> tuple[Callable[..., SegmentIndex], tuple[Any, ...]]:
        return type(self), (self._opening, self.manifest.number)

    @property
    def location(self) -> str:
        """Absolute path or URL of the store."""
        return self.source.location

    @property
    def name(self) -> str:
        """Last part of the store's location."""
        return self.location.rstrip("/").rpartition("/")[2]

    @property
    def path(self) -> Path:
        """Folder of the store.

        Raises
        ------
        ConfigError
            The store was opened from a URL.
        """
        if self.source.folder is None:
            raise ConfigError(
                f"{self.location} is a URL; expected a store in a folder. Copy the store to a folder first."
            )
        return self.source.folder

    @property
    def bytes_fetched(self) -> int:
        """Bytes of objects that were fetched over a network so far; 0 for a folder."""
        return self.source.bytes_fetched

    @property
    def n_requests(self) -> int:
        """Number of requests to a server so far."""
        return self.source.n_requests

    def _hold(self, number: int | None) -> Manifest:
        """Read a manifest and protect its segments from collection. URLs are not protected.

        The protection lasts as long as the source: everything that reads from the store later holds its source, such as
        examples, lazy arrays and results.
        """
        if self.source.folder is None:
            return read_manifest(self.source, number)[0]
        manifest, lease = hold_manifest(self.path, number)
        if lease is not None:
            self._lease = weakref.finalize(self.source, os.close, lease)
        return manifest

    def close(self) -> None:
        """Release the snapshot, so that `gc` may remove it. Otherwise it is released when this object is freed."""
        if self._lease is not None:
            self._lease()

    def refresh(self) -> Self:
        """Open the newest snapshot of the same store with all segments. This object does not change."""
        return type(self)(replace(self._opening, without=frozenset()))

    def without(self, segments: Collection[int]) -> Self:
        """Open the same snapshot without the segments of these indices, for example without damaged ones."""
        excluded = self._opening.without.union(segments)
        return type(self)(replace(self._opening, without=excluded), self.manifest.number)

    def site(self, name: str | None = None) -> Site:
        """Return the site of that name, or the first site without a name."""
        return next(iter(self.sites.values())) if name is None else self.spec.site(name)

    @property
    def n_examples(self) -> int:
        """Number of committed examples."""
        return sum(segment.n_examples for segment in self.segments)

    @property
    def n_tokens(self) -> dict[str, int]:
        """Number of committed tokens, by sequence."""
        entries = [segment.entry for segment in self.segments]
        return {name: sum(entry.n_tokens[name] for entry in entries) for name in self.spec.sequences}

    @property
    def is_complete(self) -> bool:
        """True if every planned segment was committed or dropped."""
        return len(self.segments) + len(self.manifest.dropped) == self.manifest.n_segments_planned

    @property
    def bytes_on_disk(self) -> int:
        """Size of all listed objects of this snapshot in bytes."""
        entries = [segment.entry for segment in self.segments]
        return sum(row.bytes + row.data_bytes for entry in entries for row in (entry, *entry.overlays))

    @property
    def overlays(self) -> tuple[Overlay, ...]:
        """Overlays: annotations and statistics that were added after the capture."""
        return self.manifest.overlays

    def n_covered(self, overlay: str) -> int:
        """Return the number of examples whose segments have an overlay. Those that were committed later lack it."""
        return sum(segment.n_examples for segment in self.segments if overlay in segment.overlays)

    def statistic_names(self, site: str | None = None) -> tuple[str, ...]:
        """Return the names of all statistics: those of the capture, then those that were added."""
        captured = self.spec.statistics if self.spec.keep.statistics else ()
        group = self.site(site).name
        return (*captured, *(row.name for row in self.overlays if row.kind == "statistic" and row.group == group))

    def example_ids(self) -> list[str]:
        """Return the ids of all examples, in order. They are cached."""
        return self._ids

    @cached_property
    def _ids(self) -> list[str]:
        return [name for segment in self.segments for name in segment.ids()]

    def example_texts(self) -> list[str]:
        """Return the texts of all examples, in order. They are cached."""
        return self._texts

    @cached_property
    def _texts(self) -> list[str]:
        return [text for segment in self.segments for text in segment.texts()]

    def example_columns(self) -> dict[str, Column]:
        """Return the annotations of all examples. They are cached.

        Rows are missing (None, -1, NaN of floats) in segments without a column.
        """
        return self._columns

    @cached_property
    def _columns(self) -> dict[str, Column]:
        parts = [segment.columns() for segment in self.segments]
        lengths = [segment.n_examples for segment in self.segments]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: join_columns([part.get(name) for part in parts], lengths) for name in names}

    def example_numbers(self) -> np.ndarray:
        """Return the numbers of the committed examples, ascending, int64."""
        spans = [np.arange(s.first_example, s.first_example + s.n_examples) for s in self.segments]
        return np.concatenate([np.empty(0, np.int64), *spans]).astype(np.int64)

    def number_of(self, example: int | str) -> int:
        """Return the number of an example that is given by its id (text) or number (integer).

        Raises
        ------
        NotFoundError
            No example has this id.
        ConfigError
            It is neither text nor an integer.
        """
        if not isinstance(example, str):
            try:
                return operator.index(example)
            except TypeError:
                raise ConfigError(f"example {example!r}; expected a number, or an id as text.") from None
        position = self._positions.get(example)
        if position is None:
            reason = " Numbers are integers, or --numbers on the command line." if _NUMBERS.fullmatch(example) else ""
            raise NotFoundError(
                f"{self.location}: no example with id {example!r}. headatlas view shows the ids, and in Python example_ids().{reason}"
            )
        return int(self.example_numbers()[position])

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Position of each id in the order of the examples; the first if an id occurs twice."""
        return {name: position for position, name in reversed(list(enumerate(self._ids)))}

    def segment_of(self, example: int) -> CommittedSegment:
        """Return the segment that holds an example.

        Raises
        ------
        NotFoundError
            The example is outside the store, or its segment is not committed.
        """
        index = int(np.searchsorted(self._starts, example, side="right")) - 1
        if index >= 0 and example < self._starts[index] + self.segments[index].n_examples:
            return self.segments[index]
        planned = self.manifest.n_examples_planned
        reason = "its segment is not committed yet" if 0 <= example < planned else f"the job has {planned} examples"
        raise NotFoundError(f"{self.location}: no example {example}: {reason}.")
