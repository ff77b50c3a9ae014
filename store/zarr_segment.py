"""The Zarr container: a segment's arrays as a Zarr v3 group of ordinary chunks and shards.

Written by `shard.py`; read by zarr with the zarrs pipeline where that can be imported, with zarr's own otherwise.
Small arrays (one chunk or a few, each a file) are decoded here: zarr takes a millisecond for what takes 50 µs.
Metadata is held against what this module would have written for the listed array: any other codec, key encoding or
fill value is refused, so nothing but `bytes`, `zstd`, `crc32c` and `sharding_indexed` ever runs.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .container import ObjectDamageError, SegmentArray, SegmentListing, Selection, guard_fork
from .errors import CorruptSegmentError, FormatError, NotFoundError, located
from .objects import HashedFile, StoredObject, fsync_folder, read_small, write_object
from .schema import ArrayLayout
from .shard import Grid, file_name, plan_grid, write_file
from .shard_check import check_shard, damaged_chunks, decode_chunk

METADATA_MAX_BYTES = 1 << 20
CHUNK_MAX_BYTES = 64 << 20
_ZARRS = "zarrs.ZarrsCodecPipeline"
_PLAIN = "zarr.core.codec_pipeline.BatchedCodecPipeline"


def array_metadata(layout: ArrayLayout, grid: Grid, attributes: Mapping[str, str | float]) -> dict[str, Any]:
    """The content of an array's `zarr.json`."""
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


def read_metadata(data: bytes, layout: ArrayLayout) -> tuple[Grid, dict[str, Any]]:
    """The grid of an array and its metadata, from the bytes of `zarr.json`, held against the listed array.

    Raises
    ------
    FormatError
        Anything differs from what `array_metadata` would write, or a chunk would be too large to hold.
    """
    try:
        found: dict[str, Any] = json.loads(data)
        file_shape = _shape(found["chunk_grid"]["configuration"]["chunk_shape"])
        codecs, shard, chunk = found["codecs"], None, file_shape
        if codecs[0]["name"] == "sharding_indexed":
            shard, chunk = file_shape, _shape(codecs[0]["configuration"]["chunk_shape"])
            codecs = codecs[0]["configuration"]["codecs"]
        compressor = "zstd" if any(codec["name"] == "zstd" for codec in codecs) else None
        grid = Grid(layout.shape, layout.dtype, chunk, shard, compressor)
        expected = array_metadata(layout, grid, found["attributes"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"zarr.json cannot be read ({type(error).__name__}: {str(error)[:80]}); expected an array of this format."
        ) from None
    for key in sorted({*expected, *found}):
        if found.get(key) != expected.get(key):
            raise FormatError(
                f"zarr.json: {key} is {json.dumps(found.get(key))[:200]}; expected "
                f"{json.dumps(expected.get(key))[:200]}. This store was not written by headatlas."
            )
    if grid.chunk_bytes > CHUNK_MAX_BYTES or any(f % c for f, c in zip(grid.file_shape, chunk, strict=True)):
        raise FormatError(
            f"zarr.json: chunks of {grid.chunk_bytes} bytes, {chunk} in {grid.file_shape}; expected at most "
            f"{CHUNK_MAX_BYTES} bytes, and whole chunks in a shard."
        )
    return grid, found


def _shape(value: list[int]) -> tuple[int, ...]:
    shape = tuple(value)
    if not all(type(n) is int and 0 < n < 2**53 for n in shape):
        raise ValueError(f"chunk shape {value}")
    return shape


class ZarrContainer:
    """Arrays as a Zarr v3 group."""

    name = "zarr"

    def write(self, folder: Path, arrays: Mapping[str, SegmentArray], pool: Executor) -> list[StoredObject]:
        """See `Container.write`; one task of the pool writes one file."""
        groups = {"": None} | {g: None for path in arrays for g in _parents(path)}
        folders = list(groups)
        tasks = []
        nodes: dict[
            str, dict[str, Any]
        ] = {}  # all metadata again in the root, so that plain zarr need not list folders
        for group in groups:
            (folder / group).mkdir(exist_ok=True)
        for path, item in arrays.items():
            grid = plan_grid(item.layout)
            nodes[path] = array_metadata(item.layout, grid, item.attributes)
            (folder / path).mkdir()
            tasks.append(pool.submit(write_object, folder, f"{path}/zarr.json", json.dumps(nodes[path]).encode()))
            made = {path: None}
            for index in grid.files():
                name = f"{path}/{file_name(index)}"
                for parent in _parents(name):
                    if parent not in made and len(parent) > len(path):
                        made[parent] = None
                        (folder / parent).mkdir()
                tasks.append(pool.submit(_write_array_file, folder, name, item.data, grid, index))
            folders += made
        del groups[""]
        for group in groups:
            nodes[group] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
            tasks.append(pool.submit(write_object, folder, f"{group}/zarr.json", json.dumps(nodes[group]).encode()))
        consolidated = {"kind": "inline", "must_understand": False, "metadata": dict(sorted(nodes.items()))}
        root = {"zarr_format": 3, "node_type": "group", "attributes": {}, "consolidated_metadata": consolidated}
        tasks.append(pool.submit(write_object, folder, "zarr.json", json.dumps(root).encode()))
        objects = _results(tasks)
        list(pool.map(lambda name: fsync_folder(folder / name), folders))
        return objects

    def open(self, folder: Path, listing: SegmentListing) -> ZarrReader:
        """See `Container.open`."""
        return ZarrReader(folder, listing)


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _results(tasks: list[Any]) -> list[StoredObject]:
    """All results; the first error once no task runs any more (their arrays must not change under them)."""
    try:
        return [task.result() for task in tasks]
    except BaseException:
        for task in tasks:
            task.cancel()
        for task in tasks:
            if not task.cancelled():
                task.exception()
        raise


def _write_array_file(root: Path, name: str, data: np.ndarray, grid: Grid, index: tuple[int, ...]) -> StoredObject:
    with HashedFile(root / name) as file:
        write_file(file, data, grid, index)
    return StoredObject(path=name, bytes=file.bytes, sha256=file.sha256)


@dataclass
class _Opened:
    """An array whose metadata was checked; `checked` are the shards whose index was."""

    layout: ArrayLayout
    grid: Grid
    metadata: dict[str, Any]
    zarr_array: Any = None
    checked: set[tuple[int, ...]] = field(default_factory=set)


class ZarrReader:
    """See `ContainerReader`."""

    def __init__(self, folder: Path, listing: SegmentListing) -> None:
        self._folder = folder
        self._layouts = {entry.path: entry for entry in listing.arrays}
        self._objects = {item.path: item for item in listing.objects}
        self._opened: dict[str, _Opened] = {}
        self._lock = threading.Lock()

    def read(self, path: str, selection: Selection) -> np.ndarray:
        """See `ContainerReader.read`."""
        opened = self._open(path)
        if any(s.stop <= s.start for s in selection):
            return np.empty([s.stop - s.start for s in selection], dtype=opened.layout.dtype)
        if opened.grid.shard is None:
            return self._read_chunks(opened, selection)
        guard_fork()
        for index in _files_touched(opened.grid, selection):
            if index not in opened.checked:
                self._check_shard(opened, index)
                opened.checked.add(index)
        try:
            return np.asarray(self._zarr_array(opened)[selection])
        except Exception as error:
            self._name_damage(opened, selection)
            raise CorruptSegmentError(
                f"array {path} cannot be decoded ({error}). Run headatlas verify --full."
            ) from error

    def span(self, object_path: str) -> tuple[str, int, int] | None:
        """See `ContainerReader.span`."""
        path, _, index = object_path.partition("/c/")
        if not index or path not in self._layouts:
            return None
        opened = self._open(path)
        axis = _long_axis(opened.layout)
        start = int(index.split("/")[axis]) * opened.grid.file_shape[axis]
        return path, start, min(start + opened.grid.file_shape[axis], opened.layout.shape[axis])

    def _open(self, path: str) -> _Opened:
        opened = self._opened.get(path)
        if opened is None:
            if path not in self._layouts:
                raise NotFoundError(f"no array {path!r}; this segment has {', '.join(self._layouts)}")
            layout, name = self._layouts[path].layout(), f"{path}/zarr.json"
            if name not in self._objects:
                raise FormatError(f"object {name} is not listed in segment.json; expected one for each array.")
            data = read_small(self._folder / name, f"object {name}", METADATA_MAX_BYTES)
            if not self._objects[name].matches(data):
                raise ObjectDamageError(
                    f"object {name} was changed; its hash is not the listed one. Restore it.",
                    object_path=name,
                    array=path,
                )
            with located(path):
                grid, metadata = read_metadata(data, layout)
            opened = self._opened.setdefault(path, _Opened(layout, grid, metadata))
        return opened

    def _file(self, opened: _Opened, index: tuple[int, ...]) -> tuple[str, int]:
        """The name and an open descriptor of a listed chunk or shard."""
        name = f"{opened.layout.path}/{file_name(index)}"
        if name not in self._objects:
            raise FormatError(
                f"object {name} is not listed in segment.json; the array needs it. It would read as zeros."
            )
        try:
            return name, os.open(self._folder / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise self._damage(opened, index, name, f"cannot be opened ({error.strerror})") from None

    def _damage(self, opened: _Opened, index: tuple[int, ...], name: str, what: str) -> ObjectDamageError:
        axis = _long_axis(opened.layout)
        start = index[axis] * opened.grid.file_shape[axis]
        stop = min(start + opened.grid.file_shape[axis], opened.layout.shape[axis])
        message = f"object {name}: {what}. Restore it, or write the segment again."
        return ObjectDamageError(message, object_path=name, array=opened.layout.path, start=start, stop=stop)

    def _read_chunks(self, opened: _Opened, selection: Selection) -> np.ndarray:
        """A selection of an array of plain chunks, decoded here."""
        parts = []
        for index in _files_touched(opened.grid, selection):
            name, fd = self._file(opened, index)
            with os.fdopen(fd, "rb") as file:
                body = file.read(self._objects[name].bytes + 1)
            try:
                parts.append(decode_chunk(body, opened.grid))
            except CorruptSegmentError as error:
                raise self._damage(opened, index, name, str(error)) from None
        (long,) = selection  # tables have one axis
        whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
        first = long.start // opened.grid.chunk[0] * opened.grid.chunk[0]
        return whole[long.start - first : long.stop - first]

    def _check_shard(self, opened: _Opened, index: tuple[int, ...]) -> None:
        n_chunks = int(np.prod(opened.grid.chunks_per_shard, dtype=object))
        name, fd = self._file(opened, index)
        with os.fdopen(fd, "rb"):
            if 16 * n_chunks + 4 > self._objects[name].bytes:
                raise self._damage(opened, index, name, f"is too small for the index of {n_chunks} chunks")
            try:
                check_shard(fd, opened.grid, index)
            except CorruptSegmentError as error:
                raise self._damage(opened, index, name, str(error)) from None

    def _name_damage(self, opened: _Opened, selection: Selection) -> None:
        """After a failed read: find the chunk at fault and raise with its place."""
        axis = _long_axis(opened.layout)
        for index in _files_touched(opened.grid, selection):
            self._check_shard(opened, index)
            name, fd = self._file(opened, index)
            with os.fdopen(fd, "rb"):
                bad = [start[axis] for start in damaged_chunks(fd, opened.grid, index)]
            if bad:
                error = self._damage(opened, index, name, "a chunk fails its checksum")
                error.start = min(bad)
                error.stop = min(max(bad) + opened.grid.chunk[axis], opened.layout.shape[axis])
                raise error

    def _zarr_array(self, opened: _Opened) -> Any:
        if opened.zarr_array is None:
            with self._lock:
                if opened.zarr_array is None:
                    opened.zarr_array = open_zarr_array(self._folder, opened.layout.path, opened.metadata)
        return opened.zarr_array


_config_lock = threading.Lock()


def open_zarr_array(folder: Path, path: str, metadata: dict[str, Any]) -> Any:
    """A `zarr.Array` from metadata that was checked, without reading it again; zarrs decodes where it can."""
    import zarr
    from zarr.storage import LocalStore, StorePath

    place = StorePath(LocalStore(folder, read_only=True), path)
    with _config_lock:
        try:
            import zarrs  # noqa: F401

            strict = {"codec_pipeline.path": _ZARRS, "codec_pipeline.strict": True}
            with zarr.config.set({**strict, "codec_pipeline.validate_checksums": True}):
                return zarr.Array.from_dict(place, metadata)
        except (ImportError, TypeError, NotImplementedError):  # not installed, or a case it does not know
            pass
        except Exception as error:
            if type(error).__name__ != "UnsupportedMetadataError":
                raise
        with zarr.config.set({"codec_pipeline.path": _PLAIN}):
            return zarr.Array.from_dict(place, metadata)


def _long_axis(layout: ArrayLayout) -> int:
    """The axis that runs over examples: the third of traces, the last of statistics, the only one of tables."""
    return 2 if layout.axes[0] == "layer" else len(layout.shape) - 1


def _files_touched(grid: Grid, selection: Selection) -> Iterator[tuple[int, ...]]:
    spans = [range(s.start // f, -(-s.stop // f)) for s, f in zip(selection, grid.file_shape, strict=True)]
    return itertools.product(*spans)
