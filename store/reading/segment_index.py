"""A store opened for reading: the segments that one manifest lists, and the examples in them.

Opening reads one manifest. Segments that are committed later are not seen until `SegmentIndex.refresh`. The segments that
a snapshot lists never change, so readers take no locks.
"""

from __future__ import annotations

import os
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


@dataclass(frozen=True)
class Opening:
    """Arguments with which a store is opened, see `headatlas.store.open_store`."""

    path: str
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    cache_bytes: int = CACHE_BYTES
    cache_dir: str | None = None
    edges_bytes: int = EDGES_MAX_BYTES
    without: frozenset[int] = frozenset()
    """Indices of the segments that are left out."""


class SegmentIndex:
    """The segments that one manifest lists, found by example. Safe from many threads.

    Pickles as the arguments it was opened with and its manifest number.
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

    def refresh(self) -> Self:
        """The newest snapshot of the same store, whole; this one stays as it is."""
        return type(self)(replace(self._opening, without=frozenset()))

    def without(self, segments: Collection[int]) -> Self:
        """The same snapshot as if the segments of these indices were not committed: what damage leaves."""
        left_out = self._opening.without.union(segments)
        return type(self)(replace(self._opening, without=left_out), self.manifest.number)

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
        return sum(row.bytes + row.data_bytes for entry in entries for row in (entry, *entry.overlays))

    @property
    def overlays(self) -> tuple[Overlay, ...]:
        """Columns and statistics that were added after the capture."""
        return self.manifest.overlays

    def statistic_names(self, site: str | None = None) -> tuple[str, ...]:
        """The statistics that `statistics` has: those kept, then those added."""
        kept = self.spec.statistics if self.spec.keep.statistics else ()
        group = self.site(site).name
        return (*kept, *(row.name for row in self.overlays if row.kind == "statistic" and row.group == group))

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
