"""Stores made to do harm: each is refused with a clear error, before memory is taken or a file outside is touched.

All are consistent in themselves: listing and manifest carry the right hashes of what was forged.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zstandard
from store_builder import SEGMENT, only_zarr, seal_manifest

from headatlas.store.errors import CorruptSegmentError, FormatError
from headatlas.store.manifest import manifest_name, read_manifest
from headatlas.store.store import open_store

QUERY = "decoder/query/zarr.json"


@pytest.fixture(autouse=True)
def _cheap() -> Iterator[None]:
    """No forgery may cost more than 256 MiB or two seconds."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10
    assert time.process_time() - start < 10


def read_tables(path: Path) -> None:
    segment = open_store(path).segments[0]
    segment.tokens()
    segment.texts()
    segment.read("decoder/query")


def edit(path: Path, name: str, change: Callable[[dict], None]) -> dict[str, bytes]:
    document = json.loads((path / SEGMENT / name).read_bytes())
    change(document)
    return {name: json.dumps(document).encode()}


def sharding(document: dict) -> dict:
    return document["codecs"][0]["configuration"]


METADATA = {
    "pickle codec": lambda d: sharding(d)["codecs"].insert(1, {"name": "numcodecs.pickle"}),
    "unknown codec": lambda d: d["codecs"].append({"name": "evil"}),
    "no checksum": lambda d: sharding(d)["codecs"].pop(),
    "index without checksum": lambda d: sharding(d)["index_codecs"].pop(),
    "other fill": lambda d: d.update(fill_value=1.0),
    "other keys": lambda d: d.update(chunk_key_encoding={"name": "v2"}),
    "zarr v2": lambda d: d.update(zarr_format=2),
    "other type": lambda d: d.update(data_type="float32"),
    "other shape": lambda d: d.update(shape=[2, 4, 10**6, 8]),
    "transformers": lambda d: d.update(storage_transformers=[{"name": "x"}]),
    "huge chunk": lambda d: (
        sharding(d).update(chunk_shape=[1, 1, 2**40, 8]),
        d["chunk_grid"]["configuration"].update(chunk_shape=[1, 4, 2**40, 8]),
    ),
    "zero chunk": lambda d: sharding(d).update(chunk_shape=[1, 1, 0, 8]),
    "negative chunk": lambda d: sharding(d).update(chunk_shape=[1, 1, -5, 8]),
    "chunk of text": lambda d: sharding(d).update(chunk_shape=["1", "1", "5", "8"]),
    "chunks that do not divide": lambda d: sharding(d).update(chunk_shape=[1, 1, 4, 8]),
    "fewer axes": lambda d: sharding(d).update(chunk_shape=[1, 1]),
    "no codecs": lambda d: d.update(codecs=[]),
    "an array of arrays": lambda d: d.update(codecs={"name": "x"}),
}


@only_zarr
@pytest.mark.parametrize("change", METADATA.values(), ids=METADATA)
def test_forged_array_metadata(forge, store_path: Path, change) -> None:
    forge(edit(store_path, QUERY, change))
    with pytest.raises(FormatError, match=r"segment 0: decoder/query: zarr\.json"):
        open_store(store_path).segments[0].read("decoder/query")


@only_zarr
@pytest.mark.parametrize("data", [b"", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"1e999", b"{}" * 2])
def test_documents_that_are_no_documents(forge, store_path: Path, data: bytes) -> None:
    forge({QUERY: data})
    with pytest.raises(FormatError, match=r"zarr\.json"):
        open_store(store_path).segments[0].read("decoder/query")
    body = b"," + data
    (store_path / manifest_name(4)).write_bytes(
        b'{"checksum": "' + hashlib.sha256(body).hexdigest().encode() + b'"' + body
    )
    with pytest.raises(FormatError, match=r"manifest-000004\.json cannot be read"):
        open_store(store_path)


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "a/../b", "a//b", ".hidden", "a\\b", "a/./b", "a\0b", "x" * 600, ""]
)
def test_paths_that_lead_out(forge, store_path: Path, name: str) -> None:
    forge(listing=lambda d: d["objects"].append({"path": name, "bytes": 1, "sha256": "0" * 64}))
    with pytest.raises(FormatError, match=r"segment 0: segment\.json.*is not allowed"):
        open_store(store_path).segments[0].tokens()


LISTINGS = {
    "array of 2^62": lambda d: next(a for a in d["arrays"] if a["path"] == "source/token/id").update(shape=[2**62]),
    "query of 2^40": lambda d: next(a for a in d["arrays"] if a["path"] == "decoder/query").update(
        shape=[2, 4, 2**40, 8]
    ),
    "object type": lambda d: d["arrays"][0].update(dtype="object"),
    "ten axes": lambda d: d["arrays"][0].update(shape=[1] * 10, axes=["a"] * 10),
    "listed twice": lambda d: d["objects"].append(d["objects"][0]),
    "not listed": lambda d: d["objects"].remove(
        next(o for o in d["objects"] if o["path"] == "decoder/query/c/0/0/0/0")
    ),
    "no metadata": lambda d: d["objects"].remove(next(o for o in d["objects"] if o["path"] == QUERY)),
    "array gone": lambda d: d["arrays"].remove(next(a for a in d["arrays"] if a["path"] == "decoder/query")),
    "newer": lambda d: d.update(format_version=2),
    "other segment": lambda d: d.update(index=1),
    "other tokens": lambda d: d.update(n_tokens={"source": 3}),
    "unknown key": lambda d: d.update(run="this"),
    "negative size": lambda d: d["objects"][0].update(bytes=-1),
}


@pytest.mark.parametrize("change", LISTINGS.values(), ids=LISTINGS)
def test_forged_listings(forge, store_path: Path, container: str, change) -> None:
    if container == "hdf5" and change in (LISTINGS["not listed"], LISTINGS["no metadata"]):
        change = lambda d: d["objects"].clear()  # noqa: E731  there is one object
    forge(listing=change)
    with pytest.raises(FormatError, match="segment 0"):
        read_tables(store_path)


def test_an_unknown_container(forge, store_path: Path) -> None:
    forge(listing=lambda d: d.update(container="pickle"))
    with pytest.raises(FormatError, match="unknown container 'pickle'"):
        open_store(store_path).segments[0].tokens()


MANIFESTS = {
    "newer": (lambda m: m.update(format_version=9, surprise=1), "version 9; this headatlas reads .* up to version 1"),
    "another format": (lambda m: m.update(format="parquet"), "format 'parquet'"),
    "unknown key": (lambda m: m.update(run="this"), "run: "),
    "path": (lambda m: m["segments"][0].update(path="../secret"), "expected 'segments/000000'"),
    "overlap": (lambda m: m["segments"][1].update(first_example=1), "overlaps"),
    "twice": (lambda m: m["segments"].append(m["segments"][0]), "out of order"),
    "no site": (lambda m: m["spec"].update(sites=[]), "expected at least one"),
    "renamed": (lambda m: m.update(number=2), "renamed"),
    "zero heads": (lambda m: m["spec"]["sites"][0].update(n_heads=0), "n_heads"),
}


@pytest.mark.parametrize(("change", "message"), MANIFESTS.values(), ids=MANIFESTS)
def test_forged_manifests(store_path: Path, change, message: str) -> None:
    seal_manifest(store_path, change)
    with pytest.raises(FormatError, match=message):
        open_store(store_path)


@pytest.mark.parametrize("heads", [2**40, 10**6])
def test_shapes_that_the_specification_makes_up(store_path: Path, heads: int) -> None:
    """Larger than what the segments list."""
    seal_manifest(store_path, lambda m: m["spec"]["sites"][0].update(n_heads=heads))
    store = open_store(store_path)
    for read in (store.statistics, store.examples[0].attention, lambda: store.examples[0].edges(0)):
        with pytest.raises(FormatError, match=r"array decoder/attention is listed as"):
            read()


@only_zarr
def test_links_and_special_files(store_path: Path, tmp_path: Path) -> None:
    """A link to a file of the same size, to a folder, in place of the segment; a pipe."""
    victim = store_path / SEGMENT / "decoder/query/c/0/0/0/0"
    secret = tmp_path / "secret"
    shutil.move(victim, secret)
    victim.symlink_to(secret)
    with pytest.raises(FormatError, match=r"c/0/0/0/0 is a link"):
        open_store(store_path).segments[0].tokens()
    victim.unlink()
    os.mkfifo(victim)
    with pytest.raises(FormatError, match=r"c/0/0/0/0 is a link or a special file"):
        open_store(store_path).segments[0].tokens()
    victim.unlink()
    shutil.move(secret, victim)
    for name in (f"{SEGMENT}/decoder/query", f"{SEGMENT}/decoder", SEGMENT, "segments"):
        shutil.move(store_path / name, tmp_path / "elsewhere")
        (store_path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FormatError, match="is a link or a file; expected a folder"):
            open_store(store_path).segments[0].tokens()
        (store_path / name).unlink()
        shutil.move(tmp_path / "elsewhere", store_path / name)
    manifest = store_path / manifest_name(3)
    shutil.move(manifest, tmp_path / "manifest")
    manifest.symlink_to(tmp_path / "manifest")
    with pytest.raises(FormatError, match="cannot be opened"):
        open_store(store_path)


def crc(data: bytes) -> bytes:
    return data + struct.pack("<I", google_crc32c.value(data))


def bomb(content: int, declared: bool) -> bytes:
    """A frame of some hundred bytes that holds `content` zeros, and says so or not."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=declared)
    engine = compressor.compressobj(size=content if declared else -1)
    block = bytes(1 << 24)
    return b"".join(engine.compress(block) for _ in range(content >> 24)) + engine.flush()


@only_zarr
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize(("content", "message"), [(1 << 28, "too long"), (1 << 24, "does not declare")])
def test_chunks_that_expand(forge, store_path: Path, declared: bool, content: int, message: str) -> None:
    """Megabytes to gigabytes out of a token table and out of a shard."""
    frame = crc(bomb(content, declared))
    index = struct.pack("<8Q", 0, len(frame), *[2**64 - 1] * 6)
    forge({"source/token/id/c/0": frame, "decoder/attention/c/0/0/0": frame + crc(index)})
    segment = open_store(store_path).segments[0]
    with pytest.raises(CorruptSegmentError, match=f"source/token/id/c/0: a chunk.*{message}"):
        segment.tokens()
    with pytest.raises(CorruptSegmentError, match=f"decoder/attention/c/0/0/0: a chunk.*{message}"):
        segment.read("decoder/attention", (0, 0))


@only_zarr
def test_two_frames_in_a_chunk(forge, store_path: Path) -> None:
    """The second is what a decoder that reads on would expand."""
    first = zstandard.ZstdCompressor().compress(bytes(60))
    forge({"source/token/id/c/0": crc(first + zstandard.ZstdCompressor().compress(bytes(1 << 24)))})
    with pytest.raises(CorruptSegmentError, match="source/token/id/c/0: a chunk cannot be decompressed"):
        open_store(store_path).segments[0].tokens()


@only_zarr
@pytest.mark.parametrize(
    ("offset", "n_bytes", "message"),
    [
        (2**64 - 1, 2**64 - 1, "absent"),
        (2**63, 100, "outside"),
        (0, 2**62, "too long"),
        (0, 3, "checksum"),
        (0, 0, "checksum"),
    ],
)
def test_indices_that_point_elsewhere(forge, store_path: Path, offset: int, n_bytes: int, message: str) -> None:
    name = "decoder/query/c/0/0/0/0"
    data = (store_path / SEGMENT / name).read_bytes()
    index = struct.pack("<2Q", offset, n_bytes) + data[-(16 * 4 + 4) :][16:-4]
    forge({name: data[: -(16 * 4 + 4)] + crc(index)})
    segment = open_store(store_path).segments[0]
    with pytest.raises(CorruptSegmentError, match=message):
        segment.read("decoder/query", (0, 0))
    assert segment.read("decoder/query", (0, 1)).any()


@only_zarr
def test_a_shard_of_a_trillion_chunks(forge, store_path: Path) -> None:
    """Small chunks in a huge shard: its index alone would take terabytes."""

    def change(document: dict) -> None:
        document["chunk_grid"]["configuration"]["chunk_shape"] = [1, 4, 2**44, 8]
        sharding(document)["chunk_shape"] = [1, 1, 1, 8]

    forge(edit(store_path, QUERY, change))
    with pytest.raises(CorruptSegmentError, match="cannot hold an index of"):
        open_store(store_path).segments[0].read("decoder/query")


TABLES = {
    "falling offsets": ("example/text_offset", np.array([0, 9, 3, 1, 20], "i8"), "does not rise"),
    "offsets past the end": ("example/text_offset", np.array([0, 1, 2, 3, 10**12], "i8"), "does not rise"),
    "codes outside": ("source/token/column/text/code", np.full(15, 99, "i4"), "outside the"),
    "negative codes": ("source/token/column/text/code", np.full(15, -2, "i4"), "outside the"),
    "tokens past the end": ("source/token_offset", np.array([0, 1, 2, 3, 99], "i8"), "does not rise"),
}


@only_zarr
@pytest.mark.parametrize(("name", "data", "message"), TABLES.values(), ids=TABLES)
def test_tables_that_point_outside_themselves(
    forge, store_path: Path, name: str, data: np.ndarray, message: str
) -> None:
    forge({f"{name}/c/0": crc(zstandard.ZstdCompressor().compress(data.tobytes()))})
    with pytest.raises(FormatError, match=message):
        read_tables(store_path)


@only_zarr
def test_text_that_is_not_utf8(forge, store_path: Path) -> None:
    n_bytes = open_store(store_path).segments[0].array("example/id").shape[0]
    forge({"example/id/c/0": crc(zstandard.ZstdCompressor().compress(b"\xff" * n_bytes))})
    with pytest.raises(FormatError, match="not UTF-8"):
        open_store(store_path).example_ids()


@only_zarr
def test_the_forger_can_also_do_nothing(forge, store_path: Path) -> None:
    """Else the tests above might pass for the wrong reason."""
    forge(edit(store_path, QUERY, lambda d: None))
    assert open_store(store_path).segments[0].read("decoder/query").any()
    assert read_manifest(store_path)[0].number == 3
