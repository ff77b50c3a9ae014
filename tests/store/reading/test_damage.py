"""Reading and verify detect all damage of committed objects. Verify names the object and the examples."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from segment_objects import change_object, flip_bit, object_of, read_object, unpack_store
from store_builder import Content, make_contents, make_spec, only_zarr, write_store

from headatlas.store.errors import CorruptSegmentError, HeadAtlasError
from headatlas.store.files.containers import shard_reader as shard_read
from headatlas.store.files.containers import shard_writer as shard
from headatlas.store.files.containers.shard_reader import read_shard_index
from headatlas.store.files.object_source import LocalFile
from headatlas.store.store import open_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.verification import verify_store


def objects(path: Path) -> list[Path]:
    """Files of the middle segment except its listing."""
    return sorted(p for p in (path / "segments/000001").rglob("*") if p.is_file() and p.name != "segment.json")


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


DAMAGES = {
    "missing": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
    "cut by one": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "cut in half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_presence_and_size_are_checked_before_reading(store_path: Path, damage: str) -> None:
    """The message names the object. `faults/damaged_objects.py` damages every object in turn."""
    files = objects(store_path)
    victim = files[len(files) // 2]
    DAMAGES[damage](victim)
    name = str(victim.relative_to(store_path / "segments/000001"))
    with pytest.raises(CorruptSegmentError, match=r"segment 1: object .*[Ee]xamples 4 to 7 are touched") as caught:
        open_store(store_path).segments[1].tokens()
    assert name in str(caught.value)
    (finding,) = verify_store(store_path).findings
    assert finding.object == f"segments/000001/{name}"
    assert (finding.segment, finding.first_example, finding.last_example) == (1, 4, 7)


def test_damage_in_a_segment_whose_examples_were_all_dropped(store_path: Path) -> None:
    """Its arrays have no items and no chunks, but verify checks the hashes of its files."""
    drop_from_store(store_path, examples=[4, 5, 6, 7])
    folder = open_store(store_path).segments[1].folder
    for victim in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "segment.json"):
        whole = victim.read_bytes()
        flip(victim, 4 * len(whole))
        (finding,) = verify_store(store_path, full=True).findings
        assert (finding.segment, finding.object) == (1, str(victim.relative_to(store_path)))
        victim.write_bytes(whole)


@pytest.mark.parametrize("byte", [5, 12, 20], ids=["frame", "block", "data"])
def test_a_damaged_chunk_names_its_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte: int) -> None:
    """Examples 2 and 3 share the damaged chunk. The other examples stay readable."""
    monkeypatch.setattr(shard, "CHUNK_ROWS", 8)
    contents = make_contents(make_spec(), n_segments=1, n_examples=6)
    write_store(tmp_path / "traces", contents)
    store = open_store(tmp_path / "traces")
    segment, offset = store.segments[0], store.segments[0].token_offset("source")
    name = "decoder/edge_key/c/0/0/0/0"
    item = object_of(segment.folder, name)
    grid = segment.reader._open("decoder/edge_key").grid  # type: ignore[attr-defined]
    rows = grid.chunk[2]
    with LocalFile(str(segment.folder / "segment.zip"), part=(item["offset"], item["bytes"])) as file:
        chunk_ranges = read_shard_index(file, grid)
    _, n_heads, per_head, _ = grid.chunks_per_shard
    flip_bit(
        segment.folder, name, 8 * (int(chunk_ranges[n_heads * per_head + 1, 0]) + byte)
    )  # the second chunk of head 0 of layer 1
    first = int(np.searchsorted(offset, rows, side="right")) - 1
    last = int(np.searchsorted(offset, 2 * rows, side="left")) - 1
    assert 0 < last < 5
    with pytest.raises(
        CorruptSegmentError, match=f"edge_key/c/0/0/0/0: a chunk.*Examples {first} to {last} are touched"
    ):
        segment.read("decoder/edge_key")
    assert np.array_equal(
        segment.read("decoder/edge_key", (1, 0, slice(0, rows))), contents[0].arrays["decoder/edge_key"][1, 0, :rows]
    )
    (finding,) = verify_store(tmp_path / "traces", full=True).findings
    assert (finding.first_example, finding.last_example) == (first, last)


def test_swapped_objects_are_found_by_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards of equal size hold valid chunks. Only the hashes show that they were swapped."""
    monkeypatch.setattr(shard, "LAYERS_BYTES", 1)  # a shard for each layer
    write_store(tmp_path / "traces", make_contents(make_spec(), n_segments=1))
    folder = tmp_path / "traces/segments/000000"
    names = [f"decoder/query/c/{layer}/0/0/0" for layer in (0, 1)]
    first, second = (read_object(folder, name) for name in names)
    change_object(folder, names[0], lambda _: second)
    change_object(folder, names[1], lambda _: first)
    assert verify_store(tmp_path / "traces").is_sound
    damaged = {finding.problem.partition(" ")[0] for finding in verify_store(tmp_path / "traces", full=True).findings}
    assert damaged == set(names)


def test_a_missing_segment(store_path: Path) -> None:
    shutil.rmtree(store_path / "segments/000002")
    store = open_store(store_path)
    assert store.examples[0].id == "example-0"
    with pytest.raises(CorruptSegmentError, match="segments/000002 is missing"):
        store.example_ids()
    (finding,) = verify_store(store_path).findings
    assert (finding.first_example, finding.last_example) == (8, 11)


def test_a_listing_of_another_segment_is_refused(store_path: Path) -> None:
    """The segment.json is valid but belongs to another segment."""
    shutil.copy(store_path / "segments/000000/segment.json", store_path / "segments/000001/segment.json")
    with pytest.raises(CorruptSegmentError, match=r"segments/000001/segment\.json was truncated or changed"):
        open_store(store_path).segments[1].tokens()


def test_a_truncated_manifest_is_named_and_the_previous_opens(store_path: Path) -> None:
    newest = store_path / "manifest-000003.json"
    newest.write_bytes(newest.read_bytes()[:-40])
    with pytest.raises(CorruptSegmentError, match=r"manifest-000003\.json fails its checksum.*open_store"):
        open_store(store_path)
    assert len(open_store(store_path, manifest=2).segments) == 2
    result = verify_store(store_path)
    assert result.manifest == 2
    assert [finding.object for finding in result.findings] == ["manifest-000003.json"]


def test_every_byte_around_the_checksum_of_a_manifest_counts(store_path: Path) -> None:
    newest = store_path / "manifest-000003.json"
    whole = newest.read_bytes()
    for i in range(90):
        newest.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        with pytest.raises(CorruptSegmentError, match="fails its checksum"):
            open_store(store_path)


def test_a_changed_parent_is_detected(store_path: Path) -> None:
    """The changed manifest has a valid checksum. The chain of hashes detects the change."""
    from headatlas.store.files.manifest import read_manifest

    manifest, _ = read_manifest(store_path, 1)
    changed = manifest.model_copy(update={"created": "1970-01-01T00:00:00+00:00"})
    (store_path / "manifest-000001.json").write_bytes(changed.to_bytes())
    assert verify_store(store_path).is_sound
    assert [f.object for f in verify_store(store_path, full=True).findings] == ["manifest-000001.json"]


@only_zarr
def test_without_our_checks_zarr_reads_zeros(store_path: Path, contents: list[Content]) -> None:
    """Zarr reads missing chunks as zeros, so the store checks presence. A failure means that zarr has changed."""
    shutil.rmtree(unpack_store(store_path) / "segments/000000/decoder/query/c/0")
    group = zarr.open_group(store_path / "segments/000000", mode="r", zarr_format=3)
    assert not np.any(group["decoder/query"][0])
    assert np.any(contents[0].arrays["decoder/query"][0])


@only_zarr
def test_an_object_removed_after_opening_is_reported(store_path: Path) -> None:
    """The shard is removed after the check of presence and before its first read."""
    segment = open_store(store_path).segments[0]
    segment.tokens()
    os.unlink(segment.folder / "segment.zip")
    with pytest.raises(HeadAtlasError, match=r"object segment\.zip cannot be read.*Examples 0 to 3 are touched"):
        segment.read("decoder/key")


@only_zarr
def test_flips_after_the_first_read_are_detected(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every full or partial read compares chunks with their checksums."""
    segment = open_store(store_path).segments[0]
    expected = segment.read("decoder/query")
    name = "decoder/query/c/0/0/0/0"
    read_into, direct_reads = shard_read.read_into, []
    monkeypatch.setattr(shard_read, "read_into", lambda *args: direct_reads.append(args) or read_into(*args))
    for bit in range(0, 8 * 4 * 16, 61):
        flip_bit(segment.folder, name, bit)
        for tokens in (slice(0, 2), slice(None)):
            with pytest.raises(CorruptSegmentError, match="decoder/query/c/0/0/0/0"):
                segment.read("decoder/query", (0, slice(None), tokens))
        flip_bit(segment.folder, name, bit)
    assert direct_reads, "full chunks are read directly into the result"
    assert np.array_equal(segment.read("decoder/query"), expected)


@only_zarr
def test_zarrs_does_not_compare_checksums_of_parts(store_path: Path) -> None:
    """Zarrs skips the check, so the store decodes chunks itself. A failure means that zarrs could be the reader."""
    flip_bit(unpack_store(store_path) / "segments/000000", "decoder/query/c/0/0/0/0", 100)
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}):
        group = zarr.open_group(store_path / "segments/000000", mode="r", zarr_format=3)
        part = group["decoder/query"][0, 0:1, 0:2]
    assert np.isfinite(part).all()
    with pytest.raises(CorruptSegmentError, match="fails its checksum"):
        open_store(store_path).segments[0].read("decoder/query", (0, slice(0, 1), slice(0, 2)))
