"""Properties of the HDF5 container: plain h5py reads it, damage names the array, and malicious files are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from store_builder import SEGMENT, Content, make_contents, make_spec, write_store

from headatlas.store.errors import CorruptSegmentError, FormatError
from headatlas.store.files.containers import shard_writer as shard
from headatlas.store.files.containers.shard_writer import checksum_bytes
from headatlas.store.store import open_store
from headatlas.store.writing.verification import verify_store

QUERY = "decoder/query"


@pytest.fixture
def container() -> str:
    """Run the tests with HDF5 only."""
    return "hdf5"


def file_of(store_path: Path, segment: str = SEGMENT) -> Path:
    return store_path / segment / "segment.h5"


def test_plain_h5py_reads_every_array(store_path: Path) -> None:
    segment = open_store(store_path).segments[0]
    with h5py.File(file_of(store_path)) as file:
        datasets: dict[str, h5py.Dataset] = {}
        file.visititems(lambda name, node: datasets.update({name: node}) if isinstance(node, h5py.Dataset) else None)
        assert set(datasets) == set(segment.layouts)
        for name, node in datasets.items():
            assert np.array_equal(node[...], segment.read(name)), name
            assert node.attrs["axes"].decode().split() == list(segment.layouts[name].axes)
            assert node.fletcher32
            assert not node.id.get_create_plist().get_obj_track_times()


def test_chunks_of_the_library_are_read(store_path: Path, forge: Callable[..., Path], contents: list[Content]) -> None:
    """The reader accepts chunks of another shape that the HDF5 plugin compressed and checksummed."""
    data = contents[0].arrays[QUERY]

    def replace(file: h5py.File) -> None:
        file.create_dataset(QUERY, data=data, chunks=(1, 3, 4, 8), fletcher32=True, compression=hdf5plugin.Zstd())

    forge_file(forge, store_path, replace)
    assert np.array_equal(open_store(store_path).segments[0].read(QUERY), data)


@pytest.mark.parametrize("n_bytes", [0, 1, 2, 3, 7, 720, 721, 131_071, 131_072, 131_074, 300_001])
@pytest.mark.parametrize("kind", ["random", "zeros", "ones"])
def test_fletcher32_equals_that_of_the_library(tmp_path: Path, n_bytes: int, kind: str) -> None:
    rng = np.random.default_rng(n_bytes)
    data = {"random": rng.integers(0, 256, n_bytes), "zeros": np.zeros(n_bytes), "ones": np.full(n_bytes, 255)}[kind]
    body = data.astype(np.uint8).tobytes()
    if not body:
        assert checksum_bytes(body, "fletcher32") == bytes(4)
        return
    with h5py.File(tmp_path / "one.h5", "w") as file:
        dataset = file.create_dataset("x", data=np.frombuffer(body, np.uint8), chunks=(n_bytes,), fletcher32=True)
        _, stored = dataset.id.read_direct_chunk((0,))
    assert stored[-4:] == checksum_bytes(body, "fletcher32")


def test_a_damaged_chunk_names_array_and_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "CHUNK_ROWS", 8)
    contents = make_contents(make_spec(), n_segments=1, n_examples=6)
    write_store(tmp_path / "traces", contents, container="hdf5")
    store = open_store(tmp_path / "traces")
    segment, path = store.segments[0], file_of(tmp_path / "traces")
    with h5py.File(path) as file:
        dataset = file["decoder/edge_key"]
        rows = dataset.chunks[2]
        byte = dataset.id.get_chunk_info_by_coord((1, 0, rows, 0)).byte_offset
    data = bytearray(path.read_bytes())
    data[byte + 8] ^= 16
    path.write_bytes(data)
    offset = segment.token_offset("source")
    first = int(np.searchsorted(offset, rows, side="right")) - 1
    last = int(np.searchsorted(offset, 2 * rows, side="left")) - 1
    message = rf"segment\.h5: decoder/edge_key, chunk at \(1, 0, {rows}, 0\).*Examples {first} to {last} are touched"
    with pytest.raises(CorruptSegmentError, match=message):
        segment.read("decoder/edge_key")
    expected = contents[0].arrays["decoder/edge_key"]
    assert np.array_equal(segment.read("decoder/edge_key", (1, 0, slice(0, rows))), expected[1, 0, :rows])
    (finding,) = verify_store(tmp_path / "traces", full=True).findings
    assert finding.object == f"{SEGMENT}/segment.h5"
    assert (finding.first_example, finding.last_example) == (first, last)


def forge_file(forge: Callable[..., Path], store_path: Path, change: Callable[[h5py.File], object]) -> None:
    """Replace the query dataset, and update the hashes in listing and manifest."""
    path = file_of(store_path)
    with h5py.File(path, "r+") as file:
        del file[QUERY]
        change(file)
    forge({"segment.h5": path.read_bytes()})


def test_links_and_special_files(store_path: Path, tmp_path: Path) -> None:
    path = file_of(store_path)
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match=r"segment\.h5 cannot be opened: it is a link"):
        open_store(store_path).segments[0].tokens()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FormatError, match=r"it is a link or a special file"):
        open_store(store_path).segments[0].tokens()


def test_a_file_removed_after_opening_is_reported(store_path: Path) -> None:
    segment = open_store(store_path).segments[0]
    segment.tokens()
    segment.read(QUERY)
    file_of(store_path).unlink()
    for name in (QUERY, "decoder/key"):
        with pytest.raises(CorruptSegmentError, match=r"segment\.h5.*Examples 0 to 3 are touched"):
            segment.read(name)
