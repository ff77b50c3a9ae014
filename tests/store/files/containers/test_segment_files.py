"""A segment is two files in either container. Segments of earlier releases, which are folders, are read and changed too."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
from segment_objects import flip_bit, object_of, unpack_store
from store_builder import Content, only_zarr, segment_bytes, write_store

from headatlas.store.files.containers import zip_archive
from headatlas.store.files.containers.container import FILES_OF_A_SEGMENT
from headatlas.store.store import open_store
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.merge import merge_stores
from headatlas.store.writing.verification import verify_store


def test_a_segment_and_an_overlay_are_two_files(store_path: Path) -> None:
    open_store(store_path).annotate("mark", {0: 1})
    for kind in ("segments", "overlays"):
        for folder in (store_path / kind).iterdir():
            assert len([file for file in folder.rglob("*") if file.is_file()]) == FILES_OF_A_SEGMENT == 2


@only_zarr
def test_objects_lie_where_the_listing_says(store_path: Path) -> None:
    segment = open_store(store_path).segments[0]
    with zipfile.ZipFile(segment.folder / "segment.zip") as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [item.path for item in segment.listing.objects]
        content = (segment.folder / "segment.zip").read_bytes()
        for item in segment.listing.objects:
            assert item.offset is not None
            assert content[item.offset : item.offset + item.bytes] == archive.read(item.path)


def test_large_objects_begin_at_a_block_and_archives_may_be_large(
    tmp_path: Path, contents: list[Content], monkeypatch
) -> None:
    """With low limits every entry is aligned, and the directory has the ZIP64 form."""
    monkeypatch.setattr(zip_archive, "ALIGNED_BYTES", 1)
    monkeypatch.setattr(zip_archive, "_MAX_32", 1 << 14)
    monkeypatch.setattr(zip_archive, "_MAX_16", 10)
    write_store(tmp_path / "traces", contents[:1])
    segment = open_store(tmp_path / "traces").segments[0]
    assert all(item.offset is not None and item.offset % 4096 == 0 for item in segment.listing.objects if item.bytes)
    start = segment.listing.archive.bytes - 22 - 20 - 56  # type: ignore[union-attr]
    assert (segment.folder / "segment.zip").read_bytes()[start : start + 4] == b"PK\x06\x06"
    for name, data in contents[0].arrays.items():
        assert np.array_equal(segment.read(name), data), name


@only_zarr
def test_bytes_outside_the_objects_are_verified(store_path: Path) -> None:
    """A changed header misleads other readers. Reading the arrays is not affected, so no example is touched."""
    archive = store_path / "segments/000001/segment.zip"
    data = bytearray(archive.read_bytes())
    data[14] ^= 1  # the CRC-32 of the first entry
    archive.write_bytes(data)
    assert verify_store(store_path).is_sound
    (finding,) = verify_store(store_path, full=True).findings
    assert (finding.object, finding.first_example) == ("segments/000001/segment.zip", None)
    assert "outside its objects was changed" in finding.problem


def data_files(path: Path) -> dict[str, bytes]:
    """Read every file of the segments except the listings, which `unpack_store` formats otherwise."""
    return {name: data for name, data in segment_bytes(path).items() if not name.endswith("segment.json")}


@only_zarr
def test_folders_of_earlier_releases(store_path: Path, tmp_path: Path, contents: list[Content]) -> None:
    """They read the same numbers, and every operation works on them."""
    expected = {name: segment.read(name) for segment in open_store(store_path).segments[:1] for name in segment.layouts}
    archived = segment_bytes(store_path)
    unpack_store(store_path)
    store = open_store(store_path)
    assert store.segments[0].listing.archive is None
    for name, data in expected.items():
        assert np.array_equal(store.segments[0].read(name), data, equal_nan=True), name
    assert verify_store(store_path, full=True).is_sound
    convert_store(store_path, tmp_path / "h5", "hdf5")
    convert_store(tmp_path / "h5", tmp_path / "zip", "zarr")
    assert segment_bytes(tmp_path / "zip") == archived
    copy = Path(shutil.copytree(store_path, tmp_path / "copy"))
    merge_stores([store_path, copy], tmp_path / "merged")
    assert data_files(tmp_path / "merged") == data_files(store_path)
    drop_from_store(store_path, examples=[0])
    assert open_store(store_path).segments[0].listing.archive is not None
    assert open_store(store_path).segments[1].listing.archive is None
    flip_bit(store_path / "segments/000001", "decoder/edge_key/c/0/0/0/0", 72)
    (finding,) = verify_store(store_path, full=True).findings
    assert finding.object == "segments/000001/decoder/edge_key/c/0/0/0/0"
    assert "offset" not in object_of(store_path / "segments/000001", "decoder/edge_key/c/0/0/0/0")
