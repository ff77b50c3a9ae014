"""Creation and validation of an array's `zarr.json`.

The reader compares the metadata with those that the writer creates for the listed array. It accepts only the codecs
`bytes`, `zstd`, `crc32c` and `sharding_indexed`, and no other key encoding or fill value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...codecs.array_layout import ArrayLayout
from ...errors import FormatError
from .shard_writer import Grid

METADATA_MAX_BYTES = 1 << 20
CHUNK_MAX_BYTES = 64 << 20


def array_metadata(layout: ArrayLayout, grid: Grid, attributes: Mapping[str, str | float]) -> dict[str, Any]:
    """Return the content of an array's `zarr.json`."""
    multibyte = grid.dtype.itemsize > 1
    to_bytes = {"name": "bytes", "configuration": {"endian": "little"}} if multibyte else {"name": "bytes"}
    codecs: list[dict[str, Any]] = [to_bytes]
    if grid.compressor is not None:
        codecs.append({"name": "zstd", "configuration": {"level": 1, "checksum": False}})
    codecs.append({"name": "crc32c"})
    if grid.shard is not None:
        index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": list(grid.chunk),
            "codecs": codecs,
            "index_codecs": index_codecs,
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shape),
        "data_type": layout.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(grid.file_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if layout.dtype.kind == "f" else 0,
        "codecs": codecs,
        "dimension_names": list(layout.axes),
        "attributes": dict(attributes),
    }


def read_metadata(data: bytes, layout: ArrayLayout) -> Grid:
    """Parse the bytes of `zarr.json`, compare them with the listed array, and return its grid.

    Raises
    ------
    FormatError
        The metadata differs from that of `array_metadata`, or a chunk is too large.
    """
    try:
        metadata: dict[str, Any] = json.loads(data)
        file_shape = _shape(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        codecs, shard, chunk = metadata["codecs"], None, file_shape
        if codecs[0]["name"] == "sharding_indexed":
            shard, chunk = file_shape, _shape(codecs[0]["configuration"]["chunk_shape"])
            codecs = codecs[0]["configuration"]["codecs"]
        if not len(chunk) == len(file_shape) == len(layout.shape):
            raise ValueError(f"chunks {chunk} in {file_shape} for {len(layout.shape)} axes")
        compressor = "zstd" if any(codec["name"] == "zstd" for codec in codecs) else None
        grid = Grid(layout.shape, layout.dtype, chunk, shard, compressor)
        expected = array_metadata(layout, grid, metadata["attributes"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"zarr.json cannot be read ({type(error).__name__}: {str(error)[:80]}); expected an array of this format."
        ) from None
    for key in sorted({*expected, *metadata}):
        if metadata.get(key) != expected.get(key):
            raise FormatError(
                f"zarr.json: {key} is {json.dumps(metadata.get(key))[:200]}; expected "
                f"{json.dumps(expected.get(key))[:200]}. This store was not written by headatlas."
            )
    if grid.chunk_bytes > CHUNK_MAX_BYTES or any(f % c for f, c in zip(grid.file_shape, chunk, strict=True)):
        raise FormatError(
            f"zarr.json: chunks of {grid.chunk_bytes} bytes, {chunk} in {grid.file_shape}; expected at most "
            f"{CHUNK_MAX_BYTES} bytes, and whole chunks in a shard."
        )
    return grid


def _shape(value: list[int]) -> tuple[int, ...]:
    shape = tuple(value)
    if not all(type(n) is int and 0 < n < 2**53 for n in shape):
        raise ValueError(f"chunk shape {value}")
    return shape
