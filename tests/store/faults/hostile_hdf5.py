"""Hostile HDF5 files: the query dataset is replaced by one that headatlas never writes."""

from __future__ import annotations

from collections.abc import Callable

import h5py
import hdf5plugin
import numpy as np
import zstandard
from forge import Forger

from headatlas.store.files.containers.shard_writer import checksum_bytes

QUERY = "decoder/query"
SHAPE = (2, 2, 12, 4)
CHUNK = (1, 1, 12, 4)
CHUNK_BYTES = 96
ZEROS = np.zeros(SHAPE, "<f2")
FRAME = zstandard.ZstdCompressor().compress(bytes(CHUNK_BYTES))
BOMB = zstandard.ZstdCompressor().compress(bytes(1 << 28))


def external_raw(file: h5py.File) -> None:
    file.create_dataset(QUERY, SHAPE, "<f2", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(SHAPE, "<f2")
    layout[...] = h5py.VirtualSource("/tmp/other.h5", "x", SHAPE)
    file.create_virtual_dataset(QUERY, layout)


def chunked(file: h5py.File, body: bytes | None, mask: int = 0, **options) -> None:
    """Write `body` as every chunk, without a filter; None writes no chunk."""
    dataset = file.create_dataset(QUERY, SHAPE, "<f2", chunks=CHUNK, fletcher32=True, **options)
    for layer, head in np.ndindex(2, 2) if body is not None else ():
        dataset.id.write_direct_chunk((layer, head, 0, 0), body, mask)


def sealed(body: bytes) -> bytes:
    return body + checksum_bytes(body, "fletcher32")


_FILES: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "soft link": (lambda f: f.__setitem__(QUERY, h5py.SoftLink("/decoder/key")), "soft or external link"),
    "external link": (lambda f: f.__setitem__(QUERY, h5py.ExternalLink("/etc/x.h5", "/x")), "soft or external link"),
    "external raw storage": (external_raw, "not in chunks of this file"),
    "virtual": (virtual, "not in chunks of this file"),
    "contiguous": (lambda f: f.create_dataset(QUERY, data=ZEROS), "not in chunks of this file"),
    "group": (lambda f: f.create_group(QUERY), "no dataset"),
    "gone": (lambda f: None, "no such dataset"),
    "no filter": (lambda f: f.create_dataset(QUERY, data=ZEROS, chunks=CHUNK), r"its filters are \[\]"),
    "gzip": (lambda f: f.create_dataset(QUERY, data=ZEROS, compression="gzip", fletcher32=True), r"filters are \[1, 3"),
    "no checksum": (lambda f: f.create_dataset(QUERY, data=ZEROS, compression=hdf5plugin.Zstd()), r"\[32015\]"),
    "shuffle": (lambda f: f.create_dataset(QUERY, data=ZEROS, shuffle=True, fletcher32=True), "its filters are"),
    "other order": (lambda f: f.create_dataset(QUERY, data=ZEROS.astype(">f2"), fletcher32=True), "listed float16"),
    "other type": (lambda f: f.create_dataset(QUERY, data=ZEROS.astype("<f4"), fletcher32=True), "listed float16"),
    "objects": (lambda f: f.create_dataset(QUERY, SHAPE, h5py.string_dtype()), "listed float16"),
    "other shape": (lambda f: f.create_dataset(QUERY, data=ZEROS[:1], fletcher32=True), "listed float16"),
    "huge shape": (lambda f: f.create_dataset(QUERY, (2**40, *SHAPE[1:]), "<f2", chunks=CHUNK), "listed float16"),
    "chunks left out": (lambda f: chunked(f, None), "all of them present"),
    "filters left out": (lambda f: chunked(f, sealed(bytes(CHUNK_BYTES)), mask=1), "skips a filter"),
    "wrong checksum": (lambda f: chunked(f, bytes(CHUNK_BYTES) + b"abcd"), "fails its checksum"),
    "too short": (lambda f: chunked(f, sealed(bytes(CHUNK_BYTES - 2))), "94 bytes of data"),
    "too long": (lambda f: chunked(f, sealed(bytes(9999))), "is too long"),
    "bomb": (lambda f: chunked(f, sealed(BOMB[:1100]), compression=hdf5plugin.Zstd()), "does not declare 96"),
    "two frames": (lambda f: chunked(f, sealed(FRAME + FRAME), compression=hdf5plugin.Zstd()), "not one frame"),
    "no frame": (lambda f: chunked(f, sealed(bytes(99)), compression=hdf5plugin.Zstd()), "cannot be decompressed"),
}


def _in_file(change: Callable[[h5py.File], object]) -> Callable[[Forger], None]:
    def forge(forger: Forger) -> None:
        path = forger.folder / "segment.h5"
        with h5py.File(path, "r+") as file:
            del file[QUERY]
            change(file)
        forger.put("segment.h5", path.read_bytes())

    return forge


_BYTES = {
    "empty": b"",
    "a zip": b"PK",
    "only a signature": b"\x89HDF\r\n\x1a\n",
    "zeros": b"\x89HDF\r\n\x1a\n" + bytes(5000),
}

HDF5_FORGERIES: dict[str, tuple[Callable[[Forger], None], str]] = {
    **{f"dataset: {name}": (_in_file(change), f"segment 0: .*{message}") for name, (change, message) in _FILES.items()},
    **{
        f"file: {name}": (
            lambda forger, data=data: forger.put("segment.h5", data),
            "cannot be read by the HDF5 library",
        )
        for name, data in _BYTES.items()
    },
}
