"""Stores that one viewer serves, by name. Each is a snapshot that stays the same until a reader requests a newer one.

The name of a store is that of its folder. If names are equal, the later ones get a number. Every data source has access
to the others, so that a view can compare models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from weakref import WeakSet

from headatlas.store.errors import HeadAtlasError, NotFoundError
from headatlas.store.files.manifest import manifest_numbers, read_manifest
from headatlas.store.store import Store, open_store

from ..theme.token_labels import visible
from .bookmarks import Bookmarks
from .search_answers import SearchLimits
from .store_data import DataSource

CHECK_INTERVAL_S = 2.0
"""Shortest time between two checks of a folder for new segments, for all readers together."""


class ServedStores:
    """Data sources of the stores by name, in the order of opening.

    Parameters
    ----------
    stores
        Opened stores; at least one.
    bookmarks
        Function that returns the bookmarks of the store in a folder (None for a store behind a URL), or None if the
        store has no bookmarks.
    limits
        Limits of one search.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        bookmarks: Callable[[Path | None], Bookmarks | None] = lambda path: None,
        limits: SearchLimits = SearchLimits(),
    ) -> None:
        if not stores:
            raise NotFoundError("there is no store to show. Name at least one folder.")
        self._bookmarks, self._limits, self._lock = bookmarks, limits, Lock()
        self._preparation, self._prepared = Lock(), WeakSet[DataSource]()
        self._checks: dict[str, tuple[float, int]] = {}
        names: list[str] = []
        for store in stores:
            name, n = visible(store.name) or "store", 2
            while name in names:
                name, n = f"{visible(store.name)}-{n}", n + 1
            names.append(name)
        self.names = tuple(names)
        self._sources: dict[str, DataSource] = {}
        for name, store in zip(self.names, stores, strict=True):
            self._sources[name] = self._source(store, name)

    @classmethod
    def open(
        cls,
        paths: Sequence[Path | str],
        bookmarks: Callable[[Path | None], Bookmarks | None] = lambda path: None,
        limits: SearchLimits = SearchLimits(),
    ) -> ServedStores:
        """Open the stores at `paths`."""
        return cls([open_store(path) for path in paths], bookmarks, limits)

    def _source(self, store: Store, name: str) -> DataSource:
        bookmarks = self._bookmarks(store.source.folder)
        return DataSource(store, name=name, served_with=self, bookmarks=bookmarks, limits=self._limits)

    def __getitem__(self, name: str) -> DataSource:
        """Return the data source of a store."""
        if name not in self._sources:
            raise NotFoundError(f"no store {name!r}; expected one of {', '.join(self.names)}.")
        return self._sources[name]

    def __iter__(self) -> Iterator[DataSource]:
        return iter(self._sources.values())

    def __len__(self) -> int:
        return len(self.names)

    @property
    def first(self) -> DataSource:
        """Data source of the store that is shown by default."""
        return self._sources[self.names[0]]

    @property
    def is_prepared(self) -> bool:
        """True if `prepare` has read all stores as they are shown now."""
        return all(data in self._prepared for data in self)

    def prepare(self) -> None:
        """Read what pages need at once and what grows with the corpus, so that no page reads it in the event loop.

        Errors are left to the pages, which report them.
        """
        with self._preparation:
            for data in [data for data in self if data not in self._prepared]:
                with suppress(HeadAtlasError):
                    _prepare(data)
                self._prepared.add(data)

    def new_segments(self, data: DataSource) -> int:
        """Return the number of segments committed since the snapshot that `data` shows."""
        now = time.monotonic()
        last_check, number = self._checks.get(data.name, (-CHECK_INTERVAL_S, -1))
        if now - last_check >= CHECK_INTERVAL_S:
            try:
                number = manifest_numbers(data.store.source)[-1]
            except (HeadAtlasError, OSError, IndexError):  # an unreadable folder counts as unchanged
                number = data.store.manifest.number
            self._checks[data.name] = (now, number)
        if number <= data.store.manifest.number:
            return 0
        try:
            newest = read_manifest(data.store.source, number)[0]
        except HeadAtlasError:
            return 0
        return max(0, len(newest.segments) - len(data.store.manifest.segments))

    def refresh(self, name: str) -> DataSource:
        """Show the newest snapshot of a store to later sessions. Returns its data source."""
        with self._lock:
            data = self[name]
            newest = data.store.refresh()
            if newest.manifest.number != data.store.manifest.number:
                self._sources[name] = self._source(newest, name)
            return self._sources[name]


def _prepare(data: DataSource) -> None:
    if not data.n_examples:
        return
    _ = data.bounds, data.example_numbers, data.positions, data.library(""), data.store.example_columns()
    for name, site in data.store.sites.items():
        data.field_values(name)
        for sequence in {site.query_sequence, site.key_sequence}:
            data.lengths(sequence)
        for statistic in data.statistics_of(name):
            data.head_values(name, statistic)
