"""Creation and validation of the datasets in a segment's HDF5 file.

The reader compares the metadata of a dataset with the listed array before it uses them. Only the filters zstd and
fletcher32, hard links, and data in the same file are allowed. Chunks must be inside the file and must not overlap.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...codecs.array_layout import ArrayLayout
from ...errors import FormatError
from ...schema.traces import FORMAT_NAME, FORMAT_VERSION
from .container import parent_groups
from .shard_reader import ChunkRanges
from .shard_writer import Grid, plan_grid
from .zarr_metadata import CHUNK_MAX_BYTES

if TYPE_CHECKING:
    import h5py

FILE_NAME = "segment.h5"
ZSTD_FILTER = 32_015
FLETCHER32_FILTER = 3
_CHUNK_OVERHEAD = 1024
MOST_RATIO = 100_000
"""Upper bound of the compression ratio of all compressors used here."""


INDEX_BYTES = 15.2
"""Bytes per chunk in the index of the file: address, size, filters, and their pages (measured: 15.1)."""
_ARRAY_BYTES = 400
"""Further metadata bytes per dataset: names, type, shape, attributes (measured: 355)."""


def metadata_bytes(layouts: Iterable[ArrayLayout]) -> int:
    """Estimate the size of all metadata of a file with these arrays, rounded up.

    The metadata is at the beginning of the file. The writer reserves this size for it, and a reader over a network
    fetches as much with one request.
    """
    total = 512.0
    for layout in layouts:
        n_chunks = math.prod(hdf5_grid(layout).chunks_per_shard) if 0 not in layout.shape else 0
        total += _ARRAY_BYTES + INDEX_BYTES * n_chunks
    return math.ceil(total)


def hdf5_grid(layout: ArrayLayout) -> Grid:
    """Return the grid of an array: the chunks of the Zarr container, all in one file."""
    return _one_file(replace(plan_grid(layout), checksum="fletcher32"))


def _one_file(grid: Grid) -> Grid:
    file_shape = tuple(max(1, math.ceil(n / c)) * c for n, c in zip(grid.shape, grid.chunk, strict=True))
    return replace(grid, shard=file_shape)


def create_datasets(
    file: h5py.File, arrays: Mapping[str, tuple[ArrayLayout, Mapping[str, str | float]]]
) -> dict[str, h5py.h5d.DatasetID]:
    """Create every dataset without its chunks. Times are not recorded, so equal arrays give equal files."""
    import h5py
    import hdf5plugin  # noqa: F401  registers zstd, which datasets with this filter need

    root = h5py.h5g.open(file.id, b"/")
    _set_attributes(root, {"format": FORMAT_NAME, "format_version": FORMAT_VERSION})
    groups: dict[str, h5py.h5g.GroupID] = {"": root}
    datasets = {}
    for path, (layout, attributes) in arrays.items():
        parent, _, name = path.rpartition("/")
        for group in parent_groups(path):
            if group not in groups:
                outer, _, group_name = group.rpartition("/")
                properties = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
                properties.set_obj_track_times(False)
                groups[group] = h5py.h5g.create(groups[outer], group_name.encode(), gcpl=properties)
        grid = hdf5_grid(layout)
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_obj_track_times(False)
        properties.set_chunk(grid.chunk)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        if grid.compressor is not None:
            properties.set_filter(ZSTD_FILTER, h5py.h5z.FLAG_MANDATORY, (1,))
        properties.set_fletcher32()
        kind = h5py.h5t.py_create(layout.dtype.newbyteorder("<"))
        space = h5py.h5s.create_simple(layout.shape)
        datasets[path] = h5py.h5d.create(groups[parent], name.encode(), kind, space, dcpl=properties)
        _set_attributes(datasets[path], {"axes": " ".join(layout.axes), **attributes})
    return datasets


def _set_attributes(node: h5py.h5g.GroupID | h5py.h5d.DatasetID, attributes: Mapping[str, str | float]) -> None:
    """Write scalar attributes. Texts have a fixed length, because HDF5 does not checksum those of variable length."""
    import h5py

    for name, value in attributes.items():
        if isinstance(value, str):
            text = value.encode()
            kind = h5py.h5t.TypeID.copy(h5py.h5t.C_S1)
            kind.set_size(max(1, len(text)))
            kind.set_cset(h5py.h5t.CSET_UTF8)
            kind.set_strpad(h5py.h5t.STR_NULLPAD)
            data = np.array(text, dtype=f"S{max(1, len(text))}")
        else:
            data = np.array(value, dtype="<i8" if isinstance(value, int) else "<f8")
            kind = h5py.h5t.py_create(data.dtype)
        attribute = h5py.h5a.create(node, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
        attribute.write(data, mtype=kind)


def open_file(path: str | io.BufferedReader) -> h5py.File:
    """Open a file for reading. It caches no chunks, because they are read without the library."""
    import h5py

    return h5py.File(path, "r", rdcc_nbytes=0)


def open_dataset(file: h5py.File, path: str) -> h5py.h5d.DatasetID:
    """Open a dataset through hard links only.

    Raises
    ------
    FormatError
        The path contains a soft or external link, or does not lead to a dataset.
    """
    import h5py

    node = file["/"]
    for part in path.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            raise FormatError(f"{FILE_NAME} has no such dataset; expected every array that segment.json lists.")
        if not isinstance(link, h5py.HardLink):
            raise FormatError(f"{FILE_NAME}: {part} is a soft or external link. Do not trust this store.")
        node = node[part]  # pyright: ignore[reportIndexIssue]  it is a group, because it contains the link
    if not isinstance(node, h5py.Dataset):
        raise FormatError(f"{FILE_NAME}: this is no dataset; expected every array that segment.json lists.")
    return node.id


def check_dataset(dataset: h5py.h5d.DatasetID, layout: ArrayLayout) -> Grid:
    """Compare a dataset with the listed array, and return its grid.

    Raises
    ------
    FormatError
        Shape, type, filters or layout differ, or a chunk is too large.
    """
    import h5py

    expected_type = h5py.h5t.py_create(layout.dtype.newbyteorder("<"))
    shape, kind = dataset.shape, dataset.get_type()
    if shape != layout.shape or not kind.equal(expected_type):
        raise _refused(f"it is {_name(kind)} {shape}; expected the listed {layout.dtype.name} {layout.shape}")
    properties = dataset.get_create_plist()
    if properties.get_layout() != h5py.h5d.CHUNKED or properties.get_external_count():
        raise _refused("its data is not in chunks of this file; expected no virtual or external storage")
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if filters not in ([FLETCHER32_FILTER], [ZSTD_FILTER, FLETCHER32_FILTER]):
        raise _refused(f"its filters are {filters}; expected zstd ({ZSTD_FILTER}) or none, then fletcher32 (3)")
    chunk = tuple(int(n) for n in properties.get_chunk())
    grid = Grid(layout.shape, layout.dtype, chunk, None, "zstd" if len(filters) == 2 else None, "fletcher32")
    if len(chunk) != len(layout.shape) or min(chunk) < 1 or grid.chunk_bytes > CHUNK_MAX_BYTES:
        raise _refused(f"its chunks are {chunk}; expected one number per axis, at most {CHUNK_MAX_BYTES} bytes")
    return _one_file(grid)


def read_index(dataset: h5py.h5d.DatasetID, grid: Grid, file_bytes: int) -> ChunkRanges:
    """Return the range of each chunk in the file, in C order.

    Raises
    ------
    FormatError
        A chunk is missing, is outside the file, overlaps another chunk, or skips a filter.
    """
    n_chunks = math.prod(grid.chunks_per_shard) if 0 not in grid.shape else 0
    if dataset.get_num_chunks() != n_chunks:
        raise _refused(f"it has {dataset.get_num_chunks()} chunks; expected {n_chunks}, all of them present")
    entries: list[tuple[int, int, int]] = []
    counts = grid.chunks_per_shard

    def note(info: h5py.h5d.StoreInfo) -> None:
        row = 0
        for offset, length, count in zip(info.chunk_offset, grid.chunk, counts, strict=True):
            row = row * count + offset // length
        entries.append((row, info.byte_offset, info.size if info.filter_mask == 0 else -1))

    if n_chunks:
        dataset.chunk_iter(note)
    table = np.array(sorted(entries), dtype=np.int64).reshape(-1, 3)
    if not np.array_equal(table[:, 0], np.arange(n_chunks)):
        raise _refused("its index names a chunk twice, or one outside the array")
    starts, sizes = table[:, 1], table[:, 2]
    file_order = np.argsort(starts)
    ends = (starts + sizes)[file_order]
    max_bytes = grid.chunk_bytes + grid.chunk_bytes // 128 + _CHUNK_OVERHEAD
    is_inside = n_chunks == 0 or (
        starts.min() >= 0 and sizes.min() >= 4 and sizes.max() <= max_bytes and ends[-1] <= file_bytes
    )
    if not is_inside or np.any(starts[file_order][1:] < ends[:-1]):
        raise _refused("a chunk skips a filter, is too long, is outside the file, or overlaps another chunk")
    return np.ascontiguousarray(table[:, 1:]).astype(np.uint64)


def _refused(problem: str) -> FormatError:
    return FormatError(f"{FILE_NAME}: {problem}. This store was not written by headatlas.")


def _name(kind: h5py.h5t.TypeID) -> str:
    try:
        return str(kind.dtype)
    except TypeError:
        return "of a type without a name"
