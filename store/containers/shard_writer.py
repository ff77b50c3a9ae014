"""Writing arrays as Zarr v3 chunks and shards, byte for byte decided here.

Why not through zarr: it offers only `level` for zstd, and the settings that suit attention codes (literals by Huffman,
few matches: twice as fast at the same size) are not a level. The result is ordinary: a shard is its inner chunks one
after the other, then an index of (offset, bytes) pairs and its crc32c; every inner chunk ends with its own crc32c,
without which a flipped bit passes unnoticed. One file is written by one thread in one go, so equal arrays give equal
bytes.

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
from typing import Literal

import google_crc32c
import numpy as np
import zstandard
from jaxtyping import Shaped, UInt8

from ..codecs.array_layout import ArrayLayout
from ..files.hashed_files import HashedFile

Compressor = Literal["h8", "zstd"]
Checksum = Literal["crc32c", "fletcher32"]
Body = bytes | memoryview | np.ndarray
"""Flat bytes; arrays of uint8."""
CHUNK_PAIRS = 32_768
CHUNK_BYTES = 32_768  # of query, key, logsumexp: they are read by example
CHUNK_ROWS = 65_536  # of edges: they are read whole, by search
SHARD_BYTES = 128 << 20  # a layer that is larger is cut along its long axis
LAYERS_BYTES = 32 << 20  # smaller layers share a shard of this size: files cost more than the bytes in them
TABLE_CHUNK = 1 << 22  # items of a plain chunk
MISSING_CHUNK = 2**64 - 1

_PARAMETERS = {
    # 5.4 bits a weight at 700 MB/s where level 1 needs 5.3 at 520; window of one chunk
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

_of_thread = threading.local()
"""Its compressors, by name."""


@dataclass(frozen=True)
class Grid:
    """How an array is cut: `chunk` is the unit of compression, `shard` the unit of a file (None: a chunk is a file)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    compressor: Compressor | None
    checksum: Checksum = "crc32c"
    """What the last four bytes of a stored chunk are."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Items of one file along each axis."""
        return self.shard or self.chunk

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.chunk) * self.dtype.itemsize

    @cached_property
    def chunks_per_shard(self) -> tuple[int, ...]:
        """Inner chunks of a shard along each axis."""
        return tuple(s // c for s, c in zip(self.file_shape, self.chunk, strict=True))

    def files(self) -> Iterator[tuple[int, ...]]:
        """The index of every file, in C order."""
        counts = (math.ceil(n / f) for n, f in zip(self.shape, self.file_shape, strict=True))
        return itertools.product(*map(range, counts))

    def chunk_starts(self, index: tuple[int, ...]) -> Iterator[tuple[int, ...] | None]:
        """Where each inner chunk of a file begins in the array, in C order; None for those outside the array.

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
    """The path of a chunk or shard below its array."""
    return "c/" + "/".join(map(str, index))


def plan_grid(layout: ArrayLayout) -> Grid:
    """How an array of a segment is cut and compressed: pure, and the same for planning and writing."""
    name, shape, dtype = layout.path.rpartition("/")[2], layout.shape, layout.dtype
    if layout.axes[0] == "layer":
        long, rest = shape[2], shape[3:]
        row_bytes = math.prod(rest) * dtype.itemsize
        if name.startswith("attention"):
            target, compressor = CHUNK_PAIRS, "h8" if dtype.itemsize == 1 else "zstd"
        elif name.startswith("edge_"):  # weights lose a fifth of their bytes at most, and half the speed of a search
            target, compressor = CHUNK_ROWS, "h8" if name == "edge_key" else None
        else:  # mantissas of query, key and logsumexp are noise: compressing them costs more than it saves
            target, compressor = max(1, CHUNK_BYTES // row_bytes), None
        chunk = _even(long, target)
        per_shard = max(1, SHARD_BYTES // max(1, shape[1] * chunk * row_bytes))
        per_shard = min(per_shard, math.ceil(long / chunk) or 1)
        layer_bytes = shape[1] * per_shard * chunk * row_bytes
        layers = _even(shape[0], max(1, LAYERS_BYTES // max(1, layer_bytes)))
        return Grid(shape, dtype, (1, 1, chunk, *rest), (layers, shape[1], per_shard * chunk, *rest), compressor)
    if layout.axes[0] == "statistic":
        examples = _even(shape[3], max(1, TABLE_CHUNK // (shape[1] * shape[2])))
        chunk = (1, shape[1], shape[2], examples)
        return Grid(shape, dtype, chunk, (max(1, shape[0]), *chunk[1:]), "zstd")
    return Grid(shape, dtype, tuple(_even(n, TABLE_CHUNK) for n in shape), None, "zstd")


def _even(length: int, target: int) -> int:
    """The chunk length that cuts `length` into as few chunks of at most `target` as possible, almost equal."""
    return max(1, math.ceil(length / max(1, math.ceil(length / target))))


def write_file(file: HashedFile, array: Shaped[np.ndarray, "*shape"], grid: Grid, index: tuple[int, ...]) -> None:
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
    """What a chunk goes through before its checksum; not to be shared between threads."""
    if grid.compressor is None:
        return lambda chunk: chunk
    made = _of_thread.__dict__
    if grid.compressor not in made:  # as dear as compressing a small table
        made[grid.compressor] = zstandard.ZstdCompressor(compression_params=_PARAMETERS[grid.compressor])
    return made[grid.compressor].compress


def chunk_cutter(
    array: Shaped[np.ndarray, "*shape"], chunk: tuple[int, ...]
) -> Callable[[tuple[int, ...]], UInt8[np.ndarray, "byte"]]:
    """What gives the flat bytes of the chunk at a start: a view where it lies whole in `array`, else a filled copy.

    There are thousands of chunks in a segment and a few microseconds of work in each, so what can be known of all of
    them is found out once.
    """
    long = next((axis for axis, n in enumerate(chunk) if n > 1), len(chunk) - 1)
    n_bytes, strides = math.prod(chunk) * array.itemsize, array.strides
    if not array.flags.c_contiguous or chunk[long + 1 :] != array.shape[long + 1 :]:
        return lambda start: cut_chunk(array, start, chunk)
    flat, last = array.reshape(-1).view(np.uint8), array.shape[long] - chunk[long]

    def cut(start: tuple[int, ...]) -> UInt8[np.ndarray, "byte"]:
        if start[long] > last:
            return cut_chunk(array, start, chunk)
        at = sum(map(operator.mul, start, strides))
        return flat[at : at + n_bytes]

    return cut


def cut_chunk(
    array: Shaped[np.ndarray, "*shape"], start: tuple[int, ...], chunk: tuple[int, ...]
) -> UInt8[np.ndarray, "byte"]:
    """One chunk as flat bytes, filled with zeros where it reaches beyond `array`."""
    part = array[tuple(slice(s, s + c) for s, c in zip(start, chunk, strict=True))]
    if part.shape != chunk:
        whole = np.zeros(chunk, dtype=part.dtype)
        whole[tuple(map(slice, part.shape))] = part
        part = whole
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


def checksum_bytes(body: Body, kind: Checksum = "crc32c") -> bytes:
    """The four bytes that follow `body`."""
    if kind == "fletcher32":
        from numcodecs import Fletcher32  # slow to load; Zarr segments do without

        return bytes(Fletcher32().encode(body))[-4:] if len(body) else bytes(4)
    # the C extension takes numpy arrays and bytes, not memoryviews
    return struct.pack("<I", google_crc32c.value(np.frombuffer(body, np.uint8) if type(body) is memoryview else body))
