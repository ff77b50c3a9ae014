"""A store behind a URL: what is asked for is fetched by range, near ranges in one request, and kept.

Presence and size of objects are not asked for when a segment is opened: a request for each would cost more than the
reading. Every byte that is used is checked when it comes: small objects by hash, chunks by their checksum.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from ...errors import CorruptSegmentError, FormatError
from ..byte_cache import ByteCache
from ..hashed_files import ObjectDamageError, StoredObject
from ..manifest_names import LATEST_MAX_BYTES, LATEST_NAME, Latest, manifest_name
from ..object_source import CACHE_BYTES, LocalFile, ObjectFile, Range
from .disk_cache import DiskCache
from .transport import Transport, Wanted, transport_of

GAP_BYTES = 32 << 10
"""Ranges that are no further apart are fetched in one request."""
REQUEST_BYTES = 16 << 20
WINDOW_BYTES = 64 << 20
"""What is fetched at once, at most, however much is read."""
BLOCK_BYTES = 64 << 10
"""What a library that opens files itself reads at once."""


class RemoteSource:
    """See `ObjectSource`."""

    folder: Path | None = None

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any],
        *,
        cache_bytes: int = CACHE_BYTES,
        cache_dir: Path | None = None,
    ) -> None:
        self._transport: Transport = transport_of(url, options)
        self.location = self._transport.url
        self.cache = ByteCache(cache_bytes)
        self._disk = None if cache_dir is None else DiskCache(cache_dir)
        self.bytes_fetched = self.n_requests = 0
        self._lock = Lock()

    def fetch(self, wanted: Sequence[Wanted]) -> list[bytes | FileNotFoundError]:
        """Ranges from the server, counted."""
        if not wanted:
            return []
        answers = self._transport.fetch(wanted)
        with self._lock:
            self.n_requests += len(wanted)
            self.bytes_fetched += sum(len(answer) for answer in answers if isinstance(answer, bytes))
        return answers

    def manifest_numbers(self) -> list[int]:
        """See `ObjectSource.manifest_numbers`: all of them, or without a listing those from `latest.json` on."""
        if self._transport.can_list:
            with self._lock:
                self.n_requests += 1
            return self._transport.list_manifests()
        (answer,) = self.fetch([Wanted(LATEST_NAME, 0, LATEST_MAX_BYTES)])
        latest = None if isinstance(answer, FileNotFoundError) else Latest.from_bytes(answer)
        first = 0 if latest is None else latest.number
        if not self._exists(first):
            return []
        low, step = first, 1  # from there on no number is left out: twice as far as long as one is there
        while self._exists(low + step):
            low, step = low + step, step * 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._exists(middle) else (low, middle)
        return list(range(first, low + 1))

    def _exists(self, number: int) -> bool:
        (answer,) = self.fetch([Wanted(manifest_name(number), 0, 1)])
        return answer == b"{"  # some servers answer any address with a page

    def read_small(self, path: str, limit_bytes: int, item: StoredObject | None = None) -> bytes:
        """See `ObjectSource.read_small`; of a listed object no more is asked for than it has."""
        if item is not None and item.bytes > limit_bytes:
            raise FormatError(f"{path} has {item.bytes} bytes; expected at most {limit_bytes} bytes.")
        n_bytes = limit_bytes + 1 if item is None else item.bytes
        if item is None:
            (data,) = self.fetch([Wanted(path, 0, n_bytes)])
        else:
            with self.open("", item.model_copy(update={"path": path})) as file:
                try:
                    data = file.read_at(0, n_bytes)
                except FileNotFoundError:
                    data = FileNotFoundError(path)
        if isinstance(data, FileNotFoundError):
            raise CorruptSegmentError(f"{path} is missing. Restore it, or write the segment again.")
        if len(data) > limit_bytes:
            raise FormatError(f"{path} has more than {limit_bytes} bytes; expected no more.")
        return data

    def check_segment(self, folder: str, objects: Iterable[StoredObject]) -> None:
        """See `ObjectSource.check_segment`: reading tells."""

    def check_object(self, folder: str, item: StoredObject) -> None:
        """See `ObjectSource.check_object`."""
        size = self._transport.size(_join(folder, item.path))
        with self._lock:
            self.n_requests += 1
        if size != item.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise ObjectDamageError(
                f"object {item.path} {found}; expected {item.bytes} bytes. Restore it, or write the segment again.",
                object_path=item.path,
            )

    def open(self, folder: str, item: StoredObject) -> ObjectFile:
        """See `ObjectSource.open`; with a cache folder the whole object is fetched into it."""
        path = _join(folder, item.path)
        if self._disk is not None:
            kept = self._disk.path_of(item, lambda: self._whole(path, item.bytes))
            if kept is not None:
                return LocalFile(kept)
        return RemoteFile(self, path, item.bytes)

    def _whole(self, path: str, n_bytes: int) -> Iterator[bytes]:
        for start in range(0, n_bytes, REQUEST_BYTES):
            (part,) = self.fetch([Wanted(path, start, min(start + REQUEST_BYTES, n_bytes))])
            if isinstance(part, FileNotFoundError):
                raise part
            yield part

    def open_seekable(self, folder: str, item: StoredObject, head_bytes: int) -> str | io.BufferedReader:
        """See `ObjectSource.open_seekable`."""
        file = self.open(folder, item)
        file.prefetch(_blocks(0, min(head_bytes, REQUEST_BYTES), file.size))
        return io.BufferedReader(_Blocks(file), BLOCK_BYTES)

    def prefetch(self, folder: str, items: Sequence[StoredObject]) -> None:
        """See `ObjectSource.prefetch`: small objects, in requests of the same moment."""
        if self._disk is not None:
            return
        wanted = [Wanted(_join(folder, item.path), 0, item.bytes) for item in items if item.bytes <= REQUEST_BYTES]
        missing = [item for item in wanted if (item.path, 0, item.stop) not in self.cache]
        while missing:
            total, n = 0, 0
            while n < len(missing) and (n == 0 or total + missing[n].stop <= WINDOW_BYTES):
                total, n = total + missing[n].stop, n + 1
            for item, data in zip(missing[:n], self.fetch(missing[:n]), strict=True):
                if isinstance(data, bytes) and len(data) == item.stop:  # what is missing is told where it is read
                    self.cache.get((item.path, 0, item.stop), lambda data=data: data)
            missing = missing[n:]


class RemoteFile:
    """See `ObjectFile`: an object behind a URL; its size is the listed one."""

    def __init__(self, source: RemoteSource, path: str, size: int) -> None:
        self._source, self._path, self.size = source, path, size

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """See `ObjectFile.read_at`."""
        (data,) = self.read_ranges([(offset, n_bytes)])
        return data

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """See `ObjectFile.read_ranges`; holds `WINDOW_BYTES` at most."""
        at = 0
        while at < len(ranges):
            stop, total = at, 0
            while stop < len(ranges) and (stop == at or total + ranges[stop][1] <= WINDOW_BYTES):
                total += ranges[stop][1]
                stop += 1
            yield from self._window(ranges[at:stop])
            at = stop

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """See `ObjectFile.prefetch`; nothing where it could not be kept."""
        if sum(n_bytes for _, n_bytes in ranges) <= self._source.cache.max_bytes // 2:
            with contextlib.suppress(FileNotFoundError):  # told where it is read
                for _ in self.read_ranges(ranges):
                    pass

    def _window(self, ranges: Sequence[Range]) -> list[bytes]:
        cache, found = self._source.cache, {}
        for offset, n_bytes in ranges:
            key = (self._path, offset, n_bytes)
            if key in cache:
                found[offset, n_bytes] = cache.get(key, lambda key=key: self._alone(*key[1:]))
        missing = sorted({item for item in ranges if item not in found})
        joined = list(_joined(missing, self.size))
        answers = self._source.fetch([Wanted(self._path, start, stop) for start, stop, _ in joined])
        for (start, _, parts), answer in zip(joined, answers, strict=True):
            if isinstance(answer, FileNotFoundError):
                raise answer
            for offset, n_bytes in parts:
                data = answer[offset - start : offset - start + n_bytes]
                found[offset, n_bytes] = data
                if len(data) == n_bytes:  # a file that was cut may be whole the next time
                    cache.get((self._path, offset, n_bytes), lambda data=data: data)
        return [found[item] for item in ranges]

    def _alone(self, offset: int, n_bytes: int) -> bytes:
        """A range that left the cache between two looks."""
        (data,) = self._source.fetch([Wanted(self._path, offset, offset + n_bytes)])
        if isinstance(data, FileNotFoundError):
            raise data
        return data

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open."""


def _joined(ranges: Sequence[Range], size: int) -> Iterator[tuple[int, int, list[Range]]]:
    """Requests (start, stop, the ranges in it) for ascending ranges: near ones together, up to `REQUEST_BYTES`."""
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


class _Blocks(io.RawIOBase):
    """An object as a file with a position, read in whole blocks that the cache keeps."""

    def __init__(self, file: ObjectFile) -> None:
        self._file, self._at = file, 0
        self.failure: BaseException | None = None
        """What went wrong, which a library may tell in other words."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._file.size)
        if stop <= self._at:
            return 0
        blocks = _blocks(self._at, stop, self._file.size)
        first = blocks[0][0]
        try:
            data = b"".join(self._file.read_ranges(blocks))[self._at - first : stop - first]
        except BaseException as error:
            self.failure = error
            raise
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.__exit__(None, None, None)
        super().close()


def _blocks(start: int, stop: int, size: int) -> list[Range]:
    """The whole blocks of a file that hold `start:stop`."""
    first = start // BLOCK_BYTES * BLOCK_BYTES
    return [(at, min(BLOCK_BYTES, size - at)) for at in range(first, min(stop, size), BLOCK_BYTES)]


def _join(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder else path
