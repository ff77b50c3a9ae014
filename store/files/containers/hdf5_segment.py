"""HDF5 container: a segment's arrays as the datasets of one file, `segment.h5`.

The HDF5 library lays out the file, and this module encodes the chunks. They are compressed by the same encoder as the
chunks of Zarr, get their Fletcher32 checksum here, and are written directly. Every HDF5 reader sees ordinary filtered
chunks. For reading, the library only provides the ranges of the chunks, and the file is closed before the first chunk
is read. Reading therefore needs no lock and no filter, and `shard_reader.py` decodes and checks the chunks. The
metadata has checksums of its own, so a flipped bit in an index is detected too.
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

from ...codecs.array_layout import ArrayLayout, SegmentArray
from ...errors import FormatError, HeadAtlasError, NotFoundError, located
from ..hashed_files import ObjectDamageError, StoredObject, fsync_folder, is_damage
from ..object_source import ObjectFile, ObjectSource
from .container import SegmentListing, Slices, Span, WrittenFiles, guard_fork, long_axis
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
from .shard_reader import ChunkDamageError, ChunkRanges, damaged_chunks, read_shard
from .shard_writer import Grid, checksum_bytes, compressor_of, cut_chunk
from .task_pool import finish_tasks

if TYPE_CHECKING:
    import h5py

_MAX_PENDING = 64  # encoded chunks that wait for the file
_library_lock = threading.Lock()  # the library crashed when several threads opened and closed files


class Hdf5Container:
    """Container that writes arrays as the datasets of one HDF5 file."""

    name = "hdf5"

    def write(self, folder: Path, arrays: Mapping[str, SegmentArray], pool: Executor) -> WrittenFiles:
        """See `Container.write`. The pool encodes the chunks, and this thread writes them in order."""
        import h5py

        path = folder / FILE_NAME
        with _disk_errors(path):
            head_bytes = metadata_bytes(item.layout for item in arrays.values())
            with _library_lock:
                file = h5py.File(path, "x", libver=("v110", "v110"), meta_block_size=head_bytes)
            try:
                datasets = create_datasets(
                    file, {name: (item.layout, item.attributes) for name, item in arrays.items()}
                )
                for name, start, body in _encoded_chunks(arrays, pool):
                    datasets[name].write_direct_chunk(start, body)
            finally:
                with _library_lock:
                    datasets = {}
                    file.close()
        item = _seal(path)
        fsync_folder(folder)
        return WrittenFiles([item])

    def open(self, source: ObjectSource, folder: str, listing: SegmentListing) -> Hdf5Reader:
        """See `Container.open`."""
        return Hdf5Reader(source, folder, listing)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Convert errors of the library after a failed write to `OSError`, as for any other file."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(_errno_of(error) or errno.EIO, _first_line(error), str(path)) from None


def _errno_of(error: Exception) -> int | None:
    """Return the number of the system's error that the message of an error of the library contains."""
    match = re.search(r"errno = (\d+)", str(error))
    return int(match[1]) if match else None


def _encoded_chunks(arrays: Mapping[str, SegmentArray], pool: Executor) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Yield every chunk in its stored form, in order. Some chunks are encoded ahead."""
    tasks: list[Future[tuple[str, tuple[int, ...], bytes]]] = []
    with finish_tasks(tasks):
        for name, item in arrays.items():
            grid = hdf5_grid(item.layout)
            if 0 in grid.shape:
                continue
            for start in grid.chunk_starts((0,) * len(grid.shape)):
                assert start is not None  # the file ends with the array
                tasks.append(pool.submit(_encode, name, item.data, grid, start))
                if len(tasks) == _MAX_PENDING:
                    yield tasks.pop(0).result()
        while tasks:
            yield tasks.pop(0).result()


def _encode(name: str, data: np.ndarray, grid: Grid, start: tuple[int, ...]) -> tuple[str, tuple[int, ...], bytes]:
    body = bytes(compressor_of(grid)(cut_chunk(data, start, grid.chunk)))
    return name, start, body + checksum_bytes(body, grid.checksum)


def _seal(path: Path) -> StoredObject:
    """Flush a closed file, and describe it."""
    fd = os.open(path, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        os.fsync(fd)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredObject(path=path.name, bytes=os.fstat(fd).st_size, sha256=digest)


@dataclass(frozen=True)
class _OpenDataset:
    """Checked dataset with the ranges of its chunks."""

    layout: ArrayLayout
    grid: Grid
    chunk_ranges: ChunkRanges


class Hdf5Reader:
    """Reader of an HDF5 segment, see `ContainerReader`. It keeps no file open."""

    def __init__(self, source: ObjectSource, folder: str, listing: SegmentListing) -> None:
        self._source, self._folder = source, folder
        self._layouts = {entry.path: entry for entry in listing.arrays}
        self._objects = {item.path: item for item in listing.objects}
        self._datasets: dict[str, _OpenDataset] = {}

    @cached_property
    def _head_bytes(self) -> int:
        """Estimated size of the metadata. It ignores arrays that cannot fit the file: a listing is not trusted."""
        layouts = [entry.layout() for entry in self._layouts.values()]
        max_bytes = MOST_RATIO * self._objects[FILE_NAME].bytes
        return metadata_bytes(layout for layout in layouts if layout.raw_bytes <= max_bytes)

    def read(self, path: str, selection: Slices) -> np.ndarray:
        """See `ContainerReader.read`."""
        guard_fork()
        dataset = self._open(path)
        out = np.empty([max(0, s.stop - s.start) for s in selection], dtype=dataset.layout.dtype)
        if out.size:
            with self._file() as file:
                try:
                    index = (0,) * out.ndim
                    read_shard(file, dataset.grid, index, dataset.chunk_ranges, selection, out)
                except FileNotFoundError:  # detected when reading over a network
                    raise _damage("is missing") from None
                except ChunkDamageError as error:
                    span = _span(dataset, [error.start])
                    raise _damage(f"{path}, chunk at {error.start}: {error}", span) from None
        return out

    def prefetch(self, paths: Sequence[str]) -> None:
        """See `ContainerReader.prefetch`. Fetches the chunks of all these arrays."""
        chunk_ranges = [self._open(path).chunk_ranges for path in paths]
        with self._file() as file:
            file.prefetch([(int(offset), int(n_bytes)) for rows in chunk_ranges for offset, n_bytes in rows])

    def stored_bytes(self, path: str) -> int:
        """See `ContainerReader.stored_bytes`."""
        return int(self._open(path).chunk_ranges[:, 1].sum())

    def spans(self, object_path: str) -> list[Span]:
        """See `ContainerReader.spans`. Empty, because the file holds every array."""
        return []

    def damaged_spans(self, object_path: str) -> list[Span]:
        """See `ContainerReader.damaged_spans`."""
        spans = []
        with self._file() as file:
            for path in self._layouts:
                dataset = self._open(path)
                damaged = damaged_chunks(file, dataset.grid, (0,) * len(dataset.layout.shape), dataset.chunk_ranges)
                if damaged:
                    spans.append(_span(dataset, damaged))
        return spans

    def _open(self, path: str) -> _OpenDataset:
        entry = self._datasets.get(path)
        if entry is None:
            if path not in self._layouts:
                raise NotFoundError(f"no array {path!r}; this segment has {', '.join(self._layouts)}")
            if FILE_NAME not in self._objects:
                raise FormatError(f"object {FILE_NAME} is not listed in segment.json; expected it in every segment.")
            layout = self._layouts[path].layout()
            with self._dataset(path) as dataset:
                grid = check_dataset(dataset, layout)
                chunk_ranges = read_index(dataset, grid, self._objects[FILE_NAME].bytes)
            entry = self._datasets.setdefault(path, _OpenDataset(layout, grid, chunk_ranges))
        return entry

    @contextmanager
    def _dataset(self, path: str) -> Iterator[h5py.h5d.DatasetID]:
        """Open a dataset of the file for the block. Errors of the library become `ObjectDamageError`."""
        with located(path), contextlib.ExitStack() as stack:
            file: Any = None
            stream: Any = None
            try:
                stream = self._source.open_seekable(self._folder, self._objects[FILE_NAME], self._head_bytes)
                stack.enter_context(_library_lock)  # after the fetch
                file = open_file(stream)
                yield open_dataset(file, path)
            except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
                if isinstance(error, HeadAtlasError):
                    raise
                failure = getattr(getattr(stream, "raw", None), "failure", None)
                if isinstance(failure, HeadAtlasError):  # an error of the network, which the library replaced
                    raise failure from None
                cause = OSError(_errno_of(error), _first_line(error), f"{self._folder}/{FILE_NAME}")
                if cause.errno is not None and not is_damage(cause):
                    raise cause from None
                raise _damage(f"cannot be read by the HDF5 library ({_first_line(error)})") from None
            finally:
                if file is not None:
                    file.close()
                if stream is not None and not isinstance(stream, str):
                    stream.close()

    def _file(self) -> ObjectFile:
        try:
            return self._source.open(self._folder, self._objects[FILE_NAME])
        except HeadAtlasError:
            raise
        except OSError as error:
            if not is_damage(error):
                raise
            raise _damage(f"cannot be opened ({error.strerror})") from None


def _damage(problem: str, span: Span | None = None) -> ObjectDamageError:
    message = f"object {FILE_NAME}: {problem}. Restore it, or write the segment again (headatlas run JOB --repair)."
    array, start, stop = span or ("", 0, None)
    return ObjectDamageError(message, object_path=FILE_NAME, array=array, start=start, stop=stop)


def _span(dataset: _OpenDataset, starts: list[tuple[int, ...]]) -> Span:
    """Return the span of the chunks that begin at `starts`."""
    axis = long_axis(dataset.layout)
    stop = max(start[axis] for start in starts) + dataset.grid.chunk[axis]
    return Span(dataset.layout.path, min(start[axis] for start in starts), min(stop, dataset.layout.shape[axis]))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
