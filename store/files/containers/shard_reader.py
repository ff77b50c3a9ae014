"""Reader of chunks in shards. It verifies the checksum of every chunk.

The zarr library is not used for this. For partial reads zarrs 0.2.3 does not verify the crc32c of decoded chunks, so a
flipped bit gives a wrong number (160 of 160 without a compressor). The zarr pipeline verifies it, but takes ten times
as long for one head of one example. Both accept a chunk of 64 KiB that declares gigabytes, and both read a missing
chunk as zeros. This reader requires that a chunk exists, passes its checksum, and has exactly the size of the grid. The
arrays are ordinary Zarr arrays: tests read all of them with both pipelines.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import zstandard
from jaxtyping import Shaped, UInt64

from ...errors import CorruptSegmentError
from ..object_source import LocalFile, ObjectFile, Range
from .container import Slices
from .shard_writer import MISSING_CHUNK, Checksum, Grid, checksum_bytes

ChunkRanges = UInt64[np.ndarray, "chunk 2"]
"""Offset and size in bytes of each chunk of a shard, in C order."""


class ChunkDamageError(CorruptSegmentError):
    """Damage of the chunk that begins at `start` of its array."""

    def __init__(self, message: str, start: tuple[int, ...]) -> None:
        super().__init__(message)
        self.start = start


def read_shard_index(file: ObjectFile, grid: Grid) -> ChunkRanges:
    """Read the index of an open shard and verify its checksum.

    Raises
    ------
    CorruptSegmentError
        The index is truncated or changed.
    """
    size, n_chunks = file.size, math.prod(grid.chunks_per_shard)
    index_bytes = 16 * n_chunks + 4
    if size < index_bytes:  # before memory of that size is allocated
        raise CorruptSegmentError(f"{size} bytes cannot hold an index of {n_chunks} chunks")
    table = file.read_at(size - index_bytes, index_bytes)
    if len(table) != index_bytes or not _is_sound(table):
        raise CorruptSegmentError("the index of the shard fails its checksum")
    return np.frombuffer(table, "<u8", 2 * n_chunks).reshape(-1, 2)


def read_shard(
    file: ObjectFile,
    grid: Grid,
    index: tuple[int, ...],
    chunk_ranges: ChunkRanges,
    selection: Slices,
    out: Shaped[np.ndarray, "*shape"],
) -> None:
    """Fill the part of `out` that lies in shard `index`. `out` receives the items of `selection`.

    Only the required chunks are decoded.

    Raises
    ------
    ChunkDamageError
        A required chunk is missing, or fails its checksum.
    """
    decompressor = zstandard.ZstdDecompressor()
    base = [i * f for i, f in zip(index, grid.file_shape, strict=True)]
    axes = [_cut_axis(*axis) for axis in zip(selection, base, grid.file_shape, grid.chunk, strict=True)]
    block = tuple(slice((axis[0].start - b) // c, (axis[-1].start - b) // c + 1) if axis else slice(0, 0)
                  for axis, b, c in zip(axes, base, grid.chunk, strict=True))  # fmt: skip
    chunks = list(itertools.product(*axes))
    ranges = _check_ranges(chunk_ranges.reshape(*grid.chunks_per_shard, 2)[block].reshape(-1, 2), grid, file, chunks)
    is_whole = all(cut.is_whole for axis in axes for cut in axis)
    local = file if grid.compressor is None and isinstance(file, LocalFile) and is_whole else None
    bodies = file.read_ranges(ranges) if local is None else itertools.repeat(b"")
    for cuts, (offset, n_bytes), body in zip(chunks, ranges, bodies, strict=local is None):
        target = out[tuple([cut.target for cut in cuts])]
        try:
            if local is not None and target.flags.c_contiguous:
                read_into(local, offset, n_bytes, grid, target)
            elif grid.compressor is not None and target.shape == grid.chunk and target.flags.c_contiguous:
                decode_into(body, grid, decompressor, target)
            else:
                data = body or file.read_at(offset, n_bytes)
                target[...] = decode_chunk(data, grid, decompressor)[tuple([cut.source for cut in cuts])]
        except CorruptSegmentError as error:
            raise ChunkDamageError(str(error), tuple(cut.start for cut in cuts)) from None


class _AxisCut(NamedTuple):
    """Selected items of a row of chunks along one axis."""

    start: int
    """Start of the chunks in the array."""
    source: slice
    """Slice of the chunk that holds the items."""
    target: slice
    """Slice of the selection that the items fill."""
    is_whole: bool


def _cut_axis(selection: slice, base: int, length: int, chunk: int) -> list[_AxisCut]:
    """Return the chunks that hold the selected items of one axis, in a shard that begins at `base`."""
    first, last = max(selection.start, base), min(selection.stop, base + length)
    cuts = []
    for start in range(base + (first - base) // chunk * chunk, last, chunk):
        low, high = max(selection.start, start), min(selection.stop, start + chunk)
        source, target = slice(low - start, high - start), slice(low - selection.start, high - selection.start)
        cuts.append(_AxisCut(start, source, target, high - low == chunk))
    return cuts


def damaged_chunks(
    file: ObjectFile, grid: Grid, index: tuple[int, ...], chunk_ranges: ChunkRanges
) -> list[tuple[int, ...]]:
    """Decode all chunks of a shard, and return the starts of those that cannot be decoded."""
    decompressor, damaged = zstandard.ZstdDecompressor(), []
    for start, chunk_range in zip(grid.chunk_starts(index), chunk_ranges.tolist(), strict=True):
        if start is not None:  # chunks outside the array are not stored
            try:
                decode_chunk(file.read_at(*_check_range(chunk_range, grid, file, start)), grid, decompressor)
            except CorruptSegmentError:
                damaged.append(start)
    return damaged


def _check_ranges(
    chunk_ranges: ChunkRanges, grid: Grid, file: ObjectFile, chunks: list[tuple[_AxisCut, ...]]
) -> list[Range]:
    """Check the ranges of chunks like `_check_range`, but vectorized."""
    offset, n_bytes = chunk_ranges[:, 0], chunk_ranges[:, 1]
    size = np.uint64(file.size)
    fits = (n_bytes <= _max_chunk_bytes(grid)) & (offset <= size) & (n_bytes <= size - np.minimum(offset, size))
    for i in np.flatnonzero(~fits).tolist():
        _check_range(chunk_ranges[i].tolist(), grid, file, tuple(cut.start for cut in chunks[i]))
    return list(map(tuple, chunk_ranges.tolist()))


def _max_chunk_bytes(grid: Grid) -> int:
    """Return the largest possible size of a chunk. Incompressible data grows by a few bytes per block."""
    return grid.chunk_bytes + grid.chunk_bytes // 128 + 1024


def _check_range(chunk_range: list[int], grid: Grid, file: ObjectFile, start: tuple[int, ...]) -> Range:
    """Return the offset and size of a chunk, after checking that they are valid for this grid and file."""
    offset, n_bytes = chunk_range
    if offset == MISSING_CHUNK and n_bytes == MISSING_CHUNK:
        raise ChunkDamageError("a chunk is missing and would read as zeros", start)
    if n_bytes > _max_chunk_bytes(grid) or offset + n_bytes > file.size:
        raise ChunkDamageError(f"a chunk of {n_bytes} bytes at {offset} is too long or outside the shard", start)
    return offset, n_bytes


def decode_chunk(body: bytes, grid: Grid, decompressor: zstandard.ZstdDecompressor) -> np.ndarray:
    """Decode one chunk and verify its checksum and size.

    Raises
    ------
    CorruptSegmentError
        Checksum, frame or size is wrong.
    """
    data = _verify_body(body, grid)
    if grid.compressor is not None:
        try:
            data = decompressor.decompress(data, max_output_size=grid.chunk_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptSegmentError(f"a chunk cannot be decompressed ({error})") from None
    if len(data) != grid.chunk_bytes:
        raise CorruptSegmentError(f"a chunk has {len(data)} bytes of data; expected {grid.chunk_bytes}")
    return np.frombuffer(data, grid.dtype).reshape(grid.chunk)


def read_into(file: LocalFile, offset: int, n_bytes: int, grid: Grid, out: Shaped[np.ndarray, "*shape"]) -> None:
    """Read an uncompressed chunk from its file into `out`, with the checks of `decode_chunk`.

    Raises
    ------
    CorruptSegmentError
        Checksum or size is wrong. The content of `out` is then undefined.
    """
    flat, check = out.reshape(-1).view(np.uint8), bytearray(4)
    if n_bytes != len(flat) + 4:
        raise CorruptSegmentError(f"a chunk has {n_bytes - 4} bytes of data; expected {len(flat)}")
    if file.read_into(offset, (flat.data, check)) < n_bytes or checksum_bytes(flat, grid.checksum) != check:
        raise CorruptSegmentError("a chunk fails its checksum")


def decode_into(
    body: bytes, grid: Grid, decompressor: zstandard.ZstdDecompressor, out: Shaped[np.ndarray, "*shape"]
) -> None:
    """Decompress a chunk into `out`, with the checks of `decode_chunk`. This takes a third less time than a copy.

    Raises
    ------
    CorruptSegmentError
        Checksum, frame or size is wrong. The content of `out` is then undefined.
    """
    data = _verify_body(body, grid)
    try:
        with decompressor.stream_reader(data) as reader:
            n_bytes = reader.readinto(out.reshape(-1).view(np.uint8).data)
        is_whole = n_bytes == grid.chunk_bytes and _frame_bytes(data) == len(data)
    except zstandard.ZstdError as error:
        raise CorruptSegmentError(f"a chunk cannot be decompressed ({error})") from None
    if not is_whole:
        raise CorruptSegmentError(f"a chunk is not one frame of {grid.chunk_bytes} bytes of data")


def _verify_body(body: bytes, grid: Grid) -> memoryview | bytes:
    """Verify the checksum of a stored chunk and the size that its frame declares. Return the data without checksum."""
    if len(body) < 4 or not _is_sound(body, grid.checksum):
        raise CorruptSegmentError("a chunk fails its checksum")
    data = memoryview(body)[:-4]
    if grid.compressor is not None:
        try:
            if zstandard.frame_content_size(data) != grid.chunk_bytes:
                raise CorruptSegmentError(f"a chunk does not declare {grid.chunk_bytes} bytes of data")
        except zstandard.ZstdError as error:
            raise CorruptSegmentError(f"a chunk cannot be decompressed ({error})") from None
    return data


def _frame_bytes(data: memoryview | bytes) -> int:
    """Return the size of the frame at the beginning of `data`, from the headers of its blocks (RFC 8878, 3.1.1)."""
    offset, is_last = zstandard.frame_header_size(data), False
    while not is_last and offset + 3 <= len(data):
        header = int.from_bytes(data[offset : offset + 3], "little")
        is_last = bool(header & 1)
        offset += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)  # a run-length block stores one byte
    return offset + (4 if data[4] & 4 else 0) if is_last else len(data) + 1


def _is_sound(body: bytes, checksum: Checksum = "crc32c") -> bool:
    """True if the last four bytes are the checksum of the bytes before."""
    return checksum_bytes(memoryview(body)[:-4], checksum) == body[-4:]
