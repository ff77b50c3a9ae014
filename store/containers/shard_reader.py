"""Reading chunks of arrays out of shards, every one against its checksum.

Why not through zarr: asked for a part of a shard, zarrs 0.2.3 does not compare the crc32c of the chunks it decodes, and
a flipped bit is a wrong number (160 of 160 without a compressor); zarr's own pipeline does, but needs ten times as long
for one head of one example. Both believe a chunk of 64 KiB that declares gigabytes, and both read an absent one as
zeros. Here a chunk must be there, pass its checksum, and hold exactly the bytes the grid says, before it is decoded.
The arrays stay ordinary: tests read every one with both pipelines.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import zstandard
from jaxtyping import Shaped, UInt64

from ..errors import CorruptSegmentError
from ..files.object_source import LocalFile, ObjectFile, Range
from .container import Selection
from .shard_writer import MISSING_CHUNK, Checksum, Grid, checksum_bytes

Places = UInt64[np.ndarray, "chunk 2"]
"""Offset and bytes of each chunk of a shard, in C order."""


class ChunkDamageError(CorruptSegmentError):
    """A chunk that begins at `start` of its array cannot be decoded."""

    def __init__(self, message: str, start: tuple[int, ...]) -> None:
        super().__init__(message)
        self.start = start


def read_places(file: ObjectFile, grid: Grid) -> Places:
    """The index of an open shard, against its checksum.

    Raises
    ------
    CorruptSegmentError
        The index is cut or changed.
    """
    size, n_chunks = file.size, math.prod(grid.chunks_per_shard)
    index_bytes = 16 * n_chunks + 4
    if size < index_bytes:  # before anything of that length is made
        raise CorruptSegmentError(f"{size} bytes cannot hold an index of {n_chunks} chunks")
    table = file.read_at(size - index_bytes, index_bytes)
    if len(table) != index_bytes or not _is_sound(table):
        raise CorruptSegmentError("the index of the shard fails its checksum")
    return np.frombuffer(table, "<u8", 2 * n_chunks).reshape(-1, 2)


def read_shard(
    file: ObjectFile,
    grid: Grid,
    index: tuple[int, ...],
    places: Places,
    selection: Selection,
    out: Shaped[np.ndarray, "*shape"],
) -> None:
    """Fill the part of `out` (the array `selection` asks for) that lies in shard `index`; decodes no other chunk.

    Raises
    ------
    ChunkDamageError
        A chunk that is needed is absent, or fails its checksum.
    """
    decompressor = zstandard.ZstdDecompressor()
    base = [i * f for i, f in zip(index, grid.file_shape, strict=True)]
    axes = [_cuts(*axis) for axis in zip(selection, base, grid.file_shape, grid.chunk, strict=True)]
    block = tuple(slice((axis[0].start - b) // c, (axis[-1].start - b) // c + 1) if axis else slice(0, 0)
                  for axis, b, c in zip(axes, base, grid.chunk, strict=True))  # fmt: skip
    chunks = list(itertools.product(*axes))
    ranges = _ranges(places.reshape(*grid.chunks_per_shard, 2)[block].reshape(-1, 2), grid, file, chunks)
    is_whole = all(cut.is_whole for axis in axes for cut in axis)
    local = file if grid.compressor is None and isinstance(file, LocalFile) and is_whole else None
    bodies = file.read_ranges(ranges) if local is None else itertools.repeat(b"")
    for cuts, (offset, n_bytes), body in zip(chunks, ranges, bodies, strict=local is None):
        place = out[tuple([cut.target for cut in cuts])]
        try:
            if local is not None and place.flags.c_contiguous:
                read_into(local, offset, n_bytes, grid, place)
            elif grid.compressor is not None and place.shape == grid.chunk and place.flags.c_contiguous:
                decode_into(body, grid, decompressor, place)
            else:
                data = body or file.read_at(offset, n_bytes)
                place[...] = decode_chunk(data, grid, decompressor)[tuple([cut.source for cut in cuts])]
        except CorruptSegmentError as error:
            raise ChunkDamageError(str(error), tuple(cut.start for cut in cuts)) from None


class _Cut(NamedTuple):
    """What of a row of chunks along one axis is wanted."""

    start: int
    """Where they begin in the array."""
    source: slice
    target: slice
    """Within what is asked for."""
    is_whole: bool


def _cuts(wanted: slice, base: int, length: int, chunk: int) -> list[_Cut]:
    """The chunks of a shard that begins at `base` which hold items `wanted` of one axis."""
    first, last = max(wanted.start, base), min(wanted.stop, base + length)
    cuts = []
    for start in range(base + (first - base) // chunk * chunk, last, chunk):
        low, high = max(wanted.start, start), min(wanted.stop, start + chunk)
        source, target = slice(low - start, high - start), slice(low - wanted.start, high - wanted.start)
        cuts.append(_Cut(start, source, target, high - low == chunk))
    return cuts


def damaged_chunks(file: ObjectFile, grid: Grid, index: tuple[int, ...], places: Places) -> list[tuple[int, ...]]:
    """Where the chunks of a shard begin that cannot be decoded; decodes all of it."""
    decompressor, bad = zstandard.ZstdDecompressor(), []
    for start, place in zip(grid.chunk_starts(index), places.tolist(), strict=True):
        if start is not None:  # those outside the array are absent
            try:
                decode_chunk(file.read_at(*_range(place, grid, file, start)), grid, decompressor)
            except CorruptSegmentError:
                bad.append(start)
    return bad


def _ranges(places: Places, grid: Grid, file: ObjectFile, chunks: list[tuple[_Cut, ...]]) -> list[Range]:
    """Where chunks lie, as `_range` says; all are looked at at once."""
    offset, n_bytes = places[:, 0], places[:, 1]
    size = np.uint64(file.size)
    fits = (n_bytes <= _most_bytes(grid)) & (offset <= size) & (n_bytes <= size - np.minimum(offset, size))
    for at in np.flatnonzero(~fits).tolist():
        _range(places[at].tolist(), grid, file, tuple(cut.start for cut in chunks[at]))
    return list(map(tuple, places.tolist()))


def _most_bytes(grid: Grid) -> int:
    """Bytes of the longest chunk there can be: one that does not compress grows by a few bytes a block."""
    return grid.chunk_bytes + grid.chunk_bytes // 128 + 1024


def _range(place: list[int], grid: Grid, file: ObjectFile, start: tuple[int, ...]) -> Range:
    """Where a chunk lies, if it can be a chunk of this grid in this file."""
    offset, n_bytes = place
    if offset == MISSING_CHUNK and n_bytes == MISSING_CHUNK:
        raise ChunkDamageError("a chunk is absent and would read as zeros", start)
    if n_bytes > _most_bytes(grid) or offset + n_bytes > file.size:
        raise ChunkDamageError(f"a chunk of {n_bytes} bytes at {offset} is too long or outside the shard", start)
    return offset, n_bytes


def decode_chunk(body: bytes, grid: Grid, decompressor: zstandard.ZstdDecompressor) -> np.ndarray:
    """One chunk, against its checksum and its size.

    Raises
    ------
    CorruptSegmentError
        Checksum, frame or size is wrong.
    """
    data = _checked(body, grid)
    if grid.compressor is not None:
        try:
            data = decompressor.decompress(data, max_output_size=grid.chunk_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptSegmentError(f"a chunk cannot be decompressed ({error})") from None
    if len(data) != grid.chunk_bytes:
        raise CorruptSegmentError(f"a chunk has {len(data)} bytes of data; expected {grid.chunk_bytes}")
    return np.frombuffer(data, grid.dtype).reshape(grid.chunk)


def read_into(file: LocalFile, offset: int, n_bytes: int, grid: Grid, out: Shaped[np.ndarray, "*shape"]) -> None:
    """A chunk that is not compressed from its file to where it is wanted, with the checks of `decode_chunk`.

    Raises
    ------
    CorruptSegmentError
        Checksum or size is wrong; what `out` holds then means nothing.
    """
    flat, check = out.reshape(-1).view(np.uint8), bytearray(4)
    if n_bytes != len(flat) + 4:
        raise CorruptSegmentError(f"a chunk has {n_bytes - 4} bytes of data; expected {len(flat)}")
    if file.read_into(offset, (flat.data, check)) < n_bytes or checksum_bytes(flat, grid.checksum) != check:
        raise CorruptSegmentError("a chunk fails its checksum")


def decode_into(
    body: bytes, grid: Grid, decompressor: zstandard.ZstdDecompressor, out: Shaped[np.ndarray, "*shape"]
) -> None:
    """One compressed chunk to where it is wanted, with the checks of `decode_chunk`: a third less time than a copy.

    Raises
    ------
    CorruptSegmentError
        Checksum, frame or size is wrong; what `out` holds then means nothing.
    """
    data = _checked(body, grid)
    try:
        with decompressor.stream_reader(data) as reader:
            n_bytes = reader.readinto(out.reshape(-1).view(np.uint8).data)
        is_whole = n_bytes == grid.chunk_bytes and _frame_bytes(data) == len(data)
    except zstandard.ZstdError as error:
        raise CorruptSegmentError(f"a chunk cannot be decompressed ({error})") from None
    if not is_whole:
        raise CorruptSegmentError(f"a chunk is not one frame of {grid.chunk_bytes} bytes of data")


def _checked(body: bytes, grid: Grid) -> memoryview | bytes:
    """What a stored chunk holds before its checksum, which is compared, as is the size that its frame declares."""
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
    """How many bytes the frame takes that `data` begins with, by its blocks' headers (RFC 8878, 3.1.1)."""
    at, last = zstandard.frame_header_size(data), False
    while not last and at + 3 <= len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        last = bool(header & 1)
        at += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)  # of a run only the one byte is there
    return at + (4 if data[4] & 4 else 0) if last else len(data) + 1


def _is_sound(body: bytes, checksum: Checksum = "crc32c") -> bool:
    """Whether the last four bytes are the checksum of those before."""
    return checksum_bytes(memoryview(body)[:-4], checksum) == body[-4:]
