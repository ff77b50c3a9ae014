"""Zarr container: a segment's arrays as a Zarr v3 group of ordinary chunks and shards, in one ZIP archive.

`shard_writer.py` encodes chunks and shards, `zip_archive.py` writes them, and `shard_reader.py` reads them. This module
assigns arrays to objects, and reports the damaged part of an array if an object cannot be read. Segments of earlier
releases are folders with a file for each object; they are read in the same way.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...codecs.array_layout import ArrayLayout, SegmentArray
from ...errors import CorruptSegmentError, FormatError, HeadAtlasError, NotFoundError, located
from ..hashed_files import ARCHIVE_NAME, ObjectDamageError, StoredObject, fsync_folder, is_damage
from ..object_source import ObjectFile, ObjectSource
from .container import SegmentListing, Slices, Span, WrittenFiles, guard_fork, long_axis, parent_groups
from .shard_reader import ChunkDamageError, damaged_chunks, read_shard, read_shard_index
from .shard_writer import Grid, file_name, plan_grid, shard_bytes, write_file
from .zarr_metadata import METADATA_MAX_BYTES, array_metadata, read_metadata
from .zip_archive import NewEntry, write_archive


class ZarrContainer:
    """Container that writes arrays as a Zarr v3 group."""

    name = "zarr"

    def write(self, folder: Path, arrays: Mapping[str, SegmentArray], pool: Executor) -> WrittenFiles:
        """See `Container.write`. Each task of the pool writes one object."""
        nodes: dict[str, dict[str, Any]] = {}  # repeated in the root, so that zarr need not list the archive
        entries: list[NewEntry] = []
        for path, item in arrays.items():
            grid = plan_grid(item.layout)
            nodes[path] = array_metadata(item.layout, grid, item.attributes)
            for index in grid.files():
                encode = partial(write_file, array=item.data, grid=grid, index=index)
                entries.append(NewEntry(f"{path}/{file_name(index)}", encode, shard_bytes(grid, index)))
        entries.sort(key=lambda entry: entry.n_bytes is None)  # no known position waits for a compressed shard
        for group in dict.fromkeys(group for path in arrays for group in parent_groups(path)):
            nodes[group] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        consolidated = {"kind": "inline", "must_understand": False, "metadata": dict(sorted(nodes.items()))}
        nodes[""] = {"zarr_format": 3, "node_type": "group", "attributes": {}, "consolidated_metadata": consolidated}
        for path, node in nodes.items():
            document = json.dumps(node).encode()
            entries.append(
                NewEntry(f"{path}/zarr.json".lstrip("/"), lambda file, data=document: file.write(data), len(document))
            )
        written = write_archive(folder / ARCHIVE_NAME, entries, pool)
        fsync_folder(folder)
        return written

    def open(self, source: ObjectSource, folder: str, listing: SegmentListing) -> ZarrReader:
        """See `Container.open`."""
        return ZarrReader(source, folder, listing)


@dataclass
class _OpenArray:
    """Array whose metadata was checked. `shard_indices` caches the indices of shards that were read."""

    layout: ArrayLayout
    grid: Grid
    shard_indices: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)


class ZarrReader:
    """Reader of a Zarr segment, see `ContainerReader`."""

    def __init__(self, source: ObjectSource, folder: str, listing: SegmentListing) -> None:
        self._source, self._folder = source, folder
        self._layouts = {entry.path: entry for entry in listing.arrays}
        self._objects = {item.path: item for item in listing.objects}
        self._arrays: dict[str, _OpenArray] = {}

    def read(self, path: str, selection: Slices) -> np.ndarray:
        """See `ContainerReader.read`."""
        guard_fork()
        array = self._open(path)
        out = np.empty([max(0, s.stop - s.start) for s in selection], dtype=array.layout.dtype)
        if out.size:
            for index in _files_touched(array.grid, selection):
                self._read_file(array, index, selection, out)
        return out

    def _read_file(self, array: _OpenArray, index: tuple[int, ...], selection: Slices, out: np.ndarray) -> None:
        grid = array.grid
        with self._file(array, index) as file:
            try:
                if grid.shard is None:
                    single = Grid(grid.shape, grid.dtype, grid.chunk, grid.chunk, grid.compressor)
                    chunk_ranges = np.array([[0, file.size]], dtype=np.uint64)
                    read_shard(file, single, index, chunk_ranges, selection, out)
                else:
                    if index not in array.shard_indices:
                        array.shard_indices[index] = read_shard_index(file, grid)
                    read_shard(file, grid, index, array.shard_indices[index], selection, out)
            except FileNotFoundError:  # detected when reading over a network
                raise self._damage(array, index, "is missing") from None
            except ChunkDamageError as error:
                raise self._damage(array, index, str(error), [error.start]) from None
            except CorruptSegmentError as error:
                raise self._damage(array, index, str(error)) from None

    def prefetch(self, paths: Sequence[str]) -> None:
        """See `ContainerReader.prefetch`."""
        prefixes = tuple(f"{path}/" for path in paths)
        self._source.prefetch(self._folder, [item for path, item in self._objects.items() if path.startswith(prefixes)])

    def stored_bytes(self, path: str) -> int:
        """See `ContainerReader.stored_bytes`."""
        return sum(item.bytes for item in self._objects.values() if item.path.startswith(f"{path}/c/"))

    def spans(self, object_path: str) -> list[Span]:
        """See `ContainerReader.spans`."""
        file = self._array_file(object_path)
        if file is None:
            return []
        damage = self._damage(*file, "")
        return [Span(damage.array, damage.start, damage.stop or 0)]

    def damaged_spans(self, object_path: str) -> list[Span]:
        """See `ContainerReader.damaged_spans`."""
        file_position = self._array_file(object_path)
        if file_position is None:
            return []
        array, index = file_position
        damaged: list[tuple[int, ...]] = []
        if array.grid.shard is not None:
            try:
                with self._file(array, index) as file:
                    damaged = damaged_chunks(file, array.grid, index, read_shard_index(file, array.grid))
            except (CorruptSegmentError, FileNotFoundError):
                pass
        damage = self._damage(array, index, "", damaged)
        return [Span(damage.array, damage.start, damage.stop or 0)]

    def _array_file(self, object_path: str) -> tuple[_OpenArray, tuple[int, ...]] | None:
        """Return the array and index of a chunk or shard; None for metadata."""
        path, _, index = object_path.partition("/c/")
        if not index or path not in self._layouts:
            return None
        return self._open(path), tuple(map(int, index.split("/")))

    def _open(self, path: str) -> _OpenArray:
        array = self._arrays.get(path)
        if array is None:
            if path not in self._layouts:
                raise NotFoundError(f"no array {path!r}; this segment has {', '.join(self._layouts)}")
            layout, name = self._layouts[path].layout(), f"{path}/zarr.json"
            if name not in self._objects:
                raise FormatError(f"object {name} is not listed in segment.json; expected one for each array.")
            if not self._arrays:
                self._source.prefetch(
                    self._folder, [item for path, item in self._objects.items() if path.endswith("zarr.json")]
                )
            data = self._read_metadata(self._objects[name])
            if not self._objects[name].matches(data):
                raise ObjectDamageError(
                    f"object {name} was changed: its hash is not the listed one. Restore it.", object_path=name
                )
            with located(path):
                grid = read_metadata(data, layout)
            array = self._arrays.setdefault(path, _OpenArray(layout, grid))
        return array

    def _read_metadata(self, item: StoredObject) -> bytes:
        """Read a `zarr.json`. The caller compares its hash."""
        if item.offset is None:
            return self._source.read_small(f"{self._folder}/{item.path}", METADATA_MAX_BYTES, item)
        if item.bytes > METADATA_MAX_BYTES:
            raise FormatError(f"{item.path} has {item.bytes} bytes; expected at most {METADATA_MAX_BYTES} bytes.")
        try:
            with self._source.open(self._folder, item) as file:
                return file.read_at(0, item.bytes)
        except OSError as error:
            if not is_damage(error) and error.errno is not None:  # a server's error for a missing file has no number
                raise
            raise ObjectDamageError(
                f"object {ARCHIVE_NAME} cannot be read ({error.strerror or 'it is missing'}). Restore it, or write the "
                "segment again (headatlas run JOB --repair).",
                object_path=ARCHIVE_NAME,
            ) from None

    def _file(self, array: _OpenArray, index: tuple[int, ...]) -> ObjectFile:
        """Open a listed chunk or shard."""
        name = f"{array.layout.path}/{file_name(index)}"
        if name not in self._objects:
            raise FormatError(
                f"object {name} is not listed in segment.json; expected it, because the array would read as zeros."
            )
        try:
            return self._source.open(self._folder, self._objects[name])
        except HeadAtlasError:
            raise
        except OSError as error:
            if not is_damage(error):
                raise
            raise self._damage(array, index, f"cannot be opened ({error.strerror})") from None

    def _damage(
        self, array: _OpenArray, index: tuple[int, ...], problem: str, starts: Sequence[tuple[int, ...]] = ()
    ) -> ObjectDamageError:
        """Return the error for a file, with the span of the chunks that begin at `starts`, or else of the full file."""
        path, axis = array.layout.path, long_axis(array.layout)
        start, length = index[axis] * array.grid.file_shape[axis], array.grid.file_shape[axis]
        stop = start + length
        if starts:
            first, last = min(chunk[axis] for chunk in starts), max(chunk[axis] for chunk in starts)
            start, stop = first, last + array.grid.chunk[axis]
        name = f"{path}/{file_name(index)}"
        message = f"object {name}: {problem}. Restore it, or write the segment again (headatlas run JOB --repair)."
        stop = min(stop, array.layout.shape[axis])
        return ObjectDamageError(message, object_path=name, array=path, start=start, stop=stop)


def _files_touched(grid: Grid, selection: Slices) -> Iterator[tuple[int, ...]]:
    spans = [range(s.start // f, -(-s.stop // f)) for s, f in zip(selection, grid.file_shape, strict=True)]
    return itertools.product(*spans)
