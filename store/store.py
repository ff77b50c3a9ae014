"""A store opened for reading: a snapshot of its segments, and the examples in them.

Opening reads one manifest. What is committed later is not seen until `Store.refresh`; what this snapshot lists is
never changed, so readers take no locks.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import pandas as pd
import xarray as xr

from .errors import CorruptSegmentError, NotFoundError, located
from .life.private import lease_manifest
from .manifest import Manifest, manifest_name, manifest_numbers, read_manifest
from .reading.cache import ByteCache
from .reading.example import Example
from .reading.frames import examples_frame, tokens_frame
from .reading.lazy_traces import lazy_traces
from .reading.segment import TABLES_MAX_BYTES, Segment, missing_array
from .schema import Site, TraceSpec
from .statistics.corpus import statistics_dataset
from .tokens import MISSING, Column

if TYPE_CHECKING:
    from .patterns import Pattern
    from .search.search import SearchResult


def open_store(path: str | os.PathLike[str], manifest: int | None = None) -> Store:
    """Open the store at `path`: the newest snapshot, or the one of a manifest number.

    Raises
    ------
    NotFoundError
        There is no store, or no manifest of that number.
    FormatError, CorruptSegmentError
        The manifest is of a newer format, or was cut or changed.
    """
    return Store(Path(path), manifest)


class Store:
    """A snapshot of a trace store. Safe from many threads; pickles as path and manifest number."""

    def __init__(self, path: Path, manifest: int | None = None) -> None:
        self.path = path.absolute()
        self._lease: weakref.finalize | None = None
        with located(str(path)):
            self.manifest: Manifest = self._hold(manifest)
        self.spec: TraceSpec = self.manifest.spec
        self.sites: dict[str, Site] = {site.name: site for site in self.spec.sites}
        cache = ByteCache(TABLES_MAX_BYTES)
        self.segments: Sequence[Segment] = tuple(
            Segment(self.path, entry, self.spec, cache=cache) for entry in self.manifest.segments
        )
        self._starts = np.array([s.first_example for s in self.segments], dtype=np.int64)
        self._columns: dict[str, Column] | None = None

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, manifest {self.manifest.number}, {self.n_examples} examples)"

    def __reduce__(self) -> tuple[type[Store], tuple[Path, int]]:
        return Store, (self.path, self.manifest.number)

    def _hold(self, number: int | None) -> Manifest:
        """A manifest; while this object lives nothing that it lists is collected."""
        while True:
            newest = manifest_numbers(self.path)[-1:]
            try:
                found = read_manifest(self.path, number)[0]
            except CorruptSegmentError:
                if number is None and manifest_numbers(self.path)[-1:] != newest:  # collected meanwhile
                    continue
                raise
            lease = lease_manifest(self.path, found.number)
            if lease is not None:
                self._lease = weakref.finalize(self, os.close, lease)
            elif manifest_name(found.number) not in os.listdir(self.path):  # collected between the two
                continue
            return found

    def close(self) -> None:
        """Let go of the snapshot: from now on `gc` may remove what only this one uses. Else done when it is freed."""
        if self._lease is not None:
            self._lease()

    def refresh(self) -> Store:
        """The newest snapshot of the same store; this one stays as it is."""
        return Store(self.path)

    def without(self, segments: Collection[int]) -> Store:
        """The same snapshot as if the segments of these indices were not committed: what damage leaves."""
        rest = Store(self.path, self.manifest.number)
        rest.segments = tuple(segment for segment in rest.segments if segment.index not in segments)
        rest._starts = np.array([segment.first_example for segment in rest.segments], dtype=np.int64)
        return rest

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
        return {name: sum(entry.n_tokens[name] for entry in self.manifest.segments) for name in self.spec.sequences}

    @property
    def is_complete(self) -> bool:
        """Whether every planned segment is committed, or was dropped."""
        return len(self.segments) + len(self.manifest.dropped) == self.manifest.n_segments_planned

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all listed objects of this snapshot."""
        return sum(entry.bytes + entry.data_bytes for entry in self.manifest.segments)

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
        """Every example's annotations; a column that some segments lack is missing (-1, None) there. Kept."""
        if self._columns is None:
            parts = [segment.columns() for segment in self.segments]
            names = dict.fromkeys(name for part in parts for name in part)
            lengths = [segment.n_examples for segment in self.segments]
            self._columns = {name: _join([part.get(name) for part in parts], lengths) for name in names}
        return self._columns

    def statistics(self, site: str | None = None) -> xr.Dataset:
        """One float32 variable a statistic, dims (layer, head, example), with units; NaN where no row counts.

        `example` holds the examples' numbers, with their ids beside.

        Raises
        ------
        NotFoundError
            Statistics were not kept.
        """
        found = self.site(site)
        if not self.spec.keep.statistics:
            raise NotFoundError(f"{self.path}: {missing_array(f'{found.name}/statistics', self.spec)}")
        parts = [segment.statistics(found.name) for segment in self.segments]
        empty = np.empty((len(self.spec.statistics), found.n_layers, found.n_heads, 0), np.float32)
        values = np.concatenate(parts, axis=-1) if parts else empty
        data = statistics_dataset(values, self.spec.statistics, found, {"example": self.example_numbers()})
        return data.assign_coords(id=("example", np.array(self.example_ids(), dtype=object)))

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

    def examples_frame(self) -> pd.DataFrame:
        """One row an example, by number: id, texts, tokens, segment, annotations."""
        return examples_frame(self)

    def tokens_frame(self, sequence: str = "source", examples: slice | None = None) -> pd.DataFrame:
        """One row a token: example, position, id, text, piece, word, span, flags, and its word's annotations.

        `examples` is a slice of numbers; only the segments that it touches are read.
        """
        return tokens_frame(self, sequence, examples)

    def search(self, pattern: str | Pattern, site: str | None = None) -> SearchResult:
        """Rank the heads of a site by how much of their attention follows a pattern.

        `headatlas.store.search.search.search` is the same with progress, cancelling and a choice of what is read.

        Raises
        ------
        PatternError
            The expression cannot be read, or names something unknown.
        """
        from .search.search import search  # reads stores itself

        return search(self, pattern, site)

    def example_numbers(self) -> np.ndarray:
        """The numbers of the committed examples, ascending, int64."""
        spans = [np.arange(s.first_example, s.first_example + s.n_examples) for s in self.segments]
        return np.concatenate([np.empty(0, np.int64), *spans]).astype(np.int64)

    def segment_of(self, example: int) -> Segment:
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
        raise NotFoundError(f"{self.path}: no example {example}: {why}.")


class Examples:
    """The committed examples of a store: `examples[3]`, `examples["id"]`, `examples[10:20]`, iteration.

    Numbers are those of the plan, so that they do not shift while a store grows; negative numbers count from the end
    of what is committed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __len__(self) -> int:
        return self._store.n_examples

    def __iter__(self) -> Iterator[Example]:
        for segment in self._store.segments:
            for row in range(segment.n_examples):
                yield Example(segment, row, self._store.sites)

    @overload
    def __getitem__(self, which: int | str) -> Example: ...
    @overload
    def __getitem__(self, which: slice) -> list[Example]: ...
    def __getitem__(self, which: int | str | slice) -> Example | list[Example]:
        """One example by number or id, or those of a slice of numbers that are committed."""
        store = self._store
        if isinstance(which, str):
            position = self._positions.get(which)
            if position is None:
                raise NotFoundError(f"{store.path}: no example with id {which!r}; see example_ids().")
            return self._one(int(store.example_numbers()[position]))
        if isinstance(which, slice):
            numbers = store.example_numbers()
            end = int(numbers[-1]) + 1 if len(numbers) else 0
            span = range(*which.indices(end))
            inside = numbers[np.isin(numbers, np.arange(min(span), max(span) + 1))] if span else numbers[:0]
            wanted = [n for n in inside.tolist() if n in span]
            return [self._one(n) for n in (wanted if span.step > 0 else reversed(wanted))]
        number = int(which)
        if number < 0 and -number <= len(self):
            number = int(store.example_numbers()[number])
        return self._one(number)

    @cached_property
    def _positions(self) -> dict[str, int]:
        positions: dict[str, int] = {}
        for position, name in enumerate(self._store.example_ids()):
            positions.setdefault(name, position)
        return positions

    def _one(self, number: int) -> Example:
        segment = self._store.segment_of(number)
        return Example(segment, number - segment.first_example, self._store.sites)


def _join(parts: Sequence[Column | None], lengths: Sequence[int]) -> Column:
    """One column out of the segments' own."""
    present = [part for part in parts if part is not None]
    if any(part.is_text for part in present):
        rows: list[str | None] = []
        for part, length in zip(parts, lengths, strict=True):
            values = [None] * length if part is None else part.to_list()
            rows += [value if value is None or isinstance(value, str) else str(value) for value in values]
        return Column.of_text(rows)
    data = [np.full(n, MISSING) if part is None else part.data for part, n in zip(parts, lengths, strict=True)]
    kinds = {part.data.dtype for part in present}
    dtype = kinds.pop() if len(kinds) == 1 else np.result_type(*[part.data.dtype for part in present])
    return Column(np.concatenate(data).astype(dtype))
