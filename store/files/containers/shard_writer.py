"""Writer of arrays as Zarr v3 chunks and shards, with deterministic bytes.

The zarr library is not used for this, because it offers only `level` for zstd. The settings that suit attention codes
(Huffman-coded literals, few matches) are not a level; they are twice as fast at the same size. The files are ordinary:
a shard consists of its inner chunks, an index of (offset, bytes) pairs, and the crc32c of the index. Every inner chunk
ends with its own crc32c, so flipped bits are detected. One thread writes one file from start to end, so equal arrays
give equal bytes.

Zarr fills every chunk to its full shape, so the chunk length is chosen to divide the array almost evenly.
"""

from __future__ import annotations

import itertools
import math
import operator
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import google_crc32c
import numpy as np
import zstandard
from jaxtyping import Shaped, UInt8

from ...codecs.array_layout import ArrayLayout
from ..hashed_files import Buffer

Compressor = Literal["h8", "zstd"]
Checksum = Literal["crc32c", "fletcher32"]
Body = bytes | memoryview | np.ndarray
"""Flat bytes. Arrays have type uint8."""
CHUNK_PAIRS = 32_768
CHUNK_BYTES = 32_768  # for query, key and logsumexp, which are read by example
CHUNK_ROWS = 65_536  # for edges, which a search reads completely
SHARD_BYTES = 32 << 20  # a larger layer is cut along its long axis; a compressed shard waits in memory for its position
LAYERS_BYTES = 32 << 20  # smaller layers share a shard of this size, because each has a fixed cost
TABLE_CHUNK = 1 << 22  # items of a chunk without shard
MISSING_CHUNK = 2**64 - 1

_PARAMETERS = {
    # 5.4 bits per weight at 700 MB/s, compared with 5.3 at 520 MB/s for level 1; the window is one chunk
    "h8": zstandard.ZstdCompressionParameters(
        window_log=17,
        hash_log=8,
        chain_log=6,
        search_log=1,
        min_match=7,
        target_length=0,
        strategy=zstandard.STRATEGY_FAST,
    ),
    "zstd": zstandard.ZstdCompressionParameters.from_level(1),
}

_thread_compressors = threading.local()
"""Compressors of the current thread, by name."""


class ByteSink(Protocol):
    """Target of a file's bytes."""

    bytes: int
    """Number of bytes written."""

    def write(self, *buffers: Buffer) -> None:
        """Append flat arrays of bytes, in order."""
        ...


@dataclass(frozen=True)
class Grid:
    """Division of an array into chunks, the unit of compression, and shards, the unit of files.

    `shard` is None if each chunk is a file of its own.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    compressor: Compressor | None
    checksum: Checksum = "crc32c"
    """Kind of the checksum in the last four bytes of a stored chunk."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Number of items of one file along each axis."""
        return self.shard or self.chunk

    @cached_property
    def chunk_bytes(self) -> int:
        """Size of a decoded chunk in bytes."""
        return math.prod(self.chunk) * self.dtype.itemsize

    @cached_property
    def chunks_per_shard(self) -> tuple[int, ...]:
        """Number of inner chunks of a shard along each axis."""
        return tuple(s // c for s, c in zip(self.file_shape, self.chunk, strict=True))

    def files(self) -> Iterator[tuple[int, ...]]:
        """Yield the index of every file, in C order."""
        counts = (math.ceil(n / f) for n, f in zip(self.shape, self.file_shape, strict=True))
        return itertools.product(*map(range, counts))

    def chunk_starts(self, index: tuple[int, ...]) -> Iterator[tuple[int, ...] | None]:
        """Yield the start of each inner chunk of a file in the array, in C order; None for chunks outside the array.

        An array without items has no chunks.
        """
        if 0 in self.shape:
            return
        base = [i * f for i, f in zip(index, self.file_shape, strict=True)]
        axes = [range(b, b + f, c) for b, f, c in zip(base, self.file_shape, self.chunk, strict=True)]
        starts = itertools.product(*axes)
        if all(axis[-1] < n for axis, n in zip(axes, self.shape, strict=True)):
            yield from starts
            return
        for start in starts:
            yield start if all(s < n for s, n in zip(start, self.shape, strict=True)) else None


def file_name(index: tuple[int, ...]) -> str:
    """Return the path of a chunk or shard below its array."""
    return "c/" + "/".join(map(str, index))


def plan_grid(layout: ArrayLayout) -> Grid:
    """Return the grid and compressor of an array of a segment. Planning and writing use the same function."""
    name, shape, dtype = layout.path.rpartition("/")[2], layout.shape, layout.dtype
    if layout.axes[0] == "layer":
        long, inner = shape[2], shape[3:]
        row_bytes = math.prod(inner) * dtype.itemsize
        if name.startswith("attention"):
            target, compressor = CHUNK_PAIRS, "h8" if dtype.itemsize == 1 else "zstd"
        elif name.startswith(
            "edge_"
        ):  # compressed weights would save a fifth of the bytes but halve the speed of a search
            target, compressor = CHUNK_ROWS, "h8" if name == "edge_key" else None
        else:  # the mantissas of query, key and logsumexp are noise, so compression costs more than it saves
            target, compressor = max(1, CHUNK_BYTES // row_bytes), None
        chunk = _even(long, target)
        per_shard = max(1, SHARD_BYTES // max(1, shape[1] * chunk * row_bytes))
        per_shard = min(per_shard, math.ceil(long / chunk) or 1)
        layer_bytes = shape[1] * per_shard * chunk * row_bytes
        layers = _even(shape[0], max(1, LAYERS_BYTES // max(1, layer_bytes)))
        return Grid(shape, dtype, (1, 1, chunk, *inner), (layers, shape[1], per_shard * chunk, *inner), compressor)
    if layout.axes[0] == "statistic":
        examples = _even(shape[3], max(1, TABLE_CHUNK // (shape[1] * shape[2])))
        chunk = (1, shape[1], shape[2], examples)
        return Grid(shape, dtype, chunk, (max(1, shape[0]), *chunk[1:]), "zstd")
    return Grid(shape, dtype, tuple(_even(n, TABLE_CHUNK) for n in shape), None, "zstd")


def _even(length: int, target: int) -> int:
    """Return the chunk length that divides `length` into the fewest chunks of at most `target`, almost equal."""
    return max(1, math.ceil(length / max(1, math.ceil(length / target))))


def shard_bytes(grid: Grid, index: tuple[int, ...]) -> int | None:
    """Return the size of a file before it is written, or None if its chunks are compressed."""
    if grid.compressor is not None:
        return None
    chunks = [start is not None for start in grid.chunk_starts(index)]
    return sum(chunks) * (grid.chunk_bytes + 4) + (16 * len(chunks) + 4 if grid.shard is not None else 0)


def write_file(file: ByteSink, array: Shaped[np.ndarray, "*shape"], grid: Grid, index: tuple[int, ...]) -> None:
    """Write the chunk or shard `index` of `array`."""
    compress, cut = compressor_of(grid), chunk_cutter(array, grid.chunk)
    entries: list[tuple[int, int]] = []
    for start in grid.chunk_starts(index):
        if start is None:
            entries.append((MISSING_CHUNK, MISSING_CHUNK))
            continue
        body = compress(cut(start))
        check = checksum_bytes(body, grid.checksum)
        entries.append((file.bytes, len(body) + len(check)))
        file.write(body, check)
    if grid.shard is not None:
        table = struct.pack(f"<{2 * len(entries)}Q", *itertools.chain.from_iterable(entries))
        file.write(table, checksum_bytes(table))


def compressor_of(grid: Grid) -> Callable[[Body], Body]:
    """Return the compression function of a grid. It must not be shared between threads."""
    if grid.compressor is None:
        return lambda chunk: chunk
    compressors = _thread_compressors.__dict__
    if grid.compressor not in compressors:  # creating one takes as long as compressing a small table
        compressors[grid.compressor] = zstandard.ZstdCompressor(compression_params=_PARAMETERS[grid.compressor])
    return compressors[grid.compressor].compress


def chunk_cutter(
    array: Shaped[np.ndarray, "*shape"], chunk: tuple[int, ...]
) -> Callable[[tuple[int, ...]], UInt8[np.ndarray, "byte"]]:
    """Return a function from the start of a chunk to its flat bytes.

    The bytes are a view if the chunk is contiguous and inside `array`, else a padded copy. A segment has thousands of
    chunks with a few microseconds of work each, so the function computes everything that they share once.
    """
    long = next((axis for axis, n in enumerate(chunk) if n > 1), len(chunk) - 1)
    n_bytes, strides = math.prod(chunk) * array.itemsize, array.strides
    if not array.flags.c_contiguous or chunk[long + 1 :] != array.shape[long + 1 :]:
        return lambda start: cut_chunk(array, start, chunk)
    flat, last = array.reshape(-1).view(np.uint8), array.shape[long] - chunk[long]

    def cut(start: tuple[int, ...]) -> UInt8[np.ndarray, "byte"]:
        if start[long] > last:
            return cut_chunk(array, start, chunk)
        offset = sum(map(operator.mul, start, strides))
        return flat[offset : offset + n_bytes]

    return cut


def cut_chunk(
    array: Shaped[np.ndarray, "*shape"], start: tuple[int, ...], chunk: tuple[int, ...]
) -> UInt8[np.ndarray, "byte"]:
    """Return one chunk as flat bytes, padded with zeros beyond the end of `array`."""
    part = array[tuple(slice(s, s + c) for s, c in zip(start, chunk, strict=True))]
    if part.shape != chunk:
        padded = np.zeros(chunk, dtype=part.dtype)
        padded[tuple(map(slice, part.shape))] = part
        part = padded
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


def checksum_bytes(body: Body, kind: Checksum = "crc32c") -> bytes:
    """Return the four checksum bytes that follow `body`."""
    if kind == "fletcher32":
        from numcodecs import Fletcher32  # slow to import; Zarr segments do not use it

        return bytes(Fletcher32().encode(body))[-4:] if len(body) else bytes(4)
    # the C extension accepts numpy arrays and bytes, but no memoryviews
    return struct.pack("<I", google_crc32c.value(np.frombuffer(body, np.uint8) if type(body) is memoryview else body))
