"""The stores that one viewer serves: by name, each a snapshot that stays as it is until a reader asks for a newer one.

A name is the store's folder; of equal names the later get a number. Every data source knows the others, so that a view
can compare models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock

from headatlas.store.errors import HeadAtlasError, NotFoundError
from headatlas.store.files.manifest import manifest_numbers, read_manifest
from headatlas.store.store import Store, open_store

from ..theme.token_labels import visible
from .bookmarks import Bookmarks
from .store_data import DataSource

LOOK_AGAIN_S = 2.0
"""A folder is looked at for new segments at most this often, however many readers ask."""


class ServedStores:
    """Stores by name, the first one first.

    Parameters
    ----------
    stores
        Opened stores; at least one.
    bookmarks
        Return the bookmarks of the store in a folder (None for a store behind a URL), or None to keep none.
    search_s
        Seconds that one search may take.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        bookmarks: Callable[[Path | None], Bookmarks | None] = lambda path: None,
        search_s: float | None = None,
    ) -> None:
        if not stores:
            raise NotFoundError("there is no store to show; name at least one folder.")
        self._bookmarks, self._search_s, self._lock = bookmarks, search_s, Lock()
        self._looked: dict[str, tuple[float, int]] = {}
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
        search_s: float | None = None,
    ) -> ServedStores:
        """Open the stores at `paths`."""
        return cls([open_store(path) for path in paths], bookmarks, search_s)

    def _source(self, store: Store, name: str) -> DataSource:
        bookmarks = self._bookmarks(store.source.folder)
        return DataSource(store, name=name, served_with=self, bookmarks=bookmarks, search_s=self._search_s)

    def __getitem__(self, name: str) -> DataSource:
        """The store of that name."""
        if name not in self._sources:
            raise NotFoundError(f"no store {name!r}; there are {', '.join(self.names)}.")
        return self._sources[name]

    def __iter__(self) -> Iterator[DataSource]:
        return iter(self._sources.values())

    def __len__(self) -> int:
        return len(self.names)

    @property
    def first(self) -> DataSource:
        """The store that a bare address shows."""
        return self._sources[self.names[0]]

    def new_segments(self, data: DataSource) -> int:
        """How many segments were committed since the snapshot that `data` shows."""
        now = time.monotonic()
        looked, number = self._looked.get(data.name, (-LOOK_AGAIN_S, -1))
        if now - looked >= LOOK_AGAIN_S:
            try:
                number = manifest_numbers(data.store.source)[-1]
            except (HeadAtlasError, OSError, IndexError):  # not there now is nothing new
                number = data.store.manifest.number
            self._looked[data.name] = (now, number)
        if number <= data.store.manifest.number:
            return 0
        try:
            newest = read_manifest(data.store.source, number)[0]
        except HeadAtlasError:
            return 0
        return max(0, len(newest.segments) - len(data.store.manifest.segments))

    def refresh(self, name: str) -> DataSource:
        """Show the newest snapshot of a store to those who come from now on."""
        with self._lock:
            data = self[name]
            newest = data.store.refresh()
            if newest.manifest.number != data.store.manifest.number:
                self._sources[name] = self._source(newest, name)
            return self._sources[name]
