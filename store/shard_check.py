"""What is checked of a chunk or shard before a codec library sees it, and decoding of single chunks.

A chunk of 64 KiB can be made to declare gigabytes, and the libraries believe it; a chunk that is absent from a shard
reads as zeros. So the index of a shard and the frame header of every chunk in it are checked once, when the shard is
first touched: no chunk absent, none outside the file, one zstd frame each, of exactly the size the grid says.
Format: RFC 8878 (zstd frames), Zarr v3 `sharding_indexed`.
"""

from __future__ import annotations

import os
import struct

import google_crc32c
import numpy as np
import zstandard

from .errors import CorruptSegmentError
from .shard import MISSING_CHUNK, Grid

_ZSTD_MAGIC = 0xFD2FB528
_HEADER_BYTES = 18


def check_shard(fd: int, grid: Grid, index: tuple[int, ...]) -> list[tuple[int, int] | None]:
    """Where each inner chunk of an open shard lies (offset, bytes), None for those outside the array.

    Raises
    ------
    CorruptSegmentError
        The index fails its checksum, or a chunk is absent, outside the file or declares another size.
    """
    size = os.fstat(fd).st_size
    starts = list(grid.chunk_starts(index))
    index_bytes = 16 * len(starts) + 4
    if size < index_bytes:
        raise CorruptSegmentError(f"shard of {size} bytes cannot hold its index of {index_bytes} bytes")
    table = os.pread(fd, index_bytes, size - index_bytes)
    if len(table) != index_bytes or google_crc32c.value(table[:-4]) != struct.unpack("<I", table[-4:])[0]:
        raise CorruptSegmentError("the index of the shard fails its checksum")
    places = np.frombuffer(table[:-4], "<u8").reshape(-1, 2).tolist()
    checked: list[tuple[int, int] | None] = []
    for start, (offset, n_bytes) in zip(starts, places, strict=True):
        absent = offset == MISSING_CHUNK and n_bytes == MISSING_CHUNK
        if start is None or absent:
            if (start is None) != absent:
                raise CorruptSegmentError("a chunk is absent from the shard, or lies outside the array")
            checked.append(None)
            continue
        if n_bytes < 4 or offset + n_bytes > size - index_bytes:
            raise CorruptSegmentError(f"a chunk at {offset}, {n_bytes} bytes, lies outside the shard of {size} bytes")
        if grid.compressor is None:
            sound = n_bytes == grid.chunk_bytes + 4
        else:
            sound = _is_one_frame(fd, offset, n_bytes - 4, grid.chunk_bytes)
        if not sound:
            raise CorruptSegmentError(f"a chunk at {offset} does not hold exactly {grid.chunk_bytes} bytes of data")
        checked.append((offset, n_bytes))
    return checked


def _is_one_frame(fd: int, offset: int, n_bytes: int, content_bytes: int) -> bool:
    """Whether these bytes of a file are one zstd frame that declares `content_bytes` and ends where they end."""
    head = os.pread(fd, min(_HEADER_BYTES, n_bytes), offset)
    try:
        frame = zstandard.get_frame_parameters(head)
        at = zstandard.frame_header_size(head)
    except zstandard.ZstdError:
        return False
    if struct.unpack("<I", head[:4])[0] != _ZSTD_MAGIC or frame.content_size != content_bytes or frame.dict_id:
        return False
    last = False
    while not last:  # blocks: 1 bit last, 2 bits type, 21 bits size; type 1 repeats one byte
        block = head[at : at + 3] if at + 3 <= len(head) else os.pread(fd, 3, offset + at)
        if len(block) != 3:
            return False
        value = int.from_bytes(block, "little")
        last, kind, size = bool(value & 1), value >> 1 & 3, value >> 3
        at += 3 + (1 if kind == 1 else size)
        if kind == 3 or at > n_bytes:
            return False
    return at + (4 if frame.has_checksum else 0) == n_bytes


def decode_chunk(body: bytes, grid: Grid) -> np.ndarray:
    """One chunk, checked against its crc32c and its size.

    Raises
    ------
    CorruptSegmentError
        Checksum, frame or size is wrong.
    """
    if len(body) < 4 or google_crc32c.value(body[:-4]) != struct.unpack("<I", body[-4:])[0]:
        raise CorruptSegmentError("a chunk fails its checksum")
    data: bytes = body[:-4]
    if grid.compressor is not None:
        try:
            if zstandard.frame_content_size(data) != grid.chunk_bytes:
                raise CorruptSegmentError(f"a chunk does not declare {grid.chunk_bytes} bytes of data")
            data = zstandard.ZstdDecompressor().decompress(
                data, max_output_size=grid.chunk_bytes, read_across_frames=False, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise CorruptSegmentError(f"a chunk cannot be decompressed ({error})") from None
    if len(data) != grid.chunk_bytes:
        raise CorruptSegmentError(f"a chunk has {len(data)} bytes of data; expected {grid.chunk_bytes}")
    return np.frombuffer(data, grid.dtype).reshape(grid.chunk)


def damaged_chunks(fd: int, grid: Grid, index: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Where in the array the chunks of a shard begin that cannot be decoded; slow, for the error message."""
    bad = []
    for start, place in zip(grid.chunk_starts(index), check_shard(fd, grid, index), strict=True):
        if start is None or place is None:
            continue
        try:
            decode_chunk(os.pread(fd, place[1], place[0]), grid)
        except CorruptSegmentError:
            bad.append(start)
    return bad
