"""Source of a store behind a URL. It fetches ranges, combines near ranges into one request, and caches them.

Opening a segment does not check the presence and size of its objects: one request for each would cost more than
reading. All bytes are checked when they arrive, small objects by their hash and chunks by their checksum.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from ...errors import CorruptSegmentError
from ..byte_cache import ByteCache
from ..hashed_files import ARCHIVE_NAME, ObjectDamageError, StoredObject, UnexpectedFileError
from ..manifest_names import manifest_name
from ..object_source import CACHE_BYTES, LocalFile, ObjectFile, Range
from .disk_cache import DiskCache
from .transport import FileRange, Transport, transport_of

GAP_BYTES = 32 << 10
"""Largest gap between two ranges that are fetched in one request."""
REQUEST_BYTES = 16 << 20
WINDOW_BYTES = 64 << 20
"""Largest number of bytes that are fetched at the same time."""
BLOCK_BYTES = 64 << 10
"""Block size of files for libraries that read from a seekable file."""


class RemoteSource:
    """Source of a store behind a URL, see `ObjectSource`."""

    folder: Path | None = None

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any],
        *,
        cache_bytes: int = CACHE_BYTES,
        cache_dir: Path | None = None,
    ) -> None:
        self.transport: Transport = transport_of(url, options)
        self.location = self.transport.url
        self.cache = ByteCache(cache_bytes)
        self._disk = None if cache_dir is None else DiskCache(cache_dir)
        self.bytes_fetched = self.n_requests = 0
        self._lock = Lock()

    def fetch(self, ranges: Sequence[FileRange]) -> list[bytes | FileNotFoundError]:
        """Fetch ranges from the server and count requests and bytes."""
        if not ranges:
            return []
        results = self.transport.fetch(ranges)
        with self._lock:
            self.n_requests += len(ranges)
            self.bytes_fetched += sum(len(result) for result in results if isinstance(result, bytes))
        return results

    def fetch_uncached(self, path: str, start: int, stop: int) -> bytes:
        """Fetch the bytes `start:stop` of a file. Empty if it is missing."""
        (data,) = self.fetch([FileRange(path, start, stop)])
        return data if isinstance(data, bytes) else b""

    def manifest_numbers(self, first: int = 0) -> list[int]:
        """See `ObjectSource.manifest_numbers`. Without a listing the numbers start at `first`."""
        if self.transport.can_list:
            with self._lock:
                self.n_requests += 1
            return self.transport.list_manifests()
        if not self._exists(first):
            return []
        low, step = first, 1  # no number after it is missing: double the step, then bisect
        while self._exists(low + step):
            low, step = low + step, step * 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._exists(middle) else (low, middle)
        return list(range(first, low + 1))

    def _exists(self, number: int) -> bool:
        (data,) = self.fetch([FileRange(manifest_name(number), 0, 1)])
        return data == b"{"  # some servers return a page for any address

    def read_small(self, path: str, limit_bytes: int, item: StoredObject | None = None) -> bytes:
        """See `ObjectSource.read_small`. For a listed object exactly its size is requested."""
        if item is not None and item.bytes > limit_bytes:
            raise UnexpectedFileError(f"{path} has {item.bytes} bytes; expected at most {limit_bytes} bytes.")
        n_bytes = limit_bytes + 1 if item is None else item.bytes
        if item is None:
            (data,) = self.fetch([FileRange(path, 0, n_bytes)])
        else:
            with self.open("", item.model_copy(update={"path": path})) as file:
                try:
                    data = file.read_at(0, n_bytes)
                except FileNotFoundError:
                    data = FileNotFoundError(path)
        if isinstance(data, FileNotFoundError):
            raise CorruptSegmentError(
                f"{path} is missing. Restore it, or write the segment again (headatlas run JOB --repair)."
            )
        if len(data) > limit_bytes:
            raise UnexpectedFileError(f"{path} has more than {limit_bytes} bytes; expected at most that many.")
        return data

    def check_segment(self, folder: str, objects: Iterable[StoredObject]) -> None:
        """See `ObjectSource.check_segment`. Nothing is checked here: reading detects damage."""

    def check_object(self, folder: str, item: StoredObject) -> None:
        """See `ObjectSource.check_object`."""
        size = self.transport.size(_join_path(folder, item.path))
        with self._lock:
            self.n_requests += 1
        if size != item.bytes:
            problem = "is missing" if size is None else f"has {size} bytes"
            raise ObjectDamageError(
                f"object {item.path} {problem}; expected {item.bytes} bytes. Restore it, or write the segment again (headatlas run JOB --repair).",
                object_path=item.path,
            )

    def open(self, folder: str, item: StoredObject) -> ObjectFile:
        """See `ObjectSource.open`. With a disk cache the full object is fetched into it."""
        path, offset = _join_path(folder, item.file_path), item.offset or 0
        if self._disk is not None:
            cached = self._disk.cached_path(item, lambda: self._iter_object(path, offset, offset + item.bytes))
            if cached is not None:
                return LocalFile(cached)
        return RemoteFile(self, path, item.bytes, offset)

    def open_file(self, folder: str, path: str, n_bytes: int) -> RemoteFile:
        """See `ObjectSource.open_file`."""
        return RemoteFile(self, _join_path(folder, path), n_bytes)

    def _iter_object(self, path: str, first: int, stop: int) -> Iterator[bytes]:
        for start in range(first, stop, REQUEST_BYTES):
            (part,) = self.fetch([FileRange(path, start, min(start + REQUEST_BYTES, stop))])
            if isinstance(part, FileNotFoundError):
                raise part
            yield part

    def open_seekable(self, folder: str, item: StoredObject, head_bytes: int) -> str | io.BufferedReader:
        """See `ObjectSource.open_seekable`."""
        file = self.open(folder, item)
        file.prefetch(_block_ranges(0, min(head_bytes, REQUEST_BYTES), file.size))
        return io.BufferedReader(_BlockFile(file), BLOCK_BYTES)

    def prefetch(self, folder: str, items: Sequence[StoredObject]) -> None:
        """See `ObjectSource.prefetch`. Small objects are fetched with concurrent requests, or one for a whole archive."""
        if self._disk is not None:
            return
        small = [item for item in items if item.bytes <= REQUEST_BYTES]
        archived = [(item.offset, item.bytes) for item in small if item.offset is not None]
        if archived:
            self.open_file(folder, ARCHIVE_NAME, max(map(sum, archived))).prefetch(archived)
        ranges = [FileRange(_join_path(folder, item.path), 0, item.bytes) for item in small if item.offset is None]
        missing = [item for item in ranges if (item.path, 0, item.stop) not in self.cache]
        while missing:
            n_bytes, n_ranges = 0, 0
            while n_ranges < len(missing) and (n_ranges == 0 or n_bytes + missing[n_ranges].stop <= WINDOW_BYTES):
                n_bytes, n_ranges = n_bytes + missing[n_ranges].stop, n_ranges + 1
            for item, data in zip(missing[:n_ranges], self.fetch(missing[:n_ranges]), strict=True):
                if isinstance(data, bytes) and len(data) == item.stop:  # reading reports missing objects
                    self.cache.get((item.path, 0, item.stop), lambda data=data: data)
            missing = missing[n_ranges:]


class RemoteFile:
    """Object behind a URL, see `ObjectFile`. Its size is the listed one. It begins at `first_byte` of its file."""

    def __init__(self, source: RemoteSource, path: str, size: int, first_byte: int = 0) -> None:
        self._source, self._path, self.size, self._first_byte = source, path, size, first_byte

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """See `ObjectFile.read_at`."""
        (data,) = self.read_ranges([(offset, n_bytes)])
        return data

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """See `ObjectFile.read_ranges`. Holds at most `WINDOW_BYTES` in memory."""
        ranges = [(self._first_byte + offset, min(n_bytes, self.size - offset)) for offset, n_bytes in ranges]
        start = 0
        while start < len(ranges):
            stop, total = start, 0
            while stop < len(ranges) and (stop == start or total + ranges[stop][1] <= WINDOW_BYTES):
                total += ranges[stop][1]
                stop += 1
            yield from self._read_window(ranges[start:stop])
            start = stop

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """See `ObjectFile.prefetch`. Does nothing if the ranges would not fit the cache."""
        if sum(n_bytes for _, n_bytes in ranges) <= self._source.cache.max_bytes // 2:
            with contextlib.suppress(FileNotFoundError):  # reading reports it
                for _ in self.read_ranges(ranges):
                    pass

    def _read_window(self, ranges: Sequence[Range]) -> list[bytes]:
        cache, results = self._source.cache, {}
        for offset, n_bytes in ranges:
            key = (self._path, offset, n_bytes)
            if key in cache:
                results[offset, n_bytes] = cache.get(key, lambda key=key: self._fetch_range(*key[1:]))
        missing = sorted({item for item in ranges if item not in results})
        requests = list(_combine_ranges(missing, self._first_byte + self.size))
        responses = self._source.fetch([FileRange(self._path, start, stop) for start, stop, _ in requests])
        for (start, _, parts), response in zip(requests, responses, strict=True):
            if isinstance(response, FileNotFoundError):
                raise response
            for offset, n_bytes in parts:
                data = response[offset - start : offset - start + n_bytes]
                results[offset, n_bytes] = data
                if len(data) == n_bytes:  # do not cache a truncated file, which may be repaired later
                    cache.get((self._path, offset, n_bytes), lambda data=data: data)
        return [results[item] for item in ranges]

    def _fetch_range(self, offset: int, n_bytes: int) -> bytes:
        """Fetch one range, which was evicted from the cache after the check."""
        (data,) = self._source.fetch([FileRange(self._path, offset, offset + n_bytes)])
        if isinstance(data, FileNotFoundError):
            raise data
        return data

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing, because no file is open."""


def _combine_ranges(ranges: Sequence[Range], size: int) -> Iterator[tuple[int, int, list[Range]]]:
    """Combine near ranges into requests of up to `REQUEST_BYTES`.

    `ranges` must be ascending. Each request is yielded as start, stop, and the ranges that it contains.
    """
    start, stop, parts = 0, 0, list[Range]()
    for offset, n_bytes in ranges:
        end = min(offset + n_bytes, size)
        if parts and offset - stop <= GAP_BYTES and end - start <= REQUEST_BYTES:
            stop = max(stop, end)
            parts.append((offset, n_bytes))
            continue
        if parts:
            yield start, stop, parts
        start, stop, parts = offset, end, [(offset, n_bytes)]
    if parts:
        yield start, stop, parts


class _BlockFile(io.RawIOBase):
    """Seekable file over an object. It reads whole blocks, which are cached."""

    def __init__(self, file: ObjectFile) -> None:
        self._file, self._position = file, 0
        self.failure: BaseException | None = None
        """Error of the last read, because a library may replace it by an error of its own."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._position + len(view), self._file.size)
        if stop <= self._position:
            return 0
        blocks = _block_ranges(self._position, stop, self._file.size)
        first = blocks[0][0]
        try:
            data = b"".join(self._file.read_ranges(blocks))[self._position - first : stop - first]
        except BaseException as error:
            self.failure = error
            raise
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.__exit__(None, None, None)
        super().close()


def _block_ranges(start: int, stop: int, size: int) -> list[Range]:
    """Return the blocks of a file that contain `start:stop`."""
    first = start // BLOCK_BYTES * BLOCK_BYTES
    return [(offset, min(BLOCK_BYTES, size - offset)) for offset in range(first, min(stop, size), BLOCK_BYTES)]


def _join_path(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder else path
