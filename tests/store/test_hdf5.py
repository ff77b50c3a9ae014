"""What is particular to HDF5: plain h5py reads it, damage is told by array, and files made to do harm are refused."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import zstandard
from store_builder import SEGMENT, Content, make_contents, make_spec, write_store

from headatlas.store.containers import shard
from headatlas.store.containers.fletcher32 import fletcher32
from headatlas.store.errors import CorruptSegmentError, FormatError
from headatlas.store.life.verify import verify_store
from headatlas.store.store import open_store

QUERY = "decoder/query"


@pytest.fixture
def container() -> str:
    """HDF5 alone."""
    return "hdf5"


def file_of(store_path: Path, segment: str = SEGMENT) -> Path:
    return store_path / segment / "segment.h5"


def test_plain_h5py_reads_every_array(store_path: Path) -> None:
    segment = open_store(store_path).segments[0]
    with h5py.File(file_of(store_path)) as file:
        found: dict[str, h5py.Dataset] = {}
        file.visititems(lambda name, node: found.update({name: node}) if isinstance(node, h5py.Dataset) else None)
        assert set(found) == set(segment.layouts)
        for name, node in found.items():
            assert np.array_equal(node[...], segment.read(name)), name
            assert node.attrs["axes"].decode().split() == list(segment.layouts[name].axes)
            assert node.fletcher32
            assert not node.id.get_create_plist().get_obj_track_times()


def test_chunks_of_the_library_are_read(store_path: Path, forge: Callable[..., Path], contents: list[Content]) -> None:
    """Compressed by the plug-in's own encoder, with its own checksums, in other chunks."""
    data = contents[0].arrays[QUERY]

    def replace(file: h5py.File) -> None:
        file.create_dataset(QUERY, data=data, chunks=(1, 3, 4, 8), fletcher32=True, compression=hdf5plugin.Zstd())

    forge_file(forge, store_path, replace)
    assert np.array_equal(open_store(store_path).segments[0].read(QUERY), data)


@pytest.mark.parametrize("n_bytes", [0, 1, 2, 3, 7, 720, 721, 131_071, 131_072, 131_074, 300_001])
@pytest.mark.parametrize("kind", ["random", "zeros", "ones"])
def test_fletcher32_is_the_librarys(tmp_path: Path, n_bytes: int, kind: str) -> None:
    rng = np.random.default_rng(n_bytes)
    data = {"random": rng.integers(0, 256, n_bytes), "zeros": np.zeros(n_bytes), "ones": np.full(n_bytes, 255)}[kind]
    body = data.astype(np.uint8).tobytes()
    if not body:
        assert fletcher32(body) == 0
        return
    with h5py.File(tmp_path / "one.h5", "w") as file:
        made = file.create_dataset("x", data=np.frombuffer(body, np.uint8), chunks=(n_bytes,), fletcher32=True)
        _, stored = made.id.read_direct_chunk((0,))
    assert int.from_bytes(stored[-4:], "little") == fletcher32(body)


def test_a_damaged_chunk_names_array_and_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "CHUNK_ROWS", 8)
    contents = make_contents(make_spec(), n_segments=1, n_examples=6)
    write_store(tmp_path / "traces", contents, container="hdf5")
    store = open_store(tmp_path / "traces")
    segment, path = store.segments[0], file_of(tmp_path / "traces")
    with h5py.File(path) as file:
        dataset = file["decoder/edge_key"]
        rows = dataset.chunks[2]
        at = dataset.id.get_chunk_info_by_coord((1, 0, rows, 0)).byte_offset
    data = bytearray(path.read_bytes())
    data[at + 8] ^= 16
    path.write_bytes(data)
    offset = segment.token_offset("source")
    first = int(np.searchsorted(offset, rows, side="right")) - 1
    last = int(np.searchsorted(offset, 2 * rows, side="left")) - 1
    where = rf"segment\.h5: decoder/edge_key, chunk at \(1, 0, {rows}, 0\).*Examples {first} to {last} are touched"
    with pytest.raises(CorruptSegmentError, match=where):
        segment.read("decoder/edge_key")
    whole = contents[0].arrays["decoder/edge_key"]
    assert np.array_equal(segment.read("decoder/edge_key", (1, 0, slice(0, rows))), whole[1, 0, :rows])
    (finding,) = verify_store(tmp_path / "traces", full=True).findings
    assert finding.object == f"{SEGMENT}/segment.h5"
    assert (finding.first_example, finding.last_example) == (first, last)


def forge_file(forge: Callable[..., Path], store_path: Path, change: Callable[[h5py.File], object]) -> None:
    """Replace the query dataset, and seal listing and manifest with the right hashes."""
    path = file_of(store_path)
    with h5py.File(path, "r+") as file:
        del file[QUERY]
        change(file)
    forge({"segment.h5": path.read_bytes()})


SHAPE = (2, 4, 15, 8)
CHUNK = (1, 1, 15, 8)
ZEROS = np.zeros(SHAPE, "<f2")


def external_raw(file: h5py.File) -> None:
    file.create_dataset(QUERY, SHAPE, "<f2", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(SHAPE, "<f2")
    layout[...] = h5py.VirtualSource("/tmp/other.h5", "x", SHAPE)
    file.create_virtual_dataset(QUERY, layout)


def chunked(file: h5py.File, body: bytes | None, mask: int = 0, **options) -> None:
    """All chunks are `body` as it is stored; None leaves them out."""
    made = file.create_dataset(QUERY, SHAPE, "<f2", chunks=CHUNK, fletcher32=True, **options)
    for layer, head in np.ndindex(2, 4) if body is not None else ():
        made.id.write_direct_chunk((layer, head, 0, 0), body, mask)


def sealed(body: bytes) -> bytes:
    return body + fletcher32(body).to_bytes(4, "little")


FRAME = zstandard.ZstdCompressor().compress(bytes(240))
BOMB = zstandard.ZstdCompressor().compress(bytes(1 << 24))
FORGERIES = {
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
    "other order": (lambda f: f.create_dataset(QUERY, data=ZEROS.astype(">f2"), fletcher32=True), "listed is float16"),
    "other type": (lambda f: f.create_dataset(QUERY, data=ZEROS.astype("<f4"), fletcher32=True), "listed is float16"),
    "objects": (lambda f: f.create_dataset(QUERY, SHAPE, h5py.string_dtype()), "listed is float16"),
    "other shape": (lambda f: f.create_dataset(QUERY, data=ZEROS[:1], fletcher32=True), "listed is float16"),
    "huge shape": (lambda f: f.create_dataset(QUERY, (2**40, 4, 15, 8), "<f2", chunks=CHUNK), "listed is float16"),
    "chunks left out": (lambda f: chunked(f, None), "all of them present"),
    "filters left out": (lambda f: chunked(f, sealed(bytes(240)), mask=1), "leaves out a filter"),
    "wrong checksum": (lambda f: chunked(f, bytes(240) + b"abcd"), "fails its checksum"),
    "too short": (lambda f: chunked(f, sealed(bytes(238))), "238 bytes of data"),
    "too long": (lambda f: chunked(f, sealed(bytes(9999))), "is too long"),
    "bomb": (lambda f: chunked(f, sealed(BOMB), compression=hdf5plugin.Zstd()), "does not declare 240"),
    "two frames": (lambda f: chunked(f, sealed(FRAME + FRAME), compression=hdf5plugin.Zstd()), "cannot be decompr"),
    "no frame": (lambda f: chunked(f, sealed(bytes(99)), compression=hdf5plugin.Zstd()), "cannot be decompressed"),
}


@pytest.mark.fault("hostile HDF5 file")
@pytest.mark.parametrize(("change", "message"), FORGERIES.values(), ids=FORGERIES)
def test_forged_datasets(forge: Callable[..., Path], store_path: Path, change, message: str) -> None:
    forge_file(forge, store_path, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((FormatError, CorruptSegmentError), match=f"segment 0: .*decoder/query.*{message}"):
        open_store(store_path).segments[0].read(QUERY)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.fault("hostile HDF5 file")
@pytest.mark.parametrize("data", [b"", b"PK", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(5000)])
def test_files_that_are_no_hdf5(forge: Callable[..., Path], store_path: Path, data: bytes) -> None:
    forge({"segment.h5": data})
    with pytest.raises(CorruptSegmentError, match=r"segment\.h5: cannot be read by the HDF5 library"):
        open_store(store_path).segments[0].tokens()


@pytest.mark.parametrize("n_files", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_metadata_of_a_stranger(
    forge: Callable[..., Path], store_path: Path, contents: list[Content], n_files: int, fault_case
) -> None:
    """Bytes changed outside the chunks, and sealed: refused or equal, and the library survives it."""
    path = file_of(store_path)
    original = path.read_bytes()
    with h5py.File(path) as file:
        nodes: list[h5py.Dataset] = []
        file.visititems(lambda name, node: nodes.append(node) if isinstance(node, h5py.Dataset) else None)
        inside = np.zeros(len(original), bool)
        for node in nodes:
            for i in range(node.id.get_num_chunks()):
                info = node.id.get_chunk_info(i)
                inside[info.byte_offset : info.byte_offset + info.size] = True
    outside, rng, refused = np.flatnonzero(~inside), np.random.default_rng(8), 0
    for _ in range(n_files):
        data = bytearray(original)
        for at in rng.choice(outside, rng.integers(1, 4)):
            data[at] = int(rng.integers(0, 256))
        forge({"segment.h5": bytes(data)})
        segment = open_store(store_path).segments[0]
        with fault_case("HDF5 metadata changed and sealed"):
            try:
                for name, expected in contents[0].arrays.items():
                    assert np.array_equal(segment.read(name), expected)
            except (CorruptSegmentError, FormatError):
                refused += 1
    assert refused > n_files / 4


def test_links_and_special_files(store_path: Path, tmp_path: Path) -> None:
    path = file_of(store_path)
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match=r"segment\.h5 is a link"):
        open_store(store_path).segments[0].tokens()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FormatError, match=r"segment\.h5 is a link or a special file"):
        open_store(store_path).segments[0].tokens()


def test_a_file_lost_after_opening_is_noticed(store_path: Path) -> None:
    segment = open_store(store_path).segments[0]
    segment.tokens()
    segment.read(QUERY)
    file_of(store_path).unlink()
    for name in (QUERY, "decoder/key"):
        with pytest.raises(CorruptSegmentError, match=r"segment\.h5.*Examples 0 to 3 are touched"):
            segment.read(name)


@pytest.mark.fault("disk full below the HDF5 library")
@pytest.mark.parametrize("limit", [0, 1_000, 10_000, 20_000])
def test_a_full_disk_below_the_library(tmp_path: Path, contents: list[Content], limit: int) -> None:
    """The file cannot grow past `limit` bytes: an error, nothing committed, and room enough ends well."""
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from store_builder import make_contents, make_spec, open_writer
contents = make_contents(make_spec(), seed=1, n_segments=3)
writer = open_writer(Path(sys.argv[1]), contents, container="hdf5")
import h5py, hdf5plugin
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    writer.write(0, 0, contents[0].tables, contents[0].arrays)
except (OSError, RuntimeError) as error:
    print(type(error).__name__)
"""
    path = tmp_path / "traces"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("OSError\n", "RuntimeError\n")
    assert open_store(path).n_examples == 0
    write_store(path, contents, container="hdf5")
    assert verify_store(path, full=True).is_sound
