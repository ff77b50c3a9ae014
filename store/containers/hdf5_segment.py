"""The HDF5 container: a segment's arrays as the datasets of one file, `segment.h5`.

The HDF5 library lays the file out; the chunks are ours. They are compressed by the same encoder as those of Zarr, get
their Fletcher32 here, and are handed over as they are: ordinary filtered chunks for every reader. The other way round
the library is asked only where chunks lie, and the file is closed before the first is read: reading takes no lock, runs
no filter, and decodes with the same checks as `shard_read.py`. Metadata is written in the form that carries checksums
of its own, so that a flipped bit in an index is noticed too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..codecs.array_layout import ArrayLayout, SegmentArray
from ..errors import FormatError, HeadAtlasError, NotFoundError, located
from ..files.hashed_files import ObjectDamageError, StoredObject, fsync_folder
from ..files.object_source import ObjectFile, ObjectSource
from .container import SegmentListing, Selection, Span, finished, guard_fork, long_axis
from .hdf5_metadata import (
    FILE_NAME,
    MOST_RATIO,
    check_dataset,
    create_datasets,
    hdf5_grid,
    metadata_bytes,
    open_dataset,
    open_file,
    read_index,
)
from .shard_reader import ChunkDamageError, Places, damaged_chunks, read_shard
from .shard_writer import Grid, checksum_bytes, compressor_of, cut_chunk

if TYPE_CHECKING:
    import h5py

_AHEAD = 64  # encoded chunks that may wait for the file
_library = threading.Lock()  # opening and closing files in threads has crashed the library


class Hdf5Container:
    """Arrays as the datasets of one HDF5 file."""

    name = "hdf5"

    def write(self, folder: Path, arrays: Mapping[str, SegmentArray], pool: Executor) -> list[StoredObject]:
        """See `Container.write`; the pool encodes, this thread writes the chunks in their order."""
        import h5py

        path = folder / FILE_NAME
        with _disk_errors(path):
            head_bytes = metadata_bytes(item.layout for item in arrays.values())
            with _library:
                file = h5py.File(path, "x", libver=("v110", "v110"), meta_block_size=head_bytes)
            try:
                datasets = create_datasets(
                    file, {name: (item.layout, item.attributes) for name, item in arrays.items()}
                )
                for name, start, body in _encoded(arrays, pool):
                    datasets[name].write_direct_chunk(start, body)
            finally:
                with _library:
                    datasets = {}
                    file.close()
        written = _seal(path)
        fsync_folder(folder)
        return [written]

    def open(self, source: ObjectSource, folder: str, listing: SegmentListing) -> Hdf5Reader:
        """See `Container.open`."""
        return Hdf5Reader(source, folder, listing)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """What the library raises when a write fails: always an `OSError`, as for any other file."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"errno = (\d+)", str(error))
        raise OSError(int(found[1]) if found else errno.EIO, _first_line(error), str(path)) from None


def _encoded(arrays: Mapping[str, SegmentArray], pool: Executor) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Every chunk, as it is stored, in order; some are encoded ahead."""
    tasks: list[Future[tuple[str, tuple[int, ...], bytes]]] = []
    with finished(tasks):
        for name, item in arrays.items():
            grid = hdf5_grid(item.layout)
            if 0 in grid.shape:
                continue
            for start in grid.chunk_starts((0,) * len(grid.shape)):
                assert start is not None  # the file ends with the array
                tasks.append(pool.submit(_encode, name, item.data, grid, start))
                if len(tasks) == _AHEAD:
                    yield tasks.pop(0).result()
        while tasks:
            yield tasks.pop(0).result()


def _encode(name: str, data: np.ndarray, grid: Grid, start: tuple[int, ...]) -> tuple[str, tuple[int, ...], bytes]:
    body = bytes(compressor_of(grid)(cut_chunk(data, start, grid.chunk)))
    return name, start, body + checksum_bytes(body, grid.checksum)


def _seal(path: Path) -> StoredObject:
    """Flush a file that is closed, and describe it."""
    fd = os.open(path, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        os.fsync(fd)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredObject(path=path.name, bytes=os.fstat(fd).st_size, sha256=digest)


@dataclass(frozen=True)
class _Opened:
    """A dataset that was checked, and where its chunks lie."""

    layout: ArrayLayout
    grid: Grid
    places: Places


class Hdf5Reader:
    """See `ContainerReader`. No file stays open."""

    def __init__(self, source: ObjectSource, folder: str, listing: SegmentListing) -> None:
        self._source, self._folder = source, folder
        self._layouts = {entry.path: entry for entry in listing.arrays}
        self._objects = {item.path: item for item in listing.objects}
        self._opened: dict[str, _Opened] = {}

    @cached_property
    def _head_bytes(self) -> int:
        """Where metadata may end, of the arrays that fit into the file: a listing may claim anything."""
        layouts = [entry.layout() for entry in self._layouts.values()]
        most = MOST_RATIO * self._objects[FILE_NAME].bytes
        return metadata_bytes(layout for layout in layouts if layout.raw_bytes <= most)

    def read(self, path: str, selection: Selection) -> np.ndarray:
        """See `ContainerReader.read`."""
        guard_fork()
        opened = self._open(path)
        out = np.empty([max(0, s.stop - s.start) for s in selection], dtype=opened.layout.dtype)
        if out.size:
            with self._file() as file:
                try:
                    index = (0,) * out.ndim
                    read_shard(file, opened.grid, index, opened.places, selection, out)
                except FileNotFoundError:  # over a network only reading tells
                    raise _damage("is missing") from None
                except ChunkDamageError as error:
                    span = _span(opened, [error.start])
                    raise _damage(f"{path}, chunk at {error.start}: {error}", span) from None
        return out

    def prefetch(self, paths: Sequence[str]) -> None:
        """See `ContainerReader.prefetch`: the chunks of all of them."""
        places = [self._open(path).places for path in paths]
        with self._file() as file:
            file.prefetch([(int(offset), int(n_bytes)) for rows in places for offset, n_bytes in rows])

    def stored_bytes(self, path: str) -> int:
        """See `ContainerReader.stored_bytes`."""
        return int(self._open(path).places[:, 1].sum())

    def spans(self, object_path: str) -> list[Span]:
        """See `ContainerReader.spans`: the file holds every array."""
        return []

    def damaged_spans(self, object_path: str) -> list[Span]:
        """See `ContainerReader.damaged_spans`."""
        spans = []
        with self._file() as file:
            for path in self._layouts:
                opened = self._open(path)
                bad = damaged_chunks(file, opened.grid, (0,) * len(opened.layout.shape), opened.places)
                if bad:
                    spans.append(_span(opened, bad))
        return spans

    def _open(self, path: str) -> _Opened:
        opened = self._opened.get(path)
        if opened is None:
            if path not in self._layouts:
                raise NotFoundError(f"no array {path!r}; this segment has {', '.join(self._layouts)}")
            if FILE_NAME not in self._objects:
                raise FormatError(f"object {FILE_NAME} is not listed in segment.json; expected it in every segment.")
            layout = self._layouts[path].layout()
            with self._dataset(path) as dataset:
                grid = check_dataset(dataset, layout)
                places = read_index(dataset, grid, self._objects[FILE_NAME].bytes)
            opened = self._opened.setdefault(path, _Opened(layout, grid, places))
        return opened

    @contextmanager
    def _dataset(self, path: str) -> Iterator[h5py.h5d.DatasetID]:
        """A dataset of the file, open while the block runs; what the library raises becomes damage."""
        with located(path), contextlib.ExitStack() as stack:
            file: Any = None
            place: Any = None
            try:
                place = self._source.open_seekable(self._folder, self._objects[FILE_NAME], self._head_bytes)
                stack.enter_context(_library)  # after what had to be fetched
                file = open_file(place)
                yield open_dataset(file, path)
            except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
                if isinstance(error, HeadAtlasError):
                    raise
                failure = getattr(getattr(place, "raw", None), "failure", None)
                if isinstance(failure, HeadAtlasError):  # the network's, which the library says in other words
                    raise failure from None
                raise _damage(f"cannot be read by the HDF5 library ({_first_line(error)})") from None
            finally:
                if file is not None:
                    file.close()
                if place is not None and not isinstance(place, str):
                    place.close()

    def _file(self) -> ObjectFile:
        try:
            return self._source.open(self._folder, self._objects[FILE_NAME])
        except HeadAtlasError:
            raise
        except OSError as error:
            raise _damage(f"cannot be opened ({error.strerror})") from None


def _damage(problem: str, span: Span | None = None) -> ObjectDamageError:
    message = f"object {FILE_NAME}: {problem}. Restore it, or write the segment again."
    array, start, stop = span or ("", 0, None)
    return ObjectDamageError(message, object_path=FILE_NAME, array=array, start=start, stop=stop)


def _span(opened: _Opened, starts: list[tuple[int, ...]]) -> Span:
    """The items in the chunks that begin at `starts`."""
    axis = long_axis(opened.layout)
    stop = max(at[axis] for at in starts) + opened.grid.chunk[axis]
    return Span(opened.layout.path, min(at[axis] for at in starts), min(stop, opened.layout.shape[axis]))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
