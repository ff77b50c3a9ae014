"""Writer of a ZIP archive without compression. Threads write its entries concurrently, at positions fixed by their order.

Every ZIP reader opens the archive, and so does `zarr.storage.ZipStore`. The reader of this package does not use the
directory of the archive: `segment.json` lists the position, size and hash of each entry, so a range of an entry costs
one request. Equal entries give equal bytes. The archive contains no time.

Entries of at least `ALIGNED_BYTES` begin at a block of the file system, so that they bypass the page cache.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

from ..hashed_files import ARCHIVE_NAME, Buffer, HashedFile, StoredObject
from .container import WrittenFiles
from .shard_writer import ByteSink
from .task_pool import finish_tasks

ALIGNED_BYTES = 4 << 20
_BLOCK_BYTES = 4096
_MAX_32 = 2**32 - 1
_MAX_16 = 2**16 - 1
_VERSION, _VERSION_ZIP64, _UNIX, _DATE = 20, 45, 3, 0x21  # the first day of 1980
_PADDING_ID = 0xD935  # the id that Android's zipalign uses


class NewEntry(NamedTuple):
    """Entry to write. `encode` writes its bytes; `n_bytes` is their number, or None if only `encode` knows it."""

    path: str
    encode: Callable[[ByteSink], None]
    n_bytes: int | None


class _Entry(NamedTuple):
    item: StoredObject
    start: int
    """Position of the header, directly after the previous entry."""
    crc32: int


class _Memory:
    """Bytes of an entry whose position is not known yet."""

    def __init__(self) -> None:
        self.bytes, self.parts = 0, list[Buffer]()

    def write(self, *buffers: Buffer) -> None:
        """Keep the buffers, which must not change."""
        self.bytes += sum(len(buffer) for buffer in buffers)
        self.parts += buffers


def write_archive(path: Path, entries: Sequence[NewEntry], pool: Executor) -> WrittenFiles:
    """Write and fsync a new archive. Each task of the pool writes one entry. Return its entries, by position."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        tasks: list[Future[_Entry]] = []
        starts: list[Future[int]] = [Future()]
        starts[0].set_result(0)
        with finish_tasks(tasks):
            try:
                for entry in entries:
                    starts.append(Future())
                    tasks.append(pool.submit(_write_entry, path, entry, *starts[-2:]))
                written = [task.result() for task in tasks]
            except BaseException:
                for start in starts:  # a task may wait for one that was cancelled
                    start.cancel()
                raise
        digest = hashlib.sha256()
        end = starts[-1].result()
        headers = [(entry.start, _local_header(entry)) for entry in written]
        for position, data in [*headers, (end, _directory(written, end))]:
            digest.update(data)
            _write_at(fd, position, data)
        n_bytes = os.lseek(fd, 0, os.SEEK_CUR)
        os.fsync(fd)
    finally:
        os.close(fd)
    archive = StoredObject(path=ARCHIVE_NAME, bytes=n_bytes, sha256=digest.hexdigest())
    return WrittenFiles([entry.item for entry in written], archive)


def _write_entry(path: Path, entry: NewEntry, start: Future[int], end: Future[int]) -> _Entry:
    """Write the bytes of an entry after the end of the previous one, and set its own end as soon as it is known."""
    memory: _Memory | None = None
    try:
        n_bytes = entry.n_bytes
        if n_bytes is None:
            memory = _Memory()
            entry.encode(memory)
            n_bytes = memory.bytes
        header = start.result()
        offset = header + _header_bytes(entry.path, header, n_bytes)
        end.set_result(offset + n_bytes)
    except BaseException as error:
        if not end.done():
            end.set_exception(error)
        raise
    with HashedFile(path, offset) as file:
        if memory is None:
            entry.encode(file)
        else:
            file.write(*memory.parts)
    if file.bytes != n_bytes:
        raise AssertionError(f"{entry.path} has {file.bytes} bytes; expected {n_bytes}")
    return _Entry(StoredObject(path=entry.path, bytes=n_bytes, sha256=file.sha256, offset=offset), header, file.crc32)


def _header_bytes(path: str, start: int, n_bytes: int) -> int:
    """Return the size of a local header at `start`, with the padding that aligns a large entry."""
    size = 30 + len(path)
    return size if n_bytes < ALIGNED_BYTES else size + 4 + -(start + size + 4) % _BLOCK_BYTES


def _write_at(fd: int, position: int, data: bytes) -> None:
    os.lseek(fd, position, os.SEEK_SET)
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def _common_fields(entry: _Entry, version: int, n_extra: int) -> bytes:
    """Return the fields that the local header and the directory share."""
    size = entry.item.bytes
    return struct.pack("<5H3I2H", version, 0, 0, 0, _DATE, entry.crc32, size, size, len(entry.item.path), n_extra)


def _local_header(entry: _Entry) -> bytes:
    name = entry.item.path.encode()
    n_extra = (entry.item.offset or 0) - entry.start - 30 - len(name)
    extra = struct.pack("<HH", _PADDING_ID, n_extra - 4) + bytes(n_extra - 4) if n_extra else b""
    return b"PK\x03\x04" + _common_fields(entry, _VERSION, n_extra) + name + extra


def _directory(entries: Sequence[_Entry], start: int) -> bytes:
    """Return the central directory, in the ZIP64 form where a number needs it."""
    rows: list[bytes] = []
    for entry in entries:
        is_far = entry.start >= _MAX_32
        extra = struct.pack("<HHQ", 1, 8, entry.start) if is_far else b""
        version = _VERSION_ZIP64 if is_far else _VERSION
        rows.append(
            b"PK\x01\x02"
            + struct.pack("<BB", version, _UNIX)
            + _common_fields(entry, version, len(extra))
            + struct.pack("<3H2I", 0, 0, 0, 0o100644 << 16, min(entry.start, _MAX_32))
            + entry.item.path.encode()
            + extra
        )
    body, n = b"".join(rows), len(entries)
    end = b""
    if n >= _MAX_16 or start >= _MAX_32:
        version = (_VERSION_ZIP64 | _UNIX << 8, _VERSION_ZIP64)
        end += b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, *version, 0, 0, n, n, len(body), start)
        end += b"PK\x06\x07" + struct.pack("<IQI", 0, start + len(body), 1)
    counts = (min(n, _MAX_16),) * 2
    end += b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, *counts, len(body), min(start, _MAX_32), 0)
    return body + end
