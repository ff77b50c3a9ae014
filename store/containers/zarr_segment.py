"""The Zarr container: a segment's arrays as a Zarr v3 group of ordinary chunks and shards.

`shard.py` writes the files, `shard_read.py` reads them; here is which file holds what, and what is wrong with which
part of an array when one of them cannot be read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..codecs.array_layout import ArrayLayout, SegmentArray
from ..errors import CorruptSegmentError, FormatError, HeadAtlasError, NotFoundError, located
from ..files.hashed_files import HashedFile, ObjectDamageError, StoredObject, fsync_folder, write_object
from ..files.object_source import ObjectFile, ObjectSource
from .container import SegmentListing, Selection, Span, finished, groups_of, guard_fork, long_axis
from .shard_reader import ChunkDamageError, damaged_chunks, read_places, read_shard
from .shard_writer import Grid, file_name, plan_grid, write_file
from .zarr_metadata import METADATA_MAX_BYTES, array_metadata, read_metadata


class ZarrContainer:
    """Arrays as a Zarr v3 group."""

    name = "zarr"

    def write(self, folder: Path, arrays: Mapping[str, SegmentArray], pool: Executor) -> list[StoredObject]:
        """See `Container.write`; one task of the pool writes one file."""
        groups = {"": None} | {group: None for path in arrays for group in groups_of(path)}
        folders = list(groups)
        nodes: dict[
            str, dict[str, Any]
        ] = {}  # all metadata again in the root, so that plain zarr need not list folders
        for group in groups:
            (folder / group).mkdir(exist_ok=True)
        tasks: list[Future[StoredObject]] = []
        with finished(tasks):
            for path, item in arrays.items():
                grid = plan_grid(item.layout)
                nodes[path] = array_metadata(item.layout, grid, item.attributes)
                (folder / path).mkdir()
                tasks.append(pool.submit(_write_node, folder, path, nodes[path]))
                made = {path: None}
                for index in grid.files():
                    name = f"{path}/{file_name(index)}"
                    for parent in groups_of(name):
                        if parent not in made and len(parent) > len(path):
                            made[parent] = None
                            (folder / parent).mkdir()
                    tasks.append(pool.submit(_write_array_file, folder, name, item.data, grid, index))
                folders += made
            del groups[""]
            for group in groups:
                nodes[group] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
                tasks.append(pool.submit(_write_node, folder, group, nodes[group]))
            consolidated = {"kind": "inline", "must_understand": False, "metadata": dict(sorted(nodes.items()))}
            root = {"zarr_format": 3, "node_type": "group", "attributes": {}, "consolidated_metadata": consolidated}
            tasks.append(pool.submit(_write_node, folder, "", root))
            objects = [task.result() for task in tasks]
        list(pool.map(lambda name: fsync_folder(folder / name), folders))
        return objects

    def open(self, source: ObjectSource, folder: str, listing: SegmentListing) -> ZarrReader:
        """See `Container.open`."""
        return ZarrReader(source, folder, listing)


def _write_node(root: Path, path: str, node: Mapping[str, Any]) -> StoredObject:
    return write_object(root, f"{path}/zarr.json".lstrip("/"), json.dumps(node).encode())


def _write_array_file(root: Path, name: str, data: np.ndarray, grid: Grid, index: tuple[int, ...]) -> StoredObject:
    with HashedFile(root / name) as file:
        write_file(file, data, grid, index)
    return StoredObject(path=name, bytes=file.bytes, sha256=file.sha256)


@dataclass
class _Opened:
    """An array whose metadata was checked; `places` are the indices of the shards that were touched."""

    layout: ArrayLayout
    grid: Grid
    places: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)


class ZarrReader:
    """See `ContainerReader`."""

    def __init__(self, source: ObjectSource, folder: str, listing: SegmentListing) -> None:
        self._source, self._folder = source, folder
        self._layouts = {entry.path: entry for entry in listing.arrays}
        self._objects = {item.path: item for item in listing.objects}
        self._opened: dict[str, _Opened] = {}

    def read(self, path: str, selection: Selection) -> np.ndarray:
        """See `ContainerReader.read`."""
        guard_fork()
        opened = self._open(path)
        out = np.empty([max(0, s.stop - s.start) for s in selection], dtype=opened.layout.dtype)
        if out.size:
            for index in _files_touched(opened.grid, selection):
                self._read_file(opened, index, selection, out)
        return out

    def _read_file(self, opened: _Opened, index: tuple[int, ...], selection: Selection, out: np.ndarray) -> None:
        grid = opened.grid
        with self._file(opened, index) as file:
            try:
                if grid.shard is None:
                    whole = Grid(grid.shape, grid.dtype, grid.chunk, grid.chunk, grid.compressor)
                    places = np.array([[0, file.size]], dtype=np.uint64)
                    read_shard(file, whole, index, places, selection, out)
                else:
                    if index not in opened.places:
                        opened.places[index] = read_places(file, grid)
                    read_shard(file, grid, index, opened.places[index], selection, out)
            except FileNotFoundError:  # over a network only reading tells
                raise self._damage(opened, index, "is missing") from None
            except ChunkDamageError as error:
                raise self._damage(opened, index, str(error), [error.start]) from None
            except CorruptSegmentError as error:
                raise self._damage(opened, index, str(error)) from None

    def prefetch(self, paths: Sequence[str]) -> None:
        """See `ContainerReader.prefetch`."""
        starts = tuple(f"{path}/" for path in paths)
        self._source.prefetch(self._folder, [item for path, item in self._objects.items() if path.startswith(starts)])

    def stored_bytes(self, path: str) -> int:
        """See `ContainerReader.stored_bytes`."""
        return sum(item.bytes for item in self._objects.values() if item.path.startswith(f"{path}/c/"))

    def spans(self, object_path: str) -> list[Span]:
        """See `ContainerReader.spans`."""
        found = self._place(object_path)
        if found is None:
            return []
        damage = self._damage(*found, "")
        return [Span(damage.array, damage.start, damage.stop or 0)]

    def damaged_spans(self, object_path: str) -> list[Span]:
        """See `ContainerReader.damaged_spans`."""
        found = self._place(object_path)
        if found is None:
            return []
        opened, index = found
        bad: list[tuple[int, ...]] = []
        if opened.grid.shard is not None:
            try:
                with self._file(opened, index) as file:
                    bad = damaged_chunks(file, opened.grid, index, read_places(file, opened.grid))
            except (CorruptSegmentError, FileNotFoundError):
                pass
        damage = self._damage(opened, index, "", bad)
        return [Span(damage.array, damage.start, damage.stop or 0)]

    def _place(self, object_path: str) -> tuple[_Opened, tuple[int, ...]] | None:
        """The array of a chunk or shard, and its index; None for metadata."""
        path, _, index = object_path.partition("/c/")
        if not index or path not in self._layouts:
            return None
        return self._open(path), tuple(map(int, index.split("/")))

    def _open(self, path: str) -> _Opened:
        opened = self._opened.get(path)
        if opened is None:
            if path not in self._layouts:
                raise NotFoundError(f"no array {path!r}; this segment has {', '.join(self._layouts)}")
            layout, name = self._layouts[path].layout(), f"{path}/zarr.json"
            if name not in self._objects:
                raise FormatError(f"object {name} is not listed in segment.json; expected one for each array.")
            if not self._opened:
                self._source.prefetch(
                    self._folder, [item for path, item in self._objects.items() if path.endswith("zarr.json")]
                )
            data = self._source.read_small(f"{self._folder}/{name}", METADATA_MAX_BYTES, self._objects[name])
            if not self._objects[name].matches(data):
                raise ObjectDamageError(
                    f"object {name} was changed: its hash is not the listed one. Restore it.", object_path=name
                )
            with located(path):
                grid = read_metadata(data, layout)
            opened = self._opened.setdefault(path, _Opened(layout, grid))
        return opened

    def _file(self, opened: _Opened, index: tuple[int, ...]) -> ObjectFile:
        """A listed chunk or shard, open."""
        name = f"{opened.layout.path}/{file_name(index)}"
        if name not in self._objects:
            raise FormatError(
                f"object {name} is not listed in segment.json; the array needs it, and would read as zeros."
            )
        try:
            return self._source.open(self._folder, self._objects[name])
        except HeadAtlasError:
            raise
        except OSError as error:
            raise self._damage(opened, index, f"cannot be opened ({error.strerror})") from None

    def _damage(
        self, opened: _Opened, index: tuple[int, ...], problem: str, starts: Sequence[tuple[int, ...]] = ()
    ) -> ObjectDamageError:
        """An error for a file, with the span of the chunks that begin at `starts`, or else of all of the file."""
        path, axis = opened.layout.path, long_axis(opened.layout)
        start, length = index[axis] * opened.grid.file_shape[axis], opened.grid.file_shape[axis]
        stop = start + length
        if starts:
            start, stop = min(at[axis] for at in starts), max(at[axis] for at in starts) + opened.grid.chunk[axis]
        name = f"{path}/{file_name(index)}"
        message = f"object {name}: {problem}. Restore it, or write the segment again."
        stop = min(stop, opened.layout.shape[axis])
        return ObjectDamageError(message, object_path=name, array=path, start=start, stop=stop)


def _files_touched(grid: Grid, selection: Selection) -> Iterator[tuple[int, ...]]:
    spans = [range(s.start // f, -(-s.stop // f)) for s, f in zip(selection, grid.file_shape, strict=True)]
    return itertools.product(*spans)
